"""Rows against the config classes of transformers, where a config does not say everything.

Published configs leave keys out and spell some in the old way. For every family each key is dropped
from a full config, and set to null: what ``describe`` makes of that, if it does not refuse it, must
be what it makes of the config after transformers has filled it in.
"""

import copy

import pytest
from tiny_families import COMMON, FAMILY_OPTIONS

from edgekit.describe import describe
from edgekit.errors import BadInputError

# what a config class keeps from elsewhere, or what names no architecture
UNRELATED = {"model_type", "architectures", "transformers_version", "dtype", "vocab_size"}
NESTED = {"attn_config", "ffn_config"}
# sizes, which the tensors of a checkpoint contradict where they are wrong
SIZES = {
    "head_dim", "num_key_value_heads", "num_experts", "num_local_experts", "n_shared_experts",
    "moe_num_shared_experts", "q_lora_rank",
}  # fmt: skip
BOUNDS = {"max_position_embeddings"}  # absent, the graphs take fewer tokens, and the same ones


def filled(config: dict) -> dict:
    from transformers import AutoConfig

    values = {k: v for k, v in copy.deepcopy(config).items() if k not in UNRELATED}
    values["vocab_size"] = config["vocab_size"]
    return {**AutoConfig.for_model(config["model_type"], **values).to_dict()}


def resolved(config: dict):
    try:
        return describe(config)
    except BadInputError:
        return None


@pytest.mark.parametrize("family", sorted(FAMILY_OPTIONS))
def test_what_a_config_leaves_out_is_what_its_class_fills_in(family):
    full = filled({"model_type": family, **COMMON, **FAMILY_OPTIONS[family]})
    assert resolved(full) is not None
    wrong = []
    for name in sorted(full.keys() - UNRELATED - NESTED - SIZES - BOUNDS):
        for kind in ("absent", "null"):
            raw = {k: v for k, v in full.items() if k != name or kind == "null"}
            if kind == "null":
                raw[name] = None
            found = resolved(raw)
            try:
                complete = filled(raw)
            except Exception:  # transformers refuses it too, in its own way
                continue
            if found is not None and found != resolved(complete):
                wrong.append(f"{name} {kind}")
    assert not wrong


OLD_SPELLINGS = [
    {"rope_theta": 3e5},
    {"rope_theta": 3e5, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    {"rope_theta": 3e5, "rope_scaling": {"type": "linear", "factor": 8.0}},
    {"rope_theta": 3e5, "rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    {"rope_theta": 3e5, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(OLD_SPELLINGS)))
@pytest.mark.parametrize(
    "family", ["llama", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gemma3_text",
               "granitemoe", "olmoe", "glm4_moe", "flex_olmo"],
)  # fmt: skip
def test_the_old_spelling_of_rotary_settings_says_the_same(family, number):
    full = filled({"model_type": family, **COMMON, **FAMILY_OPTIONS[family]})
    old = {k: v for k, v in full.items() if k != "rope_parameters"} | OLD_SPELLINGS[number]
    if family == "gemma3_text":
        old["rope_local_base_freq"] = 2e4
        if "type" in OLD_SPELLINGS[number].get("rope_scaling", {}):
            pytest.skip("transformers leaves the scaling out under this key; we do not")
    try:
        complete = filled(old)
    except KeyError:  # transformers cannot read this spelling of this family
        pytest.skip("transformers refuses it")
    assert resolved(old) == resolved(complete) is not None


@pytest.mark.parametrize("used", [True, False])
def test_layers_that_qwen2_windows_by_default(used):
    config = {
        "model_type": "qwen2", **COMMON, "num_hidden_layers": 30, "sliding_window": 8,
        "use_sliding_window": used,
    }  # fmt: skip
    windows = [layer.attention.window for layer in describe(config).layers]
    assert windows == [8 * (used and i >= 28) for i in range(30)]


def test_a_null_rotary_type_scales_neither_frequencies_nor_latent_attention():
    config = {"model_type": "deepseek_v3", **COMMON, **FAMILY_OPTIONS["deepseek_v3"]}
    rope = config["rope_parameters"]
    null, default = (
        describe({**config, "rope_parameters": {**rope, "rope_type": kind}})
        for kind in (None, "default")
    )
    assert null == default != describe(config)
