"""What a person types to capture a teacher, in one process or several."""

import shutil

import pytest
from captures import make_text

from edgekit.cli.main import main
from edgekit.distill import capture as capturing
from edgekit.distill.cache import INDEX

TEXT = ["--tokens", "192", "--held-out-tokens", "96", "--sequence-length", "32"]


@pytest.fixture
def run(capsys):
    def command(*arguments, code=0):
        found = main(["distill", "capture", *map(str, arguments)])
        output = capsys.readouterr()
        assert found == code, output.err
        return output.out if code == 0 else output.err

    return command


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "data.txt"
    file.write_text(("The quick brown fox jumps over the lazy dog. " * 20 + "\n\n\n") * 9)
    return ["--data", file, *TEXT]


def test_a_directory_that_exists_is_refused_before_the_teacher_runs(
    tiny_mixtral, run, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(capturing, "capture_shards", lambda *_: pytest.fail("the teacher was run"))
    out = tmp_path / "out"
    out.mkdir()
    assert f"{out} exists already" in run(tiny_mixtral, *data, "--out", out, code=2)
    served = ["--server", "http://127.0.0.1:9", "--served-model", "m"]
    assert f"{out} exists already" in run(tiny_mixtral, *data, "--out", out, *served, code=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.txt", "out"]


def test_processes_share_the_shards_and_the_last_puts_the_cache_together(
    tiny_mixtral, run, data, tmp_path, monkeypatch, small_shards
):
    out, alone = tmp_path / "out", tmp_path / "alone"
    monkeypatch.setenv("WORLD_SIZE", "2")
    shown = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        shown.append(run(tiny_mixtral, *data, "--out", out))
        assert out.is_dir() == (rank == "0")
    assert "left to other processes" in shown[0] and "positions" in shown[1]
    late = run(tiny_mixtral, *data, "--out", out)
    assert f"{out}: written by another process, or earlier" in late
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    run(tiny_mixtral, *data, "--out", alone)
    assert (out / INDEX).read_bytes() == (alone / INDEX).read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_more_processes_than_shards_are_refused(tiny_mixtral, run, data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "2")
    error = run(tiny_mixtral, *data, "--out", tmp_path / "out", code=2)
    assert "2 shards for 8 processes; start at most 2" in error


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_process_that_another_has_overtaken_says_so_and_leaves_nothing(
    tiny_mixtral, run, data, tmp_path, monkeypatch, small_shards, moment
):
    """What it was about to read, or the shards that it looks for, are gone."""
    out = tmp_path / "out"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    original = capturing.capture_shards

    def other_is_faster():
        out.mkdir()
        for work in tmp_path.glob(".out.capture-*"):
            shutil.rmtree(work)

    def overtaken(*arguments):
        if moment == "before":
            other_is_faster()
            return original(*arguments)
        left = original(*arguments)
        other_is_faster()
        assert left < 4
        return 4

    monkeypatch.setattr(capturing, "capture_shards", overtaken)
    shown = run(tiny_mixtral, *data, "--out", out)
    assert shown == f"{out}: written by another process\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.txt", "out"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--server", "--targets", "sampled"], "--targets sampled: a server gives only"),
        (["--server", "--bytes-per-token", "50"], "--bytes-per-token: with --server"),
        (["--server", "--loss", "jsd"], "--loss: with --server"),
        (["--server", "--temperature", "2"], "--temperature: with --server"),
        (["--server", "--streamed"], "--streamed: with --server"),
        (["--server", "--device", "cuda"], "--device: with --server"),
        (["--server", "--force"], "--force: with --server"),
        (["--server", "--sequences", "--seed", "1"], "--seed: with --server and --sequences"),
        (["--sequences", "--data", "a.txt"], "--data: the text of --sequences"),
        (["--sequences", "--tokens", "9"], "--tokens: the text of --sequences"),
        (["--sequences", "--held-out-tokens", "9"], "--held-out-tokens: the text of --sequences"),
        (["--sequences", "--sequence-length", "64"], "--sequence-length: the text of --sequences"),
        (["--sequences", "--assistant-only"], "--assistant-only: the text of --sequences"),
        (["--concurrency", "2"], "--concurrency: there is no --server"),
        (["--requests-per-second", "2"], "--requests-per-second: there is no --server"),
        (["--served-model", "m"], "--served-model: there is no --server"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_option_without_effect_is_refused(tiny_mixtral, run, tmp_path, options, named):
    values = {
        "--server": ["http://127.0.0.1:9", "--served-model", "m"],
        "--sequences": [make_text(tmp_path / "text")],
    }
    given = [part for option in options for part in (option, *values.get(option, ()))]
    assert named in run(tiny_mixtral, "--out", tmp_path / "out", *given, code=2)
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


def test_a_server_is_asked_by_one_process(tiny_mixtral, run, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    text = make_text(tmp_path / "text")
    error = run(tiny_mixtral, "--sequences", text, "--server", "http://127.0.0.1:9",
                "--served-model", "m", "--out", tmp_path / "out", code=2)  # fmt: skip
    assert "--server: one process asks for all" in error
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


def test_top_k_targets_of_a_server_may_be_asked_for_by_name(tiny_mixtral, run, tmp_path):
    error = run(tiny_mixtral, "--targets", "top_k", "--server", "http://127.0.0.1:9", "--out",
                tmp_path / "out", code=2)  # fmt: skip
    assert "--server needs --served-model" in error
