"""Nested sizes: graphs of every prefix over one weights file, each the pruned model exactly."""

import json
import shutil
from collections import Counter
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from tiny_nested import SIZES, nested_source

from edgekit.compilation import compile_checked
from edgekit.errors import BadInputError, GateFailedError
from edgekit.parity import check_parity
from edgekit.progress import Silent
from edgekit.quantize.write import quantize
from edgekit.runtimes.batching import Job
from edgekit.runtimes.compile import compile_variant
from edgekit.runtimes.engine import Sampling, load_engine
from edgekit.runtimes.graph_sessions import OpenVINOSession
from edgekit.runtimes.load_batching import load_batch_engine
from edgekit.scheme import Scheme
from edgekit.self_check import check_variant
from edgekit.tensorfile import read_header
from edgekit.variant_files import files_of, size_directories

TARGETS = ["openvino-cpu", "onnx-cpu"]
EIGHT = {"n_routed_experts": 8, "num_local_experts": 8, "num_experts": 8,
         "max_position_embeddings": 128}  # fmt: skip
UNGROUPED = {"n_group": 1, "topk_group": 1}
# every form of a router's tensors: biases, corrections, factors per expert, identities behind the
# experts; shared experts, joined projections, weights that are not packed
FAMILIES = {
    "mixtral": ({}, "int4-g32", TARGETS),
    "qwen3_moe": ({}, "int4-g64", TARGETS),
    "qwen2_moe": ({}, "int4-g32", TARGETS),
    "gpt_oss": ({}, "int4-g32", TARGETS),
    "deepseek_v3": (UNGROUPED, "int4-channel", TARGETS),
    "phimoe": ({}, "none", TARGETS),
    "longcat_flash": ({}, "int4-g32", TARGETS),
    "gemma4_text": ({}, "int4-g32", ["openvino-cpu"]),
}


@pytest.fixture(scope="module")
def packed(tiny_model, tmp_path_factory):
    """``packed("mixtral")``: a quantized checkpoint that promises three sizes."""
    made = {}

    def make(family):
        if family not in made:
            options, scheme, _ = FAMILIES[family]
            root = tmp_path_factory.mktemp(family)
            nested_source(tiny_model(family, **EIGHT, **options), root / "source")
            (root / "packed").mkdir()
            quantize(root / "source", Scheme.parse(scheme), root / "packed", Silent(), "rtn")
            made[family] = root / "packed"
        return made[family]

    return make


@pytest.fixture(scope="module")
def nested(packed, tmp_path_factory):
    """``nested("mixtral")``: the compiled variant."""
    made = {}

    def make(family):
        if family not in made:
            out = tmp_path_factory.mktemp("variant")
            compile_variant(packed(family), FAMILIES[family][2], out, Silent())
            made[family] = out
        return made[family]

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_equals_the_model_of_its_experts(nested, family):
    """transformers runs the dequantized weights of the first experts."""
    targets = FAMILIES[family][2]
    smallest = size_directories(nested(family))[-1]
    report, _ = check_parity(smallest, targets, Silent(), longest=64)
    report.require()
    found = [(r.num_experts, r.target) for r in report.results]
    assert found == [(SIZES[-1], target) for target in targets]
    assert all(r.max_relative_error < 1e-4 for r in report.results)


def test_the_weights_file_is_the_only_copy_and_all_graphs_point_into_it(nested, packed):
    variant = nested("mixtral")
    single = (packed("mixtral") / "model.safetensors").stat().st_size
    others = [f for f in variant.rglob("*") if f.is_file() and f.name != "weights.safetensors"]
    assert (variant / "weights.safetensors").stat().st_size == single
    graphs = {f.name for f in others if f.suffix in (".xml", ".onnx")}
    assert graphs == {"openvino_model.xml", "model.onnx", *(f"model-experts-{n}.onnx"
                                                            for n in SIZES[1:])}  # fmt: skip
    assert [d.name for d in size_directories(variant)[1:]] == ["experts-6", "experts-3"]
    folder = {f.relative_to(variant / "experts-3").as_posix()
              for f in (variant / "experts-3").rglob("*") if f.is_file()}  # fmt: skip
    assert folder == {"config.json", "openvino/openvino_model.xml"}


def reads(files):
    """Bytes of the weights file that each runtime's graph names: OpenVINO's, then ONNX's."""
    layers = ElementTree.parse(files.openvino_graph).getroot().iter("data")
    spans = {(int(d.get("offset")), int(d.get("size"))) for d in layers if d.get("offset")}
    model = onnx.load(str(files.onnx_graph), load_external_data=False)
    external = [{e.key: e.value for e in t.external_data} for t in model.graph.initializer]
    assert {e["location"] for e in external if e} == {"weights.safetensors"}
    return spans, {(int(e["offset"]), int(e["length"])) for e in external if e}


def test_a_graph_names_no_byte_of_experts_behind_its_prefix(nested):
    """Codes, scales and router rows of a prefix are contiguous: one run for each."""
    variant = nested("mixtral")
    tensors, _ = read_header(variant / "weights.safetensors")
    for directory, count in zip(size_directories(variant), SIZES, strict=True):
        left_out = [t for name, t in tensors.items()
                    if any(f"experts.{e}." in name for e in range(count, 8))
                    and not name.endswith("_shape")]  # fmt: skip
        router = next(t for name, t in tensors.items() if name.endswith("gate.weight"))
        for spans in reads(files_of(directory)):
            for tensor in left_out:
                end = tensor.offset + tensor.nbytes
                assert not any(b < end and b + size > tensor.offset for b, size in spans)
            assert (router.offset, router.nbytes * count // 8) in spans
        assert len(left_out) == (8 - count) * 3 * 2 * 2  # projections, codes and scales, layers


def test_every_size_keeps_its_fusions(nested):
    for directory in size_directories(nested("mixtral")):
        compiled = OpenVINOSession(directory, exact=True).compiled
        kinds = Counter(
            str(o.get_rt_info()["layerType"].astype(str))
            for o in compiled.get_runtime_model().get_ordered_ops()
        )
        assert kinds["GatherMatmul"] == 6
        model = onnx.load(str(files_of(directory).onnx_graph), load_external_data=False)
        assert sum(node.op_type == "QMoE" for node in model.graph.node) == 2


def test_writing_smaller_sizes_leaves_the_largest_graph_as_it_was(nested, quantized, tmp_path):
    """Small constants of all graphs share one tensor, in which the first graph's come first."""
    plain = quantized("mixtral", "int4-g32", **EIGHT)
    compile_variant(plain, TARGETS, tmp_path, Silent())
    for name in ("openvino/openvino_model.xml", "model.onnx"):
        assert (tmp_path / name).read_bytes() == (nested("mixtral") / name).read_bytes()


@pytest.mark.parametrize("target", TARGETS)
def test_engines_answer_from_a_size_as_from_a_variant(nested, target):
    """Alone and in a batch; logits are those of the graph of that size."""
    sizes = size_directories(nested("mixtral"))
    sampling = Sampling(max_tokens=6, temperature=0, repetition_penalty=1.0, ignore_end=True)
    prompt = list(range(3, 20))
    last = {}
    for directory in (sizes[0], sizes[-1]):
        engine = load_engine(directory, target)
        answer = [e.token for e in engine.generate_tokens(prompt, sampling) if e.token >= 0]
        last[directory] = engine.logits(prompt)
        assert answer[0] == last[directory][-1].argmax()
        engine.close()
    assert np.abs(last[sizes[0]] - last[sizes[-1]]).max() > 0.1
    batch = load_batch_engine(sizes[-1], target, max_running=1)
    run = batch.start(Job(tuple(prompt), sampling))
    answer = []
    while not run.done:
        batch.step()
        answer += [produced.token for produced in run.read()]
    assert answer[0] == last[sizes[-1]][-1].argmax() and len(answer) == 6
    batch.close()


def test_compile_checks_every_size_and_each_can_check_itself(packed, tmp_path):
    report = compile_checked(packed("mixtral"), ["openvino-cpu"], tmp_path, Silent())
    assert report.nested == SIZES
    assert [r.num_experts for r in report.parity.results] == SIZES
    for directory in size_directories(tmp_path):
        assert not check_variant(directory, ["openvino-cpu"])[0].failure
    shutil.copy(tmp_path / "reference.json", tmp_path / "experts-3" / "reference.json")
    assert check_variant(tmp_path / "experts-3", ["openvino-cpu"])[0].failure


def test_a_wrong_graph_of_one_size_fails_the_gate_and_is_named(packed, tmp_path, monkeypatch):
    """The graph of six experts is given that of the three: the gate says which size is wrong."""
    from edgekit.runtimes import openvino_graph

    def swapped(variant):
        original(variant)
        shutil.copy(variant / "experts-3/openvino/openvino_model.xml",
                    variant / "experts-6/openvino/openvino_model.xml")  # fmt: skip

    original = openvino_graph.write_openvino
    monkeypatch.setattr(openvino_graph, "write_openvino", swapped)
    with pytest.raises(GateFailedError, match="openvino-cpu with 6 experts"):
        compile_checked(packed("mixtral"), ["openvino-cpu"], tmp_path, Silent())


BAD_KEYS = {
    "not a list": (6, "not a list"),
    "a word in it": ([8, "6"], "not a list of numbers"),
    "a truth in it": ([8, True], "not a list of numbers"),
    "empty": ([], "not 1 to 8 sizes"),
    "rising": ([8, 3, 6], "each smaller than the one before"),
    "twice the same": ([8, 6, 6], "each smaller than the one before"),
    "another checkpoint's": ([6, 4], "begins with 6 but the checkpoint has 8"),
    "below top-k": ([8, 1], "1 is fewer than the 2 experts that every token uses"),
}


@pytest.mark.parametrize("kind", BAD_KEYS)
def test_a_damaged_key_is_refused_by_quantize_and_compile(tiny_model, packed, tmp_path, kind):
    value, sentence = BAD_KEYS[kind]
    source = nested_source(tiny_model("mixtral", **EIGHT), tmp_path / "source", value)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(BadInputError, match=f"edgekit_nested: .*{sentence}"):
        quantize(source, Scheme.parse("int8"), out, Silent())
    quantized = nested_source(packed("mixtral"), tmp_path / "quantized", value)
    with pytest.raises(BadInputError, match=f"edgekit_nested: .*{sentence}"):
        compile_variant(quantized, ["openvino-cpu"], out, Silent())
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("family", "options", "sizes", "sentence"),
    [
        ("llama", {}, [8, 6], "a dense llama has no experts"),
        ("deepseek_v3", {}, [8, 4], "first chooses 2 of 4 groups"),
        ("deepseek_v3", {"n_group": 4, "topk_group": 4}, [8, 6], "6 experts do not divide"),
        ("jetmoe", {"num_local_experts": 6}, [6, 4], "cannot be left out"),
    ],
)
def test_models_without_such_prefixes_are_refused(tiny_model, tmp_path, family, options, sizes,
                                                  sentence):  # fmt: skip
    source = nested_source(tiny_model(family, **options), tmp_path / "source", sizes)
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInputError, match=sentence):
        quantize(source, Scheme.parse("int4-g32"), tmp_path / "out", Silent())


def test_quantizing_keeps_the_key_and_a_size_does_not_have_it(packed, nested):
    assert json.loads((packed("mixtral") / "config.json").read_text())["edgekit_nested"] == SIZES
    config = json.loads((nested("mixtral") / "experts-3/config.json").read_text())
    assert "edgekit_nested" not in config
    assert config["num_local_experts"] == 3
    assert config["quantization_config"]["edgekit_scheme"] == "int4-g32"
