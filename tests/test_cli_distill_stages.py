"""`distill on-policy` and `distill tune` from the command line."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from edgekit.cli.main import main
from edgekit.distill.capture import CaptureOptions, capture
from edgekit.errors import BadInputError
from edgekit.progress import Silent
from edgekit.sequences import FILE_NAME, TokenSequence, read_sequences, write_sequences

SMALL = ["--steps", "2", "--batch-tokens", "64", "--device", "cpu", "--json"]


@pytest.fixture
def cache(tiny_mixtral, tmp_path):
    out = tmp_path / "cache"
    out.mkdir()
    rng = np.random.default_rng(0)
    made = [TokenSequence(rng.integers(3, 99, 24).astype(np.int32), "c", i > 4) for i in range(8)]
    write_sequences(out / FILE_NAME, made)
    capture(tiny_mixtral, out, CaptureOptions("top_k"), out, Silent())
    return out


@pytest.fixture
def run(capsys):
    def found(*arguments):
        code = main(["distill", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if captured.out else captured.err

    return found


def test_on_policy_writes_a_student_and_leaves_no_state(
    tiny_mixtral, tiny_model, cache, run, tmp_path
):
    out = tmp_path / "out"
    code, report = run(
        "on-policy", tiny_model("mixtral", seed=3), "--teacher", tiny_mixtral, "--out", out,
        "--round-steps", 1, "--new-tokens", 4, "--cache", cache, *SMALL,
    )  # fmt: skip
    assert code == 0 and (out / "model.safetensors").is_file()
    assert report["rounds"] == 2 and report["own_before"]["all"]["value"] > 0
    assert report["training"]["students"][0]["after"]["acceptance"]["at_most"] <= 1
    assert {f.name for f in tmp_path.iterdir()} == {"cache", "out"}


def test_another_cache_does_not_continue_from_what_was_measured_on_the_first(
    tiny_mixtral, tiny_model, cache, run, tmp_path, monkeypatch
):
    from edgekit.distill.trainer import Trainer

    other = tmp_path / "other"
    shutil.copytree(cache, other)
    made = read_sequences(cache / FILE_NAME)
    text = [dataclasses.replace(s, tokens=s.tokens[::-1].copy()) for s in made]
    write_sequences(other / FILE_NAME, text)
    capture(tiny_mixtral, other, CaptureOptions("top_k"), other, Silent())

    def command(out, kept):
        return run(
            "on-policy", tiny_model("mixtral", seed=3), "--teacher", tiny_mixtral, "--out", out,
            "--round-steps", 1, "--new-tokens", 4, "--cache", kept, *SMALL,
        )  # fmt: skip

    _, fresh = command(tmp_path / "fresh", other)
    original = Trainer.save

    def interrupted(self):
        original(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", interrupted)
        code, _ = command(tmp_path / "out", cache)
        assert code == 130
    code, report = command(tmp_path / "out", other)
    kl = "held_out_kl_before"
    assert code == 0 and report["training"][kl] == fresh["training"][kl]


@pytest.mark.parametrize(("loss", "option"), [("jsd", "--beta"), ("skew_forward", "--skew")])
def test_what_a_loss_is_parted_by_is_an_option_of_every_stage(
    tiny_mixtral, tiny_model, cache, run, tmp_path, loss, option
):
    student, text = tiny_model("mixtral", seed=3), tmp_path / "mine.txt"
    text.write_text("\n\n".join(f"{i} The quick brown fox jumps. " * 90 for i in range(8)))
    given = {
        "on-policy": ["--teacher", tiny_mixtral, "--new-tokens", 4],
        "tune": ["--cache", cache, "--data", text, "--tokens", 900, "--held-out-tokens", 400,
                 "--sequence-length", 32, "--no-control"],
    }  # fmt: skip
    for stage, more in given.items():
        losses = []
        for value in (0.2, 0.6):
            out = tmp_path / f"{stage}-{value}"
            arguments = [student, "--out", out, *more, "--loss", loss, option, value]
            code, report = run(stage, *arguments, *SMALL)
            assert code == 0, report
            losses.append(report.get("anchored", report)["training"]["losses"][0])
        assert losses[0] != pytest.approx(losses[1], rel=1e-3), stage


def test_how_hard_a_server_may_be_asked_reaches_it(tiny_mixtral, run, tmp_path, monkeypatch):
    import edgekit.distill.served_scorer as module

    asked = []

    def refuse(model, server, top_k):
        asked.append(server)
        raise BadInputError("not today")

    monkeypatch.setattr(module, "served_scorer", refuse)
    code, message = run(
        "on-policy", tiny_mixtral, "--teacher", tiny_mixtral, "--out", tmp_path / "o", "--server",
        "http://127.0.0.1:1", "--served-model", "m", "--concurrency", 3, "--requests-per-second",
        1.5, *SMALL,
    )  # fmt: skip
    assert code == 2 and "not today" in message
    assert (asked[0].concurrency, asked[0].requests_per_second) == (3, 1.5)


def test_tune_says_what_the_anchor_prevented(tiny_mixtral, cache, run, tmp_path):
    text, out = tmp_path / "mine.txt", tmp_path / "out"
    paragraph = "The quick brown fox jumps over the lazy dog. " * 50
    text.write_text("\n\n".join(f"{number} {paragraph}" for number in range(8)))
    sizes = ["--tokens", "1000", "--held-out-tokens", "400", "--sequence-length", "32"]
    arguments = ["tune", tiny_mixtral, "--cache", cache, "--data", text, "--out", out, *sizes]
    code, report = run(*arguments, *SMALL)
    assert code == 0 and (out / "model.safetensors").is_file()
    assert report["control"]["anchor"] == 0.0 and len(report["sentences"]) == 3
    code, message = run(*arguments, *SMALL)
    assert code == 2 and "exists" in message


def test_a_wrong_option_is_named(tiny_mixtral, run, tmp_path):
    code, message = run(
        "on-policy", tiny_mixtral, "--teacher", tiny_mixtral, "--out", tmp_path / "o",
        "--loss", "kl", *SMALL,
    )  # fmt: skip
    assert code == 2 and "--loss" in message
    code, message = run(
        "tune", tiny_mixtral, "--cache", tmp_path / "none", "--data", tmp_path / "x.txt",
        "--out", tmp_path / "o", *SMALL,
    )  # fmt: skip
    assert code == 2 and "x.txt: no such file" in message
    code, message = run(
        "on-policy", tiny_mixtral, "--teacher", tiny_mixtral, "--out", tmp_path / "o",
        "--server", "http://127.0.0.1:1", *SMALL,
    )  # fmt: skip
    assert code == 2 and "--served-model" in message


def test_what_a_server_would_be_asked_needs_one(tiny_mixtral, run, tmp_path):
    for option in (["--served-model", "m"], ["--concurrency", 2], ["--requests-per-second", 1]):
        code, message = run(
            "on-policy", tiny_mixtral, "--teacher", tiny_mixtral, "--out", tmp_path / "out",
            *option, *SMALL,
        )  # fmt: skip
        assert code == 2 and f"{option[0]}: there is no --server; leave it out" in message
