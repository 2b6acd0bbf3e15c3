"""A densified student learns, layer by layer, what the mixtures in its place said."""

import json

import numpy as np
import pytest
import torch
from test_densify import edited
from test_densify_families import constant_gates

from edgekit.checkpoint import Checkpoint
from edgekit.distill import dense_layer
from edgekit.distill.dense_layer import (
    DenseModule,
    Lesson,
    WarmUpOptions,
    relative_error,
    solve_down,
    train_layer,
)
from edgekit.distill.dense_warm_up import warm_up
from edgekit.distill.densify import DenseOptions, densify
from edgekit.distill.divergence import measure, remember
from edgekit.distill.loading import load_model
from edgekit.errors import BadInputError, EdgekitError, OutOfResourcesError
from edgekit.progress import Silent
from edgekit.sequences import TokenSequence

DOWN = ("down", "weight")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads wait for each other longer than matrices this small take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def text(count=20, length=40, domains=("x",), vocabulary=500):
    """Every fourth sequence is held out; domains in turn."""
    rng = np.random.default_rng(0)
    return [
        TokenSequence(
            rng.integers(3, vocabulary, length).astype(np.int32), domains[i % len(domains)],
            i % 4 == 0,
        )
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture
def module(tiny_model):
    """A feed-forward of 64 channels and 32 neurons."""
    with Checkpoint(tiny_model("llama", intermediate_size=32)) as checkpoint:
        return DenseModule(checkpoint, checkpoint.architecture.layers[0].dense)


def lessons(module, noise, tokens=(120, 60), seed=0):
    """What another down projection says of random inputs, with noise: learnt, and unseen."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    down = module.weights[DOWN]
    wanted = down + 0.5 * down.std() * normal(*down.shape)
    result = []
    for count in tokens:
        x = normal(count, 64)
        y = module.hidden(x) @ wanted.T
        result.append(Lesson(x, y + noise * y.std() * normal(*y.shape)))
    return result


def regularised(module, learnt, ridge):
    """numpy's least squares with one more row for every neuron, which asks for no change."""
    neurons = module.hidden(learnt.x).double().numpy()
    missing = (learnt.y - module(learnt.x)).double().numpy()
    strength = np.sqrt(ridge * (neurons**2).sum(0).mean())
    rows = np.concatenate([neurons, strength * np.eye(neurons.shape[1])])
    wanted = np.concatenate([missing, np.zeros((neurons.shape[1], missing.shape[1]))])
    return module.weights[DOWN].numpy() + np.linalg.lstsq(rows, wanted, rcond=None)[0].T


@pytest.mark.parametrize("noise", [0.01, 0.3, 0.7])
@pytest.mark.parametrize("rows", [64, 4096])
def test_down_is_the_best_of_numpys_regularised_least_squares(module, monkeypatch, noise, rows):
    monkeypatch.setattr(dense_layer, "ROWS", rows)  # in parts or at once
    learnt, unseen = lessons(module, noise)
    candidates = [regularised(module, learnt, ridge) for ridge in dense_layer.RIDGES]
    neurons, y = (t.double().numpy() for t in (module.hidden(unseen.x), unseen.y))
    errors = [((neurons @ c.T - y) ** 2).sum() / (y**2).sum() for c in candidates]
    before = relative_error(module, unseen)
    assert min(errors) < before
    solve_down(module, learnt, unseen)
    best = candidates[int(np.argmin(errors))]
    np.testing.assert_allclose(module.weights[DOWN].numpy(), best, atol=1e-4)
    assert relative_error(module, unseen) == pytest.approx(min(errors), rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_what_would_make_unseen_text_worse_is_not_kept(module, seed):
    learnt, unseen = lessons(module, noise=0, tokens=(30, 200), seed=seed)
    said = module(unseen.x)
    contrary = Lesson(unseen.x, said - (unseen.y - said))  # wants the opposite change
    weights = {place: weight.clone() for place, weight in module.weights.items()}
    solve_down(module, learnt, contrary)
    assert torch.equal(module.weights[DOWN], weights[DOWN])
    train_layer(module, learnt, contrary, WarmUpOptions(steps=8, batch_tokens=16))
    for place, weight in weights.items():
        assert torch.equal(module.weights[place], weight)


@pytest.mark.parametrize("noise", [0.1, 4.0])
def test_neither_step_makes_unseen_text_worse(module, noise):
    learnt, unseen = lessons(module, noise, tokens=(20, 100))
    before = relative_error(module, unseen)
    solve_down(module, learnt, unseen)
    solved = relative_error(module, unseen)
    train_layer(module, learnt, unseen, WarmUpOptions(steps=20, learning_rate=0.1))
    assert relative_error(module, unseen) <= solved <= before


def test_a_mixture_that_says_nothing_gives_finite_errors(module):
    x = torch.randn(40, 64)
    silent = Lesson(x, torch.zeros(40, 64))
    before = relative_error(module, silent)
    solve_down(module, silent, silent)
    train_layer(module, silent, silent, WarmUpOptions(steps=4))
    assert 0 <= relative_error(module, silent) < before < np.inf


def made(teacher, root, sequences, steps, **options):
    """A dense student of ``teacher``, and what warming it up gives."""
    student, out = root / "student", root / "out"
    student.mkdir()
    out.mkdir()
    densify(teacher, sequences, DenseOptions(**options), student, Silent())
    settings = WarmUpOptions(steps=steps, batch_tokens=128, learning_rate=2e-3)
    return student, out, warm_up(teacher, student, sequences, settings, out, Silent())


def feed_forward_names(architecture):
    return {
        f"{module}.{kind}"
        for layer in architecture.layers
        for module in (layer.dense.gate, layer.dense.up, layer.dense.down)
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "deepseek_v2"])
def test_constant_gates_start_at_error_0_and_stay(family, tmp_path):
    """Also where a shared expert, with a gate or without, is part of what is to be said."""
    teacher = constant_gates(tmp_path / "teacher", family)
    student, out, report = made(teacher, tmp_path, text(8, 20), 4, experts=4, scaling="marginal")
    sparse = {"mixtral": {0, 1}, "qwen2_moe": {0, 1}, "deepseek_v2": {1}}[family]
    for errors in (report.before, report.solved, report.after):
        assert set(errors) == sparse and all(0 <= e < 1e-6 for e in errors.values())
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        found = [load_model(d)(ids, use_cache=False).logits for d in (teacher, student, out)]
    torch.testing.assert_close(found[1], found[0], atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(found[2], found[0], atol=2e-4, rtol=2e-4)


@pytest.fixture(scope="module")
def warmed(tiny_model, tmp_path_factory):
    """A mixtral of three layers and its student after 60 steps."""
    root = tmp_path_factory.mktemp("warmed")
    teacher = tiny_model("mixtral", num_hidden_layers=3)
    sequences = text(60, 64, vocabulary=12)  # little to say, so much of it is learnt
    return (teacher, sequences, *made(teacher, root, sequences, 60))


def test_layers_say_more_of_what_the_mixtures_said(warmed):
    _, _, _, out, report = warmed
    for layer in range(3):
        assert report.solved[layer] < 0.8 * report.before[layer]
        assert report.after[layer] < 0.98 * report.solved[layer]
    saved = json.loads((out / "warm-up.json").read_text())
    assert saved["after"] == {str(layer): error for layer, error in report.after.items()}
    assert saved["tokens"] == 45 * 64
    before, after = (sorted(errors.values())[1] for errors in (report.before, report.after))
    assert f"2,880 tokens: the feed-forwards' outputs are off by {after:.2f} of" in report.sentence
    assert f"instead of {before:.2f} (the median layer" in report.sentence


def test_the_student_is_nearer_to_the_teacher_on_held_out_text(warmed):
    teacher, sequences, student, out, _ = warmed
    held_out = [s for s in sequences if s.held_out]
    targets = remember(load_model(teacher), held_out, Silent())
    before, after = (
        measure(load_model(d), targets, Silent()).divergence().all.value for d in (student, out)
    )
    assert after < 0.6 * before


def test_only_feed_forwards_change_and_transformers_opens_the_result(warmed):
    _, _, student, out, _ = warmed
    with Checkpoint(student) as before, Checkpoint(out) as after:
        assert dict(before.config) == dict(after.config) and before.dtypes == after.dtypes
        changed = {
            spec.name
            for spec in after.specs
            if not np.array_equal(before.float32(spec.name), after.float32(spec.name))
        }
        known = set(after.architecture.by_name)
        assert changed == feed_forward_names(after.architecture) & known
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (student / name).read_bytes() == (out / name).read_bytes()
    model = load_model(out)
    weight = model.model.layers[2].mlp.down_proj.weight
    with Checkpoint(out) as after:
        stored = after.float32("model.layers.2.mlp.down_proj.weight")
    np.testing.assert_array_equal(weight.detach().numpy(), stored)


def test_the_reported_errors_are_those_of_the_models_themselves(warmed):
    """The feed-forward that was written, on what transformers' mixture reads and says."""
    teacher, sequences, student, out, report = warmed
    unseen = [s for s in sequences if not s.held_out][4::5]
    seen = []
    model = load_model(teacher)
    model.model.layers[1].mlp.register_forward_hook(
        lambda _, given, said: seen.append((given[0], said))
    )
    with torch.inference_mode():
        for sequence in unseen:
            model(torch.from_numpy(sequence.tokens.astype(np.int64))[None], use_cache=False)
        x = torch.cat([given for given, _ in seen])
        y = torch.cat([said[0] if isinstance(said, tuple) else said for _, said in seen])
        for directory, reported in ((student, report.before), (out, report.after)):
            said = load_model(directory).model.layers[1].mlp(x)
            error = float((said - y).square().sum() / y.square().sum())
            assert reported[1] == pytest.approx(error, rel=1e-3)


def test_every_domain_is_kept_back_to_measure_on(tiny_mixtral, tmp_path, monkeypatch):
    """Five domains in turn: every fifth sequence would always be of the same one."""
    from edgekit.distill import dense_warm_up

    parts = []

    def batches(part, device):
        parts.append([s.domain for s in part])
        return original(part, device)

    original = dense_warm_up.text_batches
    monkeypatch.setattr(dense_warm_up, "text_batches", batches)
    domains = ("a", "b", "c", "d", "e")
    sequences = [
        TokenSequence(s.tokens, domains[i % 5], i >= 25) for i, s in enumerate(text(30, 8))
    ]
    made(tiny_mixtral, tmp_path, sequences, 0)
    learnt, unseen = parts
    assert sorted(unseen) == sorted(domains) and sorted(learnt) == sorted(domains * 4)


def test_a_half_precision_student_stays_one(tiny_mixtral, tmp_path):
    half = tmp_path / "half"
    load_model(tiny_mixtral).bfloat16().save_pretrained(half)
    _, out, report = made(half, tmp_path, text(8, 20), 0)
    assert set(report.after) == {0, 1}
    with Checkpoint(out) as checkpoint:
        assert checkpoint.dtypes["model.layers.0.mlp.down_proj.weight"] == "BF16"


def test_steps_are_repeatable(tiny_mixtral, tmp_path):
    weights = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        _, out, _ = made(tiny_mixtral, tmp_path / name, text(8, 20), 3)
        weights.append((out / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("layers.1.mlp.up_proj", lambda values: values[::-1], "the feed-forward of layer 1 is"),
        (
            "layers.0.mlp.gate_proj",
            lambda values: values * np.nan,
            "feed-forward of layer 0 is nan",
        ),
        ("self_attn.q_proj", lambda values: values * 1.01, "q_proj.weight is not what it was in"),
    ],
)
def test_what_was_written_wrongly_is_noticed(
    tiny_mixtral, tmp_path, monkeypatch, part, change, sentence
):
    from edgekit.distill import dense_warm_up

    original = dense_warm_up.write_checkpoint

    def wrong(out, config, tensor, *rest, **more):
        def changed(spec):
            return change(tensor(spec)) if part in spec.name else tensor(spec)

        original(out, config, changed, *rest, **more)

    monkeypatch.setattr(dense_warm_up, "write_checkpoint", wrong)
    with pytest.raises(EdgekitError, match=sentence):
        made(tiny_mixtral, tmp_path, text(8, 20), 1)


def refused(teacher, student, sequences, out):
    out.mkdir()
    with pytest.raises(BadInputError) as raised:
        warm_up(teacher, student, sequences, WarmUpOptions(steps=1), out, Silent())
    assert not list(out.iterdir())
    sentence = str(raised.value)
    assert "\n" not in sentence
    return sentence


def test_a_pair_that_does_not_belong_together_is_refused(
    tiny_model, tiny_llama, tiny_mixtral, tmp_path
):
    sequences, student = text(8, 20), tmp_path / "student"
    student.mkdir()
    densify(tiny_mixtral, sequences, DenseOptions(), student, Silent())
    strangers = {
        "of another depth": tiny_model("mixtral", num_hidden_layers=3),
        "of another width": tiny_model("mixtral", hidden_size=96),
        "of another vocabulary": tiny_model("mixtral", vocab_size=600),
        "of the same shape": tiny_model("mixtral", seed=1),
    }
    for name, teacher in strangers.items():
        sentence = refused(teacher, student, sequences, tmp_path / name)
        assert sentence == (
            f"{student}: was not made of {teacher}; make it with `edgekit shrink dense`"
        )
    sentence = refused(tiny_mixtral, tiny_mixtral, sequences, tmp_path / "sparse")
    assert "was not made of" in sentence
    sentence = refused(tiny_llama, student, sequences, tmp_path / "dense")
    assert sentence == f"{tiny_llama}: a dense model has no mixtures to learn from"


def test_too_little_text_is_refused(tiny_mixtral, tmp_path):
    sentence = refused(tiny_mixtral, tmp_path, text(5, 20), tmp_path / "out")
    assert sentence == (
        "3 sequences are too few to learn from, as every 5th is kept to measure; raise [data] "
        "tokens"
    )


def test_steps_below_zero_and_what_will_not_fit_are_refused(tiny_mixtral, tmp_path, monkeypatch):
    student, out = tmp_path / "student", tmp_path / "out"
    student.mkdir(), out.mkdir()
    densify(tiny_mixtral, text(8, 20), DenseOptions(), student, Silent())
    with pytest.raises(BadInputError, match="-5 steps cannot be made"):
        warm_up(tiny_mixtral, student, text(8, 20), WarmUpOptions(steps=-5), out, Silent())
    monkeypatch.setattr("edgekit.memory.available_memory", lambda: 1000)
    with pytest.raises(OutOfResourcesError, match=r"warming up needs about .* of memory"):
        warm_up(tiny_mixtral, student, text(8, 20), WarmUpOptions(steps=1), out, Silent())
    assert not list(out.iterdir())


def test_a_teacher_that_is_not_finite_is_named(tiny_mixtral, tmp_path):
    student = tmp_path / "student"
    student.mkdir()
    densify(tiny_mixtral, text(8, 20), DenseOptions(), student, Silent())

    def damage(tensors):
        tensors["model.layers.1.block_sparse_moe.experts.2.w2.weight"][0, 0] = np.nan

    teacher = edited(tiny_mixtral, tmp_path / "damaged", damage)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(BadInputError, match=r"damaged: layer 1 gives values that are not finite"):
        warm_up(teacher, student, text(8, 20), WarmUpOptions(steps=1), out, Silent())
