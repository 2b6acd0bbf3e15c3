"""How a student is trained: options that change the result, and those that must not."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import half_precision
from training_runs import OPTIONS, captured, healed, interrupted_in, text

from edgekit.checkpoint import Checkpoint
from edgekit.distill.batches import Batch, dealt
from edgekit.distill.cache import LogitCache
from edgekit.distill.divergence import Divergence, remember
from edgekit.distill.evaluation import note_evaluation
from edgekit.distill.loading import load_model
from edgekit.distill.open_model import open_model
from edgekit.distill.optimizers import make_optimizer, schedule
from edgekit.distill.state import Evaluation, TrainingState, restore_state, save_state
from edgekit.distill.train import training_digest
from edgekit.distill.trainer import NEVER, Trainer
from edgekit.errors import BadInputError, MissingRuntimeError
from edgekit.progress import Silent
from edgekit.recipe import DistillSection, checked
from edgekit.sequences import TokenSequence


@pytest.fixture(scope="module")
def cache(tiny_mixtral, tmp_path_factory):
    return captured(tiny_mixtral, tmp_path_factory.mktemp("captured"))


@pytest.fixture(scope="module")
def student(tiny_model):
    return tiny_model("mixtral", seed=3)


@pytest.fixture(scope="module")
def plain(student, cache, tmp_path_factory):
    return healed(student, cache, tmp_path_factory.mktemp("plain") / "out")


@pytest.mark.parametrize(
    "options",
    [
        {"micro_batch_tokens": 16},
        {"micro_batch_tokens": 10_000},
        {"activation_checkpointing": True},
        {"micro_batch_tokens": 0},
    ],
    ids=str,
)
def test_what_only_saves_memory_or_time_changes_rounding_alone(
    student, cache, plain, tmp_path, options
):
    report, weights = healed(student, cache, tmp_path / "out", **options)
    assert report.losses == pytest.approx(plain[0].losses, abs=1e-4)
    for name, expected in plain[1].items():
        np.testing.assert_allclose(weights[name], expected, atol=2e-4, err_msg=name)


def test_bfloat16_products_train_about_as_far(student, cache, plain, tmp_path):
    report, _ = healed(student, cache, tmp_path / "out", precision="bfloat16")
    assert report.losses == pytest.approx(plain[0].losses, rel=0.05)
    assert report.losses != plain[0].losses


def test_routers_decide_in_float32_whatever_the_precision(student):
    with open_model(student) as opened:
        block = opened.mixtures[0]
        x = torch.randn(50, opened.architecture.hidden_size)
        with torch.autocast("cpu", torch.bfloat16):
            found = block.route(x)
        assert found.logits.dtype == torch.float32
        assert torch.equal(found.logits, block.route(x).logits)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_every_optimizer_continues_to_the_same_weights(
    student, cache, tmp_path, optimizer, lora_rank
):
    options = {
        "optimizer": optimizer, "lora_rank": lora_rank, "weight_decay": 0.1, "save_every": 2,
        "learning_rate": 1e-2, "evaluate_every": 2,
    }  # fmt: skip
    report, whole = healed(student, cache, tmp_path / "whole", **options)
    assert np.mean(report.losses[-2:]) < report.losses[0]
    with interrupted_in(3):
        healed(student, cache, tmp_path / "killed", tmp_path / "scratch", **options)
    again, resumed = healed(student, cache, tmp_path / "again", tmp_path / "scratch", **options)
    assert again.losses == report.losses and again.evaluations == report.evaluations
    for name, expected in whole.items():
        assert np.array_equal(resumed[name], expected), name


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_only_matrices_decay(optimizer):
    matrix, vector = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(3))
    biases = torch.nn.Parameter(torch.ones(4, 3))  # one of every expert
    section = DistillSection(steps=1, optimizer=optimizer, weight_decay=0.5, learning_rate=0.1)
    named = {"down": matrix, "norm.weight": vector, "mixture.down_bias": biases}
    made = make_optimizer(named, section)
    for parameter in named.values():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    assert torch.allclose(matrix, torch.full((3, 2), 0.95)) and torch.equal(vector, torch.ones(3))
    assert torch.equal(biases, torch.ones(4, 3))


def test_rates_fall_as_asked():
    def rates(decay):
        return [schedule(step, 100, 0.2, decay) for step in range(100)]

    for decay in ("cosine", "linear", "constant"):
        assert rates(decay)[:20] == pytest.approx([(i + 1) / 20 for i in range(20)])
    assert rates("constant")[20:] == [1.0] * 80
    assert rates("linear")[60] == pytest.approx(1 - 0.9 * 0.5)
    assert rates("cosine")[40] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_a_gradient_is_clipped_to_its_limit(student, cache, tmp_path):
    report, _ = healed(student, cache, tmp_path / "a", steps=1, clip_norm=1e-6)
    free, _ = healed(student, cache, tmp_path / "b", steps=1, clip_norm=0)
    assert report.gradient_norms == free.gradient_norms  # as it was before
    with open_model(student) as opened:
        logits = LogitCache(cache)
        section = DistillSection(**OPTIONS, clip_norm=1e-6)
        trainer = Trainer(opened, section, logits.vocab_size)
        seen = []
        trainer.optimizer.step = lambda: seen.append(
            torch.cat([p.grad.flatten() for p in trainer.parameters.values()]).norm().item()
        )
        trainer.train(logits, 0, 1, Silent())
    assert seen == pytest.approx([1e-6], rel=1e-3)


def training_text(seed):
    return [s for s in text(seed=seed) if not s.held_out]


def test_rounds_on_new_text_continue_one_training(student, tiny_mixtral):
    """Two calls are two parts of one training; calls that are done are not done again."""
    teacher = load_model(tiny_mixtral)
    with open_model(student) as opened:
        others = remember(opened.model, training_text(seed=5), Silent())
        vocab_size = opened.architecture.vocab_size
        trainer = Trainer(opened, DistillSection(**OPTIONS), vocab_size)
        trainer.begin(Silent())
        trainer.train(others, 0, 2, Silent())
        assert trainer.state.losses[0] < 1e-4  # the student's own answers teach it nothing new
        trainer.train(remember(teacher, training_text(seed=6), Silent()), 2, 4, Silent())
        assert trainer.state.step == 4 and min(trainer.state.losses[2:]) > 0.01
        trainer.train(others, 0, 2, Silent())
        assert trainer.state.step == 4


def test_the_best_weights_are_what_is_written(student, cache, tmp_path):
    # a rate that rises to what destroys the student
    options = {"steps": 12, "learning_rate": 1.0, "warm_up": 1.0, "evaluate_every": 3}
    report, _ = healed(student, cache, tmp_path / "out", **options)
    best = min(report.evaluations, key=lambda e: e.kl)
    assert [e.step for e in report.evaluations] == [0, 3, 6, 9, 12]
    assert report.written_step == best.step < 12
    assert report.held_out_kl_after == pytest.approx(best.kl, rel=1e-3)
    assert set(report.evaluations[0].students[0].domains) == {"a", "b"}
    assert len(report.losses) == len(report.gradient_norms) == len(report.learning_rates) == 12


def test_training_stops_when_it_gains_no_more(student, cache, tmp_path):
    options = {"learning_rate": 0.2, "decay": "constant", "warm_up": 0, "evaluate_every": 1}
    report, _ = healed(
        student, cache, tmp_path / "out", tmp_path / "scratch", steps=50, patience=2, **options
    )
    assert report.stopped_early and report.steps < 50
    assert report.steps == report.written_step + 2
    assert sorted(p.name for p in (tmp_path / "scratch").glob("best-*")) == [
        f"best-{report.written_step}.safetensors"
    ]


def evaluated(*values):
    point = {"value": 0.0, "low": None, "high": None}
    return [
        Evaluation(
            step=step, students=(Divergence.model_validate(
                {"all": {**point, "value": value}, "domains": {"a": {**point, "value": value}}}
            ),)
        )
        for step, value in enumerate(values)
    ]  # fmt: skip


def test_patience_counts_from_the_best():
    state, stops = TrainingState(), []
    for found in evaluated(1.0, 0.5, 0.6, 0.4, 0.4, 0.45):
        state.evaluations.append(found)
        note_evaluation(state, patience=2)
        stops.append((state.best, state.stale, state.stopped))
    assert stops == [
        (0, 0, False), (1, 0, False), (1, 1, False), (3, 0, False), (3, 1, False), (3, 2, True)
    ]  # fmt: skip


def test_patience_without_evaluations_is_refused():
    with pytest.raises(BadInputError, match=r"patience.*evaluate_every"):
        checked(DistillSection, steps=1, patience=2)


def test_evaluations_need_held_out_text(student, tiny_mixtral, tmp_path):
    silent = captured(tiny_mixtral, tmp_path, training_text(seed=1))
    with pytest.raises(BadInputError, match=r"no held-out text for evaluate_every; set it to 0"):
        healed(student, silent, tmp_path / "a", evaluate_every=2)
    report, _ = healed(student, silent, tmp_path / "b")
    assert json.loads(report.model_dump_json())["held_out_kl_after"] is None


def test_a_state_is_saved_whatever_is_measured(student, tiny_mixtral, monkeypatch, tmp_path):
    """Also in a step that is due for an evaluation and has nothing to evaluate on."""
    saved = []
    monkeypatch.setattr(Trainer, "save", lambda self: saved.append(self.state.step))
    teacher = load_model(tiny_mixtral)
    section = DistillSection(**{**OPTIONS, "evaluate_every": 2, "save_every": 2})
    with open_model(student) as opened:
        targets = remember(teacher, training_text(seed=5), Silent())
        trainer = Trainer(opened, section, 512, saved=tmp_path, held_out=targets)
        trainer.train(targets, 0, 6, Silent())
    assert saved == [2, 4, 6]


def test_a_student_that_is_nothing_on_held_out_text_is_refused(student, cache, tmp_path):
    with open_model(student) as opened:
        next(opened.layers[0].parameters()).data.fill_(math.nan)
        section, logits = DistillSection(**OPTIONS, evaluate_every=2), LogitCache(cache)
        trainer = Trainer(opened, section, 512, saved=tmp_path, held_out=logits)
        with pytest.raises(BadInputError, match="after 0 steps its KL on held-out text is not fin"):
            trainer.begin(Silent())
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("top_k", [4, 512])
def test_a_temperature_softens_only_what_is_known(student, tiny_mixtral, tmp_path, top_k):
    """Of a tail the mass is kept, and not how it would be softened."""
    lumped = captured(tiny_mixtral, tmp_path, top_k=top_k)
    if top_k == 512:  # the whole vocabulary
        healed(student, lumped, tmp_path / "a", steps=1, temperature=2.0)
        return
    with pytest.raises(BadInputError, match=r"softens what its top_k targets have lumped together"):
        healed(student, lumped, tmp_path / "a", temperature=2.0)
    with pytest.raises(BadInputError, match=r"temperature.*targets = \"sampled\""):
        checked(DistillSection, steps=1, temperature=2.0, targets="top_k")


def test_the_state_after_the_last_good_step_is_kept(student, cache, tmp_path, monkeypatch):
    from edgekit.distill.losses import Loss

    original, calls = Loss.__call__, [0]

    def broken(self, logits, targets, labels):
        calls[0] += 1
        return original(self, logits, targets, labels) * (math.nan if calls[0] > 3 else 1)

    monkeypatch.setattr(Loss, "__call__", broken)
    options = {"batch_tokens": 16, "micro_batch_tokens": 10_000}
    with pytest.raises(BadInputError, match=r"learning_rate: in step 4 .*lower it"):
        healed(student, cache, tmp_path / "out", tmp_path / "scratch", **options)
    state = TrainingState.model_validate_json(
        (tmp_path / "scratch" / "state" / "state.json").read_text()
    )
    assert state.step == 3 and len(state.losses) == 3
    monkeypatch.undo()
    report, _ = healed(student, cache, tmp_path / "again", tmp_path / "scratch", **options)
    assert report.losses[:3] == [round(x, 5) for x in state.losses] and report.steps == 6


def test_between_rounds_a_step_that_fails_keeps_nothing(student, cache, tmp_path, monkeypatch):
    """It would be continued as the beginning of a round, with other weights."""
    from edgekit.distill.losses import Loss

    original = Loss.__call__
    monkeypatch.setattr(Loss, "__call__", lambda *a: original(*a) * math.nan)
    with pytest.raises(BadInputError, match=r"in step 1 .* train again from the beginning$"):
        healed(student, cache, tmp_path / "out", tmp_path / "scratch", save_every=NEVER)
    assert not (tmp_path / "scratch" / "state").exists()


def test_the_only_state_is_there_until_the_next_is(student, tmp_path, monkeypatch):
    """Killed between two renames, and once more in the next saving."""
    directory = tmp_path / "state"
    with open_model(student) as opened:
        trainer = Trainer(opened, DistillSection(**OPTIONS), 512)
        parts = trainer.parameters, trainer.optimizer
        save_state(directory, TrainingState(step=3), *parts)
        directory.rename(tmp_path / "state.old")

        def killed(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "rename", killed)
            save_state(directory, TrainingState(step=4), *parts)
        assert restore_state(directory, *parts).step == 3
        save_state(directory, TrainingState(step=4), *parts)
        assert restore_state(directory, *parts).step == 4
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_text_that_is_all_held_out_is_refused(student):
    with open_model(student) as opened:
        trainer = Trainer(opened, DistillSection(**OPTIONS), 512)
        empty = remember(opened.model, [s for s in text() if s.held_out], Silent())
        with pytest.raises(BadInputError, match="no sequences to train on"):
            trainer.train(empty, 0, 1, Silent())


def test_a_sequence_beyond_the_context_is_refused(tiny_model, cache, tmp_path):
    short = tiny_model("mixtral", max_position_embeddings=24)
    with pytest.raises(BadInputError, match=r"context is 24 tokens.*sequence_length"):
        healed(short, cache, tmp_path / "out")


def test_sequences_of_which_nothing_counts_are_left_out(student):
    quiet = [
        TokenSequence(s.tokens, s.domain, False, np.zeros(len(s.tokens), np.bool_)) for s in text(4)
    ]
    with open_model(student) as opened:
        targets = remember(opened.model, [*quiet, *text(4)], Silent())
        trainer = Trainer(opened, DistillSection(**OPTIONS), 512)
        trainer.train(targets, 0, 3, Silent())
    assert all(math.isfinite(loss) for loss in trainer.state.losses)


def test_options_that_change_no_result_leave_a_state_usable(student, cache):
    first = training_digest(student, cache, DistillSection(steps=3))
    less = DistillSection(steps=3, micro_batch_tokens=64, save_every=5, trackers=("tensorboard",))
    assert training_digest(student, cache, less) == first
    other = DistillSection(steps=3, optimizer="adafactor")
    assert training_digest(student, cache, other) != first


def test_processes_have_about_the_same_work_and_leave_nothing_out(cache):
    from edgekit.distill.batches import Lesson
    from edgekit.distill.losses import Loss

    logits = LogitCache(cache)
    batch = Batch(Lesson(logits, Loss()), list(range(12)))
    for count in (1, 2, 3, 20):
        hands = [dealt(batch, rank, count) for rank in range(count)]
        assert sorted(n for hand in hands for n in hand.numbers) == batch.numbers
        if count < 4:
            assert max(h.tokens for h in hands) - min(h.tokens for h in hands) < 40


def test_trackers_that_are_not_there_are_named(student, cache, tmp_path, monkeypatch):
    import accelerate.tracking

    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: [])
    with pytest.raises(MissingRuntimeError, match=r"tensorboard is not installed.*pip install"):
        healed(student, cache, tmp_path / "a", trackers=("tensorboard",))
    with pytest.raises(BadInputError, match=r"no tracker 'tensorbord'.*tensorboard"):
        healed(student, cache, tmp_path / "b", trackers=("tensorbord",))


def test_trackers_see_every_step_and_what_they_wrote_is_beside_the_student(
    student, cache, tmp_path, monkeypatch
):
    import accelerate.tracking as tracking
    from accelerate.utils import LoggerType

    class Lines(tracking.GeneralTracker):
        name, requires_logging_directory = "tensorboard", True

        def __init__(self, run_name, logging_dir=None, **_):
            super().__init__()
            self.path = Path(logging_dir) / f"{run_name}.jsonl"

        @property
        def tracker(self):
            return self.path

        def store_init_configuration(self, values):
            self.log(values, "options")

        def log(self, values, step=None, **_):
            with self.path.open("a") as file:
                file.write(json.dumps([step, values]) + "\n")

    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Lines)
    report, _ = healed(
        student, cache, tmp_path / "out", trackers=("tensorboard",), steps=2, evaluate_every=2
    )
    (written,) = (tmp_path / "out" / "trackers").rglob("*.jsonl")
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    assert [step for step, _ in lines] == ["options", 0, 1, 2, 2]
    assert lines[0][1]["batch_tokens"] == 120 and set(lines[1][1]) == {"KL", "KL, a", "KL, b"}
    assert [round(v["loss"], 5) for _, v in lines[1:] if "loss" in v] == report.losses


def test_what_is_stored_as_float32_stays_so(tiny_model, tmp_path):
    """A router's corrections are near each other, and decide who is chosen."""
    half = half_precision(tiny_model("deepseek_v3"), tmp_path / "half")
    (tmp_path / "text").mkdir()
    _, weights = healed(half, captured(half, tmp_path / "text"), tmp_path / "out", steps=2)
    with Checkpoint(half) as before, Checkpoint(tmp_path / "out") as after:
        kinds = {n: k for n, k in before.dtypes.items() if k == "F32"}
        assert kinds and all(after.dtypes[name] == "F32" for name in kinds)
        corrections = [name for name in weights if name.endswith("correction_bias")]
        assert corrections
        for name in corrections:
            np.testing.assert_array_equal(weights[name], before.float32(name))


def test_a_cache_that_lies_elsewhere_teaches_the_same(student, cache, tmp_path):
    """From memory:// as from an object store, on the command line."""
    import fsspec

    from edgekit.cli.main import main

    fsspec.filesystem("memory").put(str(cache), "/store/cache", recursive=True)
    for name, place in (("near", str(cache)), ("far", "memory://store/cache")):
        arguments = ["distill", "train", str(student), "--cache", place, "--steps", "2"]
        assert main([*arguments, "--out", str(tmp_path / name)]) == 0
    near, far = (tmp_path / name / "model.safetensors" for name in ("near", "far"))
    assert near.read_bytes() == far.read_bytes()
