"""Plans and estimates: sums by hand, and quantization before pruning."""

from pathlib import Path

import pytest

from edgekit.checkpoint import Checkpoint, read_config
from edgekit.cli.common import parse_bytes
from edgekit.cli.main import main
from edgekit.describe import describe
from edgekit.errors import BadInputError, OutOfResourcesError
from edgekit.estimate import LOGIT_BYTES, model_bytes, require_model, time_class
from edgekit.plan import BASE_MEMORY, make_plan, weights_bytes
from edgekit.rules import RULES, TARGETS, check
from edgekit.scheme import CONSTANTS_BYTES, Scheme

EXAMPLES = Path(__file__).parent.parent / "examples"
GB = 10**9


@pytest.fixture(scope="module")
def qwen():
    return describe(read_config(EXAMPLES / "qwen3-30b-a3b"))


def best(architecture, memory, target="openvino-cpu"):
    return make_plan(architecture, [target], memory, 4096).recommended[target]


def test_the_size_of_a_matrix_is_codes_scales_and_shape(tiny_llama):
    with Checkpoint(tiny_llama) as checkpoint:
        architecture = checkpoint.architecture
    total = CONSTANTS_BYTES
    for spec in architecture.tensors():
        n = spec.parameters
        if spec.role == "norm":
            total += 4 * n
        elif spec.role == "embedding":
            total += n + 2 * n // 32 + 16
        else:
            total += n // 2 + 2 * n // 32 + 16
    assert weights_bytes(architecture, Scheme.parse("int4-g32")) == total


def test_bits_per_original_weight_fall_with_the_kept_fraction(qwen):
    plan = make_plan(qwen, ["openvino-cpu"], 32 * GB, 4096)
    bits = {(c.scheme, c.keep): c.bits_per_original_weight for c in plan.candidates}
    assert bits["none", 1.0] == pytest.approx(16, rel=0.01)
    assert bits["int4-g128", 1.0] == pytest.approx(4.2, abs=0.15)  # 4 + 16/128, 8-bit embeddings
    assert bits["int4-g128", 0.5] == pytest.approx(bits["int4-g128", 1.0] * 0.525, rel=0.02)


def test_the_cache_is_two_times_layers_heads_and_context(qwen):
    plan = make_plan(qwen, ["openvino-cpu", "onnx-cpu"], 32 * GB, 1000)
    sizes = {c.target: c.kv_cache_bytes for c in plan.candidates}
    assert sizes["openvino-cpu"] == 2 * 48 * 4 * 128 * 1000
    assert sizes["onnx-cpu"] == 4 * sizes["openvino-cpu"]


def test_building_needs_the_teacher_in_float32_and_room_for_every_step(qwen):
    plan = make_plan(qwen, ["openvino-cpu"], 32 * GB, 4096)
    assert plan.build_memory_bytes == pytest.approx(4 * 30.5e9, rel=0.01)
    disks = {(c.scheme, c.keep): c.build_disk_bytes - 3 * c.weights_bytes for c in plan.candidates}
    assert disks["int4-g64", 1.0] == 0
    assert disks["int4-g64", 0.5] == pytest.approx(2 * 2 * 16e9, rel=0.02)  # twice in bfloat16


def test_quantizing_comes_before_pruning_and_pruning_never_before_int4(qwen):
    assert all(
        c.scheme.startswith("int4")
        for c in make_plan(qwen, list(TARGETS), 8 * GB, 4096).candidates
        if c.keep < 1
    )
    roomy, tight, tighter = (best(qwen, m * GB) for m in (24, 14, 9))
    assert (roomy.keep, roomy.scheme) == (1.0, "int4-g128")
    assert tight.keep == 0.75 and tighter.keep == 0.5
    assert (tight.risk, tighter.risk) == ("moderate", "high") and "2510.13999" in tight.evidence


def test_a_candidate_fits_up_to_the_last_byte(qwen):
    need = best(qwen, 24 * GB).total_bytes
    assert best(qwen, need).keep == 1.0
    assert best(qwen, need - 1).keep < 1.0 or best(qwen, need - 1).scheme != "int4-g128"


def test_nothing_fits_says_how_much_is_needed(qwen):
    plan = make_plan(qwen, ["openvino-cpu"], GB, 4096)
    assert plan.recommended["openvino-cpu"] is None
    assert "distil into a smaller student" in plan.reasons["openvino-cpu"]


def test_the_npu_refuses_a_sparse_model_and_names_the_remedy(qwen):
    plan = make_plan(qwen, ["openvino-npu"], 32 * GB, 4096)
    assert plan.recommended["openvino-npu"] is None
    assert "dense student" in plan.reasons["openvino-npu"]


@pytest.mark.parametrize(
    ("scheme", "rules"),
    [
        ("int4-g128", set()),
        ("int4-channel", set()),
        ("int4-g64", set()),
        ("int8", {"npu-int4"}),
        ("none", {"npu-int4"}),
    ],
)
def test_what_the_npu_refuses_of_a_dense_model(scheme, rules):
    dense = {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 1024, "max_position_embeddings": 4096,
    }  # fmt: skip
    found = check("openvino-npu", describe(dense), Scheme.parse(scheme))
    assert {f.rule for f in found if f.blocks} == rules


def test_every_rule_says_why_what_to_do_and_who_says_so():
    assert len({r.id for r in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.reason and rule.remedy and rule.source and set(rule.targets) <= TARGETS.keys()


def test_training_memory_counts_what_is_trained(tiny_mixtral):
    with Checkpoint(tiny_mixtral) as checkpoint:
        architecture = checkpoint.architecture
    base = BASE_MEMORY + LOGIT_BYTES * architecture.vocab_size
    whole = architecture.parameters()
    assert model_bytes(architecture) == base + 4 * whole
    assert model_bytes(architecture, 1.0, ("all",)) == base + 16 * whole
    routers = sum(s.parameters for s in architecture.tensors() if s.role == "router")
    assert model_bytes(architecture, 1.0, ("router",)) == base + 4 * whole + 12 * routers
    experts = sum(s.parameters for s in architecture.tensors() if s.role == "expert")
    assert model_bytes(architecture, 0.5) == base + 4 * whole - 2 * experts


def test_too_little_memory_is_refused_before_work_unless_forced(
    tiny_mixtral, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("edgekit.memory.available_memory", lambda: 100_000_000)
    with pytest.raises(OutOfResourcesError, match=r"needs about 0\.\d GB.*--force"):
        require_model(tiny_mixtral, force=False)
    require_model(tiny_mixtral, force=True)
    out = tmp_path / "out"
    arguments = ["shrink", str(tiny_mixtral), "--keep", "0.5", "--tokens", "64", "--out", str(out)]
    assert main(arguments) == 5
    assert "running the model in float32 needs about" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main([*arguments, "--force"]) == 0 and out.is_dir()


def test_time_classes():
    assert [time_class(s) for s in (1, 100, 5000, 10**6)] == ["seconds", "minutes", "hours", "days"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("16GB", 16 * GB), ("512 MB", 512_000_000), ("1.5gib", 3 << 29), ("1000", 1000)],
)
def test_sizes_are_read_as_people_write_them(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "nan", "1e30", "16 XB", "inf", "1 2GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(BadInputError, match="size"):
        parse_bytes(text)
