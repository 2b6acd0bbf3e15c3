"""The history's file: new, old, newer, foreign, full, read only."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from edgekit.assistant import history_schema as schema
from edgekit.assistant.history import History
from edgekit.assistant.history_index import check_index
from edgekit.errors import BadInputError, OutOfResourcesError


def filled(path: Path, secret: str = "secret") -> tuple[str, str]:
    """A history with two conversations; their ids."""
    history = History(path)
    ids = []
    for text in (secret, "harmless"):
        ids.append(history.create(text).id)
        history.add(ids[-1], None, "user", f"{text} 机要")
    history.close()
    return ids[0], ids[1]


def add_colour(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE messages ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'")


@pytest.fixture
def next_version(monkeypatch) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, add_colour))


@pytest.mark.skipif(os.name != "posix", reason="mode bits")
def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    filled(tmp_path / "h")
    history = History(tmp_path / "h")
    history.create("x")
    modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in tmp_path.iterdir()}
    assert set(modes) == {"h", "h-wal", "h-shm", "h.open"} and set(modes.values()) == {0o600}
    history.close()
    assert [f.name for f in tmp_path.iterdir()] == ["h"]


def test_an_older_file_is_copied_and_then_brought_up_to_date(tmp_path, request) -> None:
    first, _ = filled(tmp_path / "history.sqlite")
    request.getfixturevalue("next_version")
    history = History(tmp_path / "history.sqlite")
    with history.write() as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == 2
        colours = connection.execute("SELECT DISTINCT colour FROM messages").fetchall()
    assert [tuple(c) for c in colours] == [("red",)]
    assert [h.title for h in history.search("机要")] == ["harmless", "secret"]
    (copy,) = history.backups()
    assert copy.name.startswith("history.before-v2.")
    history.close()
    History(tmp_path / "history.sqlite").close()
    assert len(schema.backups(tmp_path / "history.sqlite")) == 1  # no migration, no copy
    # the copy is a whole history of the older version: put in place it works again
    shutil.copy(copy, tmp_path / "again.sqlite")
    again = History(tmp_path / "again.sqlite")
    assert again.conversation(first).title == "secret" and again.search("机要")
    again.close()


def test_a_copy_of_what_the_log_still_holds_is_complete(tmp_path: Path, request) -> None:
    filled(tmp_path / "h")
    history = History(tmp_path / "h")
    last = history.create("only in the log").id
    for name in ("h", "h-wal"):  # as a killed process leaves it
        (tmp_path / "killed").mkdir(exist_ok=True)
        shutil.copy(tmp_path / name, tmp_path / "killed" / name)
    history.close()
    request.getfixturevalue("next_version")
    history = History(tmp_path / "killed/h")
    with sqlite3.connect(history.backups()[0]) as copy:
        found = copy.execute("SELECT title FROM conversations WHERE id = ?", [last]).fetchone()
    copy.close()
    assert found == ("only in the log",)
    history.close()


def test_a_failed_migration_changes_nothing(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "h"
    first, _ = filled(path)
    before = path.read_bytes()

    def fails(connection: sqlite3.Connection) -> None:
        raise RuntimeError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, add_colour, fails))
        with pytest.raises(RuntimeError, match="a defect"):
            History(path)
    assert path.read_bytes() == before and len(schema.backups(path)) == 1
    history = History(path)
    assert history.conversation(first).title == "secret"
    history.close()


def test_no_migration_without_room_for_the_copy(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "h"
    filled(path)
    before = path.read_bytes()
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, add_colour))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutOfResourcesError, match="no space left"):
        schema.prepare(path)
    assert path.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["h"]


def test_a_damaged_file_is_not_migrated(tmp_path: Path, next_version, monkeypatch) -> None:
    path = tmp_path / "h"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        filled(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("UPDATE sqlite_schema SET rootpage = 2 WHERE name = 'messages'")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(sqlite3.DatabaseError):
        schema.prepare(path)
    assert path.read_bytes() == before and schema.backups(path) == []


def test_copies_are_few_and_the_newest_stays_whatever_the_clock_says(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    filled(path)
    future = [tmp_path / f"history.before-v2.2999010{i}T000000-00.backup" for i in range(4)]
    for file in future:
        file.write_bytes(b"")
    (tmp_path / "history.before-v10.20000101T000000-00.backup").write_bytes(b"")
    with sqlite3.connect(path) as connection:
        made = schema.back_up(connection, path, 1)
    connection.close()
    kept = schema.backups(path)
    assert len(kept) == schema.BACKUPS_KEPT and made in kept
    assert "before-v10" in kept[-1].name  # versions are numbers


def test_deleting_reaches_the_copies(tmp_path: Path, request) -> None:
    path = tmp_path / "history.sqlite"
    first, second = filled(path, "xyzzyplugh")
    request.getfixturevalue("next_version")
    history = History(path)
    (copy,) = history.backups()
    unreadable = copy.with_name(copy.name.replace("-00.", "-01."))
    unreadable.write_bytes(b"xyzzyplugh" * 1000)
    assert b"xyzzyplugh" in copy.read_bytes()
    history.delete(first)
    history.close()
    assert not [f for f in tmp_path.iterdir() if b"xyzzyplugh" in f.read_bytes()]
    with sqlite3.connect(copy) as connection:
        left = connection.execute("SELECT id FROM conversations").fetchall()
    connection.close()
    assert left == [(second,)] and not unreadable.exists()


def test_a_newer_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "h"
    filled(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(BadInputError, match=r"newer edgekit.*is 99, this edgekit knows 1"):
        History(path)
    assert path.read_bytes() == before


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "h"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(BadInputError, match="not a history of edgekit"):
        History(path)
    assert path.read_bytes() == before


def test_a_full_disk_is_told_and_nothing_is_half_written(tmp_path: Path) -> None:
    first, _ = filled(tmp_path / "h")
    history = History(tmp_path / "h")
    with history.write() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 4}")
    answer = history.add(first, None, "assistant", "so far", state="partial").id
    texts = " ".join(f"word{i} 机要" for i in range(5000))
    for call in (
        lambda: history.add(first, None, "user", texts),
        lambda: history.append_partial(answer, texts),
        lambda: history.finish(answer, texts, "complete"),
        lambda: history.create(texts),
        lambda: [history.create_folder("f" * 4000) for _ in range(20)],
    ):
        with pytest.raises(OutOfResourcesError, match="no space left"):
            call()
    assert history.message(answer).content == "so far" and history.search("word7") == []
    assert len(history.messages(first)) == 2
    with history.write() as connection:
        check_index(connection)
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        connection.execute("PRAGMA max_page_count = 100000")
    history.finish(answer, texts, "complete")  # with room again it goes on
    assert [h.message_id for h in history.search("word4999")] == [answer]
    history.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and a limit of the size of files")
def test_a_disk_that_takes_no_more_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    import resource
    import signal

    path = tmp_path / "h"
    first, _ = filled(path)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        history = History(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
        try:
            for _ in range(10_000):
                os.write(writer, (history.add(first, None, "user", "x" * 999).id + "\n").encode())
        except OutOfResourcesError:
            os._exit(5)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        acknowledged = pipe.read().split()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    history = History(path)
    assert [m.id for m in history.messages(first)][1:] == acknowledged and len(acknowledged) > 10
    history.close()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anything")
def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    filled(tmp_path / "h")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(BadInputError, match="cannot be written"):
            History(tmp_path / "h")
    finally:
        tmp_path.chmod(0o700)


def test_a_file_that_another_program_writes_is_told(tmp_path: Path, monkeypatch) -> None:
    first, _ = filled(tmp_path / "h")
    history = History(tmp_path / "h")
    other = sqlite3.connect(tmp_path / "h", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with history.write.__self__._store.read() as connection:  # do not wait five seconds
        connection.execute("PRAGMA busy_timeout = 1")
    with pytest.raises(BadInputError, match="in use by another program"):
        history.add(first, None, "user", "x")
    other.execute("ROLLBACK")
    other.close()
    history.add(first, None, "user", "x")
    history.close()
