"""Where the assistant keeps what it keeps."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from edgekit.assistant.packs import system_roots


@dataclass(frozen=True)
class Folders:
    """Where everything lies: the data folder, the person's packs, folders of the machine's."""

    data: Path
    packs: Path
    system_packs: tuple[Path, ...] = ()

    @classmethod
    def of(cls, data_dir: Path | None) -> Folders:
        """The folders of this person, or everything below ``data_dir``."""
        if data_dir is not None:
            root = data_dir.expanduser().absolute()
            return cls(root, root / "packs", system_roots())
        root = platformdirs.user_data_path("edgekit", appauthor=False)
        return cls(root / "assistant", root / "packs", system_roots())

    def command(self) -> list[str]:
        """The command that starts this assistant again."""
        command = [sys.executable, "-m", "edgekit", "assistant"]
        return command if self == Folders.of(None) else [*command, "--data-dir", str(self.data)]
