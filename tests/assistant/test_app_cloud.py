"""Asking the cloud through the whole path: what leaves is what was previewed, once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_cloud import FakeCloud, failing
from harness import Running, events, running, wait

from edgekit.assistant.cloud_config import CloudConfig

SECRET = "sk-very-secret-key-0123456789"


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    with FakeCloud() as started:
        yield started


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("assistant"), pack=None) as started:
        yield started


def configure(assistant: Running, cloud: FakeCloud, key: str | None = SECRET) -> None:
    body: dict[str, Any] = {"name": "Teacher", "base_url": cloud.url, "model": "big"}
    answer = assistant.http.put("/api/cloud", json=body if key is None else {**body, "key": key})
    assert answer.status_code == 200, answer.text


def preview(assistant: Running, conversation: str, text: str, **more: Any) -> dict[str, Any]:
    body = {"conversation_id": conversation, "text": text, **more}
    answer = assistant.http.post("/api/cloud/preview", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def send(assistant: Running, preview_id: str, conversation: str) -> httpx.Response:
    body = {"preview_id": preview_id, "conversation_id": conversation}
    return assistant.http.post("/api/cloud/send", json=body)


def test_without_a_configuration_nothing_can_leave(assistant: Running) -> None:
    assert assistant.http.get("/api/cloud").json()["configured"] is False
    conversation = assistant.conversation()
    answer = assistant.http.post(
        "/api/cloud/preview", json={"conversation_id": conversation, "text": "hi"}
    )
    assert answer.status_code == 400 and "no cloud model" in answer.json()["error"]["message"]


def test_what_leaves_is_the_preview_and_the_answer_carries_the_mark(
    assistant: Running, cloud: FakeCloud
) -> None:
    configure(assistant, cloud)
    state = assistant.http.get("/api/cloud").json()
    assert state["has_key"] is True and SECRET not in json.dumps(state)
    assert assistant.state()["cloud"] == {
        "configured": True, "name": "Teacher", "host": "127.0.0.1", "model": "big",
    }  # fmt: skip
    conversation = assistant.conversation()
    shown = preview(assistant, conversation, "Write to me@example.com", assistant_id="writer")
    assert cloud.requests == []  # looking sends nothing
    assert SECRET not in json.dumps(shown)
    assert shown["bytes"] == len(shown["body"].encode())
    assert "me@example.com" not in shown["body"] and shown["redactions"][0]["count"] == 1
    assert [p["kind"] for p in shown["parts"]] == ["system", "you"]
    found = list(events_of(send(assistant, shown["id"], conversation)))
    ((_, headers, body),) = cloud.requests
    assert hashlib.sha256(body).hexdigest() == shown["sha256"]
    assert body.decode() == shown["body"] and headers["authorization"] == f"Bearer {SECRET}"
    done = found[-1][1]["message"]
    assert found[0][0] == "begin" and done["content"] == "Hello there"
    assert done["origin"] == {"cloud": {"name": "Teacher", "host": "127.0.0.1", "model": "big"}}
    again = send(assistant, shown["id"], conversation)
    assert again.status_code == 409 and again.json()["error"]["code"] == "preview_expired"
    assert len(cloud.requests) == 1
    (entry,) = assistant.http.get("/api/cloud/log").json()
    assert entry["sha256"] == shown["sha256"] and entry["status"] == "answered"


def test_the_branch_leaves_only_if_wanted_and_passages_are_named(
    assistant: Running, cloud: FakeCloud, tmp_path: Path
) -> None:
    configure(assistant, cloud)
    conversation = assistant.conversation()
    shown = preview(assistant, conversation, "first question", redact=False)
    answer = list(events_of(send(assistant, shown["id"], conversation)))[-1][1]["message"]
    more = {"parent_id": answer["id"], "redact": False}
    whole = preview(assistant, conversation, "second", **more)
    assert [p["kind"] for p in whole["parts"]] == ["you", "answer", "you"]
    alone = preview(assistant, conversation, "second", include_history=False, **more)
    assert [p["text"] for p in alone["parts"]] == ["second"]
    assert "first question" not in alone["body"]
    (tmp_path / "contract.md").write_text("# Rent\n\nThe rent for the cellar is 77 euro.")
    added = assistant.http.post("/api/documents", json={"path": str(tmp_path / "contract.md")})
    wait(lambda: assistant.assistant.documents.search("cellar rent"))
    quoted = preview(assistant, conversation, "cellar rent?", documents=True, **more)
    passage = next(p for p in quoted["parts"] if p["kind"] == "passage")
    assert passage["file"] == "contract.md" and "77 euro" in passage["text"]
    found = list(events_of(send(assistant, quoted["id"], conversation)))
    assert found[-1][1]["message"]["sources"][0]["file"] == "contract.md"
    # the question is stored as it was asked, without what was quoted
    assert found[0][1]["user_message"]["content"] == "cellar rent?"
    assistant.http.delete(f"/api/documents/{added.json()['id']}")


def test_a_preview_belongs_to_its_conversation_and_to_its_configuration(
    assistant: Running, cloud: FakeCloud
) -> None:
    configure(assistant, cloud)
    mine, other = assistant.conversation(), assistant.conversation()
    shown = preview(assistant, mine, "hi")
    assert send(assistant, shown["id"], other).status_code == 409
    shown = preview(assistant, mine, "hi")
    assistant.http.put(
        "/api/cloud", json={"name": "Teacher", "base_url": cloud.url, "model": "another"}
    )
    assert send(assistant, shown["id"], mine).status_code == 409
    assert cloud.requests == []
    assert assistant.http.get(f"/api/conversations/{mine}").json()["messages"] == []


def test_a_cloud_that_cannot_be_reached_leaves_a_failed_answer(
    assistant: Running, cloud: FakeCloud
) -> None:
    configure(assistant, cloud)
    conversation = assistant.conversation()
    shown = preview(assistant, conversation, "hi")
    cloud._server.server_close()
    found = list(events_of(send(assistant, shown["id"], conversation)))
    assert found[-1][0] == "error" and found[-1][1]["code"] == "cloud_unreachable"
    stored = assistant.http.get(f"/api/conversations/{conversation}").json()["messages"]
    assert [m["state"] for m in stored] == ["complete", "failed"]
    assert stored[1]["origin"]["cloud"]["name"] == "Teacher"
    with FakeCloud(failing(401, "wrong key")) as refusing:
        configure(assistant, refusing)
        shown = preview(assistant, conversation, "hi")
        found = list(events_of(send(assistant, shown["id"], conversation)))
        assert found[-1][1]["code"] == "cloud_refused"
    assert assistant.http.delete("/api/cloud").status_code == 200
    assert assistant.state()["cloud"]["configured"] is False


def test_a_weak_answer_suggests_the_cloud_only_where_there_is_one(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    with running(tmp_path) as assistant:
        assistant.wait_ready()
        assistant.script({"text": "I guess so", "logprob": -5.0})
        found = assistant.ask(assistant.conversation(), "hard?")
        assert "logprobs" not in assistant.requests()[-1]
        assert not [e for e in found if e[0] == "suggestion"]
        configure(assistant, cloud)
        found = assistant.ask(assistant.conversation(), "hard?")
        assert assistant.requests()[-1]["logprobs"] is True
        assert [data for name, data in found if name == "suggestion"] == [
            {"code": "low_confidence"}
        ]
        assert found[-1][1]["message"]["origin"]["suggestion"] == "low_confidence"
        assert cloud.requests == []  # a suggestion sends nothing


def test_a_configuration_keeps_its_key_only_for_its_own_address(
    assistant: Running, cloud: FakeCloud
) -> None:
    configure(assistant, cloud)
    configure(assistant, cloud, key=None)
    assert assistant.http.get("/api/cloud").json()["has_key"] is True
    assert isinstance(assistant.assistant.cloud.configured(), CloudConfig)
    elsewhere = {"name": "x", "base_url": "https://api.example.com/v1", "model": "m"}
    assert assistant.http.put("/api/cloud", json=elsewhere).json()["has_key"] is False
    bad = {"name": "x", "base_url": "ftp://x", "model": "m"}
    assert assistant.http.put("/api/cloud", json=bad).status_code == 400


def events_of(answer: httpx.Response) -> Iterator[tuple[str, Any]]:
    assert answer.status_code == 200, answer.text
    return events(answer)
