"""A model that edgekit opens is the one that transformers loads, whole or layer by layer."""

import json

import numpy as np
import pytest
import torch
from tiny_families import FAMILY_OPTIONS, SPARSE

from edgekit.distill.loading import load_model
from edgekit.distill.open_model import open_model

IDS = torch.from_numpy(np.random.default_rng(0).integers(3, 500, (2, 40)))


@pytest.mark.parametrize("family", FAMILY_OPTIONS)
def test_it_says_what_transformers_says_and_gives_back_every_weight(tiny_model, family):
    directory = tiny_model(family)
    with open_model(directory) as opened, torch.inference_mode():
        found = opened.model(IDS, use_cache=False).logits
        expected = load_model(directory)(IDS, use_cache=False).logits
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert set(opened.mixtures) == {
            layer.index for layer in opened.architecture.layers if layer.mixture
        }
        tensor = opened.tensors()
        for spec in opened.checkpoint.specs:
            stored = opened.checkpoint.float32(spec.name)
            np.testing.assert_array_equal(tensor(spec), stored, err_msg=spec.name)


@pytest.mark.parametrize("family", ["mixtral", "longcat_flash", "gemma4_text", "phi3"])
def test_a_layer_that_was_dropped_comes_back_from_disk(tiny_model, family):
    with open_model(tiny_model(family)) as opened, torch.inference_mode():
        before = opened.model(IDS, use_cache=False).logits
        opened.drop_layer(0)
        assert all(p.is_meta for p in opened.layers[0].parameters())
        opened.load_layer(0)
        assert torch.equal(opened.model(IDS, use_cache=False).logits, before)


class Recorder:
    """Adds up what the experts are said to contribute."""

    def __init__(self):
        self.sum = None
        self.experts = []

    def routed(self, x, routing):
        self.sum = torch.zeros_like(x)
        self.input, self.routing = x, routing

    def expert(self, expert, tokens, gate, hidden, output):
        self.sum.index_add_(0, tokens, gate[:, None] * output)
        self.experts.append((expert, tokens, hidden))


@pytest.mark.parametrize("family", SPARSE)
def test_an_observer_sees_what_the_experts_add(tiny_model, family):
    with open_model(tiny_model(family)) as opened, torch.inference_mode():
        block = next(iter(opened.mixtures.values()))
        block.observer = seen = Recorder()
        x = torch.randn(1, 30, opened.architecture.hidden_size)
        found = block(x)[0]
        expected = seen.sum
        if block.output_bias is not None:
            expected = expected + block.output_bias
        given_back = seen.routing.weight * (seen.routing.index >= block.mixture.num_experts)
        expected = expected + given_back.sum(-1, keepdim=True) * x[0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        for expert, tokens, hidden in seen.experts:
            assert tokens.tolist() == torch.where(seen.routing.index == expert)[0].tolist()
            if block.mixture.scoring != "sigmoid_input":
                torch.testing.assert_close(block.hidden(seen.input[tokens], expert), hidden)


def test_weights_stored_as_eight_bit_floats_are_read_as_what_they_stand_for(tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    plain = tiny_model("qwen3_moe")
    tensors = load_file(plain / "model.safetensors")
    expected = {}
    for name, values in list(tensors.items()):
        expected[name] = values
        if "_proj" in name:
            scale = values.abs().max() / 448
            tensors[name] = (values / scale).to(torch.float8_e4m3fn)
            tensors[name + "_scale_inv"] = scale.reshape(1, 1)
            expected[name] = tensors[name].float() * scale
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with open_model(tmp_path) as opened, torch.inference_mode():
        tensor = opened.tensors()
        for spec in opened.checkpoint.specs:
            np.testing.assert_array_equal(tensor(spec), expected[spec.name], err_msg=spec.name)
        assert opened.model(IDS, use_cache=False).logits.isfinite().all()
