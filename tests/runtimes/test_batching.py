"""Continuous batching on OpenVINO: the same answers as alone, no cache lost, clear failures."""

import dataclasses
import os
import pathlib
import tempfile

import numpy as np
import pytest

from edgekit.errors import BadInputError, MissingRuntimeError
from edgekit.evaluate import log_softmax
from edgekit.runtimes.batching import Grammar, Job
from edgekit.runtimes.engine import Sampling
from edgekit.runtimes.load_batching import load_batch_engine
from edgekit.runtimes.openvino_batching import OpenVINOBatchEngine
from edgekit.runtimes.openvino_engine import OpenVINOEngine
from edgekit.runtimes.stepwise_batching import StepwiseBatchEngine

GREEDY = Sampling(max_tokens=20, temperature=0, repetition_penalty=1.0, ignore_end=True)
RANDOM = np.random.default_rng(0)
PROMPTS = [tuple(RANDOM.integers(3, 500, size=n).tolist()) for n in (200, 5, 60, 33)]
TOKEN_BYTES = 32768 // 32  # of the tiny llama's cache in float32


def finish(engine, *runs):
    """Step until the runs are done; their tokens."""
    answers = [[] for _ in runs]
    for _ in range(5000):
        for answer, run in zip(answers, runs):
            answer += run.read()
        if all(run.done for run in runs):
            return [[p.token for p in a] for a in answers]
        engine.step()
    raise AssertionError("the answers do not end")


def alone(engine, prompt, sampling=GREEDY):
    return [e.token for e in engine.generate_tokens(prompt, sampling) if e.token >= 0]


@pytest.fixture(scope="module")
def single(variant):
    engine = OpenVINOEngine(variant("llama"), exact=True)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def engine(variant):
    loaded = OpenVINOBatchEngine(variant("llama"), exact=True)
    yield loaded
    loaded.close()


@pytest.fixture
def narrow(variant):
    """An engine whose cache holds one whole context and no more."""
    loaded = OpenVINOBatchEngine(variant("llama"), exact=True, cache_bytes=512 * TOKEN_BYTES)
    yield loaded
    loaded.close()


@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen3_moe"])
def test_a_mixed_batch_answers_as_each_prompt_alone(variant, family):
    batch = OpenVINOBatchEngine(variant(family), exact=True)
    one = OpenVINOEngine(variant(family), exact=True)
    expected = [alone(one, p) for p in PROMPTS]
    first = batch.start(Job(PROMPTS[0], GREEDY))
    batch.step()  # the others join later
    runs = [first, *(batch.start(Job(p, GREEDY)) for p in PROMPTS[1:])]
    assert finish(batch, *runs) == expected
    assert finish(batch, batch.start(Job(PROMPTS[2], GREEDY))) == [expected[2]]


@pytest.mark.parametrize("family", ["cwm", "gpt_oss"])
def test_windows_hold_under_paged_attention(variant, family):
    """Log-probabilities of a batch and of the plain graph, long after the window of 24 tokens."""
    batch = OpenVINOBatchEngine(variant(family), exact=True)
    run = batch.start(Job(PROMPTS[0], GREEDY, top_logprobs=0))
    found = []
    while not run.done:
        batch.step()
        found += run.read()
    tokens = [p.token for p in found]
    one = OpenVINOEngine(variant(family), exact=True)
    assert alone(one, PROMPTS[0]) == tokens
    logits = one.logits([*PROMPTS[0], *tokens])
    expected = log_softmax(logits[len(PROMPTS[0]) - 1 : -1])[range(len(tokens)), tokens]
    assert [p.logprob for p in found] == pytest.approx(expected, abs=1e-3)


def test_more_answers_than_the_cache_holds_all_come_out_whole(narrow, single):
    sampling = dataclasses.replace(GREEDY, max_tokens=150)
    runs = [narrow.start(Job(p, sampling)) for p in PROMPTS * 2]
    inside = []
    for _ in range(100):
        narrow.step()
        inside.append(sum(run.handle is not None for run in runs))
        assert narrow.cache_usage() <= 1
    assert 0 < max(inside) < len(runs)
    assert finish(narrow, *runs) == [alone(single, p, sampling) for p in PROMPTS * 2]


def test_an_answer_that_was_taken_out_goes_on_where_it_was(narrow, single):
    sampling = dataclasses.replace(GREEDY, max_tokens=250)
    runs = [narrow.start(Job(PROMPTS[n], sampling)) for n in (0, 2)]
    entered = 0
    while not runs[1].done:
        before = runs[1].handle
        narrow.step()
        entered += runs[1].handle is not None and before is None
    assert entered > 1
    assert finish(narrow, *runs) == [alone(single, PROMPTS[n], sampling) for n in (0, 2)]


def test_cancelled_answers_give_their_cache_back(engine):
    runs = [engine.start(Job(p, dataclasses.replace(GREEDY, max_tokens=200))) for p in PROMPTS * 4]
    for _ in range(3):
        engine.step()
    full = engine.cache_usage()
    for run in runs:
        run.cancel()
        run.cancel()
    assert all(run.done for run in runs)
    finish(engine, engine.start(Job(PROMPTS[1], GREEDY)))
    assert 0 < engine.cache_usage() < full / 3


def test_one_answer_may_fill_the_whole_context_and_none_may_exceed_it(narrow, single):
    prompt = tuple(RANDOM.integers(3, 500, size=500).tolist())
    run = narrow.start(Job(prompt, GREEDY))
    assert finish(narrow, run) == [alone(single, prompt)]
    assert len(alone(single, prompt)) == 512 - 500
    for bad, sentence in (((3,) * 512, "context is 512"), ((), "empty")):
        with pytest.raises(BadInputError, match=sentence):
            narrow.start(Job(bad, GREEDY))


def test_a_small_cache_offers_a_shorter_context(variant):
    short = OpenVINOBatchEngine(
        variant("llama", max_position_embeddings=2048), cache_bytes=600 * TOKEN_BYTES // 2
    )
    assert short.context_length == 600
    with pytest.raises(BadInputError, match="context is 600"):
        short.start(Job((3,) * 601, GREEDY))
    sampling = dataclasses.replace(GREEDY, max_tokens=1000)
    assert len(finish(short, short.start(Job((3,) * 590, sampling)))[0]) == 10


@pytest.mark.parametrize(
    ("options", "top"),
    [({"temperature": 0.4, "top_k": 3, "seed": 1}, 0), ({"repetition_penalty": 1.6}, 0),
     ({"temperature": 2.0, "top_p": 0.5, "seed": 1}, 3), ({"frequency_penalty": 1.5}, 2)],
)  # fmt: skip
def test_log_probabilities_are_the_models_own(engine, single, options, top):
    """Whatever temperature, filters, penalties and grammar do to the choice."""
    grammar = Grammar(schema={"type": "array", "items": {"type": "boolean"}, "minItems": 9})
    job = Job(PROMPTS[1], dataclasses.replace(GREEDY, **options), grammar, top_logprobs=top)
    run = engine.start(job)
    found = []
    while not run.done:
        engine.step()
        found += run.read()
    tokens = [p.token for p in found]
    expected = log_softmax(single.logits([*PROMPTS[1], *tokens])[len(PROMPTS[1]) - 1 : -1])
    assert [p.logprob for p in found] == pytest.approx(
        expected[range(len(tokens)), tokens], abs=1e-3
    )
    for produced, row in zip(found, expected):
        assert [t for t, _ in produced.top] == np.argsort(-row)[:top].tolist()


def test_a_seed_repeats_an_answer_in_any_company(engine):
    sampled = dataclasses.replace(GREEDY, temperature=1.5, seed=4)
    other = dataclasses.replace(sampled, seed=5)
    (first,) = finish(engine, engine.start(Job(PROMPTS[1], sampled)))
    jobs = [Job(PROMPTS[1], s) for s in (other, sampled, dataclasses.replace(sampled, seed=None))]
    answers = finish(engine, *map(engine.start, jobs))
    assert answers[1] == first and answers[0] != first and answers[2] != first


@pytest.mark.parametrize("options", [{"presence_penalty": 2.0}, {"frequency_penalty": 1.0}])
def test_penalties_are_subtracted_whatever_the_sign_of_a_logit(engine, single, options):
    sampling = dataclasses.replace(GREEDY, max_tokens=40, **options)
    prompt, expected = list(PROMPTS[1]), []
    for _ in range(sampling.max_tokens):
        logits = single.logits([*prompt, *expected])[-1].astype(np.float64)
        for token in set(expected):
            count = expected.count(token)
            logits[token] -= sampling.presence_penalty + count * sampling.frequency_penalty
        expected.append(int(logits.argmax()))
    assert len(set(expected)) < len(expected) or options.get("presence_penalty")
    assert finish(engine, engine.start(Job(PROMPTS[1], sampling))) == [expected]
    assert alone(single, PROMPTS[1], sampling) == expected


def test_a_device_that_fails_is_a_missing_runtime(engine, monkeypatch):
    class Lost:
        def has_non_finished_requests(self):
            return True

        def step(self):
            raise RuntimeError("first line\nDEVICE_LOST")

    monkeypatch.setattr(engine, "_pipeline", Lost())
    with pytest.raises(MissingRuntimeError, match=r"CPU: .*DEVICE_LOST.*choose another device"):
        engine.step()


def test_nothing_is_left_in_the_temporary_directory(variant, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    batch = OpenVINOBatchEngine(variant("llama"))
    assert list(tmp_path.iterdir()) == []
    assert len(finish(batch, batch.start(Job(PROMPTS[0], GREEDY)))[0]) == 20


def test_without_links_the_weights_are_not_copied_but_answers_take_turns(
    variant, tmp_path, monkeypatch
):
    def refuse(*_):
        raise OSError("a required privilege is not held by the client")

    sizes = []
    monkeypatch.setattr(pathlib.Path, "symlink_to", refuse)
    link = os.link
    monkeypatch.setattr(os, "link", lambda a, b: sizes.append(b) or link(a, b))
    monkeypatch.setattr(tempfile, "tempdir", str(variant("llama")))  # the same disk
    assert isinstance(load_batch_engine(variant("llama"), "openvino-cpu"), OpenVINOBatchEngine)
    assert len(sizes) == 2
    monkeypatch.setattr(os, "link", refuse)
    fallback = load_batch_engine(variant("llama"), "openvino-cpu")
    assert isinstance(fallback, StepwiseBatchEngine)
