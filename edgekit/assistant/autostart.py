"""Starting the assistant with the session: off until a person switches it on.

Linux and other XDG desktops read a ``.desktop`` file in the autostart folder; Windows reads a value
below ``HKEY_CURRENT_USER``. Both are the user's own and need no rights. Elsewhere it is not
supported, and says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.assistant.policy import Policy
from edgekit.atomic import disk_errors, write_text
from edgekit.errors import BadInputError, MissingRuntimeError

NAME = "edgekit-assistant"
RUN_KEY = r"Software\Microsoft\Windows\CurrentVersion\Run"
LONGEST_RUN = 260  # characters that Windows reads of a value of the Run key

# What the specification of .desktop files reserves in Exec; a word with one of them is quoted.
_RESERVED = frozenset(" \t\n\"'\\><~|&;$*?#()`")


def supported() -> bool:
    """Whether this system has a way to start programs with the session that we know."""
    return sys.platform == "win32" or (os.name == "posix" and sys.platform != "darwin")


def enabled() -> bool:
    """Whether the assistant starts with the session. Never raises."""
    if sys.platform == "win32":
        return _read_run_key() is not None
    return supported() and _is_active(desktop_file())


def enable(command: Sequence[str], policy: Policy) -> None:
    """Start ``command`` (the program's absolute path, then its arguments) with the session.

    Raises:
        BadInputError: the policy forbids it, or the command cannot be written there.
        MissingRuntimeError: this system is not supported.
        OutOfResourcesError: the disk is full.
    """
    if reason := policy.refuses_autostart():
        raise BadInputError(reason)
    if not command or not Path(command[0]).is_absolute():
        raise BadInputError("autostart: the program must be an absolute path; install edgekit")
    if any(ord(character) < 32 for word in command for character in word):
        raise BadInputError("autostart: the command has a control character; move the program")
    if sys.platform == "win32":
        _write_run_key(subprocess.list2cmdline(command))
        return
    if not supported():
        raise MissingRuntimeError(
            f"starting with the session is not supported on {sys.platform}; add "
            f"`{' '.join(command)}` to the login items of the system"
        )
    path = desktop_file()
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, desktop_entry(command))


def disable() -> None:
    """Do not start with the session any more; nothing happens where it does not.

    Raises:
        BadInputError: the entry cannot be removed.
    """
    if sys.platform == "win32":
        _remove_run_key()
    elif supported():
        path = desktop_file()
        with disk_errors(path):
            path.unlink(missing_ok=True)


def desktop_file() -> Path:
    """The file in the autostart folder of this user."""
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    # The specification ignores a relative folder.
    base = Path(configured) if Path(configured).is_absolute() else Path.home() / ".config"
    return base / "autostart" / f"{NAME}.desktop"


def desktop_entry(command: Sequence[str]) -> str:
    """The text of the file."""
    return (
        "[Desktop Entry]\n"
        "Type=Application\n"
        "Name=edgekit\n"
        "Comment=Private assistant on this computer\n"
        "Comment[zh_CN]=本机的私人助手\n"
        f"Exec={' '.join(_exec_word(word) for word in command)}\n"
        "Terminal=false\n"
        "StartupNotify=false\n"
        "X-GNOME-Autostart-enabled=true\n"
    )


def _exec_word(word: str) -> str:
    """A word of Exec: quoted, then escaped once more as every string of such a file is."""
    word = word.replace("%", "%%")
    if not word or _RESERVED & set(word):
        for character in '\\"`$':
            word = word.replace(character, f"\\{character}")
        word = f'"{word}"'
    return word.replace("\\", "\\\\")


def _is_active(path: Path) -> bool:
    """Whether a desktop starts it: it may have been hidden or switched off there by its tools."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    return (
        "Exec" in values
        and values.get("Hidden", "false").strip().lower() != "true"
        and values.get("X-GNOME-Autostart-enabled", "true").strip().lower() != "false"
    )


def _read_run_key() -> str | None:
    winreg = _winreg()
    try:
        with winreg.OpenKey(winreg.HKEY_CURRENT_USER, RUN_KEY) as key:
            return str(winreg.QueryValueEx(key, NAME)[0])
    except OSError:
        return None


def _write_run_key(line: str) -> None:
    if len(line) > LONGEST_RUN:
        raise BadInputError(
            f"autostart: the command has {len(line)} characters and Windows reads {LONGEST_RUN}; "
            "install edgekit at a shorter path"
        )
    winreg = _winreg()
    try:
        with winreg.CreateKey(winreg.HKEY_CURRENT_USER, RUN_KEY) as key:
            winreg.SetValueEx(key, NAME, 0, winreg.REG_SZ, line)
    except OSError as error:
        raise _registry_refused(error) from error


def _remove_run_key() -> None:
    winreg = _winreg()
    try:
        with winreg.OpenKey(winreg.HKEY_CURRENT_USER, RUN_KEY, 0, winreg.KEY_SET_VALUE) as key:
            winreg.DeleteValue(key, NAME)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _registry_refused(error) from error


def _registry_refused(error: OSError) -> BadInputError:
    return BadInputError(
        f"autostart: the registry refused HKCU\\{RUN_KEY} ({error.strerror}); ask whoever manages "
        "this computer"
    )


def _winreg() -> Any:
    import winreg  # of Windows alone

    return winreg
