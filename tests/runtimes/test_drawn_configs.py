"""Random valid configs of the table's vocabulary: the OpenVINO graph against transformers.

Drawn are what rows cannot enumerate: head counts and sizes that do not divide evenly elsewhere,
expert counts, groups, windows, rotary settings, biases, ties and dense layers.
"""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_families import build_weights

from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.distill.teacher import teacher_logits
from edgekit.parity_cases import compare, make_cases, run_case
from edgekit.progress import Silent
from edgekit.quantize.reference import dequantized_checkpoint
from edgekit.quantize.write import quantize
from edgekit.runtimes.compile import VARIANT_WEIGHTS
from edgekit.runtimes.graph_sessions import OpenVINOSession
from edgekit.runtimes.openvino_graph import write_openvino
from edgekit.scheme import Scheme

ROPES = st.sampled_from(
    [
        {"rope_type": "default", "rope_theta": 3e4},
        {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4},
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4,
         "original_max_position_embeddings": 64},
        {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4, "low_freq_factor": 1.0,
         "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    ]
)  # fmt: skip


@st.composite
def grouped(draw):
    """A family with grouped-query attention."""
    family = draw(st.sampled_from(["llama", "qwen3", "mixtral", "qwen3_moe", "qwen2_moe"]))
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 4))
    experts = draw(st.integers(2, 9))
    options = {
        "num_key_value_heads": kv_heads,
        "num_attention_heads": heads,
        "head_dim": draw(st.sampled_from([8, 24, 32, 80])),
        "hidden_size": draw(st.sampled_from([32, 72, 160])),
        "intermediate_size": draw(st.sampled_from([40, 96])),
        "vocab_size": draw(st.integers(50, 300)),
        "tie_word_embeddings": draw(st.booleans()),
        "rope_parameters": draw(ROPES),
        "num_experts": experts,
        "num_local_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
        "moe_intermediate_size": draw(st.sampled_from([24, 56])),
        "shared_expert_intermediate_size": draw(st.sampled_from([24, 56])),
        "norm_topk_prob": draw(st.booleans()),
        "decoder_sparse_step": draw(st.integers(1, 2)),
    }
    if family == "llama":  # its config class demands it, whatever head_dim says
        options["hidden_size"] = heads * draw(st.sampled_from([8, 12, 24]))
    if family in ("llama", "qwen3", "qwen3_moe"):
        options["attention_bias"] = draw(st.booleans())
    if family == "mixtral":
        options["sliding_window"] = draw(st.sampled_from([None, 9, 30]))
    return family, options


@st.composite
def latent(draw):
    """DeepSeek-V3: latent attention, groups of experts, a scaled router."""
    groups = draw(st.integers(1, 4))
    size = draw(st.integers(2, 4))
    top_groups = draw(st.integers(1, groups))
    options = {
        "num_attention_heads": draw(st.integers(1, 5)),
        "q_lora_rank": draw(st.sampled_from([None, 24, 40])),
        "kv_lora_rank": draw(st.sampled_from([16, 40])),
        "qk_nope_head_dim": draw(st.sampled_from([8, 24])),
        "qk_rope_head_dim": draw(st.sampled_from([8, 16])),
        "v_head_dim": draw(st.sampled_from([8, 40])),
        "rope_interleave": draw(st.booleans()),
        "n_routed_experts": groups * size,
        "num_local_experts": groups * size,
        "n_group": groups,
        "topk_group": top_groups,
        "num_experts_per_tok": draw(st.integers(1, top_groups * size)),
        "routed_scaling_factor": draw(st.sampled_from([1.0, 2.5])),
        "norm_topk_prob": draw(st.booleans()),
        "n_shared_experts": draw(st.integers(1, 2)),
        "first_k_dense_replace": draw(st.integers(0, 2)),
        "rope_parameters": draw(ROPES),
    }
    options["num_key_value_heads"] = options["num_attention_heads"]
    options["head_dim"] = options["qk_rope_head_dim"]
    return "deepseek_v3", options


def typical_kl(family: str, options: dict, seed: int) -> float:
    """KL to transformers over all cases, but for the few positions where a router nearly ties."""
    with tempfile.TemporaryDirectory() as scratch:
        source, variant, plain = (Path(scratch) / n for n in ("source", "variant", "plain"))
        build_weights(source, family, seed, **options)
        for directory in (variant, plain):
            directory.mkdir()
        quantize(source, Scheme.parse("none"), variant, Silent())
        dequantized_checkpoint(variant, plain, Silent())
        (variant / "model.safetensors").rename(variant / VARIANT_WEIGHTS)
        write_openvino(variant)
        session = OpenVINOSession(variant, exact=True)
        cases = make_cases(describe(read_config(variant)), longest=64)
        logits = teacher_logits(plain)
        expected = [logits(np.array(row, np.int32)) for case in cases for row in case.rows]
        found = [rows for case in cases for rows in run_case(session, case)]
        kl = compare(expected, found).kl
        sparse = describe(read_config(variant)).moe is not None
        return float(np.quantile(kl, 0.98) if sparse else kl.max())


@pytest.mark.parametrize("kind", [grouped, latent])
def test_a_drawn_config_computes_what_transformers_computes(kind):
    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn=kind(), seed=st.integers(0, 1000))
    def check(drawn, seed):
        assert typical_kl(*drawn, seed) < 1e-6

    check()
