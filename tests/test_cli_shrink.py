"""What a person types to make a model smaller."""

import json
import shutil

import numpy as np
import pytest

from edgekit.checkpoint import Checkpoint, read_config
from edgekit.cli import shrink_stats
from edgekit.cli.common import write_once
from edgekit.cli.main import main
from edgekit.distill import collect as collect_module
from edgekit.distill.keep import super_experts
from edgekit.distill.statistics import Statistics
from edgekit.errors import BadInputError

EIGHT = {"num_local_experts": 8, "num_experts": 8}
TEXT = ["--tokens", "256", "--held-out-tokens", "192", "--sequence-length", "32"]


@pytest.fixture
def run(capsys):
    def command(*arguments, code=0):
        found = main(["shrink", *map(str, arguments)])
        output = capsys.readouterr()
        assert found == code, output.err
        return output.out if code == 0 else output.err

    return command


@pytest.fixture(scope="module")
def measured(tiny_model, tmp_path_factory):
    """A teacher of eight experts and its statistics."""
    teacher, out = tiny_model("mixtral", **EIGHT), tmp_path_factory.mktemp("stats") / "out"
    assert main(["shrink", "stats", str(teacher), "--out", str(out), *TEXT]) == 0
    assert [p.name for p in out.parent.iterdir()] == ["out"]  # no scratch is left
    return teacher, out


def test_statistics_serve_every_criterion_and_keep_count(measured, run, tmp_path):
    teacher, statistics = measured
    for criterion, keep in (("reap", 0.5), ("man", 0.75)):
        out = tmp_path / criterion
        shown = run(teacher, "--statistics", statistics, "--criterion", criterion, "--keep", keep,
                    "--out", out, "--json")  # fmt: skip
        assert json.loads(shown)["experts_after"] == 8 * keep
        assert read_config(out)["num_local_experts"] == 8 * keep
    streamed = tmp_path / "streamed"
    shown = run("stats", teacher, "--streamed", "--out", streamed, *TEXT)
    assert "changes what it reads least: block influence 0." in shown
    same = tmp_path / "same"
    run(teacher, "--statistics", streamed, "--keep", 0.5, "--out", same)
    one, two = (p / "model.safetensors" for p in (tmp_path / "reap", same))
    assert one.read_bytes() == two.read_bytes()


def test_processes_share_the_statistics_and_the_last_writes_them(
    measured, run, tmp_path, monkeypatch
):
    teacher, _ = measured
    out = tmp_path / "out"
    monkeypatch.setattr("edgekit.distill.collect.CHUNK_TOKENS", 64)
    monkeypatch.setenv("WORLD_SIZE", "2")
    shown = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        shown.append(run("stats", teacher, "--out", out, *TEXT))
        assert out.is_dir() == (rank == "0")
    assert "left to other processes" in shown[0] and "tokens measured" in shown[1]
    assert "written by another process, or earlier" in run("stats", teacher, "--out", out, *TEXT)
    assert not list(tmp_path.glob(".out.*"))  # a process that begins late measures nothing
    monkeypatch.delenv("WORLD_SIZE")
    alone = tmp_path / "alone"
    run("stats", teacher, "--out", alone, *TEXT)
    name = "statistics.safetensors"
    assert (out / name).read_bytes() == (alone / name).read_bytes()
    monkeypatch.setenv("WORLD_SIZE", "99")
    monkeypatch.setenv("RANK", "98")
    assert "start at most" in run("stats", teacher, "--out", tmp_path / "many", *TEXT, code=2)


@pytest.mark.parametrize("moment", ["link_or_copy", "collect"])
def test_of_two_processes_that_are_last_at_once_one_writes(
    measured, run, tmp_path, monkeypatch, moment
):
    """The other finds the directory there, and what it was about to read gone."""
    teacher, _ = measured
    out = tmp_path / "out"
    monkeypatch.setattr("edgekit.distill.collect.CHUNK_TOKENS", 64)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    run("stats", teacher, "--out", out, *TEXT)

    def other_is_faster(*_):
        out.mkdir(exist_ok=True)
        for scratch in tmp_path.glob(".out.state-*"):
            shutil.rmtree(scratch)

    if moment == "link_or_copy":
        original = shrink_stats.link_or_copy
        monkeypatch.setattr(
            shrink_stats, moment, lambda *paths: (other_is_faster(), original(*paths))
        )
    else:  # its last chunk is there, and all are read to be added up
        original = collect_module.add_up
        monkeypatch.setattr(
            collect_module, "add_up", lambda parts: (other_is_faster(), original(parts))[1]
        )
    monkeypatch.setenv("RANK", "0")
    assert f"{out}: written by another process" in run("stats", teacher, "--out", out, *TEXT)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failure_of_one_process_or_before_another_has_written_is_none_of_a_race(tmp_path):
    def failing(directory):
        raise FileNotFoundError("gone")

    for workers in (1, 2):
        with pytest.raises(FileNotFoundError):
            write_once(tmp_path / "out", workers, failing)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "rank", "used"), [("cuda", "3", "cuda:3"), ("cuda", "", "cuda"), ("cpu", "3", "cpu")]
)
def test_every_process_of_a_machine_has_a_gpu_of_its_own(
    measured, run, tmp_path, monkeypatch, asked, rank, used
):
    def seen(*arguments):
        raise BadInputError(f"on {arguments[-1].device}")

    monkeypatch.setattr(collect_module, "collect", seen)
    monkeypatch.setenv("LOCAL_RANK", rank)
    error = run("stats", measured[0], "--device", asked, "--out", tmp_path / "o", *TEXT, code=2)
    assert error.strip().endswith(f"on {used}")


def test_the_table_of_auto_and_of_nested_sizes_fits_the_screen(measured, run, tmp_path):
    teacher, statistics = measured
    shown = run(teacher, "--statistics", statistics, "--criterion", "auto", "--keep", "0.5",
                "--out", tmp_path / "a")  # fmt: skip
    assert "random-0" in shown and "control" in shown
    nested = run(teacher, "--statistics", statistics, "--nested", "1.0,0.75,0.5", "--out",
                 tmp_path / "n")  # fmt: skip
    assert "KL as a prefix" in nested and read_config(tmp_path / "n")["edgekit_nested"] == [8, 6, 4]
    tables = [line for line in (shown + nested).splitlines() if line[:1] in "┏┃┡│└"]
    assert len(tables) > 20 and max(map(len, tables)) <= 100


def test_every_size_is_compared_on_one_page(measured, run, tmp_path):
    teacher, statistics = measured
    shown = run("compare", teacher, "--statistics", statistics, "--keeps", "0.75,0.5", "--out",
                tmp_path / "c")  # fmt: skip
    values = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert [size["experts"] for size in values["sizes"]] == [6, 4]
    assert values["recommendation"] in shown
    page = (tmp_path / "c" / "comparison.html").read_text()
    assert len(values["router_entropy"]) == len(values["block_influence"]) == 2
    assert page.count("<svg") == 4 and "gated_ean" in page and "random-2" in page
    worst = [
        min(c["divergence"]["all"]["value"] for c in size["table"]["candidates"])
        for size in values["sizes"]
    ]
    assert 0 < worst[0] < worst[1]  # fewer experts cost more
    error = run("compare", teacher, "--statistics", statistics, "--keeps", "1.0", "--out",
                tmp_path / "x", code=2)  # fmt: skip
    assert "give shares below 1" in error


def test_an_earlier_choice_is_followed(measured, run, tmp_path):
    teacher, statistics = measured
    run(teacher, "--statistics", statistics, "--criterion", "random", "--out", tmp_path / "old")
    shown = run(teacher, "--statistics", statistics, "--previous", tmp_path / "old", "--margin",
                "10", "--out", tmp_path / "new", "--json")  # fmt: skip
    earlier = json.loads((tmp_path / "old" / "experts.json").read_text())["kept"]
    assert json.loads(shown)["kept"] == earlier


def test_similar_experts_are_merged_and_super_experts_stay_as_they_are(measured, run, tmp_path):
    teacher, statistics = measured
    shown = run(
        "merge", teacher, "--statistics", statistics, "--keep", 0.5, "--out", tmp_path / "m"
    )
    assert "8 to 4 experts per layer by ream" in shown
    report = json.loads((tmp_path / "m" / "merge.json").read_text())
    found = super_experts(Statistics.load(statistics / "statistics.safetensors"))
    assert found and report["protected"] == {str(n): experts for n, experts in found.items()}
    with Checkpoint(teacher) as before, Checkpoint(tmp_path / "m") as after:
        assert after.architecture.moe.num_experts == 4
        assert after.architecture.parameters() == report["parameters_after"]
        for layer, experts in found.items():
            for expert in experts:
                place = report["groups"][str(layer)].index([expert])
                one = before.float32(before.architecture.expert(layer, expert, "up") + ".weight")
                same = after.float32(after.architecture.expert(layer, place, "up") + ".weight")
                assert np.array_equal(one, same)
    some = [*TEXT[:2], *TEXT[4:]]  # nothing is measured on held-out text
    run("merge", teacher, "--method", "hc_smoe", "--out", tmp_path / "own", *some)
    own = json.loads((tmp_path / "own" / "merge.json").read_text())
    assert own["protected"]  # measured on its own text


def test_a_sparse_model_becomes_dense_warmed_up_and_narrower(measured, run, tmp_path):
    teacher, _ = measured
    shown = run(
        "dense", teacher, "--out", tmp_path / "d", "--multiple-of", 32, "--warm-up", 5, *TEXT
    )
    assert "mixtral to llama of width" in shown and "marginal" in shown
    run("slice", tmp_path / "d", "--feed-forward", 0.5, "--layers", 1, "--multiple-of", 32,
        "--out", tmp_path / "s", *TEXT)  # fmt: skip
    with Checkpoint(tmp_path / "d") as dense, Checkpoint(tmp_path / "s") as sliced:
        assert dense.architecture.moe is None
        assert sliced.architecture.num_hidden_layers == dense.architecture.num_hidden_layers - 1
        assert sliced.architecture.intermediate_size * 2 == dense.architecture.intermediate_size
    depth, width = (
        json.loads((tmp_path / "s" / name).read_text()) for name in ("depth.json", "slicing.json")
    )
    assert len(depth["removed"]) == 1 and width["parameters_before"] == depth["parameters_after"]
    # the narrower one is further from the dense model than the shallower one alone
    assert width["divergence"]["all"]["value"] > depth["divergence"]["all"]["value"] > 0


def test_what_makes_no_sense_is_said_before_any_work(measured, run, tiny_model, tmp_path):
    teacher, _ = measured
    (tmp_path / "there").mkdir()
    error = run("stats", tmp_path / "no model", "--out", tmp_path / "there", code=2)
    assert "there exists already" in error
    assert "give --feed-forward" in run("slice", teacher, "--out", tmp_path / "o", code=2)
    for shares in ("half", "nan", "1.5,0.5", "0.5,-1"):
        assert "are no shares" in run(teacher, "--nested", shares, "--out", tmp_path / "o", code=2)
    for keep in ("1", "75", "0"):
        error = run("merge", teacher, "--keep", keep, "--out", tmp_path / "o", code=2)
        assert "expected the share of the experts that is left" in error
    error = run("merge", teacher, "--statistics", tmp_path, "--tokens", 9, "--out", tmp_path / "o",
                code=2)  # fmt: skip
    assert "--tokens: the text of --statistics is used" in error
    error = run("merge", teacher, "--method", "best", "--out", tmp_path / "o", code=2)
    assert "choose one of ream, hc_smoe, m_smoe" in error
    error = run(teacher, "--criterion", "best", "--out", tmp_path / "o", code=2)
    assert "--criterion" in error and "'gated_ean'" in error


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--statistics", "s", "--data", "x.txt"], "--data: the text of --statistics is used"),
        (["--statistics", "s", "--tokens", 512], "--tokens: the text of --statistics"),
        (["--statistics", "s", "--held-out-tokens", 0], "--held-out-tokens: the text of"),
        (["--statistics", "s", "--sequence-length", 64], "--sequence-length: the text of"),
        (["--margin", 0.1], "--margin: there is no --previous"),
        (["--keep", 0.5, "--nested", "1.0,0.5"], "--keep: --nested says it"),
    ],
)
def test_options_that_would_do_nothing_are_refused(run, tmp_path, options, sentence):
    assert sentence in run("absent", "--out", tmp_path / "o", *options, code=2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["slice", "--layers", 1, "--feed-forward", 1.5], "feed_forward is 1.5, expected a share"),
        (["slice", "--layers", 2, "--feed-forward", 0.5], "2 of 2 layers cannot be left out"),
        (["slice", "--layers", -1], "--layers"),
        (["slice", "--hidden", 0.5, "--multiple-of", 0], "--multiple-of"),
        (["dense", "--multiple-of", 0], "--multiple-of"),
        (["dense", "--warm-up", -5], "--warm-up"),
    ],
)
def test_a_part_that_cannot_be_is_refused_before_there_is_any_text(
    measured, run, tmp_path, monkeypatch, options, sentence
):
    monkeypatch.setattr("edgekit.distill.calibration.make_sequences", None)
    verb, *rest = options
    assert sentence in run(verb, measured[0], *rest, "--out", tmp_path / "o", code=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tokens", 256, "--held-out-tokens", 0], "has no held-out sequence to measure on"),
        (["--tokens", 64, "--held-out-tokens", 64, "--warm-up", 1], "too few to learn from"),
    ],
)
def test_text_that_is_not_enough_for_a_dense_model_is_refused_before_the_pass(
    measured, run, tmp_path, monkeypatch, options, sentence
):
    monkeypatch.setattr("edgekit.distill.densify.choose_pieces", None)
    some = ["--sequence-length", 32, *options]
    assert sentence in run("dense", measured[0], *some, "--out", tmp_path / "o", code=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options", [["--statistics", "s"], ["--streamed"]], ids=["statistics", "streamed"]
)
def test_an_unlisted_family_has_no_statistics_and_is_not_streamed(run, tmp_path, options):
    (tmp_path / "config.json").write_text('{"model_type": "minimax"}')
    error = run(tmp_path, "--out", tmp_path / "out", *options, code=2)
    assert f"{options[0]}: a minimax is no family of the table" in error


def test_an_unlisted_family_is_told_what_it_can_have(tiny_mixtral, run, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "minimax"}')
    error = run(model, "--keep", "0.5", "--out", tmp_path / "out", code=2)
    assert "minimax is no family of the table" in error and "--data" in error
