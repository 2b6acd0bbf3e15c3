"""What is measured, with values from the maths; gates; the report."""

import json
import re

import numpy as np
import pytest

import edgekit.evaluate as module
from edgekit.bootstrap import Interval, exponential, mean_interval
from edgekit.errors import BadInputError, GateFailedError, MissingRuntimeError
from edgekit.evaluate import EvaluationReport, evaluate, log_softmax
from edgekit.gates import GATES, check_gates, require_gates
from edgekit.manifest import Quality, Speed, TargetResult
from edgekit.progress import Silent
from edgekit.recipe import GatesSection, parse_recipe
from edgekit.report import write_report
from edgekit.sequences import TokenSequence

SPEED = Speed(
    tokens_per_second=10.0, time_to_first_token_ms=20.0, prompt_tokens=3, peak_memory_bytes=10**8
)


class FixedEngine:
    """Says the same distribution at every position."""

    def __init__(self, probabilities):
        self.row = np.log(np.array(probabilities, np.float32))

    def logits(self, tokens):
        return np.tile(self.row + 5.0, (len(tokens), 1))  # a constant changes nothing

    def close(self):
        pass


@pytest.fixture
def engines(monkeypatch):
    made = {"openvino-cpu": [0.5, 0.25, 0.25], "onnx-cpu": [0.25, 0.5, 0.25]}

    def load(_, target):
        if target not in made:
            raise MissingRuntimeError(f"device {target} is not here; choose another")
        return FixedEngine(made[target])

    monkeypatch.setattr(module, "load_engine", load)
    monkeypatch.setattr(module, "measure_speed", lambda *_: SPEED)


def teacher(tokens):
    return np.tile(np.log(np.array([0.5, 0.25, 0.25], np.float32)), (len(tokens), 1))


def sequences(*tokens, held_out=True):
    return [TokenSequence(np.array(t, np.int32), f"d{i}", held_out) for i, t in enumerate(tokens)]


def measured(tmp_path, targets=("openvino-cpu", "onnx-cpu"), text=None):
    text = text or sequences([0, 0, 0], [0, 1, 2, 1])
    return evaluate(tmp_path, teacher, 99, text, targets, tmp_path, Silent())


def test_kl_agreement_and_perplexity_are_those_of_the_formulas(engines, tmp_path):
    report = measured(tmp_path)
    same, other = (r.quality["all"] for r in report.results)
    assert same.kl.value == pytest.approx(0, abs=1e-7) and same.top1_agreement.value == 1
    # KL([.5 .25 .25] || [.25 .5 .25]) = .5 ln 2 - .25 ln 2
    assert other.kl.value == pytest.approx(0.25 * np.log(2), rel=1e-6)
    assert other.top1_agreement.value == 0
    # of the five predicted tokens 0 0 1 2 1 the teacher gives .5 to two, the student to two others
    assert same.perplexity.value == pytest.approx(np.exp((2 * np.log(2) + 3 * np.log(4)) / 5))
    student = np.exp((2 * np.log(4) + 2 * np.log(2) + np.log(4)) / 5)
    assert other.perplexity.value == pytest.approx(student)
    assert other.teacher_perplexity == same.perplexity
    assert report.positions == 5 and report.domains == {"d0": 2, "d1": 3}
    assert report.worst_quality() == other
    assert other.kl.value == report.results[1].quality["d0"].kl.value


def test_only_held_out_text_is_evaluated(engines, tmp_path):
    train = sequences([2, 2, 2, 2], held_out=False)
    assert measured(tmp_path, text=sequences([0, 0, 0]) + train).positions == 2
    with pytest.raises(BadInputError, match="no held-out sequences"):
        measured(tmp_path, text=train)


def test_a_target_that_is_not_here_is_skipped_with_its_reason(engines, tmp_path):
    report = measured(tmp_path, ("openvino-cpu", "openvino-npu"))
    assert [r.target for r in report.results] == ["openvino-cpu"]
    assert "openvino-npu is not here" in report.skipped["openvino-npu"]
    with pytest.raises(MissingRuntimeError, match="none of the targets"):
        measured(tmp_path, ("openvino-npu",))


def test_a_teacher_of_another_vocabulary_is_refused(engines, tmp_path):
    def wide(tokens):
        return np.zeros((len(tokens), 4), np.float32)

    with pytest.raises(BadInputError, match="has 3 tokens, the teacher's 4"):
        evaluate(tmp_path, wide, 1, sequences([0, 0]), ["onnx-cpu"], tmp_path, Silent())


def test_rows_that_pad_a_head_are_no_tokens(engines, tmp_path, monkeypatch):
    """Siblings of one tokenizer pad their heads to different sizes."""
    plain = measured(tmp_path).results
    monkeypatch.setattr(module, "real_tokens", lambda *_: 3)

    def against(text, teacher_tokens):
        return evaluate(
            tmp_path, padded, 99, text, ("openvino-cpu", "onnx-cpu"), tmp_path, Silent(),
            teacher_tokens,
        )  # fmt: skip

    def padded(tokens):
        return np.pad(teacher(tokens), ((0, 0), (0, 2)), constant_values=3.0)

    text = sequences([0, 0, 0], [0, 1, 2, 1])
    assert against(text, 3).results == plain
    with pytest.raises(BadInputError, match="has 3 tokens, the teacher's 4"):
        against(text, 4)
    with pytest.raises(BadInputError, match="the text has token 3, but the vocabulary 3"):
        against(sequences([0, 3, 0]), 3)


def test_long_sequences_are_scored_in_slices_to_the_same_figures(engines, tmp_path, monkeypatch):
    text = sequences(np.random.default_rng(0).integers(0, 3, 200))
    whole = measured(tmp_path, text=text).results
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 7)
    assert measured(tmp_path, text=text).results == whole


def test_log_softmax_survives_huge_logits():
    values = log_softmax(np.array([[1e4, 1e4 + np.log(3), -1e4]], np.float32))
    np.testing.assert_allclose(np.exp(values[0]), [0.25, 0.75, 0], atol=1e-3)


def test_the_interval_resamples_whole_sequences():
    same = [np.full(50, v) for v in (0.0, 1.0, 0.0, 1.0, 1.0)]
    wide = mean_interval(same)
    assert wide.value == 0.6 and wide.high - wide.low > 0.5  # 250 equal tokens, but 5 sequences
    rng = np.random.default_rng(0)
    groups = [rng.normal(3.0, 1.0, 40) for _ in range(60)]
    narrow = mean_interval(groups)
    error = np.std([g.mean() for g in groups]) / np.sqrt(60)
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert narrow.low < 3.0 < narrow.high
    nothing = np.zeros(0)  # of a sequence in which nothing counts: it makes no mean uncertain
    assert mean_interval([*groups, *[nothing] * 60]) == narrow
    few = mean_interval(groups[:4])
    assert few.low is None and few.text(2) == f"{few.value:.2f}" and few.errors == (0, 0)
    log = Interval(value=0.0, low=-1.0, high=1.0)
    assert exponential(log).high == pytest.approx(np.e)


def quality(kl, top1, ratio):
    def around(value):
        return Interval(value=value, low=value * 0.9, high=value * 1.1)

    return Quality(
        kl=around(kl), top1_agreement=around(top1), perplexity=around(10 * ratio),
        teacher_perplexity=around(10.0),
    )  # fmt: skip


def report(speed=SPEED):
    rows = {"openvino-cpu": quality(0.1, 0.9, 1.1), "onnx-cpu": quality(0.2, 0.8, 1.05)}
    return EvaluationReport(
        size_bytes=50_000_000, teacher_bytes=200_000_000, positions=100, domains={"chat": 100},
        results=[TargetResult(target=t, quality={"all": q, "chat": q}, speed=speed)
                 for t, q in rows.items()],
        skipped={"openvino-npu": "device NPU is not here <yet>"},
    )  # fmt: skip


LIMITS = {
    "max_kl": (0.2, 0.19, 0.2), "min_top1_agreement": (0.8, 0.81, 0.8),
    "max_perplexity_ratio": (1.1, 1.09, 1.1), "min_tokens_per_second": (10, 10.1, 10),
    "max_time_to_first_token_ms": (20, 19.9, 20), "max_size_mb": (50, 49.9, 50),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_every_gate_takes_the_worst_target_and_its_limit_is_inclusive(name):
    enough, too_strict, worst = LIMITS[name]
    (passed,) = check_gates(GatesSection(**{name: float(enough)}), report())
    assert passed.passed and passed.measured == pytest.approx(worst)
    failed = check_gates(GatesSection(**{name: float(too_strict)}), report())
    with pytest.raises(GateFailedError, match=rf"{name} is .* limit .*missed by 0?\d*\.?\d+%"):
        require_gates(failed)
    waived = check_gates(GatesSection(**{name: float(too_strict)}), report(), [name])
    require_gates(waived)
    assert waived[0].overridden and not waived[0].passed


def test_what_is_not_a_number_or_was_not_measured_does_not_pass():
    spoiled = report()
    nan = float("nan")
    bad = quality(nan, nan, nan)
    pair = [spoiled.results[0], spoiled.results[1].model_copy(update={"quality": {"all": bad}})]
    for results in (pair, pair[::-1]):
        spoiled = spoiled.model_copy(update={"results": results})
        limits = GatesSection(max_kl=9.0, min_top1_agreement=0.01, max_perplexity_ratio=9.0)
        assert [g.passed for g in check_gates(limits, spoiled)] == [False] * 3
    with pytest.raises(BadInputError, match="min_tokens_per_second: nothing was measured"):
        check_gates(GatesSection(min_tokens_per_second=1.0), report(speed=None))


def test_every_field_of_the_section_is_a_gate():
    assert {g.field for g in GATES} == set(GatesSection.model_fields) == set(LIMITS)


def test_an_override_names_a_gate_of_the_recipe():
    with pytest.raises(BadInputError, match=r"sets no such gate; it sets max_kl"):
        check_gates(GatesSection(max_kl=1.0), report(), ["max_size_mb"])


def test_the_report_opens_offline_and_says_what_failed(tmp_path):
    recipe = parse_recipe({"teacher": {"model": "m"}, "pack": {"name": "p"}}, "r")
    candidate = {
        "name": "reap", "control": False, "same_as": "",
        "divergence": {"all": {"value": 0.1}, "domains": {"a": {"value": 0.1234}}},
    }  # fmt: skip
    shrunk = {
        "usage_before": [[0.5, 0.3, 0.2]] * 2, "usage_after": [[0.6, 0.4]] * 2,
        "criterion": "reap", "experts_before": 3, "experts_after": 2, "notes": ["<b>enough"],
        "saliency": [[3.0, 2.0, 1.0]] * 2, "kept": {0: [0, 1], 1: [0, 1]},
        "usage_by_domain": {"a": [[0.5, 0.3, 0.2]] * 2, "b": [[0.2, 0.3, 0.5]] * 2},
        "automatic": {"candidates": [candidate]}, "nested": None,
    }  # fmt: skip
    step = {"seconds": 1.0, "peak_memory_bytes": 10**9, "digest": "0" * 64, "versions": {"x": "1"}}
    trained = {"held_out_kl_before": 0.5, "held_out_kl_after": 0.25, "steps": 3,
               "students": [], "losses": [0.5, 0.4, 0.3]}  # fmt: skip
    records = {
        "data": {**step, "report": {}},
        "shrink": {**step, "report": shrunk},
        "distill": {**step, "report": trained},
    }
    gates = check_gates(GatesSection(max_kl=0.1, max_size_mb=60.0), report())
    path = write_report(tmp_path, recipe, records, report(), gates, tmp_path)
    html = path.read_text()
    assert html.count("<svg") == 6
    assert not re.search(r"""(src|href)=["'](https?:)?//|@import|<script|<link""", html)
    assert "FAILED" in html and "&lt;yet&gt;" in html
    assert "0.1234" in html and "&lt;b&gt;enough" in html
    assert "0.5000 before, 0.2500 after 3 steps" in html
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["evaluation"]["results"][1]["quality"]["all"]["kl"]["value"] == 0.2
    assert [g["passed"] for g in values["gates"]] == [False, True]
    second = write_report(tmp_path, recipe, records, report(), gates, tmp_path).read_text()
    assert second == html
