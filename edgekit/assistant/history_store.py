"""The history's database file: how it is opened, written to and closed, and what its errors mean.

One connection behind a lock serves every thread. Each change is one transaction, and what has
been committed is on the disk (write-ahead log, ``synchronous = FULL``), so a killed process or a
power cut loses nothing that was acknowledged. A mark beside the file exists while it is open;
one that is found at the next start tells that nobody closed it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from edgekit.assistant.history_index import prepare_index
from edgekit.assistant.history_schema import prepare
from edgekit.atomic import disk_errors, no_space, sync_directory
from edgekit.errors import BadInputError, EdgekitError, OutOfResourcesError


class DamagedError(EdgekitError):
    """The file is no database any more, or parts of it are not."""

    exit_code = 2


class Store:
    """The open database.

    Raises:
        BadInputError: it was written by a newer edgekit, is something else, or is not ours to
            write.
        DamagedError: it is damaged.
        OutOfResourcesError: the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._damaged = False
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            mark(path).touch(mode=0o600)
            sync_directory(path.parent)
        with self._explained():
            prepare(path)
            self._connection = connect(path)
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                with self.write() as connection:
                    prepare_index(connection)
            except BaseException:
                self._connection.close()
                raise

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """The connection, for queries."""
        with self._lock, self._explained():
            yield self._connection

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """The connection in a transaction that is on the disk when the block ends.

        Any exception undoes the whole block.
        """
        with self._lock, self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite undoes some failures by itself
                    self._connection.execute("ROLLBACK")
                raise

    def erase_freed(self) -> None:
        """Give freed pages back and empty the log, so that what was deleted is in no file."""
        with self._lock, self._explained():
            # `execute` stops after a page, as this statement has steps and no columns
            self._connection.executescript("PRAGMA incremental_vacuum")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Merge the log into the file. Calling it twice is harmless."""
        with self._lock:
            self._connection.close()
            if not self._damaged:
                mark(self.path).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            explained = explain(self.path, error)
            if isinstance(explained, DamagedError):
                self._damaged = True  # the mark stays, so the next start repairs
            raise explained from error


def mark(path: Path) -> Path:
    """The file that exists while a history is open."""
    return path.with_name(path.name + ".open")


def connect(path: Path) -> sqlite3.Connection:
    """A connection with transactions in our hands and deleted content overwritten."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
    connection.row_factory = sqlite3.Row
    for pragma in (
        "synchronous = FULL",
        "foreign_keys = ON",
        "secure_delete = ON",
        "trusted_schema = OFF",
        "cell_size_check = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def explain(path: Path, error: sqlite3.Error) -> Exception:
    """An error of SQLite as the sentence for a person; what is a defect of ours stays as it is."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return no_space(str(path))
    if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or (
        code == sqlite3.SQLITE_IOERR_SHORT_READ
    ):
        return DamagedError(
            f"{path} is damaged ({error}); start the assistant again and it saves what can be read"
        )
    if code & 0xFF == sqlite3.SQLITE_IOERR:
        return OutOfResourcesError(
            f"{path}: the disk did not take or give data ({error}); check its free space and health"
        )
    if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return BadInputError(f"{path} is in use by another program; close it and try again")
    if code & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return BadInputError(
            f"{path} cannot be opened for writing ({error}); check its permissions, or choose "
            "another data folder"
        )
    return error
