"""Engines whose answers take turns, and which engine a variant gets."""

import dataclasses
import shutil

import numpy as np
import pytest

from edgekit.errors import BadInputError, MissingRuntimeError
from edgekit.evaluate import log_softmax
from edgekit.runtimes.batching import Grammar, Job
from edgekit.runtimes.engine import Sampling, load_engine
from edgekit.runtimes.load_batching import load_batch_engine
from edgekit.runtimes.onnx_engine import OnnxEngine
from edgekit.runtimes.openvino_batching import OpenVINOBatchEngine
from edgekit.runtimes.openvino_engine import OpenVINOEngine
from edgekit.runtimes.single_batching import SingleBatchEngine
from edgekit.runtimes.stepwise import PIECE
from edgekit.runtimes.stepwise_batching import (
    StepwiseBatchEngine,
    onnx_batch_engine,
    openvino_stepwise_engine,
)

GREEDY = Sampling(max_tokens=16, temperature=0, repetition_penalty=1.0, ignore_end=True)
RANDOM = np.random.default_rng(1)
PROMPTS = [tuple(RANDOM.integers(3, 500, size=n).tolist()) for n in (400, 7, 30, 12, 50, 3)]


def finish(engine, *runs):
    """Step until the runs are done; what they produced."""
    answers = [[] for _ in runs]
    for _ in range(2000):
        for answer, run in zip(answers, runs):
            answer += run.read()
        if all(run.done for run in runs):
            return answers
        engine.step()
    raise AssertionError("the answers do not end")


def tokens(answer):
    return [produced.token for produced in answer]


@pytest.fixture(scope="module", params=["onnx llama", "openvino lfm2", "openvino gemma2"])
def pair(request, variant):
    """An engine that takes turns and the engine of one answer, in float32."""
    runtime, family = request.param.split()
    directory = variant(family)
    if runtime == "onnx":
        return onnx_batch_engine(directory), OnnxEngine(directory)
    return openvino_stepwise_engine(directory, exact=True), OpenVINOEngine(directory, exact=True)


def test_more_answers_than_slots_all_come_as_alone(pair):
    batch, single = pair
    assert batch.capacity < len(PROMPTS)
    answers = finish(batch, *(batch.start(Job(p, GREEDY)) for p in PROMPTS))
    for prompt, answer in zip(PROMPTS, answers):
        assert tokens(answer) == [e.token for e in single.generate_tokens(prompt, GREEDY)]


def test_log_probabilities_come_with_the_most_probable_tokens(pair):
    batch, single = pair
    sampled = dataclasses.replace(GREEDY, temperature=2.0, seed=3)
    (answer,) = finish(batch, batch.start(Job(PROMPTS[1], sampled, top_logprobs=3)))
    logits = single.logits([*PROMPTS[1], *tokens(answer)])[len(PROMPTS[1]) - 1 : -1]
    for produced, row in zip(answer, log_softmax(logits)):
        assert produced.logprob == pytest.approx(row[produced.token], abs=2e-3)
        assert [t for t, _ in produced.top] == np.argsort(-row)[:3].tolist()


def test_a_long_prompt_lets_the_others_go_on(pair):
    batch, _ = pair
    long, short = batch.start(Job(PROMPTS[0], GREEDY)), batch.start(Job(PROMPTS[1], GREEDY))
    assert len(PROMPTS[0]) > PIECE
    batch.step()
    assert (len(long.read()), len(short.read())) == (0, 1)
    finish(batch, long, short)


def test_a_cancelled_answer_makes_room_for_the_next(pair):
    batch, single = pair
    runs = [batch.start(Job(p, GREEDY)) for p in PROMPTS[1:]]
    batch.step()
    for run in runs[:-1]:
        run.cancel()
        run.cancel()
    (answer,) = finish(batch, runs[-1])
    assert tokens(answer) == [e.token for e in single.generate_tokens(PROMPTS[-1], GREEDY)]
    assert all(run.done for run in runs)


def test_an_end_token_ends_an_answer(pair):
    batch, single = pair
    sampling = dataclasses.replace(GREEDY, ignore_end=False)
    run = batch.start(Job(PROMPTS[1], sampling, Grammar(schema={"const": True})))
    (answer,) = finish(batch, run)
    *text, last = tokens(answer)
    assert single.tokenizer.decode(text) == "true" and last in single.tokenizer.end_tokens


def test_onnx_honours_penalties_that_its_own_sampler_lacks(variant):
    sampling = dataclasses.replace(GREEDY, max_tokens=30, presence_penalty=2.0)
    found = {}
    for target in ("onnx-cpu", "openvino-cpu"):
        engine = load_engine(variant("llama"), target)
        found[target] = [e.token for e in engine.generate_tokens(PROMPTS[1], sampling)]
    assert len(set(found["onnx-cpu"])) == 30
    plain = dataclasses.replace(sampling, presence_penalty=0.0)
    engine = load_engine(variant("llama"), "onnx-cpu")
    assert len({e.token for e in engine.generate_tokens(PROMPTS[1], plain)}) < 30


def test_a_session_that_fails_is_a_missing_runtime(variant, monkeypatch):
    batch = onnx_batch_engine(variant("llama"))
    run = batch.start(Job(PROMPTS[1], GREEDY))
    batch.step()

    class Lost:
        def append_tokens(self, ids):
            raise RuntimeError("DEVICE\n removed")

    monkeypatch.setattr(run._text, "_generator", Lost())
    with pytest.raises(MissingRuntimeError, match=r"CPU: .*DEVICE removed.*another device"):
        batch.step()


@pytest.mark.parametrize(
    ("family", "target", "kind"),
    [("llama", "openvino-cpu", OpenVINOBatchEngine), ("lfm2", "openvino-cpu", StepwiseBatchEngine),
     ("gemma2", "openvino-cpu", StepwiseBatchEngine), ("mixtral", "onnx-cpu", StepwiseBatchEngine)],
)  # fmt: skip
def test_a_variant_gets_the_engine_that_its_graph_allows(variant, family, target, kind):
    engine = load_batch_engine(variant(family), target, max_running=3)
    assert isinstance(engine, kind)
    assert (engine.runtime, engine.device) == tuple(target.replace("cpu", "CPU").split("-"))
    assert engine.capacity == 3 and engine.context_length == 512
    (answer,) = finish(engine, engine.start(Job(PROMPTS[1], GREEDY)))
    assert len(answer) == 16
    engine.close()


def test_what_cannot_be_loaded_is_refused_as_by_the_engine_of_one(variant, tmp_path):
    for target, error in (
        ("tpu", BadInputError), ("openvino-cpu", BadInputError), ("onnx-cpu", BadInputError),
    ):  # fmt: skip
        with pytest.raises(error, match=r"'tpu'|is missing; run"):
            load_batch_engine(tmp_path, target)
    for target in ("openvino-npu", "openvino-gpu", "onnx-dml"):
        with pytest.raises(MissingRuntimeError, match=r"device (NPU|GPU|DML)"):
            load_batch_engine(variant("llama"), target)


def test_a_damaged_variant_is_named(variant, tmp_path):
    copy = shutil.copytree(variant("llama"), tmp_path / "copy")
    (copy / "openvino/openvino_model.xml").write_text("<net")
    with pytest.raises(BadInputError, match=r"OpenVINO cannot load it .* verify the pack"):
        load_batch_engine(copy, "openvino-cpu")


def test_a_pipeline_of_one_answers_one_after_the_other(variant):
    """What the NPU gets, over the CPU's engine."""
    single = OpenVINOEngine(variant("llama"), exact=True)
    batch = SingleBatchEngine(OpenVINOEngine(variant("llama"), exact=True))
    expected = [[e.token for e in single.generate_tokens(p, GREEDY)] for p in PROMPTS[1:3]]
    runs = [batch.start(Job(p, dataclasses.replace(GREEDY, stop=("a",)))) for p in PROMPTS[1:3]]
    assert [tokens(a) for a in finish(batch, *runs)] == expected
    stopped = batch.start(Job(PROMPTS[1], GREEDY))
    batch.step()
    stopped.cancel()
    (again,) = finish(batch, batch.start(Job(PROMPTS[2], GREEDY)))
    assert tokens(again) == expected[1]
    for job in (Job(PROMPTS[1], GREEDY, Grammar(schema={})), Job(PROMPTS[1], GREEDY, None, 0)):
        with pytest.raises(BadInputError, match="gives no logits"):
            batch.start(job)
