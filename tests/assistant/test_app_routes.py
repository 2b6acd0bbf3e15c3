"""The rest of the API: settings, library, packs, devices, history, documents, cloud, tools."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from harness import Running, fake_pack, running, wait

from edgekit.archive import archive_pack
from edgekit.assistant.policy import Policy
from edgekit.assistant.routes_documents import safe_name
from edgekit.assistant.routes_page import checked_link
from edgekit.assistant.window import Window
from edgekit.errors import EdgekitError
from edgekit.progress import Silent


class Dialogs(Window):
    """A window whose dialogs choose what a test says."""

    chosen: list[str] = []  # noqa: RUF012

    def pick(self, kind: Literal["file", "folder"]) -> list[str]:
        return self.chosen


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("assistant"), pack=None, window=Dialogs()) as started:
        yield started


def refused(answer: Any, status: int, code: str) -> str:
    assert answer.status_code == status and answer.json()["error"]["code"] == code, answer.text
    return str(answer.json()["error"]["message"])


def test_a_first_start_says_so_and_offers_the_demo(assistant: Running) -> None:
    state = assistant.state()
    assert state["first_start"] is True and state["engine"]["state"] == "none"
    assert state["demo"]["available"] is True and state["demo"]["state"] == "none"
    assert state["engine"]["pack"] is None and state["recovery"] is None
    conversation = assistant.conversation()  # history works without a model
    refused(
        assistant.http.post(f"/api/conversations/{conversation}/turns", json={"text": "x"}),
        409, "no_engine",
    )  # fmt: skip
    refused(assistant.http.post("/api/engine", json={}), 409, "no_engine")


def test_settings_change_whole_or_not_at_all_and_stay_private(assistant: Running) -> None:
    put = assistant.http.put("/api/settings", json={"theme": "dark", "temperature": 0.2})
    assert put.json()["theme"] == "dark" and put.json()["data_folder"] == str(assistant.data)
    message = refused(
        assistant.http.put("/api/settings", json={"theme": "light", "top_p": 7}),
        400, "bad_setting",
    )  # fmt: skip
    assert "top_p" in message
    refused(assistant.http.put("/api/settings", json={"telemetry": True}), 400, "bad_setting")
    now = assistant.http.get("/api/settings").json()
    assert now["theme"] == "dark" and now["temperature"] == 0.2
    assert now == assistant.state()["settings"]
    file = assistant.data / "settings.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(assistant.data.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("path", "entry", "change"),
    [
        ("/api/assistants", {"name": "Cook", "icon": "C", "system_prompt": "You cook."},
         {"name": "Chef"}),
        ("/api/prompts", {"title": "Recipe", "text": "A recipe for "}, {"title": "Dish"}),
    ],
)  # fmt: skip
def test_own_entries_of_the_library_come_and_go_and_built_in_ones_stay(
    assistant: Running, path: str, entry: dict[str, str], change: dict[str, str]
) -> None:
    builtin = assistant.http.get(path).json()
    assert builtin and all(e["builtin"] and e.get("name_key", e.get("title_key")) for e in builtin)
    made = assistant.http.post(path, json={**entry, "builtin": True, "name_key": "x"}).json()
    assert made["builtin"] is False and not made.get("name_key")
    changed = assistant.http.put(f"{path}/{made['id']}", json=change).json()
    assert changed == {**made, **change}
    refused(assistant.http.put(f"{path}/{builtin[0]['id']}", json=change), 409, "builtin")
    refused(assistant.http.delete(f"{path}/{builtin[0]['id']}"), 409, "builtin")
    assert assistant.http.delete(f"{path}/{made['id']}").status_code == 200
    assert assistant.http.get(path).json() == builtin
    refused(assistant.http.post(path, json={"name": "", "title": ""}), 400, "bad_field")


def test_packs_are_verified_when_added_and_damage_is_named(
    assistant: Running, tmp_path: Path
) -> None:
    good, bad = fake_pack(tmp_path / "good", "good"), fake_pack(tmp_path / "bad", "bad")
    weights = bad / "variants/dense/weights.safetensors"
    weights.write_bytes(b"x" * 1000)
    message = refused(assistant.http.post("/api/packs", json={"path": str(bad)}), 400, "bad_pack")
    assert "weights.safetensors" in message
    refused(assistant.http.post("/api/packs", json={"path": str(tmp_path / "no")}), 400, "bad_pack")
    refused(assistant.http.post("/api/packs", json={"path": "a\0b"}), 400, "bad_pack")
    added = assistant.http.post("/api/packs", json={"path": str(good)}).json()
    assert added["name"] == "good" and added["problem"] is None and added["bytes"] == 1000
    Dialogs.chosen = [str(good)]
    assert assistant.http.post("/api/packs/pick", json={}).json() == added
    Dialogs.chosen = []
    assert assistant.http.post("/api/packs/pick", json={}).json() is None
    (good / "pack.json").write_text("{")
    (listed,) = assistant.http.get("/api/packs").json()
    assert "not valid JSON" in listed["problem"]
    message = refused(assistant.http.post("/api/engine", json={"pack": str(good)}), 400, "bad_pack")
    assert "pack.json" in message
    forget = {"path": str(good)}
    assert assistant.http.request("DELETE", "/api/packs", json=forget).status_code == 200
    assert assistant.http.get("/api/packs").json() == []
    refused(assistant.http.request("DELETE", "/api/packs", json=forget), 404, "not_found")


def test_an_archive_is_unpacked_into_the_persons_folder(assistant: Running, tmp_path: Path) -> None:
    pack = fake_pack(tmp_path / "source", "packed")
    archive_pack(pack, tmp_path / "packed.tar", Silent())
    added = assistant.http.post("/api/packs", json={"path": str(tmp_path / "packed.tar")}).json()
    assert added["path"] == str(assistant.data / "packs" / "packed") and added["problem"] is None
    (tmp_path / "broken.tar").write_bytes((tmp_path / "packed.tar").read_bytes()[:900])
    path = {"path": str(tmp_path / "broken.tar")}
    refused(assistant.http.post("/api/packs", json=path), 400, "bad_pack")
    assert [p.name for p in (assistant.data / "packs").iterdir()] == ["packed"]


def test_devices_say_why_for_a_pack(assistant: Running, tmp_path: Path) -> None:
    pack = fake_pack(tmp_path / "p", targets=("openvino-cpu", "openvino-npu"))
    rows = assistant.http.get("/api/devices", params={"pack": str(pack)}).json()
    by_target = {row["target"]: row for row in rows}
    assert by_target["openvino-cpu"]["code"] == "chosen" and by_target["openvino-cpu"]["chosen"]
    assert by_target["onnx-cpu"]["code"] == "not_compiled"
    assert by_target["openvino-npu"]["code"] in ("device_missing", "later")
    assert all(row["reason"] for row in rows)


def test_conversations_are_renamed_pinned_moved_found_and_deleted(assistant: Running) -> None:
    http = assistant.http
    folder = http.post("/api/folders", json={"name": " Work "}).json()
    assert folder["name"] == "Work"
    refused(http.post("/api/folders", json={"name": "  "}), 400, "empty")
    made = http.post("/api/conversations", json={"folder_id": folder["id"]}).json()
    path = f"/api/conversations/{made['id']}"
    changed = http.patch(path, json={"title": "模型 蒸馏", "pinned": True}).json()
    assert changed["title"] == "模型 蒸馏" and changed["pinned"] is True
    assert changed["folder_id"] == folder["id"]
    assert http.patch(path, json={"folder_id": None}).json()["folder_id"] is None
    hits = http.get("/api/search", params={"q": "蒸馏"}).json()
    assert hits[0]["conversation_id"] == made["id"]
    assert http.patch(f"/api/folders/{folder['id']}", json={"name": "Home"}).status_code == 200
    assert http.delete(f"/api/folders/{folder['id']}").status_code == 200
    assert http.delete(path).status_code == 200
    assert http.get("/api/search", params={"q": "蒸馏"}).json() == []


def test_a_history_goes_out_and_comes_back(assistant: Running) -> None:
    http = assistant.http
    made = http.post("/api/conversations", json={"title": 'a/b"\r\nx: y 测试'}).json()
    assistant.assistant.history.add(made["id"], None, "user", "remember me")
    path = f"/api/conversations/{made['id']}/export"
    for form, kind in (("markdown", "text/markdown"), ("json", "application/json")):
        sent = http.get(path, params={"format": form})
        disposition = sent.headers["content-disposition"]
        assert disposition.startswith("attachment; ") and sent.headers["content-type"].startswith(
            kind
        )
        assert "\n" not in disposition and "/" not in disposition.partition("''")[2]
        back = http.post("/api/import", json={"format": form, "text": sent.text}).json()
        (number,) = back["conversation_ids"]
        messages = http.get(f"/api/conversations/{number}").json()["messages"]
        assert back["imported"] == 1 and messages[0]["content"] == "remember me"
    assert "remember me" in http.get("/api/export").text
    bad = {"format": "json", "text": "{"}
    refused(http.post("/api/import", json=bad), 400, "bad_import")


def test_an_uploaded_document_is_kept_searched_and_removed_with_its_file(
    assistant: Running,
) -> None:
    http, raw = assistant.http, {"content-type": "application/octet-stream"}
    body = b"# Bread\n\nKnead the sourdough for ten minutes."
    name = {"name": "../../evil/面包.md"}
    source = http.post("/api/documents/upload", params=name, content=body, headers=raw).json()
    path = Path(source["path"])
    assert path.name == "面包.md" and path.is_relative_to(assistant.data / "documents" / "uploads")

    def ready() -> bool:
        return any(s["state"] == "ready" for s in http.get("/api/documents").json()["sources"])

    wait(ready)
    assert assistant.assistant.documents.search("sourdough")
    assert http.delete(f"/api/documents/{source['id']}").status_code == 200
    assert not path.exists() and assistant.assistant.documents.search("sourdough") == []
    refused(
        http.post("/api/documents/upload", params={"name": ""}, content=b"x", headers=raw),
        400, "bad_name",
    )  # fmt: skip
    assert list((assistant.data / "documents" / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("report.pdf", "report.pdf"), ("C:\\a\\b.txt", "b.txt"), ("/etc/passwd", "passwd"),
        ("a\x00b:c.md", "a_b_c.md"), ("con.txt", "_con.txt"), ("文档.docx", "文档.docx"),
        ("x" * 300 + ".pdf", "x" * 116 + ".pdf"), (" .hidden. ", "hidden"),
    ],
)  # fmt: skip
def test_uploaded_names_are_safe_everywhere(given: str, kept: str) -> None:
    assert safe_name(given) == kept


@pytest.mark.parametrize("name", ["", "..", ". .", "///", " "])
def test_names_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(EdgekitError):
        safe_name(name)


def test_files_and_folders_are_picked_with_the_systems_dialog(
    assistant: Running, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("alpha")
    Dialogs.chosen = [str(tmp_path / "a.txt")]
    (source,) = assistant.http.post("/api/documents/pick", json={"kind": "file"}).json()
    assert source["path"] == str(tmp_path / "a.txt")
    assistant.http.delete(f"/api/documents/{source['id']}")


def test_a_browser_has_no_dialog(tmp_path: Path) -> None:
    with running(tmp_path, pack=None) as assistant:
        refused(assistant.http.post("/api/documents/pick", json={}), 404, "no_dialog")
        refused(assistant.http.post("/api/packs/pick", json={}), 404, "no_dialog")


@pytest.mark.parametrize(
    "link",
    [
        "javascript:alert(1)", "file:///etc/passwd", "data:text/html,x", "http:///x", "x",
        "https://a b", "https://a\n", "ssh://host", "http://[bad", "vbscript:x", "https://",
        "smb://server/share", "ms-msdt:/id", "https://" + "a" * 5000,
    ],
)  # fmt: skip
def test_only_web_and_mail_links_are_opened(assistant: Running, link: str) -> None:
    refused(assistant.http.post("/api/open-link", json={"url": link}), 400, "bad_link")


def test_web_and_mail_links_pass_unchanged() -> None:
    for link in ("https://example.com/a?b=c#d", "http://127.0.0.1:80", "mailto:a@example.com"):
        assert checked_link(link) == link


def test_tool_servers_are_added_with_their_whole_command_and_never_run_unconfirmed(
    assistant: Running, tmp_path: Path
) -> None:
    http = assistant.http
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')"
    body = {"name": "mine", "command": [sys.executable, "-c", code], "env": {"KEY": "secret"}}
    added = http.post("/api/mcp", json=body).json()
    assert added["command"] == body["command"] and added["confirmed"] is False
    assert added["env"] == ["KEY"] and "secret" not in http.get("/api/mcp").text
    refused(http.post("/api/mcp/mine/tools", json={}), 400, "bad_input")
    assert not ran.exists()
    refused(http.post("/api/mcp/other/tools", json={"confirm": True}), 404, "not_found")
    assert http.delete("/api/mcp/mine").status_code == 200
    assert http.get("/api/mcp").json() == []


def test_the_owners_policy_is_followed_and_said(tmp_path: Path) -> None:
    policy = Policy(
        cloud="forbidden", mcp="forbidden", endpoint="forbidden", autostart="forbidden",
        document_folders=(tmp_path / "allowed",), source="/etc/edgekit/policy.json",
    )  # fmt: skip
    with running(tmp_path, pack=None, policy=policy) as assistant:
        http = assistant.http
        assert assistant.state()["policy"] == {
            "cloud": "forbidden", "mcp": "forbidden", "endpoint": "forbidden",
                "source": "/etc/edgekit/policy.json",
        }  # fmt: skip
        cloud = {"name": "n", "base_url": "https://api.example.com/v1", "model": "m"}
        conversation = assistant.conversation()
        preview = {"conversation_id": conversation, "text": "hi"}
        send = {"conversation_id": conversation, "preview_id": "x"}
        for method, path, body in [
            ("PUT", "/api/cloud", cloud),
            ("POST", "/api/cloud/preview", preview),
            ("POST", "/api/cloud/send", send),
            ("POST", "/api/mcp", {"name": "a", "command": ["x"]}),
            ("POST", "/api/documents", {"path": str(tmp_path)}),
            ("PUT", "/api/settings", {"endpoint_enabled": True}),
            ("PUT", "/api/settings", {"autostart": True}),
        ]:
            answer = http.request(method, path, json=body)
            message = refused(answer, 403, "forbidden_by_policy")
            assert "/etc/edgekit/policy.json" in message
        assert http.get("/api/settings").json()["endpoint_enabled"] is False


def test_bodies_that_are_no_objects_are_refused(assistant: Running) -> None:
    head = {"content-type": "application/json"}
    for body in (b"[", b"[]", b"1", b"\xff", b"[" * 100_000, json.dumps("x").encode()):
        answer = assistant.http.post("/api/conversations", content=body, headers=head)
        refused(answer, 400, "bad_request")


def test_the_device_and_the_memory_limit_are_the_persons(tmp_path: Path) -> None:
    with running(tmp_path) as assistant:
        http = assistant.http
        assistant.wait_ready()
        refused(http.post("/api/engine", json={"target": "tpu"}), 400, "bad_target")
        assert http.post("/api/engine", json={"target": "onnx-cpu"}).status_code == 202
        pack = str(assistant.data / "packs" / "fake")
        saved = wait(lambda: (s := assistant.wait_ready()["settings"])["target"] and s)
        assert saved["target"] == "onnx-cpu" and saved["pack"] == pack
        wait(lambda: assistant.state()["engine"]["reasons"])
        http.put("/api/settings", json={"system_memory_limit_gb": 1e-7})
        state = wait(lambda: (s := assistant.state())["engine"]["error"] and s)
        assert state["engine"]["state"] == "ready"  # what runs goes on
        assert "your settings allow" in state["engine"]["error"]
        codes = {r["target"]: r["code"] for r in state["engine"]["reasons"]}
        assert codes["openvino-cpu"] == codes["onnx-cpu"] == "memory"


def test_a_damaged_history_is_said_until_it_was_read(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "history.sqlite").write_bytes(b"this was a database once" * 1000)
    with running(tmp_path, pack=None) as assistant:
        recovery = assistant.state()["recovery"]
        assert recovery["saved"] == 0 and Path(recovery["backup"]).is_file()
        assert assistant.conversation()
        assistant.http.post("/api/recovery/dismiss", json={})
        assert assistant.state()["recovery"] is None


def test_settings_that_were_reset_are_said(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "settings.json").write_text('{"theme": "plaid"}')
    with running(tmp_path, pack=None) as assistant:
        (notice,) = assistant.state()["notices"]
        assert "theme" in notice
