"""What is sent when a conversation is longer than the model can read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.assistant.compaction import (
    MESSAGE_TOKENS,
    TEMPLATE_TOKENS,
    Compactor,
    Prepared,
    after_summary,
    upper_bound,
)
from edgekit.assistant.conversation import branch_messages, title_of
from edgekit.assistant.history_records import Message
from edgekit.assistant.refusals import RefusalError


def message(number: int, role: Any, content: str, **fields: Any) -> Message:
    return Message(f"{number:016x}", "c" * 16, None, role, content, "", "", **fields)


def talk(turns: int, length: int) -> list[Message]:
    """``turns`` questions with answers, then a question."""
    path = []
    for n in range(turns):
        path.append(message(2 * n, "user", f"q{n} ".ljust(length, "u")))
        path.append(message(2 * n + 1, "assistant", f"a{n} ".ljust(length, "v")))
    return [*path, message(2 * turns, "user", "last question")]


class Model:
    """A token is a character; summaries are what the test says."""

    def __init__(self, summary: str | None = "SUMMARY") -> None:
        self.summary, self.asked = summary, list[Any]()

    async def count(self, messages: Sequence[Any], tools: Sequence[Any] = ()) -> int:
        return sum(len(m["content"]) for m in messages)

    async def complete(self, messages: Sequence[Any], limit: int) -> str:
        self.asked.append((list(messages), limit))
        if self.summary is None:
            raise RefusalError(503, "engine_failed", "no")
        return self.summary

    def prepare(
        self, path: Sequence[Message], context: int, passages: Sequence[str] = (), system: str = ""
    ) -> Prepared:
        compactor = Compactor(context, 10_000, self.count, self.complete)
        quote = lambda n: "\n".join(passages[:n])  # noqa: E731
        return asyncio.run(compactor.prepare(path, system, len(passages), quote))


def test_what_fits_is_sent_as_it_is() -> None:
    model, path = Model(), talk(3, 20)
    prepared = model.prepare(path, 4000, system="be kind")
    assert prepared.compaction is None and model.asked == []
    assert prepared.messages == [
        {"role": "system", "content": "be kind"}, *branch_messages(path)
    ]  # fmt: skip


def test_older_turns_become_a_summary_and_the_newest_stay_whole() -> None:
    model, path = Model(), talk(10, 100)
    prepared = model.prepare(path, 1600)
    compaction = prepared.compaction
    assert compaction is not None and compaction.note == "SUMMARY"
    assert compaction.kept + compaction.summarised == len(path)
    assert compaction.until == path[compaction.summarised - 1].id
    kept = branch_messages(path[compaction.summarised :])
    assert prepared.messages[0]["role"] == "system"
    assert "SUMMARY" in prepared.messages[0]["content"]
    assert prepared.messages[1:] == kept and kept[0]["role"] == "user"
    (asked, limit), budget = model.asked[0], 1600 - 400
    assert limit == 200 and "q0" in asked[-1]["content"]
    assert asyncio.run(model.count(prepared.messages)) <= budget
    # one turn more would not have fitted beside the longest summary
    more = branch_messages(path[compaction.summarised - 2 :])
    assert asyncio.run(model.count(more)) + 2 * limit > budget


def test_a_summary_is_built_upon_and_not_made_again() -> None:
    path = talk(4, 20)
    path[3] = message(
        3, "assistant", "a1", origin={"compacted": {"note": "OLD", "until": path[1].id}}
    )
    assert after_summary(path) == (path[2:], "OLD")
    model = Model()
    prepared = model.prepare(path, 4000)
    assert prepared.compaction is None and model.asked == []
    assert "OLD" in prepared.messages[0]["content"]
    assert "q0" not in str(prepared.messages) and "q1" in str(prepared.messages)


def test_the_next_summary_contains_the_one_before() -> None:
    path = talk(12, 100)
    path[3] = message(
        3, "assistant", path[3].content, origin={"compacted": {"note": "OLD", "until": path[1].id}}
    )
    model = Model("NEW")
    prepared = model.prepare(path, 1600)
    assert prepared.compaction is not None
    assert model.asked[0][0][-1]["content"].startswith("OLD")
    assert "NEW" in prepared.messages[0]["content"] and "OLD" not in str(prepared.messages)


def test_where_no_summary_can_be_made_the_older_turns_are_left_out_and_the_note_is_empty() -> None:
    prepared = Model(None).prepare(talk(10, 100), 1600)
    assert prepared.compaction is not None and prepared.compaction.note == ""
    assert prepared.messages[0]["role"] == "user"


def test_passages_give_way_before_the_question_does() -> None:
    passages = [f"passage {n} ".ljust(400, "p") for n in range(6)]
    prepared = Model().prepare([message(0, "user", "question")], 1600, passages)
    assert prepared.passages == 2 and prepared.compaction is None
    content = prepared.messages[-1]["content"]
    assert "passage 1" in content and "passage 2" not in content
    assert content.endswith("\n\nquestion")


def test_a_question_that_does_not_fit_alone_is_refused_with_its_length() -> None:
    with pytest.raises(RefusalError) as refused:
        Model().prepare([message(0, "user", "x" * 3000)], 1600, ["p"])
    assert refused.value.code == "context_full" and "3000" in str(refused.value)
    assert "1200" in str(refused.value)


def test_a_text_far_beyond_the_context_is_shortened_before_it_is_summarised() -> None:
    model, path = Model(), talk(2, 20_000)
    model.prepare(path, 1600)
    (asked, _) = model.asked[0]
    assert len(asked[-1]["content"]) < 1200 and "…" in asked[-1]["content"]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), max_size=12),
    context=st.integers(300, 3000),
    passages=st.integers(0, 4),
)
def test_whatever_is_sent_fits_and_ends_with_the_question(
    lengths: list[int], context: int, passages: int
) -> None:
    path = [
        message(n, ("user", "assistant")[n % 2], "w" * length)
        for n, length in enumerate(lengths[: len(lengths) // 2 * 2])
    ] + [message(99, "user", "the question")]
    model = Model("s" * 30)
    try:
        prepared = model.prepare(path, context, ["p" * 150] * passages)
    except RefusalError:
        pytest.fail("a short question always fits")
    assert prepared.messages[-1]["content"].endswith("the question")
    budget = context - min(10_000, max(64, context // 4))
    assert asyncio.run(model.count(prepared.messages)) <= budget


@given(
    st.lists(
        st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.text(max_size=20)),
        max_size=8,
    )
)
def test_the_bound_is_never_below_one_token_a_byte(parts: list[tuple[str, str]]) -> None:
    messages = [{"role": r, "content": c} for r, c in parts]
    size = sum(len(c.encode("utf-8", "replace")) for _, c in parts)
    assert upper_bound(messages, ()) >= size + TEMPLATE_TOKENS + MESSAGE_TOKENS * len(parts)


def test_a_branch_takes_turns_whatever_failed_in_it() -> None:
    path = [
        message(0, "user", "a"), message(1, "assistant", "", state="failed"),
        message(2, "user", "b"), message(3, "assistant", "half", state="stopped"),
        message(4, "user", "c"),
    ]  # fmt: skip
    assert branch_messages(path) == [
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "half"},
        {"role": "user", "content": "c"},
    ]


def test_calls_of_a_branch_keep_their_rounds_and_unfinished_ones_are_left_out() -> None:
    def call(number: int, **more: Any) -> dict[str, Any]:
        return {"call_id": f"c{number}", "name": "t", "arguments": {"n": number}, **more}

    calls = [call(1, text="one", round=0), call(2, text="two", round=0),
             call(3, text="three", round=1), call(4, round=2)]  # fmt: skip
    sent = branch_messages([message(0, "user", "q"), message(1, "assistant", "end",
                                                             tool_calls=calls)])  # fmt: skip
    assert [m["role"] for m in sent] == [
        "user", "assistant", "tool", "tool", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert [c["id"] for c in sent[1]["tool_calls"]] == ["c1", "c2"]
    assert sent[-1] == {"role": "assistant", "content": "end"}


@pytest.mark.parametrize(
    ("question", "title"),
    [
        ("How  are\nyou?", "How are you?"),
        ("word " * 40, "word " * 11 + "word…"),
        ("x" * 100, "x" * 60 + "…"),
        ("一" * 80, "一" * 60 + "…"),
    ],
)
def test_a_conversation_is_named_after_its_first_question(question: str, title: str) -> None:
    assert title_of(question) == title
