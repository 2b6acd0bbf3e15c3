"""Where the key of a cloud model lies: the system's keyring if there is one, else a private file.

A key belongs to the address it was given for (scheme, host and port) and is never handed out for
another one, so that changing the address cannot send it to a stranger.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from edgekit.local.private import write_private_json

SERVICE = "edgekit"


class KeyStore:
    """One key, for one origin."""

    def __init__(self, path: Path, keyring: Any = None) -> None:
        """``path`` is the file that is used without a keyring.

        ``keyring`` is a module or object with the functions of the package ``keyring``; by
        default that package, if it is installed and finds a keyring of the system.
        """
        self._path = path
        self._keyring = _system_keyring() if keyring is None else keyring

    def get(self, origin: str) -> str:
        """The key for an origin such as "https://api.example.com", or ""."""
        if self._keyring is not None:
            try:
                found = self._keyring.get_password(SERVICE, origin)
            except Exception:  # a locked or broken keyring; its backends raise what they like
                found = None
            if found:
                return str(found)
        stored = self._file()
        return stored["key"] if stored.get("origin") == origin else ""

    def set(self, origin: str, key: str) -> None:
        """Keep the key for this origin, in the place of any other that lies in the file.

        Raises:
            BadInputError: it cannot be written.
            OutOfResourcesError: the disk is full.
        """
        if self._keyring is not None:
            try:
                self._keyring.set_password(SERVICE, origin, key)
            except Exception:  # the file takes what the keyring refuses
                pass
            else:
                self._path.unlink(missing_ok=True)
                return
        write_private_json(self._path, {"origin": origin, "key": key})

    def remove(self, origin: str) -> None:
        """Forget the key of an origin, wherever it lies."""
        if self._keyring is not None:
            with contextlib.suppress(Exception):  # there is none, or the keyring is locked
                self._keyring.delete_password(SERVICE, origin)
        self._path.unlink(missing_ok=True)

    def _file(self) -> dict[str, str]:
        try:
            value = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        texts = isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
        return value if texts and {"origin", "key"} <= set(value) else {}


def _system_keyring() -> Any:
    """The package ``keyring`` where it is installed and has a real keyring behind it."""
    try:
        import keyring
        from keyring.backends import fail
    except ImportError:
        return None
    return None if isinstance(keyring.get_keyring(), fail.Keyring) else keyring
