"""One pass measures what the definitions say, whatever the batches are."""

import numpy as np
import pytest
import torch
from planted import text

from edgekit.distill.loading import load_model
from edgekit.distill.open_model import open_model
from edgekit.distill.slice_importance import measure_importance
from edgekit.errors import BadInputError
from edgekit.progress import Silent
from edgekit.sequences import TokenSequence

TEXT = text(6)


def ids(sequence):
    return torch.from_numpy(sequence.tokens.astype(np.int64))[None]


def measured(model, sequences=TEXT):
    with open_model(model) as opened:
        return measure_importance(opened, sequences, Silent())


@torch.inference_mode()
def test_neurons_and_channels_of_a_dense_model_are_those_of_a_plain_loop(tiny_llama):
    found = measured(tiny_llama)
    model = load_model(tiny_llama)
    neurons = {0: 0.0, 1: 0.0}
    norms: dict[str, list] = {}
    for name, module in model.named_modules():
        if name.endswith("norm"):
            seen = norms.setdefault(name, [])
            module.register_forward_hook(lambda m, a, y, seen=seen: seen.append((a[0][0], y[0])))
    for sequence in TEXT:
        model(ids(sequence), use_cache=False)
        for number, layer in enumerate(model.model.layers):
            x = norms[f"model.layers.{number}.post_attention_layernorm"][-1][1]
            hidden = torch.nn.functional.silu(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x)
            neurons[number] = neurons[number] + hidden.double().square().sum(0)
    for number, total in neurons.items():
        np.testing.assert_allclose(
            found.neurons[f"model.layers.{number}.mlp.down_proj"], total.sqrt(), rtol=1e-5
        )
    channels = sum(
        torch.stack([y.double().abs().mean(0) for _, y in seen]).norm(dim=0)
        for seen in norms.values()
    )
    np.testing.assert_allclose(found.channels, channels, rtol=1e-5)
    for name, seen in norms.items():
        squares = torch.cat([x.double().square() for x, _ in seen])
        energy = (squares / squares.sum(-1, keepdim=True)).mean(0)
        np.testing.assert_allclose(found.energy[name], energy, rtol=1e-5)


@torch.inference_mode()
def test_layers_are_compared_by_what_enters_and_leaves_them(tiny_model):
    model = tiny_model("qwen3", num_hidden_layers=4, layer_types=None)
    found = measured(model)
    loaded = load_model(model)
    last = []
    loaded.model.norm.register_forward_pre_hook(lambda m, a: last.append(a[0]))
    between = np.zeros((5, 5)), np.zeros((5, 5))
    tokens = 0
    for sequence in TEXT:
        result = loaded(ids(sequence), use_cache=False, output_hidden_states=True)
        states = [s[0].double().numpy() for s in (*result.hidden_states[:-1], last[-1])]
        tokens += len(sequence.tokens)
        for a in range(5):
            for b in range(a + 1, 5):
                lengths = np.linalg.norm(states[a], axis=1) * np.linalg.norm(states[b], axis=1)
                cosine = (states[a] * states[b]).sum(1) / lengths
                between[0][a, b] += (1 - cosine).sum()
                between[1][a, b] += (np.arccos(cosine) / np.pi).sum()
    assert found.tokens == tokens
    np.testing.assert_allclose(found.influence, between[0] / tokens, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(found.angle, between[1] / tokens, rtol=1e-5, atol=1e-12)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["mixtral", "llama4_text", "gpt_oss"])
def test_an_expert_counts_what_its_gate_lets_through(tiny_model, family):
    found = measured(tiny_model(family))
    with open_model(tiny_model(family)) as opened:
        seen = []
        for layer, block in opened.mixtures.items():
            route = block.route

            def watched(x, route=route, layer=layer):
                routing = route(x)
                seen.append((layer, x, routing))
                return routing

            block.route = watched
        for sequence in TEXT:
            opened.model(ids(sequence), use_cache=False)
        sums: dict[str, np.ndarray] = {}
        for layer, x, routing in seen:
            block = opened.mixtures[layer]
            for token in range(len(x)):
                for expert, gate in zip(routing.index[token], routing.weight[token], strict=True):
                    row = x[token : token + 1]
                    if block.mixture.scoring == "sigmoid_input":
                        hidden = block.hidden(row * gate, int(expert))
                    else:
                        hidden = block.hidden(row, int(expert)) * gate
                    name = block.mixture.expert(int(expert), "down")
                    sums[name] = sums.get(name, 0) + hidden[0].double().square().numpy()
    for name, total in sums.items():
        np.testing.assert_allclose(found.neurons[name], np.sqrt(total), rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma4_text", "longcat_flash", "lfm2"])
def test_batches_do_not_matter(tiny_model, family):
    rng = np.random.default_rng(0)
    alike = [TokenSequence(rng.integers(3, 500, 24).astype(np.int32), "a", False) for _ in "12"]
    together = measured(tiny_model(family), alike)
    between = [TokenSequence(alike[0].tokens[:1], "a", False)]  # too short to count
    apart = measured(tiny_model(family), [alike[0], *between, alike[1]])
    assert together.tokens == apart.tokens == 48
    np.testing.assert_allclose(together.channels, apart.channels, rtol=1e-4)
    np.testing.assert_allclose(together.angle, apart.angle, rtol=1e-4, atol=1e-9)
    for name, worth in together.neurons.items():
        np.testing.assert_allclose(worth, apart.neurons[name], rtol=1e-3, atol=1e-6)


def test_nothing_watches_the_model_afterwards(tiny_model):
    with open_model(tiny_model("qwen2_moe")) as opened:
        measure_importance(opened, TEXT, Silent())
        assert all(block.observer is None for block in opened.mixtures.values())
        for module in opened.model.modules():
            assert not module._forward_hooks and not module._forward_pre_hooks


def test_text_of_single_tokens_is_refused(tiny_llama):
    single = [TokenSequence(np.array([5], np.int32), "a", False)]
    with pytest.raises(BadInputError, match="no calibration text"):
        measured(tiny_llama, single)
