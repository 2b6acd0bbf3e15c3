"""Every family through save, quantize and compile: both graphs must say what transformers says.

The cases of :mod:`edgekit.parity_cases` prefill, decode, pad a batch, continue a cache, and go past
the window and past half the context.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from tiny_families import DENSE, FAMILY_OPTIONS, SPARSE

from edgekit.errors import GateFailedError
from edgekit.family_table import FAMILIES
from edgekit.parity import check_parity, compiled_targets
from edgekit.parity_cases import Case, compare, run_case
from edgekit.progress import Silent
from edgekit.runtimes.compile import compile_variant

TARGETS = ["openvino-cpu", "onnx-cpu"]


def test_the_table_has_a_tiny_model_for_every_family():
    assert set(FAMILY_OPTIONS) == set(FAMILIES)
    assert {name for name, row in FAMILIES.items() if row.moe} == set(SPARSE)
    assert len(SPARSE) >= 20 and len(DENSE) >= 15


@pytest.mark.parametrize("scheme", ["none", "int4-g32"])
@pytest.mark.parametrize("family", sorted(FAMILY_OPTIONS))
def test_every_graph_equals_transformers(variant, family, scheme):
    directory = variant(family, scheme)
    report, _ = check_parity(directory, compiled_targets(directory), Silent())
    assert [r.target for r in report.results] == [f"{r}-cpu" for r in FAMILIES[family].runtimes]
    for result in report.results:
        assert not result.failure
        assert result.max_relative_error < 1e-4
        assert "past half the context" in result.cases
    report.require()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 96}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
        ("qwen3", {"head_dim": 64, "num_key_value_heads": 1, "num_attention_heads": 5}),
        ("qwen3_moe", {"num_experts": 7, "num_experts_per_tok": 3, "norm_topk_prob": False}),
        ("qwen3_moe", {"mlp_only_layers": [0], "moe_intermediate_size": 32}),
        ("mixtral", {"sliding_window": 24, "tie_word_embeddings": False}),
        ("deepseek_v2", {"q_lora_rank": None, "topk_method": "greedy", "v_head_dim": 64}),
        ("deepseek_v3", {"rope_interleave": False, "norm_topk_prob": False, "n_group": 1,
                         "topk_group": 1}),
        ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": True}),
        ("cohere", {"attention_bias": True}),
        ("phi3", {"head_dim": 16, "max_position_embeddings": 256,
                  "original_max_position_embeddings": 64,
                  "rope_parameters": {
                      "rope_type": "longrope", "rope_theta": 1e4,
                      "short_factor": [1.0 + 0.1 * i for i in range(8)],
                      "long_factor": [2.0 + 0.3 * i for i in range(8)],
                      "original_max_position_embeddings": 64,
                  }, "sliding_window": None}),
        ("gemma3_text", {"rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
        ("llama", {"rope_parameters": {
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 128}}),
        ("gpt_oss", {"rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1.5e5, "factor": 32.0, "beta_fast": 32.0,
            "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 64}}),
    ],
)  # fmt: skip
def test_options_of_a_family(variant, family, options):
    directory = variant(family, "int4-g32", **options)
    report, _ = check_parity(directory, TARGETS, Silent())
    assert [r.target for r in report.results] == TARGETS
    report.require()
    assert all(r.max_relative_error < 1e-4 for r in report.results)


@pytest.mark.parametrize("scheme", ["int8", "int4-channel", "int4-g64"])
@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_every_scheme_passes_the_gate(variant, family, scheme):
    options = {"kv_lora_rank": 64, "q_lora_rank": 64} if family == "deepseek_v3" else {}
    report, _ = check_parity(variant(family, scheme, **options), TARGETS, Silent())
    assert [r.target for r in report.results] == TARGETS
    report.require()


def test_a_wrong_graph_fails_the_gate(quantized, tmp_path):
    """A graph written for another base of the rotary positions must not pass."""
    compile_variant(quantized("qwen3", "int4-g32"), TARGETS, tmp_path, Silent())
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] *= 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    report, _ = check_parity(tmp_path, ["openvino-cpu"], Silent())
    assert "not the reference's" in report.results[0].failure
    with pytest.raises(GateFailedError, match="openvino-cpu"):
        report.require()


def test_a_sparse_graph_that_is_not_finite_somewhere_fails_the_gate(variant, monkeypatch):
    """A few positions may differ where a router nearly ties; these are none of them."""

    def spoiled(reference, found):
        found[0][0] = np.nan
        return compare(reference, found)

    monkeypatch.setattr("edgekit.parity.compare", spoiled)
    report, _ = check_parity(variant("mixtral", "int4-g32"), ["openvino-cpu"], Silent())
    assert report.results[0].positions > 200
    assert "not the reference's" in report.results[0].failure


def test_against_the_original_the_rounding_of_weights_is_reported(variant, tiny_model):
    original = tiny_model("mixtral")
    packed, _ = check_parity(variant("mixtral", "int4-g32"), ["openvino-cpu"], Silent(), original)
    floats, _ = check_parity(variant("mixtral", "none"), ["openvino-cpu"], Silent(), original)
    assert floats.results[0].mean_kl < 1e-3 < packed.results[0].mean_kl
    assert not packed.results[0].failure


def test_against_the_quantized_checkpoint_the_gate_holds(variant, quantized):
    directory, other = variant("qwen3", "int4-g32"), quantized("qwen3", "int8")
    same, _ = check_parity(directory, TARGETS, Silent(), quantized("qwen3", "int4-g32"))
    assert [r.target for r in same.results] == TARGETS
    same.require()
    wrong, _ = check_parity(directory, ["openvino-cpu"], Silent(), other)
    assert wrong.results[0].failure


class _Echo:
    """A session whose logits name the number of visible tokens, to see what a case feeds."""

    def __init__(self, padding_side):
        self.padding_side = padding_side
        self.calls = []

    def run(self, tokens, mask):
        self.calls.append((tokens.copy(), mask.copy()))
        return np.repeat(tokens[..., None].astype(np.float32), 2, -1)

    def reset(self):
        self.calls.clear()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_case_gives_back_every_token_of_every_row_in_order(side):
    rows = ((1, 2, 3, 4, 5, 6), (7, 8, 9, 10))
    case = Case("both", rows, (3, 1), chunk=2, decode=1)
    session = _Echo(side)
    found = run_case(session, case)
    assert [f[:, 0].tolist() for f in found] == [list(map(float, row)) for row in rows]
    assert [tokens.shape for tokens, _ in session.calls] == [(2, 3), (2, 2), (2, 1)]
    assert session.calls[0][1].tolist()[1] == ([0, 0, 1] if side == "left" else [1, 0, 0])
    assert session.calls[-1][1].sum(1).tolist() == [6, 4]


def test_ties_of_the_reference_are_no_disagreement_but_large_errors_are():
    reference = [np.array([[1.0, 1.0 + 1e-6, 0.0], [2.0, 0.0, 0.0]], np.float32)]
    swapped = [np.array([[1.0 + 2e-6, 1.0, 0.0], [2.0, 0.0, 0.0]], np.float32)]
    wrong = [np.array([[1.0, 1.0 + 1e-6, 0.0], [0.0, 2.0, 0.0]], np.float32)]
    assert compare(reference, swapped).agrees.all()
    assert compare(reference, wrong).agrees.tolist() == [True, False]


def test_decoded_kl_is_that_of_the_definition():
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    difference = compare([np.log(p).astype(np.float32)], [np.log(q).astype(np.float32)])
    assert difference.kl == pytest.approx([0.25 * np.log(2)], rel=1e-5)
    assert dataclasses.asdict(difference)["relative_error"] == pytest.approx(0.5, rel=1e-5)


def test_the_exact_graph_is_not_left_behind(variant, tmp_path):
    directory = tmp_path / "v"
    shutil.copytree(variant("qwen3", "int4-g32"), directory)
    before = {f.name for f in directory.rglob("*")}
    check_parity(directory, ["onnx-cpu"], Silent())
    assert {f.name for f in directory.rglob("*")} == before
