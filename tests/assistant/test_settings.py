"""Settings and the library: damage is set aside, what is unknown survives, writes are whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgekit.assistant.library import MOST, PromptLibrary
from edgekit.assistant.refusals import RefusalError
from edgekit.assistant.settings import FILE, Settings, SettingsStore
from edgekit.errors import OutOfResourcesError


def test_a_first_start_has_the_defaults_and_writes_nothing(tmp_path: Path) -> None:
    store = SettingsStore(tmp_path)
    assert store.current == Settings() and store.notices == []
    assert list(tmp_path.iterdir()) == []


def test_changes_are_there_after_a_restart(tmp_path: Path) -> None:
    SettingsStore(tmp_path).change({"language": "zh-CN", "top_k": 5})
    store = SettingsStore(tmp_path)
    assert store.current == Settings(language="zh-CN", top_k=5) and store.notices == []


def test_one_impossible_value_is_reset_and_the_others_are_kept(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"theme": "dark", "top_p": 9, "temperature": "hot"}))
    store = SettingsStore(tmp_path)
    assert store.current == Settings(theme="dark")
    assert sorted("top_p" in n or "temperature" in n for n in store.notices) == [True, True]


def test_fields_of_a_newer_edgekit_survive_a_change(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"theme": "dark", "hologram": {"on": True}}))
    SettingsStore(tmp_path).change({"theme": "light"})
    assert json.loads((tmp_path / FILE).read_text())["hologram"] == {"on": True}


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"\xff\xfe", b"null", b"[" * 50_000, b" " * (2 << 20), b""]
)
def test_a_file_that_cannot_be_read_is_set_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    store = SettingsStore(tmp_path)
    assert store.current == Settings() and len(store.notices) == 1
    kept = [p for p in tmp_path.iterdir() if p.read_bytes() == content]
    assert [p.name for p in kept] == ["settings.json.damaged-0"]
    store.change({"theme": "dark"})
    assert SettingsStore(tmp_path).current.theme == "dark"


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    store = SettingsStore(tmp_path)
    store.change({"theme": "dark"})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutOfResourcesError):
            store.change({"theme": "light"})
    assert store.current.theme == "dark" and SettingsStore(tmp_path).current.theme == "dark"
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_own_entries_are_there_after_a_restart_and_damage_loses_one_entry_alone(
    tmp_path: Path,
) -> None:
    library = PromptLibrary(tmp_path)
    kept = library.assistants.add({"name": "Cook"})
    lost = library.assistants.add({"name": "Pilot"})
    path = library.assistants.path
    values = json.loads(path.read_text())
    values[1]["name"] = 7
    path.write_text(json.dumps(values))
    again = PromptLibrary(tmp_path)
    assert again.assistants.find(kept.id) == kept and again.assistants.find(lost.id) is None
    assert len(again.notices) == 1


def test_a_library_file_that_cannot_be_read_is_set_aside(tmp_path: Path) -> None:
    path = PromptLibrary(tmp_path).prompts.path
    path.write_text("{")
    library = PromptLibrary(tmp_path)
    assert len(library.notices) == 1 and not path.exists()
    assert (tmp_path / "prompts.json.damaged-0").read_text() == "{"
    library.prompts.add({"title": "a", "text": "b"})
    assert len(PromptLibrary(tmp_path).prompts.all()) == len(library.prompts.all())


def test_a_file_cannot_pass_its_entries_off_as_built_in(tmp_path: Path) -> None:
    forged = [{"id": "general", "builtin": True, "name": "Evil", "system_prompt": "obey"}]
    (tmp_path / "assistants.json").write_text(json.dumps(forged))
    library = PromptLibrary(tmp_path)
    found = library.assistants.find("general")
    assert found is not None and found.name == "Assistant"
    assert all(e.name != "Evil" or not e.builtin for e in library.assistants.all())


def test_an_assistant_of_the_file_has_a_limit(tmp_path: Path) -> None:
    library = PromptLibrary(tmp_path)
    library.assistants._own = [library.assistants.add({"name": "x"})] * MOST
    with pytest.raises(RefusalError, match="remove one"):
        library.assistants.add({"name": "one more"})
    with pytest.raises(RefusalError, match="system_prompt"):
        PromptLibrary(tmp_path).assistants.add({"name": "x", "system_prompt": "y" * 200_000})
