"""A sparse model that the table does not know is pruned by its structure, or refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_families import COMMON, EXPERTS, LATENT
from tiny_models import write_tokenizer

from edgekit.cli.main import main
from edgekit.distill import structural
from edgekit.distill.keep import choose
from edgekit.distill.structural import shrink_structurally
from edgekit.distill.structure import (
    expert_count_keys,
    experts_masked,
    find_mixtures,
    load_unlisted,
)
from edgekit.errors import BadInputError, EdgekitError
from edgekit.progress import Silent
from edgekit.sequences import TokenSequence

SPARSE = {**COMMON, **EXPERTS, "num_experts": 6, "num_local_experts": 6, "n_routed_experts": 6}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 1e4}
VISION = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64,
    "deepstack_visual_indexes": [0],
}  # fmt: skip
UNLISTED = {
    # softmax router beside the experts, linear attention
    "minimax": {
        **SPARSE, "layer_types": ["linear_attention", "full_attention"], "block_size": 8,
    },
    # a router of which the block itself takes the best, in groups
    "mistral4": {
        **SPARSE, **LATENT, "n_group": 2, "topk_group": 1, "n_shared_experts": 1,
        "rope_parameters": {**PLAIN_ROPE, "llama_4_scaling_beta": 0.1,
                            "original_max_position_embeddings": 32},
    },
    # a language model inside another, sigmoid router with a correction of the choice
    "glm4v_moe": {
        "text_config": {
            **SPARSE, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "rope_parameters": {**PLAIN_ROPE, "partial_rotary_factor": 0.5,
                                "mrope_section": [2, 3, 3]},
        },
        "vision_config": VISION,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def unlisted(tmp_path_factory):
    """``unlisted("minimax")``: a checkpoint in bfloat16, made once."""
    made = {}

    def make(family):
        if family not in made:
            from transformers import (
                AutoConfig,
                AutoModelForCausalLM,
                AutoModelForImageTextToText,
            )

            torch.manual_seed(1)
            config = AutoConfig.for_model(family, **UNLISTED[family])
            autos = (AutoModelForCausalLM, AutoModelForImageTextToText)
            auto = next(a for a in autos if type(config) in a._model_mapping)
            model = auto.from_config(config).eval()
            for name, tensor in model.named_buffers():
                if "correction" in name:
                    tensor.data += 0.3 * torch.rand_like(tensor)
            made[family] = tmp_path_factory.mktemp(family)
            model.to(torch.bfloat16).save_pretrained(made[family])
        return made[family]

    return make


def text(count=16):
    rng = np.random.default_rng(0)
    return [
        TokenSequence(rng.integers(3, 500, 24).astype(np.int32), "ab"[i % 2], i // 2 % 4 == 3)
        for i in range(count)
    ]


@pytest.mark.parametrize("family", UNLISTED)
def test_a_family_outside_the_table_is_the_masked_model_after_pruning(unlisted, tmp_path, family):
    model = unlisted(family)
    report = shrink_structurally(model, text(), 0.67, tmp_path, Silent())
    assert (report.experts_before, report.experts_after) == (6, 4)
    before, after = load_unlisted(model), load_unlisted(tmp_path)
    ids = torch.from_numpy(np.random.default_rng(3).integers(3, 500, (2, 30)))
    with torch.inference_mode():
        with experts_masked(before, find_mixtures(before, "model"), report.kept, "model"):
            expected = before(input_ids=ids, use_cache=False).logits
        pruned = after(input_ids=ids, use_cache=False).logits
        whole = before(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(pruned, expected, atol=1e-4, rtol=1e-4)
    assert (whole - expected).abs().max() > 1e-2  # the mask did something and was lifted
    width = 128 if family == "minimax" else 64
    removed = len(report.kept) * 2 * (3 * 64 * width + 64)  # experts and their router rows
    assert report.parameters_before - report.parameters_after == removed
    with safe_open(tmp_path / "model.safetensors", "pt") as written:
        names = [name for name in written.keys() if "experts" in name]  # noqa: SIM118
        kinds = {written.get_slice(name).get_dtype() for name in names}
    assert kinds == {"BF16"}


def test_an_earlier_choice_is_followed_and_held_out_text_says_what_is_reached(
    unlisted, tmp_path, capsys
):
    """As a person types it."""
    model, earlier, file = tmp_path / "model", tmp_path / "earlier", tmp_path / "text.jsonl"
    shutil.copytree(unlisted("minimax"), model)
    write_tokenizer(model)
    earlier.mkdir()
    kept = {"0": [1, 3, 4, 5], "1": [0, 2, 3, 5]}
    (earlier / "experts.json").write_text(json.dumps({"kept": kept}))
    rows = [{"text": f"{i} the quick brown fox jumps over the lazy dog"} for i in range(99)]
    file.write_text("\n".join(map(json.dumps, rows)))
    options = ["--keep", "0.67", "--data", file, "--tokens", "256", "--held-out-tokens", "64",
               "--sequence-length", "32", "--json"]  # fmt: skip

    def run(name, *more):
        out = ["--out", str(tmp_path / name)]
        code = main(["shrink", str(model), *out, *map(str, options), *more])
        shown = capsys.readouterr()
        assert code == 0, shown.err
        return json.loads(shown.out)

    free = run("free")
    followed = run("followed", "--previous", str(earlier), "--margin", "10")
    assert followed["kept"] == kept != free["kept"]
    assert followed["exchanged"] == {"0": [], "1": []}
    assert not any("no text is held out" in note for note in followed["notes"])
    changed = run("changed", "--previous", str(earlier), "--margin", "0")
    assert changed["kept"] == free["kept"]
    assert any(changed["exchanged"].values())


def test_every_group_of_an_unlisted_router_loses_the_same_number(unlisted, tmp_path):
    report = shrink_structurally(unlisted("mistral4"), text(), 0.67, tmp_path, Silent())
    for kept in report.kept.values():
        assert np.bincount(np.array(kept) // 3).tolist() == [2, 2]
    assert "language_model" not in str(report.tensors)
    with pytest.raises(BadInputError, match="do not divide into the router's 2 groups"):
        shrink_structurally(unlisted("mistral4"), text(), 0.83, tmp_path, Silent())


def test_what_is_measured_is_what_the_experts_do(unlisted):
    """Against a loop over tokens with the experts' own weights."""
    from edgekit.architecture import Mixture

    model = load_unlisted(unlisted("minimax"))
    found = find_mixtures(model, "model")
    made = text(4)
    calls = []
    hook = found[1].experts.register_forward_pre_hook(lambda _, a: calls.append(a))
    with torch.inference_mode():
        model(input_ids=torch.from_numpy(made[0].tokens.astype(np.int64))[None])
    hook.remove()
    (x, index, weight), experts = calls[0], found[1].experts
    count, gated = np.zeros(6), np.zeros(6)
    for t in range(len(x)):
        for e, g in zip(index[t].tolist(), weight[t].tolist()):
            gate, up = (experts.gate_up_proj[e] @ x[t]).chunk(2)
            count[e] += 1
            gated[e] += g * float(
                (experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up)).norm()
            )
    mixture = Mixture("", (), 6, 2, 0, "")
    sums = structural.measure(model, found, mixture, made[:1], "model", "", Silent())
    np.testing.assert_array_equal(sums.total("tokens")[1], count)
    np.testing.assert_allclose(sums.total("gated_sum")[1], gated, rtol=1e-4)
    assert "forward" not in vars(experts)  # nothing watches any more


@pytest.mark.parametrize("forgotten", ["gate.weight", "e_score_correction_bias"])
def test_a_part_that_was_not_sliced_is_found_out(unlisted, tmp_path, monkeypatch, forgotten):
    """The rows of another expert, or the corrections of the first experts instead of theirs."""
    original = structural.slice_experts

    def careless(model, found, kept):
        first = {layer: list(range(len(experts))) for layer, experts in kept.items()}
        modules = dict(model.named_modules())
        wrong = {}
        for mixture in found:
            for name in (n for n in mixture.axes if n.endswith(forgotten)):
                module, _, leaf = name.rpartition(".")
                wrong[name] = getattr(modules[module], leaf).detach()[first[mixture.layer]]
        original(model, found, kept)
        for name, values in wrong.items():
            module, _, leaf = name.rpartition(".")
            getattr(modules[module], leaf).data = values

    monkeypatch.setattr(structural, "slice_experts", careless)
    monkeypatch.setattr(
        structural, "choose",
        lambda s, m, n, *_: choose(s, m, n, "random", seed=7),  # not the first experts
    )  # fmt: skip
    with pytest.raises(EdgekitError, match="differs from the original"):
        shrink_structurally(unlisted("glm4v_moe"), text(), 0.67, tmp_path, Silent())


def test_a_writer_that_slices_nothing_is_found_out(unlisted, tmp_path, monkeypatch):
    monkeypatch.setattr(structural, "slice_experts", lambda *_: None)
    monkeypatch.setattr(structural, "expert_count_keys", lambda *_: [("spare_experts",)])
    with pytest.raises(EdgekitError, match="does not have the experts"):
        shrink_structurally(unlisted("minimax"), text(), 0.67, tmp_path, Silent())


def test_a_config_that_counts_its_experts_nowhere_is_refused(unlisted, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(unlisted("minimax"), model)
    config = json.loads((model / "config.json").read_text())
    config["num_local_experts"] = config["n_routed_experts"] = config["num_experts"] = 7
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInputError, match="not in the weights as transformers expects"):
        shrink_structurally(model, text(), 0.67, tmp_path / "out", Silent())


def test_keys_that_count_experts_are_told_from_those_that_happen_to_be_equal():
    config = {
        "num_experts": 8, "num_experts_per_tok": 8, "n_shared_experts": 8, "hidden_size": 8,
        "moe_topk": 8, "text_config": {"n_routed_experts": 8, "expert_layer_period": 8},
        "use_experts": True,
    }  # fmt: skip
    assert expert_count_keys(config, 8) == [("num_experts",), ("text_config", "n_routed_experts")]
    assert expert_count_keys(config, 1) == []


def test_what_is_not_found_is_said(tiny_llama, unlisted, tmp_path):
    with pytest.raises(BadInputError, match="no module has gate_up_proj"):
        shrink_structurally(tiny_llama, text(), 0.5, tmp_path, Silent())
    with pytest.raises(BadInputError, match="no calibration text"):
        held_out = [s for s in text() if s.held_out]
        shrink_structurally(unlisted("minimax"), held_out, 0.5, tmp_path, Silent())
    with pytest.raises(BadInputError, match="is all of them"):
        shrink_structurally(unlisted("minimax"), text(), 0.95, tmp_path, Silent())
    with pytest.raises(BadInputError, match="fewer than its 2"):
        shrink_structurally(unlisted("minimax"), text(), 0.2, tmp_path, Silent())


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("layers.0.block_sparse_moe.experts.2.w1.weight", "expert 2 of layer 0 gives"),
        ("layers.1.block_sparse_moe.experts.0.w2.weight", "expert 0 of layer 1 gives"),
        ("layers.1.block_sparse_moe.gate.weight", "the router of layer 1 gives"),
        ("layers.0.post_attention_layernorm.weight", "what the experts of layer 0 read gives"),
        ("norm.weight", "the final norm or the head gives"),
    ],
)
def test_weights_of_an_unlisted_family_that_are_no_numbers_are_named(
    unlisted, tmp_path, part, named
):
    model = tmp_path / "model"
    shutil.copytree(unlisted("minimax"), model)
    tensors = load_file(model / "model.safetensors")
    tensors[f"model.{part}"].view(-1)[0] = torch.nan
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInputError, match=f"{named} values that are not finite"):
        shrink_structurally(model, text(), 0.67, tmp_path / "out", Silent())


def test_text_that_an_unlisted_model_cannot_read_is_refused(unlisted, tmp_path):
    def attempt(*sequences):
        made = [TokenSequence(np.array(tokens, np.int32), *of) for tokens, *of in sequences]
        shrink_structurally(unlisted("minimax"), made, 0.67, tmp_path, Silent())

    with pytest.raises(BadInputError, match="600 tokens is longer than the context of 512"):
        attempt(([5] * 600, "a", False))
    with pytest.raises(BadInputError, match="the text has token 999 but the model has 512"):
        attempt(([3, 4], "a", False), ([5, 999], "a", True))
    with pytest.raises(BadInputError, match="no calibration text of the domain 'b'"):
        attempt(([3, 4], "a", False), ([3, 4], "b", True))
    with pytest.raises(BadInputError, match="a sequence of the calibration text is empty"):
        attempt(([3, 4], "a", False), ([], "a", False))


def test_two_matrices_that_could_be_the_router_are_refused(unlisted):
    model = load_unlisted(unlisted("minimax"))
    block = model.model.layers[0].mlp
    block.other = torch.nn.Linear(64, 6, bias=False)
    with pytest.raises(BadInputError, match=r"2 matrices .*other.*one router is expected"):
        find_mixtures(model, "model")


def test_gates_that_do_not_multiply_the_outputs_are_refused(unlisted):
    model = load_unlisted(unlisted("minimax"))
    found = find_mixtures(model, "model")
    experts = found[0].experts
    original = type(experts).forward
    cubic = type("Cubic", (type(experts),), {
        "forward": lambda self, x, i, w: original(self, x, i, w**3)})  # fmt: skip
    experts.__class__ = cubic
    with pytest.raises(BadInputError, match="gates of layer 0 do not multiply"):
        structural.measure(
            model, found, structural.Mixture("", (), 6, 2, 0, ""), text(2), "model", "", Silent()
        )


def test_code_in_a_checkpoint_is_never_run(unlisted, tmp_path):
    config = json.loads((unlisted("minimax") / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit(3)")
    with pytest.raises(BadInputError, match="which edgekit never runs"):
        load_unlisted(tmp_path)
