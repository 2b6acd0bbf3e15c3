"""The history is opened whatever happened to it.

After an unclean stop (the mark of ``history_store`` is still there) the file is checked, which
SQLite's log makes a formality. A file that is damaged is not repaired in place: its readable rows
go into a new one (``salvage``), the damaged one is set aside beside it, and the report says what
was saved and what is known to be lost.

The steps survive a kill at any moment: the new file is finished under a name of its own before
anything is renamed, and a start that finds it there goes on with the renaming.
"""

from __future__ import annotations

import contextlib
import glob
import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from edgekit.assistant.history import History
from edgekit.assistant.history_index import check_index, rebuild_index
from edgekit.assistant.history_pages import MAGIC
from edgekit.assistant.history_schema import APPLICATION, MIGRATIONS, backups
from edgekit.assistant.history_store import DamagedError, Store, connect, explain, mark
from edgekit.assistant.salvage import salvage
from edgekit.atomic import disk_errors, sync_directory
from edgekit.errors import BadInputError

SALVAGED = ".salvaged"


@dataclass(frozen=True)
class RecoveryReport:
    """What became of a damaged history.

    Attributes:
        conversations, messages: how many were saved; ``cut`` of these messages lost their end.
        lost_conversations, lost_messages: how many are known to be lost, from what names them;
            there can be more where that is lost too.
        damaged: where the damaged file is kept.
        backups: older copies, oldest first.
    """

    conversations: int
    messages: int
    cut: int
    lost_conversations: int
    lost_messages: int
    damaged: Path
    backups: tuple[Path, ...]

    @property
    def saved(self) -> int:
        """Messages that were saved."""
        return self.messages

    @property
    def lost(self) -> int:
        """Messages that are known to be lost."""
        return self.lost_messages

    @property
    def backup(self) -> Path:
        """The file to keep: the damaged one."""
        return self.damaged


def open_history(
    path: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> tuple[History, RecoveryReport | None]:
    """Open a history, or make it, or save what can be read of it.

    Raises:
        BadInputError: it was written by a newer edgekit, is something else, or is not ours to
            write.
        OutOfResourcesError: the disk is full; everything is as it was.
    """
    salvaged = _salvaged(path)
    if salvaged is not None:
        _replace(path, salvaged)
    elif _is_damaged(path):
        _recover(path)
    try:
        history = History(path, clock)
    except DamagedError:
        _recover(path)
        history = History(path, clock)
    with history.write() as connection:
        return history, _take_report(connection, path)


def _is_damaged(path: Path) -> bool:
    log = _side(path, "-wal")
    if not path.exists():
        return log.exists() and log.stat().st_size > 0  # SQLite would add it to a new file
    with disk_errors(path), path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return True  # not shown to SQLite, which would remove the log of an empty file
    return mark(path).exists() and not _passes_checks(path)


def _passes_checks(path: Path) -> bool:
    """Whether SQLite finds nothing wrong; a wrong search index alone is made anew."""
    try:
        with contextlib.closing(connect(path)) as connection:
            if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
                return True  # not ours: refused later
            if connection.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
                return False
            _mend_index(connection)
            return True
    except sqlite3.Error as error:
        explained = explain(path, error)
        if isinstance(explained, DamagedError):
            return False
        raise explained from error


def _mend_index(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.execute("SELECT 1 FROM facts WHERE name = 'index'").fetchone():
            check_index(connection)
    except sqlite3.DatabaseError as error:
        if (error.sqlite_errorcode & 0xFF) != sqlite3.SQLITE_CORRUPT:
            raise
        rebuild_index(connection)
    connection.execute("COMMIT")


def _recover(path: Path) -> None:
    """Write what can be read into a new file and let it take the place of the damaged one."""
    _refuse_newer(path)
    aside = _free_name(path)
    unfinished, salvaged = (aside.with_name(aside.name + e) for e in (".salvaging", SALVAGED))
    _remove_unfinished(path)
    try:
        store = Store(unfinished)
        try:
            with store.write() as connection:
                saved = salvage(path, connection)
                report = json.dumps({**asdict(saved), "damaged": aside.name})
                connection.execute("INSERT INTO facts VALUES ('recovery', ?)", [report])
        finally:
            store.close()
        with disk_errors(path):
            unfinished.replace(salvaged)
            sync_directory(path.parent)
    except BaseException:
        _remove_unfinished(path)
        raise
    _replace(path, salvaged)


def _refuse_newer(path: Path) -> None:
    """A damaged file of a newer edgekit has what this one would not save."""
    header = b""
    with contextlib.suppress(OSError), path.open("rb") as file:
        header = file.read(72)
    version = int.from_bytes(header[60:64], "big")  # user_version
    ours = header.startswith(MAGIC) and header[68:] == APPLICATION.to_bytes(4, "big")
    if ours and len(MIGRATIONS) < version < 1000:  # beyond that it is damage as well
        raise BadInputError(
            f"{path} is damaged and was written by a newer edgekit (its format is {version}); "
            "install the newer edgekit, which can save more of it"
        )


def _replace(path: Path, salvaged: Path) -> None:
    """Set the damaged file aside and put the new one in its place; can be done again."""
    aside = salvaged.with_name(salvaged.name.removesuffix(SALVAGED))
    with disk_errors(path):
        _side(path, "-shm").unlink(missing_ok=True)
        if _side(path, "-wal").exists():  # before a new file stands beside it
            _side(path, "-wal").replace(_side(aside, "-wal"))
        if path.exists():
            path.replace(aside)
        sync_directory(path.parent)
        salvaged.replace(path)
        sync_directory(path.parent)


def _take_report(connection: sqlite3.Connection, path: Path) -> RecoveryReport | None:
    """The report of a recovery that nobody was told of yet."""
    row = connection.execute("SELECT value FROM facts WHERE name = 'recovery'").fetchone()
    if row is None:
        return None
    connection.execute("DELETE FROM facts WHERE name = 'recovery'")
    values = json.loads(row[0])
    damaged = path.with_name(values.pop("damaged"))
    return RecoveryReport(**values, damaged=damaged, backups=tuple(backups(path)))


def _free_name(path: Path) -> Path:
    """Where the damaged file goes."""
    date = f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
    names = (f"{path.stem}.damaged-{date}-{i:02}{path.suffix}" for i in range(100))
    return next(p for p in map(path.with_name, names) if not p.exists())


def _salvaged(path: Path) -> Path | None:
    """A new file that was finished and not yet put in its place."""
    return next(_siblings(path, SALVAGED), None)


def _remove_unfinished(path: Path) -> None:
    for left in list(_siblings(path, ".salvaging*")):
        left.unlink(missing_ok=True)


def _siblings(path: Path, ending: str) -> Iterator[Path]:
    return path.parent.glob(f"{glob.escape(path.stem)}.damaged-*{path.suffix}{ending}")


def _side(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
