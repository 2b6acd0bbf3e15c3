"""A student is trained towards the teacher: what changes, what does not, and what comes back."""

import numpy as np
import pytest
import torch

from edgekit.checkpoint import Checkpoint
from edgekit.distill.capture import capture
from edgekit.distill.train import train, training_digest
from edgekit.distill.trainer import batches, schedule
from edgekit.errors import BadInputError
from edgekit.progress import Silent
from edgekit.recipe import DistillSection, QuantizeSection
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
    import edgekit.distill.trainer as module

    monkeypatch.setattr(module, "SAVE_EVERY", 4)
    student = tiny_model("mixtral", seed=3)
    section = DistillSection(steps=10, batch_tokens=48, learning_rate=3e-3, trainable=("all",))
    whole, out, scratch = (tmp_path / n for n in ("whole", "out", "scratch"))
    for directory in (whole, out, scratch):
        directory.mkdir()
    train(student, cache, section, whole, Silent(), None)
    original, count = module.Trainer._step, [0]

    def interrupted(*args):
        count[0] += 1
        if count[0] == 7:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(module.Trainer, "_step", interrupted)
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
    save_state(tmp_path / "state", TrainingState(4, [0.5], [0.7]), {"w": weight}, optimizer)
    (tmp_path / "state").rename(tmp_path / "state.old")  # as a kill there leaves it
    fresh = torch.nn.Parameter(torch.zeros(3))
    state = restore_state(tmp_path / "state", {"w": fresh}, torch.optim.AdamW([fresh]))
    assert (state.step, state.before) == (4, [0.7]) and torch.equal(fresh, weight)


def test_a_saved_state_is_used_only_for_what_it_belongs_to(tiny_mixtral, tiny_llama, cache):
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
    import edgekit.distill.divergence as module

    broken = lambda *_: torch.tensor([float("nan")], requires_grad=True)  # noqa: E731
    monkeypatch.setattr(module, "top_k_kl", broken)
    with pytest.raises(BadInputError, match="learning_rate"):
        heal(tiny_model("mixtral", seed=3), cache, tmp_path / "out", steps=2)


def test_batches_cover_an_epoch_and_repeat_by_seed(cache):
    from edgekit.distill.cache import LogitCache

    opened = LogitCache(cache)
    params = DistillSection(steps=1, batch_tokens=48, seed=4)
    first = [n for _, b in zip(range(6), batches(opened.sequences, params)) for n in b]
    assert sorted(first) == [i for i, s in enumerate(opened.sequences) if not s.held_out]
    assert first == [n for _, b in zip(range(6), batches(opened.sequences, params)) for n in b]


def test_the_schedule_warms_up_and_decays():
    rates = [schedule(s, 100) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10) and rates[-1] == pytest.approx(0.1, abs=0.01)
