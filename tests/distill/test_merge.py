"""A merged model is written as it was measured, layer behind merged layer, for every family."""

import errno
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planted import rewritten, writers
from safetensors.torch import load_file, save_file

from edgekit.checkpoint import Checkpoint
from edgekit.distill import merge as module
from edgekit.distill import merge_pass, streamed
from edgekit.distill.collect import collect
from edgekit.distill.layerwise import Layerwise
from edgekit.distill.loading import load_model
from edgekit.distill.merge import merge
from edgekit.distill.merge_alignment import in_order
from edgekit.distill.merge_groups import METHODS, evidence, group_experts
from edgekit.distill.merge_pass import LayerWitness, MergeOptions
from edgekit.distill.open_model import open_model
from edgekit.errors import BadInputError, EdgekitError, OutOfResourcesError
from edgekit.progress import Silent
from edgekit.sequences import TokenSequence

COUNTS = ("n_routed_experts", "num_experts", "num_local_experts")
EIGHT, SIXTEEN = dict.fromkeys(COUNTS, 8), dict.fromkeys(COUNTS, 16)
FAMILIES = {
    "mixtral": {},
    "qwen3_moe": {},
    "qwen2_moe": {},  # a shared expert, gates that do not sum to 1
    "gpt_oss": {},  # biases of router and experts, alternating rows
    "deepseek_v3": SIXTEEN,  # groups of experts, a correction, a dense layer
}
MORE = {"llama4_text": {}, "gemma4_text": {}, "dbrx": {}, "glm4_moe": SIXTEEN}


def text(count=12):
    rng = np.random.default_rng(0)
    return [
        TokenSequence(rng.integers(3, 500, 40 - 3 * (i // 8)).astype(np.int32), "x", i == 3)
        for i in range(count)
    ]


def run(model, tmp_path, sequences=None, statistics=None, **options):
    out = tmp_path / "out"
    out.mkdir()
    scratch = tmp_path / "scratch"
    wanted = MergeOptions(**options)
    report = merge(model, sequences or text(), wanted, out, scratch, Silent(), statistics)
    assert not list(scratch.iterdir())
    return out, report


def logits(directory, tokens):
    with torch.inference_mode():
        return load_model(directory)(torch.from_numpy(tokens)[None]).logits[0]


@pytest.fixture
def ended_with(monkeypatch):
    """The logits that the pass ended with, by which the written model is proven."""
    seen = []
    original = module.check_pruned

    def proof(*arguments):
        seen.append(arguments[4])
        original(*arguments)

    monkeypatch.setattr(module, "check_pruned", proof)
    return seen


def experts_tensors(model):
    """Stored values by layer, expert and (projection, suffix); routers by layer."""
    experts, routers = {}, {}
    with Checkpoint(model) as checkpoint:
        for spec in checkpoint.specs:
            if spec.expert >= 0:
                part = (spec.projection, spec.name.rpartition(".")[2])
                place = experts.setdefault(spec.layer, {}).setdefault(spec.expert, {})
                place[part] = np.array(checkpoint.float32(spec.name))
            elif spec.role == "router":
                routers.setdefault(spec.layer, []).append(np.array(checkpoint.float32(spec.name)))
    return experts, routers


def neuron_sums(part, values):
    """Sums over neurons, which do not depend on their order."""
    projection, kind = part
    if projection == "down":
        return values if kind == "bias" else values.sum(1)
    if projection == "gate_up":
        return values.reshape(len(values) // 2, 2, -1).sum(0)
    return values.sum(0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_what_the_pass_ended_with(
    tiny_model, tmp_path, ended_with, family, method
):
    model = tiny_model(family, **FAMILIES[family])
    out, report = run(model, tmp_path, method=method, keep=0.5 if FAMILIES[family] else 0.75)
    found = logits(out, text()[0].tokens)
    torch.testing.assert_close(found, ended_with[0], atol=1e-4, rtol=1e-4)
    before, routers = experts_tensors(model)
    after, rows = experts_tensors(out)
    assert set(report.groups) == set(before)
    for layer, groups in report.groups.items():
        assert sorted(e for group in groups for e in group) == list(before[layer])
        assert len(groups) == report.experts_after == len(after[layer])
        for old, new in zip(routers[layer], rows[layer], strict=True):
            assert np.array_equal(new, old[[group[0] for group in groups]])
        for expert, group in enumerate(groups):
            for part, values in after[layer][expert].items():
                if len(group) == 1:
                    assert np.array_equal(values, before[layer][group[0]][part])
                    continue
                members = [neuron_sums(part, before[layer][e][part]) for e in group]
                expected = np.average(members, 0, report.weights[layer][expert])
                np.testing.assert_allclose(neuron_sums(part, values), expected, atol=1e-4)


@pytest.mark.parametrize("family", MORE)
def test_unusual_mixtures_are_merged_too(tiny_model, tmp_path, ended_with, family):
    model = tiny_model(family, **MORE[family])
    out, report = run(model, tmp_path, keep=0.75)
    found = logits(out, text()[0].tokens)
    torch.testing.assert_close(found, ended_with[0], atol=1e-4, rtol=1e-4)
    with Checkpoint(out) as checkpoint:
        assert checkpoint.architecture.parameters() == report.parameters_after
    assert report.parameters_after < report.parameters_before


def test_every_layer_is_measured_behind_the_merged_ones_before_it(tiny_model, tmp_path):
    """The groups of layer n follow from the original layer n on what the merged model gives it."""
    model = tiny_model("mixtral", num_hidden_layers=3, **EIGHT)
    out, report = run(model, tmp_path, method="hc_smoe", keep=0.5)
    differs = False
    for layer in (1, 2):
        found = {}
        for before in (out, model):
            found[before] = groups_behind(model, layer, before)
        assert found[out] == report.groups[layer]
        differs |= found[model] != report.groups[layer]
    assert differs


def groups_behind(model, layer, before):
    """Groups of ``layer`` of ``model`` on the states that the checkpoint ``before`` has there."""
    ids = [torch.from_numpy(s.tokens)[None] for s in text() if not s.held_out]
    with open_model(before) as opened:
        layerwise = Layerwise(opened)
        states = [layerwise.embed(i) for i in ids]
        for number in range(layer):
            states = [layerwise.run(number, s) for s in states]
    with open_model(model) as opened:
        block = opened.mixtures[layer]
        tokens = sum(i.numel() for i in ids)
        witness = block.observer = LayerWitness(block, tokens, MergeOptions())
        for hidden in states:
            Layerwise(opened).run(layer, hidden)
        found = group_experts(witness.evidence(block), "hc_smoe", 4)
    return [list(group.members) for group in found]


def test_with_statistics_all_layers_are_grouped_by_them_and_little_text_is_run(
    tiny_model, tmp_path, monkeypatch
):
    model = tiny_model("qwen3_moe", **EIGHT)
    statistics = collect(model, text(), tmp_path / "pass", Silent())
    seen = []
    original = merge_pass.LayerWitness.__init__

    def counted(self, block, tokens, options):
        seen.append(tokens)
        original(self, block, tokens, options)

    monkeypatch.setattr(merge_pass.LayerWitness, "__init__", counted)
    _, report = run(model, tmp_path, statistics=statistics, keep=0.5, sample_tokens=100)
    assert not report.sequential
    assert len(seen) == 2
    assert 100 <= min(seen) <= max(seen) < 150  # of 431
    for layer, groups in report.groups.items():
        expected = group_experts(evidence(statistics, layer), "ream", 4)
        assert groups == [list(group.members) for group in expected]
        assert report.weights[layer] == [list(group.weights) for group in expected]


def test_protected_experts_stay_as_they_are(tiny_mixtral, tmp_path):
    out, report = run(tiny_mixtral, tmp_path, keep=0.75, protected={0: [1, 2], 1: [0, 3]})
    written = json.loads((out / "merge.json").read_text())
    assert written["protected"] == {"0": [1, 2], "1": [0, 3]}
    assert written["groups"]["0"] == report.groups[0] and written["experts_after"] == 3
    assert report.groups[0] in ([[0, 3], [1], [2]], [[1], [2], [3, 0]])
    assert report.groups[1] in ([[0], [1, 2], [3]], [[0], [2, 1], [3]])
    before, after = experts_tensors(tiny_mixtral)[0], experts_tensors(out)[0]
    for layer, expert in ((0, 1), (0, 2), (1, 0), (1, 3)):
        place = report.groups[layer].index([expert])
        for part, values in before[layer][expert].items():
            assert np.array_equal(after[layer][place][part], values)


def test_the_same_seed_gives_the_same_bytes(tiny_mixtral, tmp_path):
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        out, _ = run(tiny_mixtral, tmp_path / name, sample_tokens=20, seed=3)
        written.append((out / "model.safetensors").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("kind", ["bfloat16", "fp8"])
def test_averages_are_measured_in_the_precision_in_which_they_are_stored(
    tiny_model, tmp_path, ended_with, kind
):
    plain, source = tiny_model("qwen3_moe"), tmp_path / "source"
    source.mkdir()
    tensors = load_file(plain / "model.safetensors")
    config = json.loads((plain / "config.json").read_text())
    for name, values in list(tensors.items()):
        tensors[name] = values.to(torch.bfloat16)
        if "_proj" in name and kind == "fp8":
            scale = values.abs().max() / 448
            tensors[name] = (values / scale).to(torch.float8_e4m3fn)
            tensors[name + "_scale_inv"] = scale.reshape(1, 1)
    if kind == "fp8":
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (source / "config.json").write_text(json.dumps(config))
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    out, _ = run(source, tmp_path, keep=0.5)
    assert {v.dtype for v in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    found = logits(out, text()[0].tokens)
    torch.testing.assert_close(found, ended_with[0], atol=1e-4, rtol=1e-4)


BIG = 30.0  # how far a token's kind decides its experts


def with_equal_experts(model, out, equal):
    """Tokens of even numbers choose among ``equal`` experts, the others among the rest.

    Channel 0 of the residual stream has the kind of the token and nothing else is added to it. The
    equal experts have the same neurons in different orders.
    """
    rng = np.random.default_rng(0)
    with Checkpoint(model) as checkpoint:
        architecture = checkpoint.architecture
        adding = writers(architecture)

        def change(spec, values):
            if spec.role == "embedding":
                values[0::2, 0], values[1::2, 0] = 1.0, -1.0
            if spec.role == "router" and spec.name.endswith(".weight"):
                values *= 0.2
                values[:, 0] = -BIG
                values[equal, 0] = BIG
            if spec.expert in equal:
                first = architecture.expert(spec.layer, equal[0], spec.projection)
                source = checkpoint.float32(first + "." + spec.name.rpartition(".")[2])
                wide = architecture.layers[spec.layer].mixture.intermediate_size
                seed = 100 * spec.layer + spec.expert
                values[:] = in_order(spec, source, np.random.default_rng(seed).permutation(wide))
            if spec.name in adding:
                values[0] = 0

        rewritten(model, out, change)
    sequences = []
    for _ in range(8):  # a quarter of the tokens is even, so the equal experts are used least
        odd = 2 * rng.integers(2, 249, 40) + 1
        tokens = np.where(rng.random(40) < 0.25, odd - 1, odd).astype(np.int32)
        sequences.append(TokenSequence(tokens, "x", False))
    return sequences


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("family", "top_k"), [("mixtral", 1), ("qwen3_moe", 2), ("gpt_oss", 2)])
def test_a_planted_duplicate_expert_merges_without_loss(
    tiny_model, tmp_path, family, top_k, method
):
    """When that must be so: gates are normalised over the chosen experts, a token that chooses one
    of the equal experts chooses only such, and at least top-k of them are left. Then its gates sum
    to 1 over equal outputs, whichever they are, and no other token sees a change.

    (With gates that are not normalised, the sum grows as soon as an expert is gone; and a token
    that chose two equal experts and may choose only one afterwards gets another in its place.)
    """
    equal = list(range(top_k + 1))
    model = tiny_model(family, **EIGHT, num_experts_per_tok=top_k)
    source = tmp_path / "source"
    sequences = with_equal_experts(model, source, equal)
    # HC-SMoE finds them by itself; the others choose centres by saliency or use, and REAM's first
    # centre takes whom it likes best, however little: there the other experts are protected
    others = [e for e in range(8) if e not in equal]
    protected = {} if method == "hc_smoe" else {0: others, 1: others}
    out, report = run(source, tmp_path, sequences, method=method, keep=0.875, protected=protected)
    for groups in report.groups.values():
        (joined,) = [group for group in groups if len(group) > 1]
        assert set(joined) <= set(equal)
    tokens = np.concatenate([sequence.tokens for sequence in sequences])
    torch.testing.assert_close(logits(out, tokens), logits(source, tokens), atol=1e-4, rtol=1e-4)


def test_what_was_written_wrongly_is_found_out(tiny_mixtral, tmp_path, monkeypatch):
    monkeypatch.setattr(
        module, "merged_tensors", lambda checkpoint, plan: lambda spec: np.ones(spec.shape, "f4")
    )
    with pytest.raises(EdgekitError, match="differs from what was merged"):
        run(tiny_mixtral, tmp_path)


BAD = {
    "percent": ({"keep": 75}, "keep is 75, expected the share of the experts that is left"),
    "whole": ({"keep": 1.0}, "keep is 1.0, expected the share"),
    "none": ({"keep": 0.0}, "keep is 0.0, expected the share"),
    "not a number": ({"keep": float("nan")}, "keep is nan, expected the share"),
    "method": ({"method": "reem"}, "no way to merge named 'reem'; use ream, hc_smoe, m_smoe"),
    "sample": ({"sample_tokens": 0}, "0 sampled tokens cannot align neurons"),
    "few": ({"keep": 0.25}, "fewer than the 2 that every token uses"),
    "all": ({"keep": 0.9}, "0.9 of 4 experts is all of them"),
    "foreign": ({"protected": {0: [4]}}, r"protected experts \[4\] of layer 0"),
    "no layer": ({"protected": {7: [0]}}, r"protected experts \[0\] of layer 7"),
    "many": ({"protected": {1: [0, 1, 2]}}, "3 experts of 4 are protected and 3 are to be kept"),
}


@pytest.mark.parametrize("name", BAD)
def test_options_that_cannot_be_met_are_refused(tiny_mixtral, tmp_path, name):
    options, message = BAD[name]
    with pytest.raises(BadInputError, match=message):
        run(tiny_mixtral, tmp_path, **options)


def test_models_and_texts_that_do_not_fit_are_refused(tiny_model, tmp_path):
    def refused(message, family="mixtral", sequences=None, options=None, **config):
        model = tiny_model(family, **config)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        with pytest.raises(BadInputError, match=message):
            run(model, tmp_path, sequences, **(options or {}))

    held_out = [TokenSequence(np.arange(3, 9, dtype=np.int32), "x", True)]
    long = [TokenSequence(np.arange(513, dtype=np.int32) % 500, "x", False)]
    refused("a dense llama has no experts", family="llama")
    refused("experts of a jetmoe cannot be left out", family="jetmoe")
    refused("no calibration text", sequences=held_out)
    refused("513 tokens is longer than the context of 512", sequences=long)
    refused("10 experts do not divide into the router's 4 groups", "deepseek_v3",
            options={"keep": 0.625}, **SIXTEEN)  # fmt: skip


def test_statistics_of_something_else_are_refused(tiny_model, tiny_mixtral, tmp_path):
    other = collect(tiny_model("mixtral", seed=9), text(), tmp_path / "a", Silent())
    shorter = collect(tiny_mixtral, text(9), tmp_path / "b", Silent())
    right = collect(tiny_mixtral, text(), tmp_path / "c", Silent())
    info = right.info.model_copy(update={"total_chunks": len(right.info.chunks) + 1})
    partial = SimpleNamespace(info=info)
    for statistics, message in (
        (other, "statistics of another checkpoint"),
        (shorter, "statistics of another text"),
        (partial, "chunks 1 of 2 are missing"),
    ):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        with pytest.raises(BadInputError, match=message):
            run(tiny_mixtral, tmp_path, statistics=statistics)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("model.layers.1.block_sparse_moe.experts.2.w1.weight", "expert 2 of layer 1 has weights"),
        ("model.layers.1.block_sparse_moe.gate.weight", "the router of layer 1"),
        ("model.layers.1.self_attn.o_proj.weight", "of layer 1"),
        ("model.layers.1.input_layernorm.weight", "of layer 1"),
    ],
)
def test_weights_that_are_no_numbers_are_named(tiny_mixtral, tmp_path, tensor, message):
    source = tmp_path / "source"
    shutil.copytree(tiny_mixtral, source)
    tensors = load_file(source / "model.safetensors")
    tensors[tensor].reshape(-1)[0] = np.nan
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInputError, match=message):
        run(source, tmp_path)


def test_a_disk_that_is_too_small_or_full_is_said(tiny_mixtral, tmp_path, monkeypatch):
    original, calls = streamed.os.fsync, []

    def full(descriptor):
        calls.extend((tmp_path / "scratch").glob("*/*.partial"))
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(streamed.os, "fsync", full)
        with pytest.raises(OutOfResourcesError, match="no space left"):
            run(tiny_mixtral, tmp_path)
    assert not list((tmp_path / "scratch").iterdir())
    assert not list((tmp_path / "out").iterdir())
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OutOfResourcesError, match="merging experts needs about"):
        run(tiny_mixtral, tmp_path)
    monkeypatch.setattr("edgekit.memory.available_memory", lambda: 1000)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(OutOfResourcesError, match=r"merging experts needs about .* of memory"):
        run(tiny_mixtral, tmp_path)
    shutil.rmtree(tmp_path / "out")
    run(tiny_mixtral, tmp_path, force=True)
