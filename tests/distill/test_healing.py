"""A student is trained towards the teacher: what changes, what does not, and what comes back."""

import numpy as np
import pytest
import torch
from training_runs import interrupted_in

from edgekit.checkpoint import Checkpoint
from edgekit.distill.batches import batches
from edgekit.distill.cache import LogitCache
from edgekit.distill.capture import CaptureOptions, capture
from edgekit.distill.fake_quantize import fake_quantize
from edgekit.distill.masked import measure_masked, prefix_mask
from edgekit.distill.open_model import open_model
from edgekit.distill.optimizers import schedule
from edgekit.distill.prune import write_pruned
from edgekit.distill.train import train, training_digest
from edgekit.distill.trainable import trainable_parameters
from edgekit.distill.trainer import student_of
from edgekit.errors import BadInputError
from edgekit.nested import NESTED
from edgekit.progress import Silent
from edgekit.quantize.write import fake_quantized
from edgekit.recipe import DistillSection, QuantizeSection
from edgekit.scheme import Scheme
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
    capture(tiny_mixtral, sequences, CaptureOptions("top_k", top_k=64), out, Silent())
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

    student = tiny_model("mixtral", seed=3)
    section = DistillSection(
        steps=10, batch_tokens=48, learning_rate=3e-3, trainable=("all",), save_every=4
    )
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
    done = TrainingState(step=4, losses=[0.5])
    save_state(tmp_path / "state", done, {"w": weight}, optimizer)
    (tmp_path / "state").rename(tmp_path / "state.old")  # as a kill there leaves it
    fresh = torch.nn.Parameter(torch.zeros(3))
    state = restore_state(tmp_path / "state", {"w": fresh}, torch.optim.AdamW([fresh]))
    assert state == done and torch.equal(fresh, weight)


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
    from edgekit.distill.losses import Loss

    monkeypatch.setattr(Loss, "__call__", lambda _, logits, *__: logits.sum(-1) * float("nan"))
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


EIGHT = {"num_local_experts": 8, "num_experts": 8}


@pytest.fixture(scope="module")
def nested(tiny_model, tmp_path_factory):
    """A nested student of six and four of its teacher's eight experts, and the teacher's cache of
    sequences over few tokens, which can be learnt from some for others."""
    rng, directory = np.random.default_rng(1), tmp_path_factory.mktemp("nested")
    teacher, student, cache = tiny_model("mixtral", **EIGHT), directory / "s", directory / "c"
    made = [
        TokenSequence(rng.integers(3, 9, 16).astype(np.int32), "ab"[i % 2], i % 8 > 5)
        for i in range(96)
    ]
    write_sequences(directory / FILE_NAME, made)
    student.mkdir(), cache.mkdir()
    capture(teacher, directory, CaptureOptions("top_k", top_k=512), cache, Silent())
    with Checkpoint(teacher) as checkpoint:
        order = {0: [2, 4, 3, 6, 5, 0], 1: [6, 2, 7, 4, 5, 1]}
        write_pruned(checkpoint, order, student, Silent(), {NESTED: [6, 4]})
    return student, cache


def heal_nested(nested, out, scratch=None, **options):
    student, cache = nested
    out.mkdir()
    values = {"steps": 40, "batch_tokens": 192, "learning_rate": 2e-3, "trainable": ("all",)}
    section = DistillSection(**{**values, **options})
    return train(student, cache, section, out, Silent(), scratch)


def test_the_prefixes_of_a_nested_student_recover_together(nested, tmp_path):
    report = heal_nested(nested, tmp_path / "out")
    assert [healed.experts for healed in report.students] == [6, 4]
    for healed in report.students:
        for domain, before in healed.before.domains.items():
            assert healed.after.domains[domain].value < 0.85 * before.value
    # what was measured is what was written
    cache = LogitCache(nested[1])
    with open_model(tmp_path / "out") as opened:
        for healed in report.students:
            mask = prefix_mask(opened.mixtures, healed.experts)
            found = measure_masked(opened, mask, cache, Silent(), "it").divergence()
            assert found.all.value == pytest.approx(healed.after.all.value, rel=1e-3)


def test_interrupted_nested_training_ends_in_the_same_weights(nested, tmp_path):

    options = {"steps": 7, "trainable": ("router", "experts"), "save_every": 3}
    report = heal_nested(nested, tmp_path / "whole", **options)
    with interrupted_in(5):
        heal_nested(nested, tmp_path / "killed", tmp_path / "scratch", **options)
    again = heal_nested(nested, tmp_path / "again", tmp_path / "scratch", **options)
    speed = {"tokens_per_second"}
    assert again.model_dump(exclude=speed) == report.model_dump(exclude=speed)
    whole, resumed = (tmp_path / name / "model.safetensors" for name in ("whole", "again"))
    assert whole.read_bytes() == resumed.read_bytes()


def test_every_round_trains_every_prefix_once_in_an_order_of_the_seed():
    rounds = [[student_of(3 * n + i, 3, seed=5) for i in range(3)] for n in range(20)]
    assert all(sorted(found) == [0, 1, 2] for found in rounds)
    assert len({tuple(found) for found in rounds}) > 3
    assert rounds != [[student_of(3 * n + i, 3, seed=6) for i in range(3)] for n in range(20)]


ROLES = {"router": {"router"}, "experts": {"expert"}, "norms": {"norm"}}


@pytest.mark.parametrize(
    "family", ["deepseek_v3", "gpt_oss", "gemma4_text", "longcat_flash", "granitemoe", "dbrx"]
)
def test_a_part_is_the_same_part_in_every_family(tiny_model, family):
    with open_model(tiny_model(family)) as opened:
        for part, roles in ROLES.items():
            before = {s.name: opened.tensors()(s).copy() for s in opened.checkpoint.specs}
            with torch.no_grad():
                for parameter in trainable_parameters(opened, [part]).values():
                    parameter += 1
            tensor = opened.tensors()
            changed = [
                spec
                for spec in opened.checkpoint.specs
                if not np.array_equal(tensor(spec), before[spec.name])
            ]
            # a bias of an expert and a scale of a router have roles of their own
            assert roles <= {s.role for s in changed} <= roles | {"bias", "vector"}, part
            if part != "norms":
                assert all(opened.architecture.layers[s.layer].mixture for s in changed)
        everything = trainable_parameters(opened, ["all"])
        assert not any(name.endswith(".correction") for name in everything)
        assert len(everything) >= len(list(opened.model.parameters())) - len(opened.mixtures)


@pytest.mark.parametrize(
    "family", ["llama", "phi3", "deepseek_v3", "gpt_oss", "gemma4_text", "longcat_flash", "dbrx"]
)
def test_matrices_of_every_family_are_rounded_in_place(tiny_model, family):
    section = QuantizeSection(scheme="int4-g32", method="rtn")
    scheme = Scheme.parse(section.scheme)
    with open_model(tiny_model(family)) as opened:
        fake_quantize(opened, section, Silent())
        tensor = opened.tensors()
        for spec in opened.checkpoint.specs:
            expected = opened.checkpoint.float32(spec.name)
            if packing := scheme.packing(spec):
                expected = fake_quantized(expected, packing, section.method)
            np.testing.assert_array_equal(tensor(spec), expected, err_msg=spec.name)
        head = opened.model.get_output_embeddings().weight
        tied = head is opened.model.get_input_embeddings().weight
        assert tied == opened.architecture.tie_word_embeddings


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss", "qwen3_next", "llama4_text"])
def test_students_of_other_families_are_trained_and_written(tiny_model, tmp_path, family):
    teacher, cache, out = tiny_model(family), tmp_path / "cache", tmp_path / "out"
    cache.mkdir()
    text = [TokenSequence(np.arange(3 + i, 19 + i, dtype=np.int32), "a", i == 3) for i in range(4)]
    write_sequences(tmp_path / FILE_NAME, text)
    capture(teacher, tmp_path, CaptureOptions("top_k", top_k=512), cache, Silent())
    options = {"steps": 3, "learning_rate": 1e-2, "trainable": ("router",)}
    report = heal(tiny_model(family, seed=1), cache, out, **options)
    assert report.trained_parameters > 0
    with open_model(tiny_model(family, seed=1)) as before, Checkpoint(out) as after:
        for spec in after.specs:
            same = np.array_equal(before.checkpoint.float32(spec.name), after.float32(spec.name))
            # the correction of a choice has no gradient
            assert same or spec.role == "router", spec.name
        routers = [s for s in after.specs if s.role == "router" and s.name.endswith(".weight")]
        assert routers
        for spec in routers:
            assert not np.array_equal(
                before.checkpoint.float32(spec.name), after.float32(spec.name)
            ), spec.name
