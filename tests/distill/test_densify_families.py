"""A sparse model of any family becomes the dense one that says the same, or is refused."""

import re

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tiny_families import SPARSE
from tiny_models import build_model

from edgekit.checkpoint import Checkpoint
from edgekit.distill.dense_families import CANDIDATES, NO_SIBLING
from edgekit.distill.densify import DenseOptions, densify
from edgekit.distill.loading import load_model
from edgekit.errors import BadInputError
from edgekit.progress import Silent
from edgekit.sequences import TokenSequence

# every token uses every expert: with a router that does not care, gates are constants
ALL_CHOSEN = {
    "num_experts_per_tok": 4, "moe_topk": 4, "moe_k": 4, "n_group": 1, "topk_group": 1,
    "n_routed_experts": 4, "num_local_experts": 4, "num_experts": 4,
}  # fmt: skip
FEWER = {
    "phimoe": {  # two by definition; StableLM has no bias after attention and head
        "num_local_experts": 2, "num_experts_per_tok": 2, "attention_bias": False,
        "lm_head_bias": False, "head_dim": 16,
    },
    "llama4_text": {"num_local_experts": 1, "num_experts_per_tok": 1},
}  # fmt: skip
EXPECTED = {  # the family of the result
    "mixtral": "llama", "qwen2_moe": "qwen2", "qwen3_moe": "qwen3", "flex_olmo": "olmo2",
    "deepseek_v2": "youtu", "deepseek_v3": "youtu", "glm4_moe_lite": "youtu",
    "glm_moe_dsa": "youtu", "glm4_moe": "glm4_moe", "dots1": "qwen3", "solar_open": "llama",
    "exaone_moe": "exaone_moe", "phimoe": "stablelm", "hunyuan_v1_moe": "hunyuan_v1_dense",
    "afmoe": "afmoe", "ernie4_5_moe": "ernie4_5", "granitemoe": "granite",
    "granitemoeshared": "granite", "granitemoehybrid": "granite", "qwen3_next": "qwen3_5_text",
    "qwen3_5_moe_text": "qwen3_5_text", "llama4_text": "llama4_text", "lfm2_moe": "lfm2",
    "aria_text": "llama",
}  # fmt: skip


def text(count=4, length=20):
    rng = np.random.default_rng(0)
    return [
        TokenSequence(rng.integers(3, 500, length).astype(np.int32), "x", i == 0)
        for i in range(count)
    ]


def constant_gates(directory, family, **options):
    """A tiny model whose routers, and the gate of a shared expert, do not look at the token."""
    build_model(directory, family, **{**ALL_CHOSEN, **FEWER.get(family, {}), **options})
    with Checkpoint(directory) as checkpoint:
        mixtures = [layer.mixture for layer in checkpoint.architecture.layers if layer.mixture]
        names = [checkpoint.architecture.by_name[m.router + ".weight"].source for m in mixtures]
        names += [
            checkpoint.architecture.by_name[m.shared_gate + ".weight"].source
            for m in mixtures
            if m.shared_gate
        ]
    tensors = load_file(directory / "model.safetensors")
    for part in names:
        tensors[part.tensor] = np.zeros_like(tensors[part.tensor])
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def make_dense(model, tmp_path, **options):
    out = tmp_path / "dense"
    out.mkdir()
    return out, densify(model, text(), DenseOptions(**options), out, Silent())


def assert_same_logits(first, second):
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected = load_model(first)(ids, use_cache=False).logits
        found = load_model(second)(ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("family", EXPECTED)
def test_with_constant_gates_the_dense_model_says_what_the_sparse_one_says(family, tmp_path):
    source = constant_gates(tmp_path / "source", family)
    experts = FEWER.get(family, ALL_CHOSEN)["num_local_experts"]
    out, report = make_dense(source, tmp_path, experts=experts, scaling="marginal")
    assert report.family == EXPECTED[family]
    with Checkpoint(out) as checkpoint:
        assert checkpoint.architecture.moe is None
        assert checkpoint.architecture.parameters() == report.parameters_after
    assert_same_logits(source, out)
    for layer in report.layers.values():
        assert layer.errors["marginal"] < 1e-6
        assert layer.errors["fitted"] < 1e-6
    assert report.divergence["marginal"].all.value < 1e-6


@pytest.mark.parametrize("family", SPARSE)
def test_every_sparse_family_has_a_row_or_a_reason(family):
    assert (family in CANDIDATES) != (family in NO_SIBLING)
    assert (family in CANDIDATES) == (family in EXPECTED)


# what makes the first candidate differ, so that the family's own with dense layers is the result
OWN = {
    "qwen2_moe": {"family": "qwen2_moe"},
    "qwen3_moe": {"family": "qwen3_moe"},
    "deepseek_v2": {"family": "deepseek_v2"},
    "deepseek_v3": {"family": "deepseek_v3"},
    "glm4_moe_lite": {"family": "glm4_moe_lite"},
    "dots1": {"family": "dots1"},
    "ernie4_5_moe": {"family": "ernie4_5_moe"},
    "lfm2_moe": {"family": "lfm2_moe"},
    "qwen3_next": {"family": "qwen3_next"},
    "mixtral": {"family": "mistral"},
}


@pytest.mark.parametrize("family", OWN)
def test_another_dense_form_can_be_asked_for(family, tmp_path):
    source = constant_gates(tmp_path / "source", family)
    wanted = OWN[family]["family"]
    out, report = make_dense(source, tmp_path, experts=4, scaling="uniform", family=wanted)
    assert report.family == wanted
    assert_same_logits(source, out)


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        ("solar_open", {"attention_bias": True}, "qwen2"),
        ("mixtral", {"sliding_window": 24}, "mistral"),
        ("qwen2_moe", {"qkv_bias": False}, "llama"),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 24}, "qwen3"),
        ("ernie4_5_moe", {"use_bias": True, "tie_word_embeddings": False}, "ernie4_5_moe"),
        (
            "granitemoehybrid",
            {"layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 32},
            "granitemoehybrid",
        ),
    ],
)
def test_options_that_one_dense_family_lacks_lead_to_another(family, options, expected, tmp_path):
    source = constant_gates(tmp_path / "source", family, **options)
    out, report = make_dense(source, tmp_path, experts=4, scaling="marginal")
    assert report.family == expected
    assert_same_logits(source, out)


@pytest.mark.parametrize("family", NO_SIBLING)
def test_a_family_without_a_sibling_is_refused_with_the_reason(family, tiny_model, tmp_path):
    with pytest.raises(BadInputError, match=re.escape(NO_SIBLING[family])):
        make_dense(tiny_model(family), tmp_path)
    assert not list((tmp_path / "dense").iterdir())


def test_a_bias_that_no_dense_family_has_is_named_in_the_refusal(tiny_model, tmp_path):
    with pytest.raises(BadInputError, match="as stablelm, head_bias is absent instead of there"):
        make_dense(tiny_model("phimoe", head_dim=16), tmp_path)
