"""What is written is the chosen part of the original, in its own precision, whatever its layout."""

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgekit import checkpoint as checkpoint_module
from edgekit.checkpoint import INDEX, Checkpoint
from edgekit.describe import describe
from edgekit.distill import prune
from edgekit.distill.loading import load_model
from edgekit.distill.open_model import open_model
from edgekit.distill.prune import check_pruned, masked_logits, pruned_config, write_pruned
from edgekit.distill.resident import resident
from edgekit.errors import BadInputError, EdgekitError
from edgekit.progress import Silent
from edgekit.rules import experts_to_keep, rounded_experts

IDS = np.random.default_rng(0).integers(3, 500, 40)


def pruned(model, kept, out, streamed=False):
    """Write and prove; returns the masked original's logits."""
    with open_model(model, load=False) as opened:
        opened.load_rest()
        with resident(opened, streamed):
            expected = masked_logits(opened, kept, IDS.tolist())
        smaller = write_pruned(opened.checkpoint, kept, out, Silent())
    check_pruned(out, smaller.parameters(), kept, IDS.tolist(), expected)
    return expected


def half(source, target):
    """The checkpoint in bfloat16, but the vectors that routers add in float32, as published."""
    tensors = load_file(source / "model.safetensors")
    for name, values in tensors.items():
        tensors[name] = values if "correction" in name else values.to(torch.bfloat16)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    return tensors


def test_identity_experts_stay_behind_the_kept_ones(tiny_model, tmp_path):
    """transformers 5.5 wants matrices for the identities too, which it never reads."""
    model = tiny_model("longcat_flash")
    kept = {0: [0, 2, 3], 2: [1, 2, 3]}
    expected = pruned(model, kept, tmp_path)
    before = load_file(model / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    for layer, experts in ((0, kept[0]), (1, kept[2])):  # two of the architecture are one of theirs
        name = f"model.layers.{layer}.mlp.router.classifier.weight"
        assert torch.equal(after[name], before[name][[*experts, 4, 5, 6]])
        for e, gone in itertools.product(range(3, 6), ("gate_proj", "up_proj")):
            after[f"model.layers.{layer}.mlp.experts.{e}.{gone}.weight"] = torch.zeros(64, 64)
    save_file(after, tmp_path / "model.safetensors", {"format": "pt"})
    with torch.inference_mode():
        found = load_model(tmp_path)(torch.from_numpy(IDS)[None]).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def oracle(x, weight, correction, kept, mixture):
    """Group-limited sigmoid routing by trying every set of groups and every set of experts."""
    scores = 1 / (1 + np.exp(-(weight.astype(np.float64) @ x)))
    biased = scores + correction
    groups = np.array_split(np.array(kept), mixture.num_groups)  # as many of each stay

    def rating(group):
        return np.sort(biased[group])[-2:].sum()

    best = max(
        itertools.combinations(groups, mixture.top_groups), key=lambda some: sum(map(rating, some))
    )
    allowed = sorted(np.concatenate(best).tolist())
    chosen = max(
        itertools.combinations(allowed, mixture.num_experts_per_tok),
        key=lambda some: sum(biased[list(some)]),
    )
    total = scores[list(chosen)].sum()
    return {e: scores[e] / total * mixture.scaling for e in chosen}


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "dots1", "exaone_moe"])
def test_a_pruned_group_limited_router_decides_as_an_exhaustive_search(
    tiny_model, tmp_path, family
):
    counts = dict.fromkeys(("n_routed_experts", "num_experts", "num_local_experts"), 16)
    model = tiny_model(family, norm_topk_prob=True, **counts, num_experts_per_tok=3)
    rng = np.random.default_rng(2)
    picked = np.sort(np.stack([rng.permutation(4)[:3] for _ in range(4)]), 1)
    experts = (picked + 4 * np.arange(4)[:, None]).reshape(-1).tolist()
    with open_model(model) as opened:
        kept = dict.fromkeys(opened.mixtures, experts)
        layer, original = max(opened.mixtures.items())
        weight, correction = original.router.numpy(), original.correction.numpy()
    pruned(model, kept, tmp_path)
    with open_model(tmp_path) as opened:
        block = opened.mixtures[layer]
        x = torch.randn(25, 64, generator=torch.Generator().manual_seed(0))
        found = block.route(x)
    for t in range(len(x)):
        expected = oracle(x[t].numpy(), weight, correction, experts, block.mixture)
        decided = dict(zip([experts[e] for e in found.index[t].tolist()], found.weight[t].tolist()))
        assert decided.keys() == expected.keys()
        for expert, gate in expected.items():
            assert decided[expert] == pytest.approx(gate, rel=1e-4)


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss", "dbrx", "ernie4_5_moe"])
def test_every_tensor_keeps_its_precision_and_its_bytes(tiny_model, tmp_path, family):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir(), out.mkdir()
    before = half(tiny_model(family), source)
    with Checkpoint(source) as opened:
        sparse = [layer.index for layer in opened.architecture.layers if layer.mixture]
        count = opened.architecture.moe.num_experts
        write_pruned(opened, {layer: list(range(count)) for layer in sparse}, out, Silent())
    after = load_file(out / "model.safetensors")
    assert after.keys() == before.keys()
    for name, values in before.items():
        assert after[name].dtype == values.dtype and torch.equal(after[name], values), name


def test_the_correction_of_the_choice_is_not_rounded_with_the_weights(tiny_model, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir(), out.mkdir()
    before = half(tiny_model("glm4_moe", n_group=1, topk_group=1), source)
    pruned(source, {1: [1, 2, 4, 7]}, out)
    after = load_file(out / "model.safetensors")
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert after[name].dtype == torch.float32
    assert torch.equal(after[name], before[name][[1, 2, 4, 7]])


def test_large_weights_are_written_in_shards(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(prune, "SHARD_BYTES", 300_000)
    expected = pruned(tiny_model("gpt_oss"), {0: [0, 2], 1: [1, 3]}, tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert not (tmp_path / "model.safetensors").exists()
    sizes = [sum(t.nbytes for t in load_file(tmp_path / f).values()) for f in files]
    assert max(sizes) <= 300_000 and sum(sizes) == index["metadata"]["total_size"]
    with torch.inference_mode():
        found = load_model(tmp_path)(torch.from_numpy(IDS)[None]).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt_oss", "llama4_text", "granitemoe", "qwen3_5_moe_text"])
def test_of_stacked_experts_one_at_a_time_is_in_memory(tiny_model, tmp_path, monkeypatch, family):
    written = []
    original = checkpoint_module.TensorFileWriter.write

    def write(self, name, values, first_row=None):
        written.append((name, values.size))
        original(self, name, values, first_row)

    monkeypatch.setattr(checkpoint_module.TensorFileWriter, "write", write)
    with Checkpoint(tiny_model(family)) as opened:
        sparse = [layer.index for layer in opened.architecture.layers if layer.mixture]
        write_pruned(opened, {layer: [0, 2, 3] for layer in sparse}, tmp_path, Silent())
        wide = opened.architecture.moe.intermediate_size
    largest = max(size for name, size in written if "layers" in name and "attn" not in name)
    assert largest <= 2 * wide * 64  # gate and up of one expert


@pytest.mark.parametrize("streamed", [False, True])
def test_a_quantized_source_becomes_bfloat16(tiny_model, tmp_path, streamed):
    plain, source, out = tiny_model("qwen3_moe"), tmp_path / "source", tmp_path / "out"
    source.mkdir(), out.mkdir()
    tensors = load_file(plain / "model.safetensors")
    for name, values in list(tensors.items()):
        if "_proj" in name:
            scale = values.abs().max() / 448
            tensors[name] = (values / scale).to(torch.float8_e4m3fn)
            tensors[name + "_scale_inv"] = scale.reshape(1, 1)
        else:
            tensors[name] = values.to(torch.bfloat16)
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (source / "config.json").write_text(json.dumps(config))
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    kept = {0: [0, 3, 2], 1: [1, 2, 3]}
    pruned(source, kept, out, streamed)  # proven as exactly as any other
    written = load_file(out / "model.safetensors")
    assert {values.dtype for values in written.values()} == {torch.bfloat16}
    assert "quantization_config" not in json.loads((out / "config.json").read_text())


def test_a_writer_that_forgets_the_routers_bias_is_found_out(tiny_model, tmp_path, monkeypatch):
    model = tiny_model("gpt_oss")
    original = prune.pruned_tensors

    def careless(checkpoint, kept):
        right = original(checkpoint, kept)

        def tensor(spec):
            if spec.name.endswith("router.bias"):
                return checkpoint.float32(spec.name)[: spec.shape[0]]
            return right(spec)

        return tensor

    monkeypatch.setattr(prune, "pruned_tensors", careless)
    with pytest.raises(EdgekitError, match="differs from the original"):
        pruned(model, {0: [1, 3], 1: [2, 3]}, tmp_path)


def test_a_config_that_leaves_the_count_to_a_default_states_it_afterwards(tiny_model):
    config = json.loads((tiny_model("dbrx") / "config.json").read_text())
    del config["ffn_config"]["moe_num_experts"]  # 4, as the family's default
    architecture = describe(config)
    smaller = pruned_config(config, architecture, {0: [0, 1, 2], 1: [1, 2, 3]})
    assert smaller["ffn_config"]["moe_num_experts"] == 3
    assert describe(smaller).moe.num_experts == 3
    assert "moe_num_experts" not in config["ffn_config"]


def test_what_no_config_can_state_is_refused(tiny_model, tiny_mixtral):
    with Checkpoint(tiny_mixtral) as opened, pytest.raises(BadInputError, match="2 to 3 experts"):
        pruned_config(opened.config, opened.architecture, {0: [0, 1], 1: [1, 2, 3]})
    with Checkpoint(tiny_model("jetmoe")) as opened, pytest.raises(BadInputError, match="jetmoe"):
        pruned_config(opened.config, opened.architecture, {0: [0, 1], 1: [1, 2]})


def test_counts_of_many_experts_are_multiples_of_eight():
    assert [rounded_experts(k, 128) for k in (1.0, 0.75, 0.7, 0.99, 0.5)] == [128, 96, 88, 120, 64]
    assert rounded_experts(0.7, 60) == 42  # 60 is no multiple itself
    assert [rounded_experts(k, 16) for k in (0.75, 0.5, 0.3)] == [12, 8, 5]


def test_a_share_that_is_all_of_the_experts_is_refused(tiny_mixtral):
    with Checkpoint(tiny_mixtral) as opened:
        with pytest.raises(BadInputError, match=r"0.95 of 4 experts is all of them.* 0.75"):
            experts_to_keep(opened.architecture, 0.95, "recipe.toml")
        assert experts_to_keep(opened.architecture, 1.0, "recipe.toml") == 4
