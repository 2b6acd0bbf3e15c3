"""Experts are measured, chosen and dropped as defined."""

import numpy as np
import pytest
import torch

from edgekit.checkpoint import Checkpoint
from edgekit.distill.loading import load_model
from edgekit.distill.shrink import choose, shrink, write_with_experts
from edgekit.distill.statistics import ExpertStatistics, collect_statistics
from edgekit.errors import BadInputError
from edgekit.progress import Silent
from edgekit.recipe import ShrinkSection
from edgekit.sequences import FILE_NAME, TokenSequence, write_sequences


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    rng = np.random.default_rng(1)
    directory = tmp_path_factory.mktemp("sequences")
    made = [
        TokenSequence(rng.integers(3, 500, 24).astype(np.int32), "chat", i % 4 == 3)
        for i in range(16)
    ]
    write_sequences(directory / FILE_NAME, made)
    return directory


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_statistics_equal_a_direct_computation(tiny_model, family):
    directory = tiny_model(family)
    with Checkpoint(directory) as checkpoint:
        architecture = checkpoint.architecture
    model = load_model(directory)
    tokens = np.random.default_rng(0).integers(3, 500, 30).astype(np.int32)
    found = collect_statistics(model, architecture, [TokenSequence(tokens, "x", False)], Silent())
    captured = []
    hook = model.model.layers[1].mlp.register_forward_pre_hook(lambda _, a: captured.append(a[0]))
    with torch.inference_mode():
        model(torch.from_numpy(tokens.astype(np.int64))[None])
        hook.remove()
        x = captured[0][0]
        block = model.model.layers[1].mlp
        gates, chosen = (x @ block.gate.weight.T).softmax(-1).topk(2)
        gates = gates / gates.sum(-1, keepdim=True)
        counts, saliency = np.zeros(4), np.zeros(4)
        for t in range(len(x)):
            for gate, e in zip(gates[t], chosen[t].tolist()):
                g, u = (block.experts.gate_up_proj[e] @ x[t]).chunk(2)
                y = block.experts.down_proj[e] @ (torch.nn.functional.silu(g) * u)
                counts[e] += 1
                saliency[e] += float(gate * y.norm())
    np.testing.assert_array_equal(found.tokens[1], counts)
    np.testing.assert_allclose(found.reap[1], saliency / np.maximum(counts, 1), rtol=1e-4)


def test_the_most_salient_experts_stay_most_worthy_first():
    statistics = ExpertStatistics(
        (0,), np.array([[10, 1, 5, 4]]), np.ones((1, 4)), np.array([[10.0, 9.0, 30.0, 2.0]])
    )
    keep = ShrinkSection(keep=0.5)
    assert choose(statistics, 2, keep) == {0: [1, 2]}
    assert choose(statistics, 2, keep.model_copy(update={"criterion": "frequency"})) == {0: [0, 2]}


def test_dropping_experts_that_are_never_chosen_changes_nothing(tiny_mixtral, tmp_path):
    """With two experts pushed out of the router's reach, the smaller model is the same function."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(tiny_mixtral / "model.safetensors")
    doomed = [1, 3]
    for layer in range(2):
        router = tensors[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
        norm = tensors[f"model.layers.{layer}.post_attention_layernorm.weight"]
        norm[0] = 0.0
        router[doomed] = 0.0
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir(), out.mkdir()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    (source / "config.json").write_bytes((tiny_mixtral / "config.json").read_bytes())
    with Checkpoint(source) as checkpoint:
        smaller = write_with_experts(checkpoint, {0: [2, 0], 1: [0, 2]}, out, Silent())
    assert smaller.moe.num_experts == 2
    ids = torch.arange(3, 30)[None]
    model, pruned = load_model(source), load_model(out)
    with torch.inference_mode():
        for layer in model.model.layers:
            gate = layer.mlp.gate

            def masked(x, gate=gate):
                logits = x.reshape(-1, 64) @ gate.weight.T
                logits[:, doomed] = -torch.inf
                value, index = logits.softmax(-1).topk(2)
                return logits, value / value.sum(-1, keepdim=True), index

            gate.forward = masked
        torch.testing.assert_close(pruned(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


def test_shrink_reports_what_it_kept(tiny_mixtral, sequences, tmp_path):
    report = shrink(tiny_mixtral, sequences, ShrinkSection(keep=0.75), tmp_path, Silent())
    assert (report.experts_before, report.experts_after) == (4, 3)
    assert all(len(set(kept)) == 3 for kept in report.kept.values())
    np.testing.assert_allclose(np.sum(report.usage_after, axis=1), 1, atol=1e-3)
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.architecture.parameters() == report.parameters_after


def test_shrinking_a_dense_model_or_below_top_k_is_refused(
    tiny_llama, tiny_mixtral, sequences, tmp_path
):
    with pytest.raises(BadInputError, match="dense llama has no experts"):
        shrink(tiny_llama, sequences, ShrinkSection(keep=0.5), tmp_path, Silent())
    with pytest.raises(BadInputError, match=r"is 1, fewer than the 2"):
        shrink(tiny_mixtral, sequences, ShrinkSection(keep=0.25), tmp_path, Silent())
