"""The owner's policy: what it forbids, and that a file nobody understands forbids everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.assistant.policy import Policy


def written(path: Path, **fields: Any) -> Path:
    path.write_text(json.dumps({"version": 1, **fields}))
    return path


def load(path: Path, **fields: Any) -> Policy:
    return Policy.load([written(path / "policy.json", **fields)])


def forbids_all(policy: Policy) -> bool:
    return bool(
        policy.refuses_cloud("a.example")
        and policy.refuses_mcp(["/bin/x"])
        and policy.refuses_folder(Path("/"))
        and policy.refuses_endpoint()
        and policy.refuses_autostart()
    )


def test_without_a_file_everything_is_allowed(tmp_path: Path) -> None:
    policy = Policy.load([tmp_path / "none.json"])
    assert policy == Policy() and policy.source == ""
    assert not any(
        (
            policy.refuses_cloud("a.example"),
            policy.refuses_mcp(["/bin/x"]),
            policy.refuses_folder(tmp_path),
            policy.refuses_endpoint(),
            policy.refuses_autostart(),
        )
    )


def test_fields_left_out_allow(tmp_path: Path) -> None:
    policy = load(tmp_path, cloud="forbidden")
    assert policy.refuses_cloud() and policy.refuses_cloud("a.example")
    assert not policy.refuses_mcp(["/bin/x"]) and not policy.refuses_autostart()
    assert str(tmp_path / "policy.json") in policy.refuses_cloud()


DAMAGED = {
    "empty": b"",
    "no JSON": b'{"version": 1,',
    "not UTF-8": b'{"version": 1, "cloud": "\xff"}',
    "a list": b"[]",
    "no version": b"{}",
    "a later version": b'{"version": 2, "cloud": "allowed"}',
    "version true": b'{"version": true}',
    "version as text": b'{"version": "1"}',
    "an unknown value": b'{"version": 1, "cloud": "sometimes"}',
    "a mistyped field": b'{"version": 1, "clowd": "forbidden"}',
    "a key twice": b'{"version": 1, "cloud": "forbidden", "cloud": "allowed"}',
    "hosts as text": b'{"version": 1, "cloud_hosts": "a.example"}',
    "a relative folder": b'{"version": 1, "document_folders": ["docs"]}',
    "a relative program": b'{"version": 1, "mcp": "listed", "mcp_commands": [["node", "x"]]}',
    "an empty command": b'{"version": 1, "mcp_commands": [[]]}',
    "deep": b"[" * 100_000,
    "too large": b'{"version": 1}' + b" " * (1 << 20),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_file_that_cannot_be_followed_forbids_everything_and_says_why(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "policy.json"
    path.write_bytes(DAMAGED[kind])
    policy = Policy.load([path])
    assert forbids_all(policy)
    [note] = policy.notes
    assert note.startswith(f"{path}: ") and "ask the owner" in note and "\n" not in note
    assert note in policy.refuses_cloud()


def test_later_version_is_named(tmp_path: Path) -> None:
    assert "has version 7" in Policy.load([written(tmp_path / "p", version=7)]).notes[0]


def test_file_that_cannot_be_read_forbids_everything(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.mkdir()  # as unreadable for root as for others
    policy = Policy.load([path])
    assert forbids_all(policy) and "cannot be read" in policy.notes[0]


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("api.example.com", True),
        ("API.Example.com.", True),
        ("x.corp.example", True),
        ("a.b.corp.example", True),
        ("corp.example", False),
        ("evilcorp.example", False),
        ("api.example.com.evil.net", False),
        ("example.com", False),
        ("127.0.0.1", False),
    ],
)
def test_cloud_hosts_are_whole_names(tmp_path: Path, host: str, allowed: bool) -> None:
    policy = load(tmp_path, cloud_hosts=["api.example.com", "*.corp.example"])
    assert (policy.refuses_cloud(host) == "") is allowed


def test_empty_list_of_hosts_allows_none(tmp_path: Path) -> None:
    assert "allowed: none" in load(tmp_path, cloud_hosts=[]).refuses_cloud("a.example")


def test_listed_commands_are_compared_word_by_word(tmp_path: Path) -> None:
    policy = load(tmp_path, mcp="listed", mcp_commands=[["/usr/bin/node", "/opt/server.js"]])
    assert policy.refuses_mcp(["/usr/bin/node", "/opt/server.js"]) == ""
    for command in (
        ["/usr/bin/node"],
        ["/usr/bin/node", "/opt/server.js", "--root=/"],
        ["/usr/bin/node", "/opt/other.js"],
        ["/srv/node", "/opt/server.js"],
        ["/usr/bin/node /opt/server.js"],
    ):
        assert "listed" in policy.refuses_mcp(command)


def test_link_does_not_lead_out_of_the_allowed_folders(tmp_path: Path) -> None:
    allowed, outside = tmp_path / "docs", tmp_path / "outside"
    (allowed / "deep").mkdir(parents=True)
    outside.mkdir()
    (allowed / "link").symlink_to(outside)
    policy = load(tmp_path, document_folders=[str(allowed)])
    assert policy.refuses_folder(allowed) == policy.refuses_folder(allowed / "deep") == ""
    for path in (outside, allowed / "link", allowed / ".." / "outside", tmp_path / "docs2"):
        assert str(path) in policy.refuses_folder(path)


def test_home_in_a_folder_is_the_persons_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    policy = load(tmp_path, document_folders=["~/Documents"])
    assert policy.document_folders == (tmp_path / "Documents",)


def test_second_file_can_only_forbid_more(tmp_path: Path) -> None:
    owner = written(
        tmp_path / "owner",
        cloud="allowed",
        cloud_hosts=["*.corp.example"],
        mcp="listed",
        mcp_commands=[["/bin/a"], ["/bin/b"]],
        document_folders=["/srv"],
        autostart="forbidden",
    )
    mine = written(
        tmp_path / "mine",
        cloud_hosts=["api.corp.example", "other.example"],
        mcp="listed",
        mcp_commands=[["/bin/b"], ["/bin/c"]],
        document_folders=["/srv/docs", "/home"],
        endpoint="forbidden",
    )
    policy = Policy.load([owner, mine])
    assert policy.cloud_hosts == ("api.corp.example",)
    assert policy.mcp_commands == (("/bin/b",),)
    assert policy.document_folders == (Path("/srv/docs"),)
    assert policy.endpoint == policy.autostart == "forbidden"
    assert Policy.load([mine, owner]).cloud_hosts == policy.cloud_hosts


def test_damaged_second_file_forbids_what_the_first_allows(tmp_path: Path) -> None:
    good, bad = written(tmp_path / "good"), tmp_path / "bad"
    bad.write_text("{")
    for order in ([good, bad], [bad, good]):
        assert forbids_all(Policy.load(order))


def test_byte_order_mark_of_an_editor_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_bytes(b'\xef\xbb\xbf{"version": 1, "endpoint": "forbidden"}')
    policy = Policy.load([path])
    assert policy.notes == () and policy.refuses_endpoint()
