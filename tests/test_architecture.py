"""The architecture table against what transformers writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig

from edgekit.checkpoint import Checkpoint
from edgekit.describe import describe
from edgekit.errors import BadInputError
from edgekit.family_table import FAMILIES


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_table_names_exactly_the_tensors_that_transformers_saves(
    family: str, tiny_model: Callable[..., Path]
) -> None:
    directory = tiny_model(family)
    with Checkpoint(directory) as checkpoint:
        stored = {name for file in checkpoint._files.values() for name in file.tensors}
        ignored = set(checkpoint.architecture.without(stored))
        assert {spec.source.tensor for spec in checkpoint.specs} == stored - ignored


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    ],
)
def test_rotary_frequencies_equal_those_of_transformers(scaling: dict[str, object]) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = AutoConfig.for_model(
        "llama", hidden_size=64, num_attention_heads=2, max_position_embeddings=1024,
        rope_parameters={"rope_theta": 50_000.0, **scaling},
    )  # fmt: skip
    expected = LlamaRotaryEmbedding(config).inv_freq.tolist()
    rope = describe(config.to_dict()).layers[0].attention.rope
    assert rope is not None
    assert rope.inv_freq == pytest.approx(expected, rel=1e-6)


def test_published_sizes_of_qwen3_30b_a3b_are_reproduced() -> None:
    config = {
        "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "vocab_size": 151936, "norm_topk_prob": True, "rope_theta": 1e6,
        "max_position_embeddings": 40960,
    }  # fmt: skip
    architecture = describe(config)
    assert round(architecture.parameters() / 1e9, 1) == 30.5
    assert 3.0 < architecture.active_parameters() / 1e9 < 3.4


@pytest.mark.parametrize(
    ("family", "billions", "options"),
    [
        ("lfm2_moe", 8.3, {
            "num_hidden_layers": 24,
            "layer_types": ["full_attention" if i in (2, 6, 10, 14, 18, 21) else "conv"
                            for i in range(24)]}),
        ("granitemoehybrid", 6.9, {
            "vocab_size": 100_352, "hidden_size": 1536, "num_hidden_layers": 40,
            "num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 512,
            "shared_intermediate_size": 1024, "num_local_experts": 64, "mamba_n_heads": 48,
            "mamba_d_state": 128, "tie_word_embeddings": True,
            "layer_types": ["attention" if i % 10 == 5 else "mamba" for i in range(40)]}),
        ("gemma4_text", 25.2, {
            "hidden_size": 2816, "intermediate_size": 2112, "num_attention_heads": 16,
            "num_key_value_heads": 8, "num_global_key_value_heads": 2, "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 128,
            "top_k_experts": 8, "moe_intermediate_size": 704}),
        ("jetmoe", 8.5, {"num_hidden_layers": 24}),
        ("qwen3_5_moe_text", 34.7, {}),
    ],
)  # fmt: skip
def test_published_sizes_of_hybrids_are_reproduced(
    family: str, billions: float, options: dict[str, object]
) -> None:
    architecture = describe(AutoConfig.for_model(family, **options).to_dict())
    assert round(architecture.parameters() / 1e9, 1) == billions


def test_experts_of_one_projection_are_neighbours_in_forward_order(tiny_mixtral: Path) -> None:
    with Checkpoint(tiny_mixtral) as checkpoint:
        first = [s for s in checkpoint.specs if s.role == "expert" and s.layer == 0]
    assert [s.projection for s in first] == ["gate"] * 4 + ["up"] * 4 + ["down"] * 4
    assert [s.expert for s in first] == [0, 1, 2, 3] * 3


def test_tensors_are_described_once_and_cannot_be_changed_by_a_caller(tiny_mixtral: Path) -> None:
    with Checkpoint(tiny_mixtral) as checkpoint:
        architecture = checkpoint.architecture
        assert architecture.tensors() is architecture.tensors()
        assert isinstance(architecture.tensors(), tuple)
        checkpoint.specs.clear()
        assert checkpoint.specs == list(architecture.tensors())


def test_a_sliding_window_leaves_the_context_as_it_is() -> None:
    config = AutoConfig.for_model("mistral", sliding_window=256).to_dict()
    architecture = describe(config)
    assert architecture.context_length == config["max_position_embeddings"]
    assert {layer.attention.window for layer in architecture.layers} == {256}


def test_code_in_a_checkpoint_is_named_in_the_refusal() -> None:
    with pytest.raises(BadInputError, match="never runs"):
        describe({"model_type": "evil", "auto_map": {"AutoModel": "modeling.Evil"}})
