"""Experts become a dense feed-forward as the maths says."""

import itertools
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planted import eight_bits, half_precision
from safetensors.numpy import load_file, save_file

from edgekit.checkpoint import Checkpoint
from edgekit.distill.dense_choice import (
    choose_experts,
    choose_neurons,
    greedy_log_determinant,
    reconstruction_error,
    scales,
)
from edgekit.distill.dense_moments import Moments
from edgekit.distill.densify import DenseOptions, densify
from edgekit.distill.loading import load_model
from edgekit.distill.open_model import OpenModel, open_model
from edgekit.errors import BadInputError, EdgekitError, OutOfResourcesError
from edgekit.progress import Silent
from edgekit.sequences import TokenSequence
from edgekit.tensorfile import TensorFile

EXPERTS, TOP_K, WIDE, HIDDEN = 4, 2, 64, 64


def text(count=5, length=40):
    rng = np.random.default_rng(0)
    return [
        TokenSequence(rng.integers(3, 500, length).astype(np.int32), "x", i == 0)
        for i in range(count)
    ]


def make_dense(model, tmp_path, sequences=None, **options):
    out = tmp_path / "dense"
    out.mkdir()
    return out, densify(model, sequences or text(), DenseOptions(**options), out, Silent())


def edited(source, target, change):
    """A copy of a checkpoint whose tensors ``change`` may edit in place."""
    target.mkdir()
    tensors = {k: v.copy() for k, v in load_file(source / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((source / name).read_bytes())
    return target


def logits(directory):
    with torch.inference_mode():
        return load_model(directory)(torch.arange(3, 60)[None], use_cache=False).logits


def brute_force(kernel, ridge, count):
    taken = []
    for _ in range(count):
        rest = [i for i in range(len(kernel)) if i not in taken]
        taken.append(
            max(
                rest,
                key=lambda i: np.linalg.slogdet(
                    kernel[np.ix_([*taken, i], [*taken, i])] + ridge * np.eye(len(taken) + 1)
                )[1],
            )
        )
    return taken


@pytest.mark.parametrize("seed", range(8))
def test_the_greedy_choice_is_that_of_whole_determinants(seed):
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(9, 4 if seed % 2 else 12)) * rng.uniform(0.3, 3, (9, 1))
    kernel = factors @ factors.T
    ridge = np.diag(kernel).mean() / 5
    assert greedy_log_determinant(kernel, ridge, 5) == brute_force(kernel, ridge, 5)


def test_an_expert_that_nobody_needs_is_taken_last_and_an_empty_kernel_gives_the_first():
    kernel = np.diag([1.0, 0.0, 2.0])
    assert greedy_log_determinant(kernel, 0.0, 3) == [2, 0, 1]
    assert greedy_log_determinant(np.zeros((3, 3)), 0.0, 2) == [0, 1]


def moments_of(outputs, gates, **more):
    """Moments of planted outputs [E, T, H] and gates [E, T], 0 where not chosen."""
    y = (gates[:, :, None] * outputs).sum(0)
    flat = outputs.reshape(len(outputs), -1)
    values = {
        "tokens": outputs.shape[1],
        "experts": tuple(range(len(outputs))),
        "routed": (gates > 0).sum(1).astype(float),
        "gate_sum": gates.sum(1),
        "input_gate": np.ones(len(outputs)),
        "gram": flat @ flat.T,
        "cross": flat @ y.reshape(-1),
        "power": float((y**2).sum()),
        "shared": False,
        "shared_gate": 1.0,
    }
    return Moments(**{**values, **more}), y


def test_scales_and_errors_equal_those_of_the_outputs_themselves():
    rng = np.random.default_rng(1)
    outputs = rng.normal(size=(5, 200, 6)) * rng.uniform(0.5, 2, (5, 1, 1))
    gates = rng.random((5, 200)) * (rng.random((5, 200)) < 0.4)
    moments, y = moments_of(outputs, gates)
    chosen = [3, 0, 4]
    np.testing.assert_allclose(scales(moments, chosen, "marginal"), gates[chosen].mean(1))
    np.testing.assert_allclose(scales(moments, chosen, "uniform"), gates.sum(0).mean() / 3)
    design = outputs[chosen].reshape(3, -1).T
    solved = np.linalg.lstsq(design, y.reshape(-1), rcond=None)[0]
    np.testing.assert_allclose(scales(moments, chosen, "fitted"), solved, rtol=1e-4)
    for kind in ("uniform", "marginal", "fitted"):
        factors = scales(moments, chosen, kind)
        direct = ((design @ factors - y.reshape(-1)) ** 2).sum() / (y**2).sum()
        assert reconstruction_error(moments, chosen, factors) == pytest.approx(direct)


def test_neurons_are_taken_across_experts_by_their_worth():
    worth = np.array([[5.0, 1.0, 4.0], [0.0, 9.0, 2.0]])
    assert choose_neurons(worth, 3) == {0: [0, 2], 1: [1]}
    assert list(choose_neurons(worth, 5)) == [1, 0]  # 11 against 10


def routed_by_naive_loop(directory, layer, sequences):
    """Gates [E, T], outputs of all experts [E, T, H] and neurons [E, T, I] of a Mixtral layer."""
    model = load_model(directory)
    block = model.model.layers[layer].mlp
    inputs = []
    hook = block.register_forward_pre_hook(lambda _, a: inputs.append(a[0].reshape(-1, HIDDEN)))
    with torch.inference_mode():
        for sequence in sequences:
            model(torch.from_numpy(sequence.tokens.astype(np.int64))[None], use_cache=False)
        hook.remove()
        x = torch.cat(inputs)
        gates = torch.zeros(EXPERTS, len(x))
        neurons = torch.zeros(EXPERTS, len(x), WIDE)
        for t, token in enumerate(x):
            best, index = (block.gate.weight @ token).softmax(0).topk(TOP_K)
            for gate, e in zip(best / best.sum(), index.tolist(), strict=True):
                gates[e, t] = gate
        for e in range(EXPERTS):
            gate, up = (x @ block.experts.gate_up_proj[e].T).chunk(2, -1)
            neurons[e] = torch.nn.functional.silu(gate) * up
        outputs = neurons @ block.experts.down_proj.transpose(1, 2)
    lengths = block.experts.down_proj.norm(dim=1)
    return gates.double().numpy(), outputs.double().numpy(), neurons, lengths


@pytest.fixture(scope="module")
def sparse(tiny_model):
    return tiny_model("mixtral", moe_intermediate_size=WIDE, intermediate_size=WIDE)


def test_the_report_says_what_a_naive_loop_over_tokens_measures(sparse, tmp_path):
    sequences = text()
    _, report = make_dense(sparse, tmp_path, sequences, choice="acp", scaling="marginal")
    gates, outputs, _, _ = routed_by_naive_loop(sparse, 1, sequences[1:])
    layer = report.layers[1]
    confidence = gates.sum(1) / (gates > 0).sum(1)
    acp = confidence * np.sqrt((outputs**2).sum(-1).mean(1))
    np.testing.assert_allclose(layer.scores, acp, rtol=1e-4)
    assert layer.experts == np.argsort(-acp)[:TOP_K].tolist()
    np.testing.assert_allclose(layer.scales, gates.mean(1)[layer.experts], rtol=1e-4)
    y = (gates[:, :, None] * outputs).sum(0)
    said = (np.array(layer.scales)[:, None, None] * outputs[layer.experts]).sum(0)
    error = ((said - y) ** 2).sum() / (y**2).sum()
    assert layer.errors["marginal"] == pytest.approx(error, rel=1e-3)


def test_neurons_of_the_dense_layer_are_the_best_of_all_experts(sparse, tmp_path):
    sequences = text()
    out, report = make_dense(sparse, tmp_path, sequences, choice="neurons", scaling="marginal")
    gates, _, neurons, lengths = routed_by_naive_loop(sparse, 1, sequences[1:])
    worth = (torch.from_numpy(gates).float()[:, :, None] * neurons.abs()).mean(1) * lengths
    best = worth.flatten().topk(TOP_K * WIDE).indices
    counts = torch.bincount(best // WIDE, minlength=EXPERTS)
    layer = report.layers[1]
    assert dict(zip(layer.experts, layer.neurons, strict=True)) == {
        e: int(n) for e, n in enumerate(counts) if n
    }
    with Checkpoint(out) as dense, Checkpoint(sparse) as checkpoint:
        up = dense.float32("model.layers.1.mlp.up_proj.weight")
        first = checkpoint.float32(
            checkpoint.architecture.expert(1, layer.experts[0], "up") + ".weight"
        )
        chosen = sorted((best[best // WIDE == layer.experts[0]] % WIDE).tolist())
        np.testing.assert_array_equal(up[: len(chosen)], first[chosen])


def test_of_two_experts_that_say_the_same_do_acp_takes_one_and_acp_both():
    rng = np.random.default_rng(3)
    outputs = rng.normal(size=(4, 300, 8))
    outputs[1] *= 1.3
    outputs[2] = outputs[1]
    gates = rng.uniform(0.45, 0.55, (4, 300))
    moments, _ = moments_of(outputs, gates)
    assert set(choose_experts(moments, "acp", 2, rng)[0]) == {1, 2}
    assert len(set(choose_experts(moments, "do_acp", 2, rng)[0]) & {1, 2}) == 1
    chosen = choose_experts(moments, "do_acp", 3, rng)[0]
    assert len(set(chosen) & {1, 2}) == 1  # the other two are worth more than the copy


def test_auto_writes_the_constants_with_the_smallest_divergence(sparse, tmp_path):
    out, report = make_dense(sparse, tmp_path)
    worst = {kind: found.worst for kind, found in report.divergence.items()}
    assert set(worst) == {"uniform", "marginal", "fitted"}
    assert worst[report.scaling] == min(worst.values())
    for layer in report.layers.values():
        assert layer.errors["fitted"] == min(layer.errors.values())
    teacher, student = logits(sparse).log_softmax(-1), logits(out).log_softmax(-1)
    assert (teacher.exp() * (teacher - student)).sum(-1).mean() > 0.01  # it is another function
    saved = json.loads((out / "densify.json").read_text())
    assert saved["layers"]["0"]["experts"] == report.layers[0].experts


def test_layers_are_filled_to_one_width_with_neurons_that_say_nothing(tiny_model, tmp_path):
    source = tiny_model("qwen3_moe", intermediate_size=192, mlp_only_layers=[0])
    out, report = make_dense(source, tmp_path, experts=1, multiple_of=32)
    assert report.width == 192
    assert report.layers[1].room == 192 - WIDE
    assert any("room for 2 more experts" in note for note in report.notes)
    with Checkpoint(out) as dense, Checkpoint(source) as sparse_one:
        for name in ("gate", "up", "down"):
            tensor = f"model.layers.0.mlp.{name}_proj.weight"
            np.testing.assert_array_equal(dense.float32(tensor), sparse_one.float32(tensor))
        for name in ("gate", "up"):
            rows = dense.float32(f"model.layers.1.mlp.{name}_proj.weight")
            sizes = [float(part.std()) for part in (rows[:WIDE], rows[WIDE:])]
            assert sizes[1] == pytest.approx(sizes[0], rel=0.1)
        assert not dense.float32("model.layers.1.mlp.down_proj.weight")[:, WIDE:].any()
    model = load_model(out).requires_grad_(True)
    model(torch.arange(3, 40)[None], use_cache=False).logits.logsumexp(-1).sum().backward()
    gradient = model.model.layers[1].mlp.down_proj.weight.grad  # and so they can be trained
    assert gradient[:, WIDE:].abs().amax(0).min() > 0
    wider = tmp_path / "wider"
    wider.mkdir()
    out, report = make_dense(source, wider, experts=4)
    assert report.width == 256
    with Checkpoint(out) as dense:
        assert not dense.float32("model.layers.0.mlp.down_proj.weight")[:, 192:].any()
    assert any(
        "1 layers that were dense have 64 neurons that say nothing yet" in n for n in report.notes
    )


def test_neurons_fill_the_room_that_wider_dense_layers_make(tiny_model, tmp_path):
    source = tiny_model("qwen3_moe", intermediate_size=192, mlp_only_layers=[0])
    _, report = make_dense(source, tmp_path, choice="neurons", multiple_of=32)
    assert sum(report.layers[1].neurons) == 192 and report.layers[1].room == 0


def test_a_gate_of_the_shared_expert_becomes_its_mean_and_the_report_says_so(tiny_model, tmp_path):
    source = tiny_model("qwen2_moe")
    sequences = text()
    out, report = make_dense(source, tmp_path, sequences, scaling="marginal")
    assert any("approximation" in note for note in report.notes)
    gates = []
    with open_model(source) as opened, torch.inference_mode():
        module = opened.layers[0].mlp.shared_expert_gate
        module.register_forward_hook(lambda _, __, output: gates.append(output.sigmoid()))
        for sequence in sequences[1:]:
            opened.model(torch.from_numpy(sequence.tokens.astype(np.int64))[None], use_cache=False)
    mean = float(torch.cat([g.flatten() for g in gates]).mean())
    with Checkpoint(out) as dense, Checkpoint(source) as sparse_one:
        down = dense.float32("model.layers.0.mlp.down_proj.weight")
        shared = sparse_one.float32("model.layers.0.mlp.shared_expert.down_proj.weight")
        first = TOP_K * WIDE
        np.testing.assert_allclose(down[:, first : first + 96], shared * mean, rtol=1e-5, atol=1e-7)
        assert down.shape[1] == 256 and not down[:, first + 96 :].any()  # 224 is no multiple


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_a_model_that_does_not_fit_in_memory_gives_the_same_and_is_read_a_few_times(
    tiny_model, tmp_path, monkeypatch, family
):
    source, sequences = tiny_model(family), text()
    whole, report = make_dense(source, tmp_path, sequences)
    monkeypatch.setattr("edgekit.distill.resident.available_memory", lambda: 0)
    monkeypatch.setattr("edgekit.distill.divergence.FORWARD_TOKENS", 1)  # a group a sequence
    reads = []
    load = OpenModel.load_layer

    def counted(opened, number):
        reads.append((opened.path, number))
        load(opened, number)

    monkeypatch.setattr(OpenModel, "load_layer", counted)
    for count in (1, 5):  # held-out sequences
        more = [TokenSequence(s.tokens, s.domain, True) for s in sequences[:1] * count]
        (tmp_path / f"{count}").mkdir()
        reads.clear()
        streamed, other = make_dense(source, tmp_path / f"{count}", [*more, *sequences[1:]])
        # the pass, the teacher's answers, three kinds of constants, and the proof
        assert reads.count((source, 1)) == 6 and reads.count((streamed, 1)) == 1
        if count == 1:
            assert other == report
            weights = [(out / "model.safetensors").read_bytes() for out in (whole, streamed)]
            assert weights[0] == weights[1]


def test_half_precision_is_kept_and_the_reloaded_model_is_close(sparse, tmp_path):
    model = load_model(sparse).bfloat16()
    half = tmp_path / "half"
    model.save_pretrained(half)
    out, report = make_dense(half, tmp_path)
    assert report.reload_error < 1e-4  # constants are measured as they are rounded
    with TensorFile(out / "model.safetensors") as file:
        assert file.info("model.layers.0.mlp.down_proj.weight").dtype == "BF16"


def test_a_defect_in_what_was_written_is_not_kept_silent(sparse, tmp_path, monkeypatch):
    import edgekit.distill.densify as module

    original = module.dense_tensors

    def swapped(*arguments):
        tensor = original(*arguments)
        return lambda spec: -tensor(spec) if spec.projection == "up" else tensor(spec)

    monkeypatch.setattr(module, "dense_tensors", swapped)
    with pytest.raises(EdgekitError, match="of the largest logit; please report"):
        make_dense(sparse, tmp_path)


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen2_moe", "llama4_text"])
def test_an_expert_that_is_lost_from_a_model_in_bfloat16_is_noticed(
    tiny_model, tmp_path, monkeypatch, family
):
    """``qwen2_moe`` has a gate of its shared expert, ``llama4_text`` gates before the experts."""
    import edgekit.distill.densify as module

    half = half_precision(tiny_model(family), tmp_path / "half")
    make_dense(half, tmp_path)
    (tmp_path / "dense").rename(tmp_path / "right")
    original = module.dense_tensors

    def lost(*arguments):
        def tensor(spec):
            values = original(*arguments)(spec)
            if spec.layer == 1 and spec.projection == "down":
                values[:, :WIDE] = 0
            return values

        return tensor

    monkeypatch.setattr(module, "dense_tensors", lost)
    with pytest.raises(EdgekitError, match="of the largest logit; please report"):
        make_dense(half, tmp_path)


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen2_moe"])
def test_a_quantized_model_is_proven_as_strictly(tiny_model, tmp_path, family):
    source = eight_bits(tiny_model(family), tmp_path / "eight")
    _, report = make_dense(source, tmp_path)
    assert report.reload_error < 1e-4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"multiple_of": 0}, "multiple_of is 0, expected at least 1"),
        ({"multiple_of": -32}, "multiple_of is -32"),
        ({"experts": -1}, "-1 experts of a layer's 4 cannot be taken"),
        ({"experts": 5}, "5 experts of a layer's 4 cannot be taken"),
        ({"choice": "best"}, "choice 'best' is not known; choose one of do_acp"),
        ({"scaling": "none"}, "scaling 'none' is not known"),
        ({"choice": "acp", "neurons": 64}, "chosen by 'neurons', not by 'acp'"),
        ({"choice": "neurons", "neurons": 257}, "257 neurons cannot be taken from a layer's 256"),
        ({"family": "gemma"}, "a mixtral cannot become a dense 'gemma'; choose one of llama"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_any_work(
    sparse, tmp_path, options, sentence
):
    with pytest.raises(BadInputError, match=sentence):
        make_dense(sparse, tmp_path, **options)


@pytest.mark.parametrize("resource", ["memory", "disk"])
def test_what_will_not_fit_is_refused_before_the_pass(sparse, tmp_path, monkeypatch, resource):
    import edgekit.distill.densify as module

    if resource == "memory":
        monkeypatch.setattr("edgekit.memory.available_memory", lambda: 1000)
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    choose = module.choose_pieces
    monkeypatch.setattr(module, "choose_pieces", None)
    with pytest.raises(OutOfResourcesError, match=f"making the model dense needs .* of {resource}"):
        make_dense(sparse, tmp_path)
    monkeypatch.setattr(module, "choose_pieces", choose)
    (tmp_path / "forced").mkdir()
    make_dense(sparse, tmp_path / "forced", force=True)


def test_dense_models_and_missing_text_are_refused(tiny_llama, sparse, tmp_path):
    with pytest.raises(BadInputError, match="without experts is dense already"):
        make_dense(tiny_llama, tmp_path)
    held_out = [TokenSequence(s.tokens, s.domain, True) for s in text()]
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    with pytest.raises(BadInputError, match="no calibration text"):
        make_dense(sparse, tmp_path / "a", held_out)
    with pytest.raises(BadInputError, match="held_out_tokens"):
        make_dense(sparse, tmp_path / "b", text()[1:])


def test_weights_that_are_not_finite_are_named(sparse, tmp_path):
    def damage(tensors):
        tensors["model.layers.1.block_sparse_moe.experts.2.w2.weight"][0, 0] = np.nan

    damaged = edited(sparse, tmp_path / "damaged", damage)
    with pytest.raises(BadInputError, match="an expert of layer 1 gives values that are not"):
        make_dense(damaged, tmp_path)


def test_prefixes_of_the_greedy_choice_are_the_smaller_choices():
    rng = np.random.default_rng(5)
    factors = rng.normal(size=(8, 8))
    chosen = [greedy_log_determinant(factors @ factors.T, 0.1, k) for k in range(1, 8)]
    assert all(a == b[: len(a)] for a, b in itertools.pairwise(chosen))
