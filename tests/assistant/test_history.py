"""What is put into the history is there, in order, found, and gone when it is deleted."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgekit.assistant.history import History, NotFoundError
from edgekit.assistant.history_index import check_index
from edgekit.assistant.history_rows import insert_message
from edgekit.errors import BadInputError


@pytest.fixture
def history(tmp_path: Path):
    opened = History(tmp_path / "history.sqlite")
    yield opened
    opened.close()


def chat(history: History, *texts: str, title: str = "") -> tuple[str, list[str]]:
    """A thread of alternating messages: the conversation's id and those of the messages."""
    conversation = history.create(title).id
    ids: list[str] = []
    for i, text in enumerate(texts):
        role = "assistant" if i % 2 else "user"
        ids.append(history.add(conversation, ids[-1] if ids else None, role, text).id)
    return conversation, ids


def contents(history: History, query: str) -> list[str]:
    return [history.message(h.message_id).content for h in history.search(query) if h.message_id]


def test_a_message_keeps_everything_it_was_given(history: History) -> None:
    conversation = history.create("t").id
    given = {
        "thinking": "hm 想",
        "origin": {"device": "NPU", "cloud": None},
        "stats": {"tokens_per_second": 14.25},
        "sources": [{"n": 1, "file": "a.pdf", "page": 3}],
        "tool_calls": [{"name": "clock", "arguments": {"zone": "亚洲"}}],
    }
    made = history.add(conversation, None, "assistant", "x\n🦉 ", state="stopped", **given)
    assert history.messages(conversation) == [made]
    assert history.message(made.id) == made
    assert {name: getattr(made, name) for name in given} == given
    assert made.state == "stopped" and len(made.id) == 16


def test_branches_are_messages_with_one_parent_and_a_path_leads_to_each(history: History) -> None:
    conversation, (question, answer) = chat(history, "q", "a")
    other = history.add(conversation, question, "assistant", "b").id
    follow = history.add(conversation, other, "user", "q2").id
    edited = history.add(conversation, None, "user", "another root").id
    assert [m.id for m in history.path_to(follow)] == [question, other, follow]
    assert [m.id for m in history.path_to(answer)] == [question, answer]
    assert [m.id for m in history.path_to(edited)] == [edited]
    tree = history.messages(conversation)
    assert [m.parent_id for m in tree] == [None, question, question, other, None]


def test_a_parent_is_in_the_same_conversation(history: History) -> None:
    _, (elsewhere,) = chat(history, "q")
    conversation = history.create().id
    with pytest.raises(BadInputError, match="another conversation"):
        history.add(conversation, elsewhere, "user", "x")
    with pytest.raises(sqlite3.IntegrityError), history.write() as connection:
        connection.execute("UPDATE messages SET parent_id = 'ffffffffffffffff'")
    assert history.messages(conversation) == []


def test_order_is_the_order_of_writing_though_the_clock_jumps_back(tmp_path: Path) -> None:
    years = iter([2030, 2031, 1999, 2002, 1985, 1970, 2040, 2001])
    history = History(tmp_path / "h", lambda: datetime(next(years), 1, 1, tzinfo=UTC))
    first, second = history.create("first"), history.create("second")
    parent = None
    for text in ("one", "two", "three"):
        parent = history.add(first.id, parent, "user", text).id
    assert [m.content for m in history.messages(first.id)] == ["one", "two", "three"]
    assert [m.content for m in history.path_to(str(parent))] == ["one", "two", "three"]
    assert [c.title for c in history.conversations()] == ["first", "second"]
    assert [h.message_id for h in history.search("three one")] == []
    history.add(second.id, None, "user", "three")
    assert [h.title for h in history.search("three")] == ["second", "first"]
    assert history.conversation(first.id).created == "2030-01-01T00:00:00.000+00:00"
    history.close()


def test_pinned_conversations_come_first_and_folders_hold_some(history: History) -> None:
    a, b, c = (history.create(t).id for t in "abc")
    folder = history.create_folder("工作")
    history.update(a, pinned=True)
    history.update(b, folder_id=folder.id, title="B")
    assert [x.title for x in history.conversations()] == ["a", "c", "B"]
    assert [x.title for x in history.conversations(folder.id)] == ["B"]
    assert history.rename_folder(folder.id, "f") == history.folders()[0]
    history.delete_folder(folder.id)
    assert history.folders() == [] and history.conversation(b).folder_id is None
    history.update(a, pinned=False)
    assert [x.title for x in history.conversations()] == ["c", "B", "a"]
    assert history.conversation(c).title == "c"


@pytest.mark.parametrize(
    "call",
    [
        lambda h, i: h.conversation(i), lambda h, i: h.messages(i), lambda h, i: h.message(i),
        lambda h, i: h.path_to(i), lambda h, i: h.update(i, title="x"), lambda h, i: h.delete(i),
        lambda h, i: h.add(i, None, "user", "x"), lambda h, i: h.finish(i, "x", "complete"),
        lambda h, i: h.append_partial(i, "x"), lambda h, i: h.create("x", i),
        lambda h, i: h.rename_folder(i, "x"), lambda h, i: h.delete_folder(i),
        lambda h, i: h.add(h.create().id, i, "user", "x"),
        lambda h, i: h.update(h.create().id, folder_id=i),
    ],
)  # fmt: skip
def test_an_unknown_id_is_told_and_changes_nothing(history: History, call) -> None:
    with pytest.raises(NotFoundError, match="0123456789abcdef"):
        call(history, "0123456789abcdef")
    assert history.search("x") == []


def test_an_answer_is_kept_while_it_is_written_and_found_when_it_is_finished(
    history: History,
) -> None:
    conversation, (question,) = chat(history, "question")
    answer = history.add(conversation, question, "assistant", "", state="partial").id
    history.append_partial(answer, "The needle", "thought")
    assert history.message(answer).content == "The needle"
    assert history.message(answer).state == "partial" and history.search("needle") == []
    done = history.finish(answer, "The thread.", "complete", stats={"n": 1})
    assert done.thinking == "thought" and done.stats == {"n": 1}
    assert contents(history, "thread") == ["The thread."] and history.search("needle") == []
    history.finish(answer, "The rope.", "stopped", thinking="")
    assert history.search("thread") == [] and contents(history, "rope") == ["The rope."]
    with history.write() as connection:
        check_index(connection)


def test_what_a_killed_process_left_unfinished_is_found_after_the_next_start(
    tmp_path: Path,
) -> None:
    history = History(tmp_path / "h")
    conversation, _ = chat(history, "question")
    answer = history.add(conversation, None, "assistant", "half an owl", state="partial").id
    history.close()
    history = History(tmp_path / "h")
    assert contents(history, "owl") == ["half an owl"]
    history.finish(answer, "half a cat", "stopped")
    assert history.search("owl") == [] and contents(history, "cat") == ["half a cat"]
    history.close()


def test_search_finds_titles_and_messages_with_marks(history: History) -> None:
    conversation, (question, answer) = chat(
        history, "如何量化模型？", "x " * 300 + "用 int4 量化权重，然后编译。" + " y" * 300,
        title="量化笔记",
    )  # fmt: skip
    title, newest, oldest = history.search("量化")
    assert (title.message_id, newest.message_id, oldest.message_id) == ("", answer, question)
    assert title.snippet == "量化笔记" and title.marks == [(0, 2)]
    assert {newest.conversation_id, newest.title} == {conversation, "量化笔记"}
    assert [newest.snippet[a:b] for a, b in newest.marks] == ["量化"]
    assert newest.snippet[0] == newest.snippet[-1] == "…" and len(newest.snippet) <= 202
    assert [h.message_id for h in history.search("权")] == [answer]
    assert [h.message_id for h in history.search("INT4 编译")] == [answer]
    assert history.search("权量") == [] and history.search("  ?!\"'* ") == []
    history.update(conversation, title="Notes")
    assert [h.message_id for h in history.search("笔记")] == []
    assert [h.snippet for h in history.search("not")] == ["Notes"]


def test_a_mark_is_found_far_into_a_long_message_and_on_a_border(history: History) -> None:
    for place in (4090, 4094, 4100, 50_000):
        _, (number, *_) = chat(history, "长" * place + "needle" + "文" * 90)
        hit = next(h for h in history.search("needle") if h.message_id == number)
        assert [hit.snippet[a:b] for a, b in hit.marks] == ["needle"], place


def test_instructions_and_results_of_tools_are_not_searched(history: History) -> None:
    conversation = history.create().id
    for role in ("system", "tool"):
        history.add(conversation, None, role, "secret words")
    assert history.search("secret") == []


def test_at_most_so_many_results_the_newest(history: History) -> None:
    _, ids = chat(history, *(f"word {i}" for i in range(10)))
    assert [h.message_id for h in history.search("word", 3)] == ids[:-4:-1]


def test_what_no_database_takes_is_replaced(history: History) -> None:
    conversation, (number,) = chat(history, "a\x00b\ud800c", title="t\x00\udfff")
    assert history.message(number).content == "a\ufffdb\ufffdc"
    assert history.conversation(conversation).title == "t\ufffd\ufffd"
    made = history.add(conversation, None, "tool", "", tool_calls=[{"x": "\ud800\x00"}])
    assert history.message(made.id).tool_calls == [{"x": "\ufffd\x00"}]


def test_a_text_beyond_the_limit_is_refused(history: History, monkeypatch) -> None:
    monkeypatch.setattr("edgekit.assistant.history_rows.LONGEST", 10)
    conversation = history.create().id
    with pytest.raises(BadInputError, match="11 characters is too long"):
        history.add(conversation, None, "user", "x" * 11)
    assert history.messages(conversation) == []


def test_deleting_leaves_nothing_in_any_file(tmp_path: Path) -> None:
    history = History(tmp_path / "h")
    keep, _ = chat(history, "harmless", "words " * 2000, title="kept")
    secret = "xyzzyplugh"
    long = " ".join(f"{secret}{i}" for i in range(5000))
    gone, (question, _) = chat(history, f"{secret} 绝密档案", long, title=f"{secret} 机要")
    history.add(
        gone, question, "assistant", "b", thinking=secret, origin={"d": secret},
        sources=[{"text": secret}], tool_calls=[{"a": secret}],
    )  # fmt: skip
    history.append_partial(history.add(gone, None, "user", "", state="partial").id, secret)
    chat(history, "more", "words")
    assert any(secret.encode() in f.read_bytes() for f in tmp_path.iterdir())
    history.delete(gone)
    forbidden = [secret, "绝密", "机要", gone, question]
    for file in tmp_path.iterdir():  # while it is open: the log as well
        data = file.read_bytes()
        assert not [word for word in forbidden if word.encode() in data], file.name
    header = (tmp_path / "h").read_bytes()[:100]
    assert int.from_bytes(header[36:40], "big") == 0  # no free pages: they were given back
    assert history.search(secret) == [] and history.search("绝密") == []
    assert contents(history, "harmless") == ["harmless"] and len(history.messages(keep)) == 2
    with history.write() as connection:
        check_index(connection)
    history.close()


def test_a_long_thread_is_deleted_at_once(history: History) -> None:
    conversation, (root,) = chat(history, "0")
    with history.write() as connection:
        last = history.message(root)
        for i in range(1500):  # deeper than SQLite recurses
            last = replace(last, id=f"{i:016}", parent_id=last.id)
            insert_message(connection, last)
    assert len(history.path_to(last.id)) == 1501
    history.delete(conversation)
    assert history.conversations() == []
    with pytest.raises(NotFoundError):
        history.message(root)


def test_threads_write_and_read_at_once(history: History) -> None:
    conversation = history.create("t").id
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for i in range(25):
                number = history.add(conversation, None, "user", f"{name}{i}").id
                assert history.message(number).content == f"{name}{i}"
                assert history.search(f"{name}{i} ")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(history.messages(conversation)) == 100


def test_the_index_is_made_anew_when_words_are_split_otherwise(tmp_path: Path, monkeypatch) -> None:
    history = History(tmp_path / "h")
    conversation, _ = chat(history, "an owl", "a cat", title="birds")
    history.add(conversation, None, "user", "an owlet", state="partial")
    history.close()
    monkeypatch.setattr("edgekit.assistant.history_index.VERSION", "next")
    history = History(tmp_path / "h")
    assert contents(history, "owl") == ["an owlet", "an owl"]
    assert [h.snippet for h in history.search("birds")] == ["birds"]
    history.delete(conversation)  # forgets words, which it could not if they were others
    with history.write() as connection:
        check_index(connection)
        words = connection.execute("SELECT count(*) FROM message_words_docsize").fetchone()[0]
    assert words == 0
    history.close()
