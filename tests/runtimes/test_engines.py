"""Engines behave alike: streaming, stop strings, seeds, limits and clear refusals."""

import json
import shutil

import pytest

from edgekit.errors import BadInputError, MissingRuntimeError
from edgekit.progress import Silent
from edgekit.runtimes.compile import compile_variant
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


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_hidden_layers": 3}, r"layers\.2.* is missing"),
        ({"num_hidden_layers": 1}, r"layers\.1.* is unknown"),
        ({"intermediate_size": 64}, r"\[128, 8\] but config.json implies I32\[64, 8\]"),
    ],
)
def test_weights_that_do_not_belong_to_the_config_are_not_compiled(
    quantized, tmp_path, change, sentence
):
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(quantized("llama", "int4-g32"), source)
    out.mkdir()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(BadInputError, match=sentence):
        compile_variant(source, ["openvino-cpu"], out, Silent())
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("damage", ["junk graph", "short weights"])
def test_openvino_names_what_it_cannot_load(variant, tmp_path, damage):
    copy = shutil.copytree(variant("llama"), tmp_path / "copy")
    if damage == "junk graph":
        (copy / "openvino/openvino_model.xml").write_text("<net")
    else:
        weights = copy / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
    engine = load_engine(copy)
    with pytest.raises(BadInputError, match=r"OpenVINO cannot load it .* verify the pack"):
        list(engine.generate(MESSAGES))
    with pytest.raises(BadInputError, match="OpenVINO cannot load it"):
        engine.logits([3, 4])


def test_the_npu_pipeline_answers_as_the_cpu_does(variant):
    """The NPU's static pipeline, on the CPU in float32: checks the graph, not the device."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    from edgekit.runtimes.openvino_engine import OpenVINOEngine, device_properties

    directory = variant("llama", "int4-channel")
    on_cpu = {"NPUW_DEVICES": "CPU", "INFERENCE_PRECISION_HINT": "f32", "MAX_PROMPT_LEN": 64}
    properties = {**device_properties(directory, "NPU"), **on_cpu}
    weights = ov.Tensor(np.memmap(directory / "weights.safetensors", np.uint8, mode="c"))
    xml = (directory / "openvino/openvino_model.xml").read_text()
    tokenizer = genai.Tokenizer(str(directory))
    pipeline = genai.LLMPipeline(xml, weights, tokenizer, "NPU", **properties)
    config = genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.apply_chat_template = 24, True, False
    ids = np.arange(3, 12, dtype=np.int64)[None]
    inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
    found = pipeline.generate(inputs, config).tokens[0]
    engine = OpenVINOEngine(directory, exact=True)
    sampling = Sampling(max_tokens=24, temperature=0, repetition_penalty=1.0, ignore_end=True)
    assert found == [e.token for e in engine.generate_tokens(ids[0].tolist(), sampling)]


@pytest.mark.parametrize(
    ("error", "told"), [(RuntimeError, MissingRuntimeError), (MemoryError, MemoryError)]
)
def test_whatever_fails_in_openvinos_thread_reaches_the_caller(variant, monkeypatch, error, told):
    """Who waits for a token does not wait for ever."""

    class Failing:
        def generate(self, *_):
            raise error("the device is full")

    engine = load_engine(variant("mixtral"), "openvino-cpu")
    monkeypatch.setattr(engine, "_pipeline", Failing())
    with pytest.raises(told, match="the device is full"):
        run(engine)
