"""Starting with the session: off, on, off again, on the user's own places alone."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.assistant import autostart
from edgekit.assistant.policy import Policy
from edgekit.errors import BadInputError, MissingRuntimeError

COMMAND = ["/opt/my apps/edgekit", "assistant", "--hidden"]
xdg_only = pytest.mark.skipif(
    sys.platform in ("win32", "darwin"), reason="the XDG autostart folder"
)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


@xdg_only
def test_off_on_off(config: Path) -> None:
    assert not autostart.enabled()
    autostart.enable(COMMAND, Policy())
    assert autostart.enabled()
    assert [p.name for p in (config / "autostart").iterdir()] == ["edgekit-assistant.desktop"]
    autostart.enable(COMMAND, Policy())  # once more changes nothing
    autostart.disable()
    assert not autostart.enabled() and list((config / "autostart").iterdir()) == []
    autostart.disable()


def unquoted(line: str) -> list[str]:
    """The words of an Exec line as the specification reads them: string escapes, then quoting."""
    text = re.sub(r"\\(.)", lambda m: {"s": " ", "n": "\n", "t": "\t"}.get(m[1], m[1]), line)
    words = re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', text)
    plain = [bare if bare else re.sub(r'\\(["`$\\])', r"\1", quoted) for quoted, bare in words]
    return [word.replace("%%", "%") for word in plain]


@pytest.mark.parametrize(
    "word",
    [
        "plain",
        "two words",
        'say "hi"',
        "back\\slash",
        "$HOME",
        "`id`",
        "100%",
        "a;b&c|d",
        "",
        "'x'",
    ],
)
def test_every_word_reaches_the_program_as_it_is(word: str) -> None:
    entry = autostart.desktop_entry(["/bin/edgekit", word])
    [line] = [one for one in entry.splitlines() if one.startswith("Exec=")]
    assert unquoted(line.removeprefix("Exec=")) == ["/bin/edgekit", word]


@xdg_only
@pytest.mark.parametrize("line", ["Hidden=true", "X-GNOME-Autostart-enabled=false"])
def test_entry_that_the_desktop_switched_off_is_off(config: Path, line: str) -> None:
    autostart.enable(COMMAND, Policy())
    path = autostart.desktop_file()
    path.write_text(path.read_text() + line + "\n")
    assert not autostart.enabled()


@xdg_only
def test_relative_configuration_folder_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert autostart.desktop_file().parent == tmp_path / ".config" / "autostart"


@pytest.mark.parametrize("command", [[], ["edgekit"], ["/bin/x", "a\nExec=/bin/evil"]])
def test_command_that_could_not_be_written_is_refused(config: Path, command: list[str]) -> None:
    with pytest.raises(BadInputError, match="autostart:"):
        autostart.enable(command, Policy())
    assert not config.exists()


def test_policy_forbids(config: Path) -> None:
    with pytest.raises(BadInputError, match="owner of this machine"):
        autostart.enable(COMMAND, Policy(autostart="forbidden", source="p"))
    assert not config.exists()


@xdg_only
def test_folder_that_cannot_be_made_is_one_sentence(config: Path) -> None:
    config.write_text("a file in the way")
    with pytest.raises(BadInputError, match="cannot be written"):
        autostart.enable(COMMAND, Policy())


def test_other_systems_say_that_they_are_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not autostart.supported() and not autostart.enabled()
    with pytest.raises(MissingRuntimeError, match="not supported on darwin"):
        autostart.enable(COMMAND, Policy())


class Registry:
    """As much of ``winreg`` as is used, over a dictionary."""

    HKEY_CURRENT_USER, REG_SZ, KEY_SET_VALUE = 1, 1, 2

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def OpenKey(self, root: int, path: str, *_: int) -> Any:  # noqa: N802
        assert (root, path) == (self.HKEY_CURRENT_USER, autostart.RUN_KEY)
        values = self.values
        return type(
            "Key",
            (SimpleNamespace,),
            {"__enter__": lambda key: key, "__exit__": lambda *_: None},
        )(values=values)

    CreateKey = OpenKey

    def QueryValueEx(self, key: Any, name: str) -> tuple[str, int]:  # noqa: N802
        if name not in key.values:
            raise FileNotFoundError(2, "not found")
        return key.values[name], self.REG_SZ

    def SetValueEx(self, key: Any, name: str, _: int, kind: int, value: str) -> None:  # noqa: N802
        assert kind == self.REG_SZ
        key.values[name] = value

    def DeleteValue(self, key: Any, name: str) -> None:  # noqa: N802
        if key.values.pop(name, None) is None:
            raise FileNotFoundError(2, "not found")


def test_windows_uses_the_run_key_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    monkeypatch.setitem(sys.modules, "winreg", registry)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "platform", "win32")
    assert not autostart.enabled()
    autostart.enable(COMMAND, Policy())
    assert registry.values == {"edgekit-assistant": '"/opt/my apps/edgekit" assistant --hidden'}
    assert autostart.enabled()
    with pytest.raises(BadInputError, match="Windows reads 260"):
        autostart.enable(["/" + "x" * 300], Policy())
    autostart.disable()
    assert registry.values == {}
    autostart.disable()
