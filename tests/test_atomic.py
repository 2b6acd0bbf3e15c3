"""Output is whole or absent, whoever else is at work."""

import os
import subprocess
import sys

import pytest

from edgekit.atomic import atomic_directory, atomic_file, write_text
from edgekit.errors import BadInputError


def test_an_error_leaves_nothing_and_success_everything(tmp_path):
    target = tmp_path / "a/out"
    with pytest.raises(RuntimeError), atomic_directory(target) as directory:
        (directory / "x").write_text("half")
        raise RuntimeError
    assert list((tmp_path / "a").iterdir()) == []
    with atomic_directory(target) as directory:
        (directory / "x").write_text("whole")
        assert not target.exists()
    assert (target / "x").read_text() == "whole"


def test_what_a_dead_process_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, living = (tmp_path / f".out.{pid}.partial" for pid in (dead.pid, os.getppid()))
    left.mkdir(), living.mkdir()
    with atomic_directory(tmp_path / "out"):
        assert not left.exists() and living.exists()
    assert living.exists()


def test_of_two_writers_the_first_to_finish_wins(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(BadInputError, match="exists already"), atomic_directory(target) as mine:
        (mine / "x").write_text("slow")
        target.mkdir()
        (target / "x").write_text("fast")
    assert (target / "x").read_text() == "fast"


def test_the_current_directory_is_no_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    with pytest.raises(BadInputError, match="exists already"), atomic_directory(Path()):
        pass


def test_a_small_file_is_replaced_as_a_whole(tmp_path):
    write_text(tmp_path / "f", "one")
    write_text(tmp_path / "f", "zwei")
    assert (tmp_path / "f").read_text() == "zwei"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_file_is_whole_or_absent_and_leftovers_go(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    target, left = tmp_path / "m.gguf", tmp_path / f".m.gguf.{dead.pid}.partial"
    left.write_text("half")
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        assert not left.exists()
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadInputError, match="another file"), atomic_file(target) as temporary:
        temporary.write_text("slow")
        target.write_text("fast")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    assert target.read_text() == "fast"
