"""How far a teacher moved, from two caches, and a student that keeps up with it."""

import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch

from edgekit.checkpoint import Checkpoint
from edgekit.cli.main import main
from edgekit.distill.cache import INDEX, LogitCache
from edgekit.distill.capture import CaptureOptions, capture
from edgekit.distill.follow import budget
from edgekit.distill.targets import TopTargets, top_k_targets
from edgekit.distill.teacher import teacher_logits
from edgekit.distill.teacher_move import compare, moved_kl
from edgekit.errors import BadInputError
from edgekit.progress import Silent
from edgekit.sequences import FILE_NAME, TokenSequence, write_sequences
from edgekit.tensorfile import TensorFile, TensorFileWriter


def some_logits(rows=50, tokens=200, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first = scale * torch.randn(rows, tokens, generator=generator)
    return first, first + 0.7 * torch.randn(rows, tokens, generator=generator)


def exact_kl(new, old):
    p, q = (x.double().log_softmax(-1) for x in (new, old))
    return (p.exp() * (p - q)).sum(-1).numpy()


def test_the_move_by_hand():
    """Of four tokens the new cache keeps 0 and 1, the old one 0 and 2; only 0 is in both. The new
    teacher gives it 1/2 and all others 1/2, the old one 1/4 and 3/4."""
    new = TopTargets(torch.tensor([[0, 1]]), torch.tensor([[1 / 2, 3 / 8]]).log(),
                     torch.tensor([1 / 8]).log())  # fmt: skip
    old = TopTargets(torch.tensor([[2, 0]]), torch.tensor([[5 / 8, 1 / 4]]).log(),
                     torch.tensor([1 / 8]).log())  # fmt: skip
    kl, mass = moved_kl(new, old)
    assert kl[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-6)
    assert mass[0] == pytest.approx(0.5)


def test_with_the_whole_vocabulary_it_is_the_kl():
    old, new = some_logits()
    kl, mass = moved_kl(top_k_targets(new, 200), top_k_targets(old, 200))
    np.testing.assert_allclose(kl, exact_kl(new, old), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(mass, 1.0, atol=1e-6)


@pytest.mark.parametrize(("kept_new", "kept_old"), [(1, 1), (4, 16), (16, 4), (64, 64)])
def test_it_is_the_kl_of_the_common_tokens_and_one_rest(kept_new, kept_old):
    old, new = some_logits()
    after, before = top_k_targets(new, kept_new), top_k_targets(old, kept_old)
    kl, mass = moved_kl(after, before)
    whole = exact_kl(new, old)
    assert (kl <= whole + 1e-6).all()
    for row in range(len(new)):
        common = sorted(set(after.ids[row].tolist()) & set(before.ids[row].tolist()))
        p, q = (x[row].double().softmax(-1) for x in (new, old))
        p, q = (torch.cat([x[common], 1 - x[common].sum()[None]]) for x in (p, q))
        assert kl[row] == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-3, abs=1e-5)
        assert mass[row] == pytest.approx(float(p[:-1].sum()), abs=1e-5)
    if kept_new == kept_old == 64:
        assert kl.mean() > 0.85 * whole.mean()


def test_more_tokens_never_say_less():
    old, new = some_logits()
    bounds = [moved_kl(top_k_targets(new, k), top_k_targets(old, k))[0] for k in (2, 8, 32, 200)]
    for fewer, more in itertools.pairwise(bounds):
        assert (fewer <= more + 1e-6).all()


@pytest.mark.parametrize(
    ("moved", "student", "steps"),
    [(0.0, 0.5, 0), (0.1, 0.5, 20), (0.25, 0.5, 50), (0.5, 0.5, 100), (2.0, 0.5, 100),
     (0.1, 0.0, 100), (0.0, 0.0, 0), (1e-5, 0.5, 0)],
)  # fmt: skip
def test_the_budget_is_the_share_of_the_earlier_way(moved, student, steps):
    assert budget(moved, student, 100) == steps


def rewritten(source, target, change):
    """A checkpoint whose tensors are ``change(name, values)``."""
    shutil.copytree(source, target)
    path = target / "model.safetensors"
    with TensorFile(source / "model.safetensors") as file:
        path.unlink()
        with TensorFileWriter(path, list(file.tensors.values()), file.metadata) as writer:
            for name in file.tensors:
                writer.write(name, change(name, file.float32(name)).astype(np.float32))
    return target


def noise(size):
    """Moves every matrix by noise of ``size`` times its standard deviation."""
    rng = np.random.default_rng(0)

    def change(_, value):
        return value + (value.ndim > 1) * size * value.std() * rng.standard_normal(value.shape)

    return change


def cached(teacher, text, out, **options):
    out.mkdir()
    capture(teacher, text, CaptureOptions(**options), out, Silent())
    return LogitCache(out)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    rng = np.random.default_rng(1)
    made = [
        TokenSequence(rng.integers(3, 500, 24).astype(np.int32), "ab"[i % 2], i % 3 == 2,
                      rng.random(24) < 0.7 if i % 4 else None)
        for i in range(42)
    ]  # fmt: skip
    directory = tmp_path_factory.mktemp("text")
    write_sequences(directory / FILE_NAME, made)
    return directory


@pytest.fixture(scope="module")
def teacher(tiny_mixtral, tmp_path_factory):
    """As sure of its next token as trained models are."""

    def change(name, value):
        return value * 5 if name == "model.norm.weight" else value

    return rewritten(tiny_mixtral, tmp_path_factory.mktemp("teacher") / "teacher", change)


@pytest.fixture(scope="module")
def old(teacher, text, tmp_path_factory):
    return cached(teacher, text, tmp_path_factory.mktemp("caches") / "old")


@pytest.fixture(scope="module")
def moved_teachers(teacher, tmp_path_factory):
    root = tmp_path_factory.mktemp("teachers")
    return {size: rewritten(teacher, root / str(size), noise(size)) for size in (0.02, 0.2)}


def exact_move(new, old, cache):
    """KL over whole distributions at the held-out positions that count."""
    after, before = teacher_logits(new), teacher_logits(old)
    values = []
    for s in cache.sequences:
        if s.held_out:
            pair = (torch.from_numpy(f(s.tokens)[:, : cache.vocab_size]) for f in (after, before))
            values.append(exact_kl(*pair)[slice(None) if s.counted is None else s.counted])
    return np.concatenate(values)


def test_a_larger_move_is_larger_and_asks_for_more_steps(
    teacher, moved_teachers, text, old, tmp_path
):
    same = compare(old, cached(teacher, text, tmp_path / "same"))
    assert same.kl.all.value == 0
    assert budget(same.kl.all.value, 0.5, 1000) == 0
    moves = []
    for size, moved in moved_teachers.items():
        move = compare(old, cached(moved, text, tmp_path / str(size)))
        exact = exact_move(moved, teacher, old)
        assert len(exact) == move.positions
        assert 0.5 * exact.mean() < move.kl.all.value < exact.mean()
        assert set(move.kl.domains) == {"a", "b"}
        assert move.kl.all.low < move.kl.all.value < move.kl.all.high
        moves.append(move)
    little, lot = (m.kl.all.value for m in moves)
    assert 10 * little < lot
    assert moves[0].compared_mass > moves[1].compared_mass
    assert 0 < budget(little, lot, 1000) < 100


def test_caches_of_whole_distributions_give_the_whole_move(teacher, moved_teachers, text, tmp_path):
    old = cached(teacher, text, tmp_path / "old", top_k=512)
    move = compare(old, cached(moved_teachers[0.2], text, tmp_path / "new", top_k=512))
    exact = exact_move(moved_teachers[0.2], teacher, old).mean()
    assert move.kl.all.value == pytest.approx(exact, rel=0.01)  # float16
    assert move.compared_mass == pytest.approx(1.0)


def test_only_new_training_text_leaves_caches_comparable(teacher, text, old, tmp_path):
    more = [*old.sequences, TokenSequence(np.arange(3, 40, dtype=np.int32), "a", False)]
    (tmp_path / "more").mkdir()
    write_sequences(tmp_path / "more" / FILE_NAME, more)
    new = cached(teacher, tmp_path / "more", tmp_path / "new", targets="top_k", top_k=16)
    assert compare(old, new).kl.all.value < 2e-3  # other tokens kept, float16


def changed(cache, target, **values):
    """A copy of a cache whose index says something else."""
    shutil.copytree(cache.directory, target)
    index = json.loads((target / INDEX).read_text())
    (target / INDEX).write_text(json.dumps({**index, **values}))
    return LogitCache(target)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"tokenizer": "other"}, "their tokenizer differ"),
        ({"temperature": 2.0}, r"their temperature \(1 and 2\) differ"),
        ({"vocab_size": 400}, r"their vocabulary \(\d+ and 400 tokens\) differ"),
    ],
)
def test_caches_of_different_kinds_are_not_compared(old, tmp_path, values, reason):
    with pytest.raises(BadInputError, match=reason):
        compare(old, changed(old, tmp_path / "new", **values))


@pytest.mark.parametrize("position", ["tokens", "counted"])
def test_caches_of_other_text_are_not_compared(teacher, old, tmp_path, position):
    import dataclasses

    last = old.sequences[-1]
    assert last.held_out
    value = {"tokens": last.tokens[::-1].copy(), "counted": np.arange(24) > 5}[position]
    other = [*old.sequences[:-1], dataclasses.replace(last, **{position: value})]
    (tmp_path / "other").mkdir()
    write_sequences(tmp_path / "other" / FILE_NAME, other)
    with pytest.raises(BadInputError, match="held-out text is not that of"):
        compare(old, cached(teacher, tmp_path / "other", tmp_path / "new"))


def test_without_held_out_text_there_is_nothing_to_compare(teacher, old, tmp_path):
    (tmp_path / "text").mkdir()
    write_sequences(tmp_path / "text" / FILE_NAME, [s for s in old.sequences if not s.held_out])
    cache = cached(teacher, tmp_path / "text", tmp_path / "cache")
    with pytest.raises(BadInputError, match="no held-out text to compare on"):
        compare(cache, cache)


def followed(capsys, new, student, cache, out, *more):
    code = main(["distill", "follow", str(new), "--from", str(student), "--cache",
                 cache.directory, "--out", str(out), "--batch-tokens", "96", "--learning-rate",
                 "1e-3", "--trainable", "all", *more, "--json"])  # fmt: skip
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out[captured.out.index("{") :])


def test_a_student_follows_its_teacher(teacher, moved_teachers, text, old, tmp_path, capsys):
    """The student is the old teacher itself, so all that it lacks is the move."""
    report = followed(capsys, moved_teachers[0.2], teacher, old, tmp_path / "out",
                      "--steps", "90", "--student-kl", "12")  # fmt: skip
    assert 0 < report["steps"] == budget(report["moved"]["kl"]["all"]["value"], 12, 90) < 90
    assert 0 < report["after"]["all"]["value"] < report["before"]["all"]["value"]
    assert json.loads((tmp_path / "out" / "follow.json").read_text()) == report
    new = LogitCache(tmp_path / "out" / "cache")
    assert compare(old, new).model_dump(mode="json") == report["moved"]
    with Checkpoint(tmp_path / "out" / "student") as student:
        assert student.architecture.moe.num_experts == 4
    assert not list(tmp_path.glob(".out*"))
    assert main(["distill", "compare", old.directory, new.directory]) == 0
    shown = capsys.readouterr().out
    assert f"{report['moved']['kl']['all']['value']:.4f}" in shown


def test_the_new_cache_has_what_another_loss_needs(
    teacher, moved_teachers, old, tmp_path, capsys, monkeypatch
):
    """And where memory seems too small, --force goes on in training too."""
    import edgekit.distill.stage as stage

    assert old.index.targets == "sampled" and not old.index.probabilities
    forced = []
    monkeypatch.setattr(stage, "require_training_memory", lambda *given: forced.append(given[-1]))
    report = followed(
        capsys, moved_teachers[0.2], teacher, old, tmp_path / "out", "--steps", "4",
        "--student-kl", "2", "--loss", "reverse_kl", "--force",
    )  # fmt: skip
    assert report["steps"] > 0 and forced == [True]
    assert LogitCache(tmp_path / "out" / "cache").index.probabilities


def test_what_parts_a_loss_reaches_the_training(
    teacher, moved_teachers, old, tmp_path, capsys, monkeypatch
):
    import edgekit.distill.follow as module

    original, found = module.train, []

    def noting(student, cache, params, *more, **options):
        found.append((params.loss, params.beta, params.skew))
        return original(student, cache, params, *more, **options)

    monkeypatch.setattr(module, "train", noting)
    followed(capsys, moved_teachers[0.2], teacher, old, tmp_path / "out", "--steps", "4",
             "--student-kl", "2", "--loss", "jsd", "--beta", "0.9", "--skew", "0.3")  # fmt: skip
    assert found == [("jsd", 0.9, 0.3)]


def test_a_student_that_does_not_fit_the_cache_is_refused_before_the_teacher_runs(
    teacher, tiny_model, old, tmp_path, capsys, monkeypatch
):
    import edgekit.distill.follow as module

    monkeypatch.setattr(module, "capture", lambda *_: pytest.fail("the teacher was run"))
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}")
    small = tiny_model("mixtral", vocab_size=64)
    for student, reason in ((other, "the chat templates differ"), (small, "has 64 tokens")):
        code = main(["distill", "follow", str(teacher), "--from", str(student), "--cache",
                     old.directory, "--steps", "5", "--out", str(tmp_path / "out")])  # fmt: skip
        assert code == 2
        assert reason in capsys.readouterr().err


def test_a_cache_without_held_out_text_is_refused_before_the_teacher_runs(
    teacher, old, tmp_path, capsys, monkeypatch
):
    import edgekit.distill.follow as module

    (tmp_path / "text").mkdir()
    write_sequences(tmp_path / "text" / FILE_NAME, [s for s in old.sequences if not s.held_out])
    cache = cached(teacher, tmp_path / "text", tmp_path / "cache")
    monkeypatch.setattr(module, "capture", lambda *_: pytest.fail("the teacher was run"))
    code = main(["distill", "follow", str(teacher), "--from", str(teacher), "--cache",
                 cache.directory, "--steps", "5", "--out", str(tmp_path / "out")])  # fmt: skip
    assert code == 2
    assert "no held-out text to compare on" in capsys.readouterr().err


def test_a_teacher_that_stayed_asks_for_nothing(teacher, tiny_model, old, tmp_path, capsys):
    previous = tiny_model("mixtral", seed=3)
    report = followed(capsys, teacher, previous, old, tmp_path / "out", "--steps", "50")
    assert report["steps"] == 0
    assert report["moved"]["kl"]["all"]["value"] == 0
    assert report["before"] == report["after"]
    assert report["student_kl"] == pytest.approx(report["before"]["all"]["value"])
    for file in previous.iterdir():
        assert (tmp_path / "out" / "student" / file.name).read_bytes() == file.read_bytes()


def test_a_teacher_with_another_tokenizer_is_refused_before_it_runs(
    teacher, old, tmp_path, capsys, monkeypatch
):
    import edgekit.distill.follow as module

    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}")
    monkeypatch.setattr(module, "capture", lambda *_: pytest.fail("the teacher was run"))
    code = main(["distill", "follow", str(other), "--from", str(teacher), "--cache",
                 old.directory, "--steps", "5", "--out", str(tmp_path / "out")])  # fmt: skip
    assert code == 2
    assert "their tokenizer differ" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
