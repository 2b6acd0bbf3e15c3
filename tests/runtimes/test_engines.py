"""Engines behave alike: streaming, stop strings, seeds, limits and clear refusals."""

import pytest

from edgekit.errors import BadInputError, MissingRuntimeError
from edgekit.runtimes.engine import Sampling, load_engine

TARGETS = ["openvino-cpu", "onnx-cpu"]
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module", params=TARGETS)
def engine(request, variant):
    loaded = load_engine(variant("mixtral"), request.param)
    yield loaded
    loaded.close()


def run(engine, **options):
    sampling = Sampling(**{"max_tokens": 12, **options})
    return list(engine.generate(MESSAGES, sampling))


def test_events_add_up_to_the_decoded_tokens(engine):
    events = run(engine, temperature=0, repetition_penalty=1.0)
    tokens = [e.token for e in events if e.token >= 0]
    assert "".join(e.text for e in events) == engine.tokenizer.decode(tokens)
    assert [bool(e.finish) for e in events] == [False] * (len(events) - 1) + [True]


def test_statistics_count_what_happened(engine):
    last = run(engine, temperature=0, max_tokens=8)[-1]
    assert last.stats.prompt_tokens == engine.count_tokens(MESSAGES)
    assert 0 < last.stats.generated_tokens <= 8
    assert last.stats.time_to_first_token > 0
    assert last.finish == ("length" if last.stats.generated_tokens == 8 else "stop")


def test_a_seed_repeats_a_sampled_answer_and_another_changes_it(engine):
    def text(seed):
        return "".join(e.text for e in run(engine, temperature=2.0, top_p=1.0, top_k=0, seed=seed))

    assert text(5) == text(5)
    assert len({text(seed) for seed in range(4)}) > 1


def test_a_stop_string_ends_the_answer_and_is_not_shown(engine):
    whole = "".join(e.text for e in run(engine, temperature=0, repetition_penalty=1.0))
    stop = whole[len(whole) // 2 :][:2]
    events = run(engine, temperature=0, repetition_penalty=1.0, stop=(stop,))
    assert "".join(e.text for e in events) == whole[: whole.index(stop)]
    assert events[-1].finish == "stop"


def test_closing_the_stream_leaves_the_engine_usable(engine):
    stream = engine.generate(MESSAGES, Sampling(max_tokens=200, temperature=0))
    next(stream)
    stream.close()
    assert run(engine, temperature=0)


def test_a_prompt_longer_than_the_context_is_refused(engine):
    with pytest.raises(BadInputError, match="context is 512"):
        engine.generate_tokens([3] * 600)


def test_an_empty_prompt_is_refused(engine):
    with pytest.raises(BadInputError, match="empty"):
        engine.generate_tokens([])


@pytest.mark.parametrize("target", TARGETS)
def test_a_missing_graph_names_the_file_and_the_command(tmp_path, target):
    with pytest.raises(BadInputError, match=r"missing; run `edgekit compile"):
        load_engine(tmp_path, target)


@pytest.mark.parametrize("target", ["openvino-npu", "onnx-dml"])
def test_a_missing_device_is_named(variant, target):
    with pytest.raises(MissingRuntimeError, match=r"device (NPU|DML)"):
        load_engine(variant("llama"), target)


def test_an_unknown_target_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="'tpu'"):
        load_engine(tmp_path, "tpu")


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"max_tokens": 0},
     {"repetition_penalty": 0}],
)  # fmt: skip
def test_absurd_sampling_names_the_option(options):
    with pytest.raises(BadInputError, match=next(iter(options))):
        Sampling(**options)
