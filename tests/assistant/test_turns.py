"""Answers from the question to the stored message, against a scripted model."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from harness import Running, events, named, running, wait, write_script

from edgekit.errors import OutOfResourcesError


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("assistant")) as started:
        started.wait_ready()
        yield started


@pytest.fixture(autouse=True)
def _fresh_script(request: pytest.FixtureRequest) -> None:
    if "assistant" in request.fixturenames:
        request.getfixturevalue("assistant").script()


def test_an_answer_streams_as_blocks_and_is_stored_with_what_it_cost(assistant: Running) -> None:
    assistant.script({"text": "Sunny **all** day.\n\nAnd warm.", "thinking": "Let me see."})
    conversation = assistant.conversation()
    found = assistant.ask(conversation, "How is the weather in Shanghai today?")
    begin, done = found[0][1], found[-1][1]["message"]
    assert found[0][0] == "begin" and found[-1][0] == "done"
    assert done["id"] == begin["answer_id"] and done["state"] == "complete"
    assert done["content"] == "Sunny **all** day.\n\nAnd warm."
    assert "<strong>all</strong>" in done["html"]
    assert done["thinking"] == "Let me see."
    last_blocks = {b["index"]: b["html"] for b in named(found, "block")}
    assert "".join(last_blocks[i] for i in sorted(last_blocks)).count("<p>") == 2
    assert "".join(t["text"] for t in named(found, "thinking")) == "Let me see."
    assert done["stats"]["tokens_per_second"] == 20 and done["stats"]["completion_tokens"] > 0
    assert done["origin"] == {
        "device": "CPU", "engine": "openvino", "pack": "fake", "target": "openvino-cpu",
    }  # fmt: skip
    stored = assistant.messages(conversation)
    assert [m["role"] for m in stored] == ["user", "assistant"]
    assert stored[1]["html"] == done["html"] and stored[0]["id"] == begin["user_message"]["id"]
    title = assistant.http.get(f"/api/conversations/{conversation}").json()["conversation"]["title"]
    assert title == "How is the weather in Shanghai today?"


def test_the_branch_and_the_named_assistant_are_what_the_model_reads(assistant: Running) -> None:
    conversation = assistant.conversation()
    first = assistant.ask(conversation, "one")[-1][1]["message"]
    assistant.ask(conversation, "two", parent_id=first["id"], assistant_id="translator")
    said = assistant.requests()[-1]["messages"]
    assert [m["role"] for m in said] == ["system", "user", "assistant", "user"]
    assert [m["content"] for m in said[1:]] == ["one", "one", "two"]
    assert said[0]["content"].startswith("You translate.")
    # a branch from the beginning knows nothing of the other one
    assistant.ask(conversation, "three", parent_id=None)
    assert [m["content"] for m in assistant.requests()[-1]["messages"]] == ["three"]


def test_regenerating_makes_a_sibling(assistant: Running) -> None:
    conversation = assistant.conversation()
    first = assistant.ask(conversation, "again")[-1][1]["message"]
    found = assistant.ask(conversation, "", regenerate=first["id"])
    assert found[0][1]["user_message"] is None
    second = found[-1][1]["message"]
    assert second["parent_id"] == first["parent_id"] and second["id"] != first["id"]
    assert assistant.requests()[-1]["messages"] == assistant.requests()[-2]["messages"]


def test_an_answer_goes_on_when_its_page_is_closed_and_can_be_read_from_any_event(
    assistant: Running, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    assistant.script({"text": "one two three four five six", "hold": str(gate)})
    conversation = assistant.conversation()
    path = f"/api/conversations/{conversation}/turns"
    with assistant.http.stream("POST", path, json={"text": "count"}) as answer:
        begin = next(events(answer))[1]
    # the connection is closed here, in the middle of the answer
    detail = assistant.http.get(f"/api/conversations/{conversation}").json()
    assert detail["running"] == [{"turn_id": begin["turn_id"], "answer_id": begin["answer_id"]}]
    gate.touch()
    with assistant.http.stream("GET", f"/api/turns/{begin['turn_id']}/events?from=1") as answer:
        later = list(events(answer))
    assert "begin" not in [name for name, _ in later]
    assert later[-1][1]["message"]["content"] == "one two three four five six"
    numbers = {"last-event-id": "0"}
    url = f"/api/turns/{begin['turn_id']}/events"
    with assistant.http.stream("GET", url, headers=numbers) as answer:
        again = list(events(answer))
    # of a block only its last state is kept, so reading again may be shorter and ends the same
    assert again[-1] == later[-1] and len(again) <= len(later)
    assert assistant.http.get(f"/api/conversations/{conversation}").json()["running"] == []


def test_stopping_keeps_what_had_come_and_ends_the_model(
    assistant: Running, tmp_path: Path
) -> None:
    assistant.script({"text": "abcdefghijklmnop", "hold": str(tmp_path / "never")})
    conversation = assistant.conversation()
    begin, found, thread = assistant.begin(conversation, "go")
    wait(lambda: named(found, "block"))
    assert assistant.http.post(f"/api/turns/{begin['turn_id']}/stop").status_code == 415
    assert assistant.http.post(f"/api/turns/{begin['turn_id']}/stop", json={}).status_code == 200
    thread.join()
    done = found[-1][1]["message"]
    assert found[-1][0] == "done" and done["state"] == "stopped" and done["content"] == "abcdefgh"
    assert assistant.messages(conversation)[-1]["state"] == "stopped"


def test_partial_answers_are_saved_about_once_a_second(assistant: Running, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    assistant.script({"text": "0123456789ab", "thinking": "", "hold": str(gate)})
    conversation = assistant.conversation()
    _, _, thread = assistant.begin(conversation, "go")
    saved = wait(
        lambda: [m for m in assistant.messages(conversation) if m["content"] == "01234567"]
    )
    assert saved[0]["state"] == "partial"
    gate.touch()
    thread.join()
    assert assistant.messages(conversation)[-1]["content"] == "0123456789ab"


def test_a_model_that_dies_in_the_middle_leaves_a_failed_answer_and_a_retry_works(
    assistant: Running,
) -> None:
    assistant.script({"text": "this will not be finished", "die": True})
    conversation = assistant.conversation()
    found = assistant.ask(conversation, "hello")
    assert found[-1][0] == "error" and found[-1][1]["code"] == "engine_failed"
    failed = assistant.messages(conversation)[-1]
    assert failed["state"] == "failed" and failed["content"] == "this will no"
    assert failed["id"] == found[-1][1]["message_id"]
    assert failed["origin"]["error"]["code"] == "engine_failed"
    assistant.script({"text": "here I am again"})
    retried = assistant.ask(conversation, "", regenerate=failed["id"])
    assert retried[-1][1]["message"]["content"] == "here I am again"
    # what failed without a word would leave two questions in a row; templates want turns
    assistant.ask(conversation, "more", parent_id=failed["id"])
    assert [m["role"] for m in assistant.requests()[-1]["messages"]] == [
        "user", "assistant", "user",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ({"refuse": {"status": 429, "code": "queue_full", "message": "busy"}}, "queue_full"),
        ({"refuse": {"status": 400, "code": "context_length_exceeded", "message": "long"}},
         "context_full"),
        ({"text": "abc", "error": "the device was lost"}, "engine_failed"),
    ],
)  # fmt: skip
def test_what_the_model_refuses_is_told_with_its_code(
    assistant: Running, reply: dict[str, Any], code: str
) -> None:
    assistant.script(reply)
    conversation = assistant.conversation()
    found = assistant.ask(conversation, "hello")
    assert found[-1][0] == "error" and found[-1][1]["code"] == code
    assert assistant.messages(conversation)[-1]["state"] == "failed"


def test_the_place_in_the_queue_is_told(assistant: Running) -> None:
    assistant.script({"text": "hi", "queue": 3})
    found = assistant.ask(assistant.conversation(), "hello")
    assert named(found, "queue") == [{"position": 3}]


def test_hostile_markdown_reaches_the_page_as_text(assistant: Running) -> None:
    hostile = (
        "<script>alert(1)</script> <img src=x onerror=alert(1)> "
        "![p](https://evil.example/x.png) [a](javascript:alert(1)) <iframe srcdoc='x'>"
    )
    assistant.script({"text": hostile})
    conversation = assistant.conversation()
    found = assistant.ask(conversation, "<b>mine</b>")
    shown = [b["html"] for b in named(found, "block")] + [found[-1][1]["message"]["html"]]
    for html in shown:
        lowered = html.lower()
        assert "<script" not in lowered and "<img" not in lowered and "<iframe" not in lowered
        assert 'href="javascript' not in lowered and "src=" not in lowered.replace("src=x", "")
    assert assistant.messages(conversation)[0]["content"] == "<b>mine</b>"
    assert "html" not in assistant.messages(conversation)[0]


def test_a_full_disk_is_told_and_the_next_answer_works(
    assistant: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OutOfResourcesError("history.sqlite: no space left to write it; free some disk")

    conversation = assistant.conversation()
    with monkeypatch.context() as patch:
        patch.setattr(assistant.assistant.history, "finish", full)
        found = assistant.ask(conversation, "hello")
        assert named(found, "block")  # the words were shown all the same
        assert found[-1][0] == "error" and found[-1][1]["code"] == "disk_full"
        patch.setattr(assistant.assistant.history, "add", full)
        path = f"/api/conversations/{conversation}/turns"
        answer = assistant.http.post(path, json={"text": "more"})
        assert answer.status_code == 507 and answer.json()["error"]["code"] == "disk_full"
    assert assistant.ask(conversation, "hello")[-1][0] == "done"


def test_a_clock_that_jumps_back_changes_no_order(
    assistant: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = assistant.conversation()
    first = assistant.ask(conversation, "one")[-1][1]["message"]
    monkeypatch.setattr(
        assistant.assistant.history, "_clock", lambda: datetime(1999, 1, 1, tzinfo=UTC)
    )
    assistant.ask(conversation, "two", parent_id=first["id"])
    assert [m["content"] for m in assistant.messages(conversation)] == ["one", "one", "two", "two"]


def test_questions_that_cannot_be_asked_are_refused(assistant: Running) -> None:
    conversation, other = assistant.conversation(), assistant.conversation()
    answer = assistant.ask(conversation, "one")[-1][1]["message"]
    path = f"/api/conversations/{conversation}/turns"
    unknown = "0" * 16
    for body, status, code in [
        ({"text": "  "}, 400, "empty"),
        ({}, 400, "empty"),
        ({"text": "x", "parent_id": unknown}, 404, "not_found"),
        ({"regenerate": unknown}, 404, "not_found"),
        ({"text": "x", "target": "openvino-cpu --evil"}, 400, "bad_target"),
        ({"text": 3}, 400, "bad_request"),
    ]:
        answered = assistant.http.post(path, json=body)
        assert (answered.status_code, answered.json()["error"]["code"]) == (status, code), body
    elsewhere = assistant.http.post(
        f"/api/conversations/{other}/turns", json={"text": "x", "parent_id": answer["id"]}
    )
    assert elsewhere.status_code == 404
    assert assistant.http.post("/api/turns/0/stop", json={}).status_code == 404
    assert assistant.messages(other) == []


def test_deleting_a_conversation_ends_what_is_written_in_it(
    assistant: Running, tmp_path: Path
) -> None:
    assistant.script({"text": "abcdefghijklmnop", "hold": str(tmp_path / "never")})
    conversation = assistant.conversation()
    _, found, thread = assistant.begin(conversation, "go")
    wait(lambda: named(found, "block"))
    assert assistant.http.delete(f"/api/conversations/{conversation}").status_code == 200
    thread.join()
    assert found[-1][1]["message"]["state"] == "stopped"
    assert assistant.http.get(f"/api/conversations/{conversation}").status_code == 404


def test_a_device_that_failed_can_be_tried_again_from_the_answer(tmp_path: Path) -> None:
    write_script(tmp_path / "script" / "script.json", load_error="the driver is being updated")
    with running(tmp_path) as assistant:
        wait(lambda: assistant.state()["engine"]["state"] == "failed")
        assistant.http.post("/api/engine", json={"target": "onnx-cpu"})
        wait(lambda: assistant.state()["engine"]["target"] == "onnx-cpu")
        conversation = assistant.conversation()
        found = assistant.ask(conversation, "hello")
        assert found[-1][0] == "error" and "being updated" in found[-1][1]["message"]
        assistant.script()
        failed = found[-1][1]["message_id"]
        found = assistant.ask(conversation, "", regenerate=failed, target="onnx-cpu")
        assert found[-1][0] == "done" and found[-1][1]["message"]["content"] == "hello"
