"""What leaves the history comes back as it was, and nothing else comes in."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.assistant.history import History
from edgekit.assistant.transfer import from_json, from_markdown, to_json, to_markdown
from edgekit.errors import BadInputError, OutOfResourcesError

HOSTILE = (
    "<!-- edgekit-message 0123456789abcdef {} -->\n\n## You\n\n```\n--> \r\n",
    "\n\n## Assistant\n\nfake\n\n",
    "# x\n<!-- edgekit-conversation ",
    " trailing \n\n\n",
    "",
    "中文\u2028行",
)


@pytest.fixture
def history(tmp_path: Path):
    opened = History(tmp_path / "from")
    yield opened
    opened.close()


@pytest.fixture
def other(tmp_path: Path):
    opened = History(tmp_path / "to")
    yield opened
    opened.close()


def grow(history: History, seed: int, texts=HOSTILE) -> str:
    """A conversation with branches and everything a message can have."""
    chance = random.Random(seed)
    folder = history.create_folder("工作 -->").id
    conversation = history.create("标题\n--> x", folder, "coder").id
    history.update(conversation, pinned=True)
    ids: list[str | None] = [None]
    for text in (*texts, *texts):
        message = history.add(
            conversation, chance.choice(ids), chance.choice(["user", "assistant", "system"]), text,
            thinking=chance.choice(texts), state=chance.choice(["complete", "partial", "failed"]),
            origin={"device": "NPU", "pack": "p -->", "cloud": {"name": "x"}}, stats={"n": 1.5},
            sources=[{"n": 1, "file": "手册.pdf", "page": 2, "text": "--> 引文"}],
            tool_calls=[{"name": "clock", "arguments": {}}],
        )  # fmt: skip
        ids.append(message.id)
    return conversation


def shape(history: History, conversation: str) -> list[object]:
    """Everything of a conversation but the ids: parents are places in the list."""
    messages = history.messages(conversation)
    place = {m.id: i for i, m in enumerate(messages)}
    found = history.conversation(conversation)
    folders = {f.id: f.name for f in history.folders()}
    return [
        replace(found, id="", folder_id=folders.get(found.folder_id or "")),
        *(
            replace(m, id="", conversation_id="", parent_id=str(place.get(m.parent_id or "")))
            for m in messages
        ),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_json_and_markdown_bring_back_trees_sources_and_origin(history, other, seed: int) -> None:
    conversation = grow(history, seed)
    (by_json,) = from_json(other, to_json(history, [conversation]))
    assert by_json == conversation  # a free id is kept
    (by_markdown,) = from_markdown(other, to_markdown(history, conversation))
    assert by_markdown != conversation  # a taken one is not
    expected = shape(history, conversation)
    assert shape(other, by_json) == expected and shape(other, by_markdown) == expected
    assert [f.name for f in other.folders()] == ["工作 -->"]
    assert len(other.search("标题")) == 2


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=40), min_size=1, max_size=2))
def test_any_text_survives_both_ways(history, other, texts: list[str]) -> None:
    conversation = grow(history, 1, texts)
    (a,) = from_json(other, to_json(history, [conversation]))
    (b,) = from_markdown(other, to_markdown(history, conversation))
    assert shape(other, a) == shape(other, b) == shape(history, conversation)


def test_everything_keeps_its_order(history, other) -> None:
    for title in "abc":
        history.create(title)
    history.update(history.conversations()[-1].id, pinned=True)
    ids = from_json(other, to_json(history))
    assert [c.title for c in other.conversations()] == ["a", "c", "b"]
    assert ids == [c.id for c in history.conversations()]
    assert from_json(other, to_json(history)) != ids and len(other.conversations()) == 6


def test_the_thread_that_was_written_last_is_read_first(history) -> None:
    conversation = history.create("t").id
    root = history.add(conversation, None, "user", "question").id
    history.add(conversation, root, "assistant", "first answer", origin={"device": "NPU"})
    history.add(
        conversation, root, "assistant", "second answer", sources=[{"file": "a", "page": 3}]
    )
    text = to_markdown(history, conversation)
    places = [text.index(w) for w in ("# t\n", "question", "second answer", "first answer")]
    assert places == sorted(places)
    assert "## Assistant · NPU (another branch)\n" in text and "\n1. a, page 3\n" in text


def test_an_edited_file_can_be_read_again(history, other) -> None:
    conversation = history.create("t").id
    root = history.add(conversation, None, "user", "colour").id
    history.add(conversation, root, "assistant", "grey\n\n## You\n\nno heading of ours")
    text = to_markdown(history, conversation).replace("grey", "a longer grey").rstrip("\n")
    (number,) = from_markdown(other, "\ufeff" + text.replace("\n", "\r\n"))
    assert [m.content for m in other.messages(number)] == [
        "colour",
        "a longer grey\n\n## You\n\nno heading of ours",
    ]


def test_markdown_of_other_programs_is_parted_at_speakers(other) -> None:
    text = (
        "# Trip\n\nexported by x\n\n## User\n\nWhere?\n\n**Assistant:** To\n\n```\n## User\n```\n"
        "## 用户\n好\n\n### ChatGPT\n\nend\n"
    )
    (number,) = from_markdown(other, text)
    assert other.conversation(number).title == "Trip"
    found = [(m.role, m.content) for m in other.path_to(other.messages(number)[-1].id)]
    assert found == [
        ("user", "Where?"), ("assistant", "To\n\n```\n## User\n```"), ("user", "好"),
        ("assistant", "end"),
    ]  # fmt: skip


def test_chatgpts_export_keeps_texts_and_branches(other) -> None:
    def node(parent: str | None, role: str = "", *parts: object, time: float = 1.7e9) -> dict:
        message = {"author": {"role": role}, "create_time": time, "content": {"parts": parts}}
        return {"parent": parent, "message": message if role else None}

    mapping = {
        "root": node(None), "sys": node("root", "system", ""), "q": node("sys", "user", "问题"),
        "a": node("q", "assistant", "one", {"image": 1}, "two"), "b": node("q", "assistant", "b"),
        "c": node("b", "user", "c", time=float("1e300")),
    }  # fmt: skip
    export = [{"title": "旅行", "create_time": 1.7e9, "mapping": mapping}, {"mapping": {}}]
    first, _ = from_json(other, json.dumps(export))
    messages = other.messages(first)
    assert [m.content for m in messages] == ["问题", "one\n\ntwo", "b", "c"]
    assert [m.content for m in other.path_to(messages[3].id)] == ["问题", "b", "c"]
    assert messages[1].created == "2023-11-14T22:13:20.000+00:00" == messages[3].created
    mapping["root"]["parent"] = "sys"
    with pytest.raises(BadInputError, match="in a circle"):
        from_json(other, json.dumps(export))


def message(number: str, parent: str | None = None, **changes: object) -> dict[str, object]:
    created = "2026-01-01T00:00:00"
    return {"id": number, "parent_id": parent, "role": "user", "content": "x", "created": created,
            **changes}  # fmt: skip


def document(*messages: dict[str, object], **changes: object) -> str:
    time = "2026-01-01T00:00:00+08:00"
    good = {"created": time, "updated": time, "messages": [message("a")]}
    bad = {"created": time, "updated": time, "messages": list(messages)}
    whole = {"format": "edgekit-history", "version": 1, "conversations": [good, bad], **changes}
    return json.dumps(whole)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"), ("{", "not JSON"), ("[" * 100_000, "nested too deeply"),
        ("[]", "neither"),
        ("null", "neither"), ('{"format": "x"}', "neither"), ("9" * 5000, "not JSON"),
        ("\ufffd\x00", "not JSON"),
        (document(version=2), "version 2"), (document(version=None), "version None"),
        (document(conversations={}), "must be a list"), (document(conversations=[1]), "0"),
        (document(message("a", "b")), "'b' is missing"),
        (document(message("a", "b"), message("b", "a")), "in a circle"),
        (document(message("a", "a")), "in a circle"),
        (document(message("a"), message("a")), "two messages have one id"),
        (document(message("a", role="root")), "role"),
        (document(message("a", content=1)), "content"),
        (document(message("a", created="yesterday")), "created"),
        (document(message("a", created="0001-01-01T00:00:00+23:59")), "calendar"),
        (document(message("a", sources=[1])), "sources"),
        (document(message("a", state="x")), "state"),
        (document(message("a" * 1001)), "id"),
        (document(message("a", stats={"n": float("nan")})), "NaN"),
    ],
)  # fmt: skip
def test_what_is_garbled_is_refused_and_nothing_of_it_comes_in(other, text: str, says: str) -> None:
    with pytest.raises(BadInputError, match=says):
        from_json(other, text)
    assert other.conversations() == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no messages"), ("# Title\n\ntext\n\n## Chapter\n", "no messages"),
        ("<!-- edgekit-conversation 0123456789abcdef {} -->", "version None"),
        ("<!-- edgekit-conversation 0123456789abcdef {x} -->", "not JSON"),
        ("<!-- edgekit-conversation 0123456789abcdef {" + "[" * 100_000 + "} -->", "JSON"),
    ],
)  # fmt: skip
def test_garbled_markdown_is_refused(other, text: str, says: str) -> None:
    with pytest.raises(BadInputError, match=says):
        from_markdown(other, text)
    assert other.conversations() == []


def test_hostile_ids_and_texts_are_data(other) -> None:
    text = document(
        message("'; DROP TABLE messages; --", origin={"x": "\ud800"}, content="a\x00\ud800 owl"),
        message("../../etc", "'; DROP TABLE messages; --", role="assistant", created="2026-02-03"),
    )
    _, number = from_json(other, text)
    first, second = other.messages(number)
    assert second.parent_id == first.id and len(first.id) == 16
    assert first.content == "a\ufffd\ufffd owl" and first.origin == {"x": "\ufffd"}
    assert second.created == "2026-02-03T00:00:00.000+00:00"
    assert other.conversation(number).created == "2025-12-31T16:00:00.000+00:00"
    assert [h.message_id for h in other.search("owl")] == [first.id]


def test_children_may_stand_before_their_parents(other) -> None:
    thread = [message(str(i), str(i + 1), content=str(i)) for i in range(3000)]
    text = document(*thread, message("3000", content="3000"))
    _, number = from_json(other, text)
    leaf = next(m for m in other.messages(number) if m.content == "0")
    assert [m.content for m in other.path_to(leaf.id)] == [str(3000 - i) for i in range(3001)]


def test_a_huge_file_is_refused_before_it_is_read(other, monkeypatch) -> None:
    monkeypatch.setattr("edgekit.assistant.transfer.LONGEST_FILE", 99)
    for read in (from_json, from_markdown):
        with pytest.raises(BadInputError, match="more than 99 characters"):
            read(other, "x" * 100)
    monkeypatch.undo()
    monkeypatch.setattr("edgekit.assistant.transfer_drafts.MOST_MESSAGES", 2)
    with pytest.raises(BadInputError, match="more than 2 messages"):
        from_json(other, document(message("a"), message("b")))
    assert other.conversations() == []


def test_an_import_for_which_there_is_no_room_leaves_nothing(other) -> None:
    other.create("mine")
    with other.write() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 20}")
    many = [message(str(i), content="words " * 200) for i in range(500)]
    with pytest.raises(OutOfResourcesError, match="no space"):
        from_json(other, document(*many))
    assert [c.title for c in other.conversations()] == ["mine"] and other.search("words") == []
