"""The history opens after a kill at any moment, and saves what a damaged file still holds."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.assistant import recovery
from edgekit.assistant.history import History
from edgekit.assistant.history_index import check_index
from edgekit.assistant.history_pages import PAGE, TABLE_LEAF, Pages
from edgekit.assistant.history_rows import MESSAGE
from edgekit.assistant.recovery import RecoveryReport, open_history
from edgekit.errors import BadInputError, OutOfResourcesError

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def healthy(history: History) -> None:
    with history.write() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        check_index(connection)


def killed_after(
    count: int, work: Callable[[Callable[[str], None]], None], pause: float
) -> list[str]:
    """Run ``work`` in a child and kill it ``pause`` seconds after the ``count``-th word it said."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            work(lambda word: os.write(writer, f"{word}\n".encode()) and None)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = [pipe.readline() for _ in range(count)]
        end = time.perf_counter() + pause  # to meet any moment, in the middle of a write too
        while time.perf_counter() < end:
            pass
        os.kill(child, signal.SIGKILL)
        said += pipe.readlines()
    os.waitpid(child, 0)
    assert all(said), "the child died by itself"
    return [word.strip() for word in said if word.endswith("\n")]


def talk(path: Path, seed: int, say: Callable[[str], None]) -> None:
    """Everything that an assistant does to its history, for ever; says what was acknowledged."""
    chance = random.Random(seed)
    history, _ = open_history(path)
    say("open")
    conversations = [c.id for c in history.conversations()]
    while True:
        if not conversations or chance.random() < 0.1:
            conversations.append(history.create(f"t{chance.random()}").id)
            say(f"conversation {conversations[-1]}")
        home = chance.choice(conversations)
        text = "机要 words " * chance.randrange(1, 1000)
        question = history.add(home, None, "user", text).id
        say(f"message {question} {home} {len(text)}")
        answer = history.add(home, question, "assistant", "", state="partial").id
        history.append_partial(answer, text[:100])
        history.finish(answer, text * 2, "complete")
        say(f"message {answer} {home} {2 * len(text)}")
        if len(conversations) > 3 and chance.random() < 0.2:
            gone = conversations.pop(0)
            say(f"deleting {gone}")
            history.delete(gone)
            say(f"deleted {gone}")


@forks
def test_killed_at_any_moment_it_holds_all_that_was_acknowledged(tmp_path: Path) -> None:
    path, chance = tmp_path / "history.sqlite", random.Random(5)
    said: list[str] = []
    for i in range(40):
        count, pause = chance.randrange(1, 12), chance.random() * 0.006
        said += killed_after(count, lambda say, i=i: talk(path, i, say), pause)
        history, report = open_history(path)
        assert report is None, "a kill damages nothing"
        healthy(history)
        words = [line.split() for line in said if line != "open"]
        gone = {w[1] for w in words if w[0] == "deleted"}
        maybe = gone | {w[1] for w in words if w[0] == "deleting"}
        have = {c.id for c in history.conversations()}
        assert not have & gone
        assert {w[1] for w in words if w[0] == "conversation"} - maybe <= have
        for home in have:
            texts = {m.id: len(m.content) for m in history.messages(home)}
            for _, number, _, length in (w for w in words if w[0] == "message" and w[2] == home):
                assert texts[number] == int(length)
        history.close()
    assert len(said) > 150


@forks
def test_killed_while_it_is_made_it_is_made_at_the_next_start(tmp_path: Path) -> None:
    for i in range(12):
        path = tmp_path / f"{i}" / "history.sqlite"

        def begin(say: Callable[[str], None], path: Path = path) -> None:
            say("start")
            open_history(path)
            time.sleep(60)

        killed_after(1, begin, random.Random(i).random() * 0.03)
        history, report = open_history(path)
        assert report is None
        history.create("works")
        history.close()


def fill(path: Path, conversations: int = 12, messages: int = 30) -> dict[str, list[str]]:
    """A history of several hundred pages; message ids by conversation."""
    history = History(path)
    made: dict[str, list[str]] = {}
    folder = history.create_folder("f").id
    chance = random.Random(1)
    with history._store._lock:
        history._store._connection.execute("PRAGMA synchronous = OFF")
    for i in range(conversations):
        home = history.create(f"title {i}", folder).id
        made[home] = []
        for j in range(messages):
            text = f"message {i} {j} 机要 " + "w" * chance.choice([10, 300, 3000, 9000])
            parent = made[home][-1] if made[home] else None
            made[home].append(history.add(home, parent, "user", text, origin={"d": 1}).id)
    history.close()
    return made


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    path = tmp_path_factory.mktemp("original") / "history.sqlite"
    return path, fill(path)


@pytest.fixture
def copy(tmp_path: Path, original) -> Path:
    return Path(shutil.copy(original[0], tmp_path / "history.sqlite"))


def open_damaged(path: Path) -> tuple[History, RecoveryReport]:
    """Open a damaged file as after a crash; what was there is kept byte for byte."""
    before = path.read_bytes()
    recovery.mark(path).touch()
    history, report = open_history(path)
    assert report is not None
    assert report.damaged.read_bytes() == before and report.damaged.parent == path.parent
    healthy(history)
    assert report.messages == sum(len(history.messages(c.id)) for c in history.conversations())
    assert report.conversations == len(history.conversations())
    return history, report


def test_pages_give_the_rows_that_sql_gives(original) -> None:
    path, _ = original
    with sqlite3.connect(path) as connection:
        rows = connection.execute(f"SELECT number, {MESSAGE} FROM messages ORDER BY number")
        expected = [tuple(row) for row in rows]
    connection.close()
    order = [1, 2, 3, 4, 8, 9, 7, 10, 11, 12, 13, 5]  # of the columns of MESSAGE in the table
    found, named = [], []
    with Pages(path) as pages:
        for kind, record in pages.records():
            if kind != TABLE_LEAF and len(record.values) == 3 and isinstance(record.values[0], str):
                named.append((record.values[0], record.values[2]))
            if kind == TABLE_LEAF and len(record.values) == 14:
                assert record.whole
                found.append((record.rowid, *(record.values[i] for i in order)))
    assert sorted(found) == expected and len(found) == 360
    # two indexes of the messages, a few keys of which lie in pages above the leaves
    assert sorted(named) == sorted([(row[2], row[0]) for row in expected] * 2)


def test_pages_include_what_only_the_log_holds(tmp_path: Path) -> None:
    history = History(tmp_path / "h")
    home = history.create("first").id
    for _ in range(20):
        history.add(home, None, "user", "x" * 3000)
    history.delete(home)
    history.create("second")
    (tmp_path / "copy").mkdir()
    for file in ("h", "h-wal"):
        shutil.copy(tmp_path / file, tmp_path / "copy" / file)
    history.close()
    with Pages(tmp_path / "copy/h") as pages:
        titles = [r.values[2] for k, r in pages.records() if k == TABLE_LEAF and len(r.values) == 9]
    assert titles == ["second"]


@pytest.mark.parametrize("seed", range(6))
def test_overwritten_pages_cost_what_stood_in_them(copy: Path, original, seed: int) -> None:
    made, chance = original[1], random.Random(seed)
    data = bytearray(copy.read_bytes())
    for _ in range(6):
        page = chance.randrange(1, len(data) // PAGE)
        data[page * PAGE : (page + 1) * PAGE] = chance.randbytes(PAGE)
    copy.write_bytes(data)
    history, report = open_damaged(copy)
    total = sum(map(len, made.values()))
    # six pages: none holds more than a few dozen messages, or the middle of a text
    assert total - 200 < report.messages <= total
    assert report.messages + report.lost_messages <= total
    for home in history.conversations():
        for message in history.messages(home.id):
            assert message.id in made[home.id]
            assert message.content.startswith("message ")
    history.close()


def test_a_lost_leaf_is_counted_by_what_the_indexes_name(copy: Path, original) -> None:
    home, ids = list(original[1].items())[5]
    data = bytearray(copy.read_bytes())
    place = data.index(b"message 5 7 ")
    page = place // PAGE
    assert data[page * PAGE] == TABLE_LEAF
    data[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    copy.write_bytes(data)
    history, report = open_damaged(copy)
    assert report.lost == report.lost_messages == 360 - report.messages > 0
    assert report.lost_conversations == 0 and report.conversations == 12
    kept = history.messages(home)
    assert [m.id for m in kept] == [i for i in ids if i in {m.id for m in kept}]  # in order
    assert [m.parent_id for m in kept[1:]] == [m.id for m in kept[:-1]]  # still one thread
    assert len(history.path_to(kept[-1].id)) == len(kept) < 30
    history.close()


def test_lost_conversations_are_made_anew_around_their_messages(copy: Path, original) -> None:
    data = bytearray(copy.read_bytes())
    page = data.index(b"title 3") // PAGE
    data[page * PAGE : (page + 1) * PAGE] = b"\xff" * PAGE
    copy.write_bytes(data)
    history, report = open_damaged(copy)
    assert (report.messages, report.lost_messages, report.lost_conversations) == (360, 0, 0)
    assert {c.id for c in history.conversations()} == set(original[1])
    assert "" in {c.title for c in history.conversations()}
    assert [f.name for f in history.folders()] == ["f"]
    history.close()


@pytest.mark.parametrize("damage", [bytes(PAGE), b"\xff" * PAGE], ids=["zeros", "noise"])
def test_a_text_whose_end_is_lost_is_kept_as_far_as_it_goes(tmp_path: Path, damage) -> None:
    path = tmp_path / "history.sqlite"
    history = History(path)
    home = history.create("t").id
    texts = [f"{i}:" + (letter + ".") * 10_000 for i, letter in enumerate("abcde")]
    parent = None
    for text in texts:
        parent = history.add(home, parent, "user", text, sources=[{"file": "x"}]).id
    history.close()
    data = bytearray(path.read_bytes())
    pages = [i for i in range(0, len(data), PAGE) if set(data[i + 4 : i + PAGE]) == set(b"c.")]
    data[pages[-1] : pages[-1] + PAGE] = damage
    path.write_bytes(data)
    history, report = open_damaged(path)
    assert (report.messages, report.cut, report.lost_messages) == (5, 1, 0)
    kept = [m.content for m in history.path_to(parent)]
    assert kept[:2] + kept[3:] == texts[:2] + texts[3:]
    assert texts[2].startswith(kept[2]) and 10_000 < len(kept[2]) < 20_000
    history.close()


@pytest.mark.parametrize(
    ("damage", "least"),
    [
        (lambda d: b"\0" * 100 + d[100:], 360),
        (lambda d: random.Random(0).randbytes(2 * PAGE) + d[2 * PAGE :], 350),
        (lambda d: d[: len(d) // 2], 100),
        (lambda d: d[: len(d) // 2 + 1234], 100),
        (lambda d: d[:PAGE], 0),
        (lambda d: d[:50], 0),
        (lambda d: b"", 0),
        (lambda d: random.Random(0).randbytes(len(d)), 0),
        (lambda d: b"SQLite format 3\0" + random.Random(0).randbytes(len(d)), 0),
        (lambda d: d[:28] + b"\xff" * 40 + d[68:], 350),
        (lambda d: b"not a database at all\n", 0),
    ],
    ids=["header", "two pages", "half", "half a page", "one page", "50 bytes", "empty", "noise",
         "noise behind the magic", "numbers in the header", "text"],
)  # fmt: skip
def test_whatever_became_of_the_file_it_opens(copy: Path, damage, least: int) -> None:
    copy.write_bytes(damage(copy.read_bytes()))
    history, report = open_damaged(copy)
    assert report.messages >= least and report.saved == report.messages
    home = history.create("goes on").id
    history.add(home, None, "user", "a new 消息")
    assert history.search("消息")
    history.close()
    again, told = open_history(copy)
    assert told is None and again.conversation(home).title == "goes on"
    again.close()


def test_damage_that_nobody_announced_is_met_on_the_way(copy: Path) -> None:
    data = bytearray(copy.read_bytes())
    page = data.index(b"title 3") // PAGE
    data[page * PAGE : (page + 1) * PAGE] = b"\xff" * PAGE
    copy.write_bytes(data)  # no mark: it was closed, and the disk failed later
    history, report = open_history(copy)
    assert report is None
    with pytest.raises(recovery.DamagedError, match="start the assistant again"):
        history.conversations()
    history.close()
    history, report = open_history(copy)
    assert report is not None and report.messages == 360
    history.close()


def test_the_log_of_an_emptied_or_removed_file_is_read(tmp_path: Path) -> None:
    for name, spoil in (("emptied", lambda p: p.write_bytes(b"")), ("removed", Path.unlink)):
        path = tmp_path / name / "history.sqlite"
        history = History(path)
        with history.write() as connection:
            connection.execute("PRAGMA user_version = 1")  # nothing merged yet
        home = history.create("in the log").id
        history.add(home, None, "user", "saved")
        killed = tmp_path / name / "killed" / "history.sqlite"
        killed.parent.mkdir()
        for ending in ("", "-wal"):
            shutil.copy(f"{path}{ending}", f"{killed}{ending}")
        history.close()
        spoil(killed)
        history, report = open_history(killed)
        assert report is not None and (report.conversations, report.messages) == (1, 1)
        assert history.conversation(home).title == "in the log"
        assert Path(f"{report.damaged}-wal").exists() and not list(killed.parent.glob("*salv*"))
        history.close()


@forks
@pytest.mark.parametrize("seed", range(5))
def test_without_its_log_a_killed_history_still_opens(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "history.sqlite"
    killed_after(40, lambda say: talk(path, seed, say), random.Random(seed).random() * 0.004)
    Path(f"{path}-wal").unlink()
    history, _ = open_history(path)
    healthy(history)
    history.create("goes on")
    history.close()


def test_a_log_cut_in_the_middle_gives_what_was_committed_before(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    history = History(path)
    home = history.create("t").id
    ids = [history.add(home, None, "user", f"text {i}").id for i in range(30)]
    killed = tmp_path / "killed" / "history.sqlite"
    killed.parent.mkdir()
    for ending in ("", "-wal"):
        shutil.copy(f"{path}{ending}", f"{killed}{ending}")
    history.close()
    log = Path(f"{killed}-wal")
    log.write_bytes(log.read_bytes()[: log.stat().st_size // 2] + b"\xee" * 9999)
    recovery.mark(killed).touch()
    history, report = open_history(killed)
    assert report is None  # a log is allowed to end anywhere
    kept = [m.id for m in history.messages(home)]
    assert kept == ids[: len(kept)] and kept
    history.close()


def test_a_damaged_index_alone_is_made_anew(copy: Path) -> None:
    with sqlite3.connect(copy) as connection:
        connection.execute("DELETE FROM message_words_data WHERE id > 100")
    connection.close()
    recovery.mark(copy).touch()
    history, report = open_history(copy)
    assert report is None
    healthy(history)
    assert len(history.search("机要", 1000)) == 360
    history.close()


@pytest.mark.parametrize("step", range(1, 8))
def test_recovery_that_is_interrupted_goes_on_at_the_next_start(
    copy: Path, monkeypatch, step: int
) -> None:
    data = copy.read_bytes()
    copy.write_bytes(bytes(PAGE) + data[PAGE:])
    Path(f"{copy}-wal").write_bytes(b"an old log")
    done = 0

    def interrupt(original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal done
            done += 1
            if done == step:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "sync_directory", interrupt(recovery.sync_directory))
        patch.setattr(Path, "replace", interrupt(Path.replace))
        try:
            history, report = open_history(copy)
        except KeyboardInterrupt:
            history = None
    if history is None:
        history, report = open_history(copy)
    assert report is not None and report.messages == 360
    assert report.damaged.read_bytes()[PAGE:] == data[PAGE:]
    healthy(history)
    history.close()
    left = {f.name for f in copy.parent.iterdir()}
    damaged = report.damaged.name
    assert left <= {copy.name, damaged, f"{damaged}-wal"}


def test_without_room_for_the_new_file_everything_stays(copy: Path, monkeypatch) -> None:
    copy.write_bytes(bytes(PAGE) + copy.read_bytes()[PAGE:])
    before = copy.read_bytes()
    monkeypatch.setattr("edgekit.assistant.history_store.connect", _small(recovery.connect))
    with pytest.raises(OutOfResourcesError, match="no space left"):
        open_history(copy)
    assert copy.read_bytes() == before and [f.name for f in copy.parent.iterdir()] == [copy.name]
    monkeypatch.undo()
    history, report = open_history(copy)
    assert report is not None and report.messages == 360
    history.close()


def _small(connect: Callable[[Path], sqlite3.Connection]) -> Callable[[Path], sqlite3.Connection]:
    def small(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.execute("PRAGMA max_page_count = 60")
        return connection

    return small


def test_a_damaged_file_of_a_newer_edgekit_is_left_alone(copy: Path) -> None:
    data = bytearray(copy.read_bytes())
    data[60:64] = struct.pack(">I", 7)
    data[3 * PAGE : 9 * PAGE] = b"\xff" * 6 * PAGE
    copy.write_bytes(data)
    recovery.mark(copy).touch()
    with pytest.raises(BadInputError, match="format is 7"):
        open_history(copy)
    assert copy.read_bytes() == bytes(data)


def test_the_report_names_the_copies_and_is_told_once(copy: Path) -> None:
    backup = copy.with_name("history.before-v1.20260101T000000-00.backup")
    backup.write_bytes(b"x")
    copy.write_bytes(bytes(PAGE) + copy.read_bytes()[PAGE:])
    history, report = open_history(copy)
    assert report is not None and report.backups == (backup,)
    assert report.backup == report.damaged
    with history.write() as connection:
        facts = connection.execute("SELECT name FROM facts").fetchall()
    assert [tuple(f) for f in facts] == [("index",)]
    history.close()
    assert json.dumps([report.saved, report.lost]) == "[360, 0]"
