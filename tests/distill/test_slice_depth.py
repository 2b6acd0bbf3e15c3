"""A shallower model is the whole one with a block passed over, and its config says so."""

import json

import numpy as np
import pytest
import torch
from planted import half_precision, rewritten, text, writers
from test_slice_width import assert_reloads, assert_same, logits
from tiny_families import FAMILY_OPTIONS

from edgekit.checkpoint import Checkpoint
from edgekit.describe import describe, family_of
from edgekit.distill import slice_depth as module
from edgekit.distill.open_model import open_model
from edgekit.distill.slice_depth import (
    DepthOptions,
    by_promise,
    passed_over,
    slice_depth,
)
from edgekit.distill.slice_importance import measure_importance
from edgekit.distill.slice_layers import kind, without_layers
from edgekit.errors import BadInputError, EdgekitError
from edgekit.progress import Silent

IDS = torch.from_numpy(np.random.default_rng(0).integers(3, 500, (2, 40)))
TEXT = text(8)


def removable(model):
    """The last layer that a config of the family can do without."""
    with Checkpoint(model) as checkpoint:
        parts = family_of(checkpoint.config, "config.json").names.parts
        for number in reversed(range(len(checkpoint.architecture.layers) // parts)):
            try:
                without_layers(checkpoint.config, range(number, number + 1), "config.json")
            except BadInputError:
                continue
            return number, parts
    raise AssertionError("no layer can go")


@pytest.mark.parametrize("family", FAMILY_OPTIONS)
def test_a_layer_that_adds_nothing_is_the_one_that_goes(tiny_model, tmp_path, family):
    number, parts = removable(tiny_model(family))
    with Checkpoint(tiny_model(family)) as checkpoint:
        writes = writers(checkpoint.architecture)
        layers = checkpoint.architecture.layers

    def plant(spec, values):
        if spec.layer // parts != number:
            return
        mixture = layers[spec.layer].mixture
        if spec.name in writes:
            values[...] = 0
        elif spec.name == layers[spec.layer].scalar:
            values[...] = 1
        elif mixture and mixture.num_identities and spec.name == mixture.correction:
            values[mixture.num_experts :] = -100  # experts that would give their input back

    planted = rewritten(tiny_model(family), tmp_path / "planted", plant)
    (tmp_path / "out").mkdir()
    report = slice_depth(planted, TEXT, DepthOptions(1), tmp_path / "out", Silent())
    assert report.removed == [number]
    assert report.divergence.all.value < 1e-6
    assert report.influence[number] < 1e-9
    found = logits(tmp_path / "out")
    assert_same(found, logits(planted))
    assert_reloads(family, tmp_path / "out", found)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("cohere2", {"layer_types": None, "sliding_window_pattern": 3}),
        ("exaone4", {"sliding_window_pattern": "LLG",
                     "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2}),
        ("gemma3_text", {"layer_types": None, "sliding_window_pattern": 2}),
        ("gpt_oss", {"layer_types": None}),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 3}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 3}),
        ("qwen3_moe", {"decoder_sparse_step": 2}),
        ("qwen2_moe", {"mlp_only_layers": [0, 4]}),
        ("deepseek_v3", {"first_k_dense_replace": 3}),
        ("exaone_moe", {"layer_types": None, "mlp_layer_types": None, "first_k_dense_replace": 2}),
        ("ernie4_5_moe", {"moe_layer_start_index": 2, "moe_layer_end_index": 4}),
        ("llama4_text", {"no_rope_layers": None, "moe_layers": None, "layer_types": None}),
        ("afmoe", {"layer_types": None, "global_attn_every_n_layers": 3, "num_dense_layers": 2}),
        ("qwen3_next", {"layer_types": None, "full_attention_interval": 3}),
        ("lfm2", {"layer_types": None, "full_attn_idxs": [1, 4]}),
        ("granitemoehybrid", {"layer_types": ["attention", "mamba", "mamba"] * 2,
                              "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}),
    ],
)  # fmt: skip
def test_every_kept_layer_stays_what_it_was(tiny_model, tmp_path, family, options):
    model = tiny_model(family, num_hidden_layers=6, **options)
    config = json.loads((model / "config.json").read_text())
    for name, value in options.items():  # as old checkpoints say it, before transformers lists it
        if value is None:
            config.pop(name, None)
        else:
            config[name] = value
    plain = rewritten(model, tmp_path / "plain", lambda spec, values: None)
    (plain / "config.json").write_text(json.dumps(config))
    (tmp_path / "out").mkdir()
    report = slice_depth(plain, TEXT, DepthOptions(2, candidates=2), tmp_path / "out", Silent())
    with open_model(plain) as opened, torch.inference_mode():
        whole = opened.model(IDS, use_cache=False).logits
        with passed_over(opened, report.removed):
            expected = opened.model(IDS, use_cache=False).logits
        assert torch.equal(opened.model(IDS, use_cache=False).logits, whole)
    found = logits(tmp_path / "out")
    assert_same(found, expected)
    assert not torch.allclose(found, whole, rtol=1e-3)
    assert_reloads(family, tmp_path / "out", found)
    # every block that a config can say, not only the one that was chosen
    row, old = family_of(config, "config.json"), describe(config)
    for first in range(5):
        try:
            new = describe(without_layers(config, range(first, first + 2), "config.json"))
        except BadInputError:
            assert family in ("qwen3_next", "ernie4_5_moe"), first
            continue
        kept = [layer for layer in old.layers if not first <= layer.index < first + 2]
        assert [kind(a, row) for a in new.layers] == [kind(b, row) for b in kept]


def test_every_tensor_stays_in_the_precision_in_which_it_was(tiny_model, tmp_path):
    model = tiny_model("deepseek_v3", num_hidden_layers=4)
    half = half_precision(model, tmp_path / "half")
    (tmp_path / "out").mkdir()
    report = slice_depth(half, TEXT, DepthOptions(1), tmp_path / "out", Silent())
    kept = [i for i in range(4) if i not in report.removed]
    with Checkpoint(half) as whole, Checkpoint(tmp_path / "out") as sliced:
        for new, old in enumerate(kept):
            name = "model.layers.{}.mlp.gate.e_score_correction_bias"
            if name.format(old) in whole.dtypes:
                assert sliced.dtypes[name.format(new)] == "F32"
                np.testing.assert_array_equal(
                    sliced.float32(name.format(new)), whole.float32(name.format(old))
                )
        kinds = [c.dtypes["model.layers.0.input_layernorm.weight"] for c in (whole, sliced)]
        assert kinds == ["BF16", "BF16"]


def test_the_block_with_the_smallest_measured_loss_goes(tiny_model, tmp_path):
    model = tiny_model("qwen3", num_hidden_layers=5, layer_types=None)
    options = DepthOptions(2, candidates=9)
    report = slice_depth(model, TEXT, options, tmp_path, Silent())
    losses = [block.divergence.all.value for block in report.blocks]
    assert len(losses) == 4 and losses == sorted(losses)
    best = report.blocks[0]
    assert report.removed == [best.first, best.last]
    assert report.divergence.all.value == pytest.approx(losses[0], abs=1e-5)
    assert (report.layers_before, report.layers_after) == (5, 3)
    with Checkpoint(tmp_path) as sliced:
        assert sliced.architecture.parameters() == report.parameters_after
    assert json.loads((tmp_path / "slicing.json").read_text()) == report.model_dump(mode="json")
    assert (tmp_path / "tokenizer.json").is_file()


def test_blocks_are_tried_in_the_order_of_both_scores(tiny_model):
    with open_model(tiny_model("qwen3", num_hidden_layers=5, layer_types=None)) as opened:
        importance = measure_importance(opened, TEXT, Silent())
    blocks = by_promise(importance, 2)
    assert sorted(block.first for block in blocks) == [0, 1, 2, 3]
    assert blocks[0].angle == min(block.angle for block in blocks)
    assert min(b.influence for b in blocks[:2]) == min(b.influence for b in blocks)
    third = next(block for block in blocks if block.first == 2)
    assert third.angle == importance.angle[2, 4]
    assert third.influence == importance.influence[2, 3] + importance.influence[3, 4]


def test_fewer_candidates_measure_fewer_blocks(tiny_model, tmp_path):
    model = tiny_model("qwen3", num_hidden_layers=5, layer_types=None)
    report = slice_depth(model, TEXT, DepthOptions(1, candidates=2), tmp_path, Silent())
    assert len(report.blocks) == 2


@pytest.mark.parametrize(
    ("family", "refused"), [("gemma4_text", 1), ("lfm2", 1), ("qwen3_5_text", 1), ("qwen3_next", 1)]
)
def test_a_layer_that_no_config_can_do_without_is_told(tiny_model, tmp_path, family, refused):
    report = slice_depth(tiny_model(family), TEXT, DepthOptions(1), tmp_path, Silent())
    told = {block.first: block.refused for block in report.blocks if block.refused}
    assert list(told) == [refused]
    assert f"family {family} says what the others are" in told[refused]


def test_a_model_of_which_no_block_can_go_is_refused(tiny_model, tmp_path):
    with pytest.raises(BadInputError, match="no block of 2 layers can be left out"):
        slice_depth(tiny_model("lfm2"), TEXT, DepthOptions(2), tmp_path, Silent())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (DepthOptions(0), "0 of 2 layers cannot be left out; choose a number from 1 to 1"),
        (DepthOptions(2), "2 of 2 layers cannot be left out"),
        (DepthOptions(1, candidates=0), "candidates is 0, expected at least 1"),
    ],
)
def test_a_number_that_cannot_be_is_refused(tiny_llama, tmp_path, options, match):
    with pytest.raises(BadInputError, match=match):
        slice_depth(tiny_llama, TEXT, options, tmp_path, Silent())


def test_a_written_model_that_says_something_else_is_noticed(tiny_llama, tmp_path, monkeypatch):
    write = module.write_shallower

    def wrong(checkpoint, config, removed, out, progress):
        other = 1 - removed.start
        write(checkpoint, config, range(other, other + 1), out, progress)

    monkeypatch.setattr(module, "write_shallower", wrong)
    with pytest.raises(EdgekitError, match="differs from the whole one without layers"):
        slice_depth(tiny_llama, TEXT, DepthOptions(1), tmp_path, Silent())


@pytest.mark.parametrize("factor", [1.02, np.nan])
def test_a_tensor_that_was_written_wrongly_is_noticed(tiny_llama, tmp_path, monkeypatch, factor):
    write = module.write_checkpoint

    def wrong(out, config, tensor, *rest):
        def slightly(spec):
            return tensor(spec) * np.float32(factor if spec.projection == "up" else 1)

        write(out, config, slightly, *rest)

    monkeypatch.setattr(module, "write_checkpoint", wrong)
    with pytest.raises(EdgekitError, match="differs from the whole one without layers"):
        slice_depth(tiny_llama, TEXT, DepthOptions(1), tmp_path, Silent())


def test_lists_of_another_length_are_left_alone():
    config = {
        "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 3, "num_attention_heads": 2, "eos_token_id": [1, 2, 3],
    }  # fmt: skip
    smaller = without_layers(config, range(1, 2), "config.json")
    assert smaller["num_hidden_layers"] == 2
    assert smaller["eos_token_id"] == [1, 2, 3]
    assert config["num_hidden_layers"] == 3
