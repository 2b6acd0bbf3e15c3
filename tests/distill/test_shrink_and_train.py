"""Experts are measured, chosen, dropped and healed as defined."""

import numpy as np
import pytest
import torch

from edgekit.checkpoint import Checkpoint
from edgekit.distill.capture import capture
from edgekit.distill.loading import load_model
from edgekit.distill.shrink import choose, shrink, write_with_experts
from edgekit.distill.statistics import ExpertStatistics, collect_statistics
from edgekit.distill.train import batches, schedule, train
from edgekit.errors import BadInputError
from edgekit.progress import Silent
from edgekit.recipe import DistillSection, QuantizeSection, ShrinkSection
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


@pytest.fixture(scope="module")
def cache(tiny_mixtral, sequences, tmp_path_factory):
    out = tmp_path_factory.mktemp("cache")
    capture(tiny_mixtral, sequences, 64, out, Silent())
    return out


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


def heal(student, cache, out, **options):
    out.mkdir()
    values = {"steps": 40, "batch_tokens": 96, "learning_rate": 3e-3, "trainable": ("all",)}
    return train(student, cache, DistillSection(**{**values, **options}), out, Silent())


def test_training_brings_the_student_to_the_teacher(tiny_model, cache, tmp_path):
    other = tiny_model("mixtral", seed=3)
    report = heal(other, cache, tmp_path / "out", steps=60, learning_rate=1e-2)
    assert np.mean(report.losses[-5:]) < 0.5 * np.mean(report.losses[:5])


def test_only_what_is_named_is_trained(tiny_mixtral, tiny_model, cache, tmp_path):
    student = tiny_model("mixtral", seed=3)
    heal(student, cache, tmp_path / "out", steps=3, trainable=("router", "norms"))
    with Checkpoint(student) as before, Checkpoint(tmp_path / "out") as after:
        for spec in before.specs:
            same = np.array_equal(before.float32(spec.name), after.float32(spec.name))
            assert same == (spec.role not in ("router", "norm")), spec.name


def test_quantization_aware_training_lowers_the_kl_of_the_quantized_model(
    tiny_mixtral, cache, tmp_path
):
    section = DistillSection(
        steps=60, batch_tokens=96, learning_rate=3e-3, trainable=("router", "norms"),
        quantization_aware=True,
    )  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    quantize = QuantizeSection(scheme="int4-channel", method="rtn")
    report = train(tiny_mixtral, cache, section, out, Silent(), None, quantize)
    assert report.held_out_kl_before > 1e-3  # of the rounding alone: the student is the teacher
    assert np.mean(report.losses[-10:]) < 0.9 * np.mean(report.losses[:3])
    with Checkpoint(tiny_mixtral) as before, Checkpoint(out) as after:
        name = "model.layers.0.self_attn.q_proj.weight"
        np.testing.assert_array_equal(before.float32(name), after.float32(name))


def test_quantization_aware_training_refuses_to_train_matrices(tiny_mixtral, cache, tmp_path):
    section = DistillSection(steps=1, trainable=("attention",), quantization_aware=True)
    with pytest.raises(BadInputError, match="attention cannot be trained"):
        train(tiny_mixtral, cache, section, tmp_path, Silent(), None, QuantizeSection())


def test_interrupted_training_ends_in_the_same_weights(tiny_model, cache, tmp_path, monkeypatch):
    import edgekit.distill.train as module

    monkeypatch.setattr(module, "SAVE_EVERY", 4)
    student = tiny_model("mixtral", seed=3)
    section = DistillSection(steps=10, batch_tokens=48, learning_rate=3e-3, trainable=("all",))
    whole, out, scratch = (tmp_path / n for n in ("whole", "out", "scratch"))
    for directory in (whole, out, scratch):
        directory.mkdir()
    train(student, cache, section, whole, Silent(), None)
    original, count = module._step, [0]

    def interrupted(*args):
        count[0] += 1
        if count[0] == 7:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(module, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(student, cache, section, out, Silent(), scratch)
    report = train(student, cache, section, out, Silent(), scratch)
    assert count[0] < 10 + 7  # it did not begin again
    assert len(report.losses) == 10
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_state_saved_between_two_renames_is_found(tiny_mixtral, cache, tmp_path):
    from edgekit.distill.state import TrainingState, restore_state, save_state

    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    save_state(tmp_path / "state", TrainingState(4, [0.5], 0.7), {"w": weight}, optimizer)
    (tmp_path / "state").rename(tmp_path / "state.old")  # as a kill there leaves it
    fresh = torch.nn.Parameter(torch.zeros(3))
    state = restore_state(tmp_path / "state", {"w": fresh}, torch.optim.AdamW([fresh]))
    assert (state.step, state.kl_before) == (4, 0.7) and torch.equal(fresh, weight)


def test_a_saved_state_is_used_only_for_what_it_belongs_to(tiny_mixtral, tiny_llama, cache):
    from edgekit.distill.train import training_digest

    params = DistillSection(steps=3)
    digests = {
        training_digest(tiny_mixtral, cache, params),
        training_digest(tiny_llama, cache, params),
        training_digest(tiny_mixtral, cache, params.model_copy(update={"seed": 1})),
    }
    assert len(digests) == 3
    assert training_digest(tiny_mixtral, cache, DistillSection(steps=3)) in digests


def test_another_vocabulary_is_refused(tiny_model, cache, tmp_path):
    with pytest.raises(BadInputError, match="vocabulary has 256 tokens"):
        heal(tiny_model("llama", vocab_size=256), cache, tmp_path / "out")


def test_a_diverging_run_stops_with_a_sentence(tiny_model, cache, tmp_path, monkeypatch):
    import edgekit.distill.train as module

    broken = lambda *_: torch.tensor([float("nan")], requires_grad=True)  # noqa: E731
    monkeypatch.setattr(module, "top_k_kl", broken)
    with pytest.raises(BadInputError, match="learning_rate"):
        heal(tiny_model("mixtral", seed=3), cache, tmp_path / "out", steps=2)


def test_batches_cover_an_epoch_and_repeat_by_seed(cache):
    from edgekit.distill.cache import LogitCache

    opened = LogitCache(cache)
    params = DistillSection(steps=1, batch_tokens=48, seed=4)
    first = [n for _, b in zip(range(6), batches(opened, params)) for n in b]
    assert sorted(first) == [i for i, s in enumerate(opened.sequences) if not s.held_out]
    assert first == [n for _, b in zip(range(6), batches(opened, params)) for n in b]


def test_the_schedule_warms_up_and_decays():
    rates = [schedule(s, 100) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10) and rates[-1] == pytest.approx(0.1, abs=0.01)
