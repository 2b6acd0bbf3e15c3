"""Acceptance of a draft: its definition, its bounds from top-k targets, and what it yields."""

import numpy as np
import pytest
import torch

from edgekit.distill.acceptance import acceptance, tokens_per_verification
from edgekit.distill.divergence import measure, remember
from edgekit.distill.losses import Loss
from edgekit.distill.open_model import open_model
from edgekit.distill.targets import top_k_targets
from edgekit.progress import Silent
from edgekit.sequences import TokenSequence


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return tuple(3 * torch.randn(40, 30, generator=generator) for _ in range(2))


def exact(teacher, student):
    pairs = zip(teacher.double().softmax(-1), student.double().softmax(-1), strict=True)
    return torch.tensor([sum(min(t, s) for t, s in zip(*pair, strict=True)) for pair in pairs])


def test_of_a_whole_vocabulary_it_is_the_definition(logits):
    teacher, student = logits
    found = acceptance(student, top_k_targets(teacher, 30))
    for bound in found.T:
        torch.testing.assert_close(bound.double(), exact(teacher, student), atol=1e-6, rtol=0)


@pytest.mark.parametrize("top_k", [1, 4, 16])
def test_the_top_tokens_and_their_rest_bound_it(logits, top_k):
    teacher, student = logits
    low, high = acceptance(student, top_k_targets(teacher, top_k)).double().T
    whole = exact(teacher, student)
    assert (low <= whole + 1e-6).all() and (whole <= high + 1e-6).all()
    assert (high - low > 0).all()
    variation = Loss("total_variation").of_targets(student, top_k_targets(teacher, top_k))
    torch.testing.assert_close(high, 1 - variation.double(), atol=1e-5, rtol=0)


def test_more_kept_tokens_bring_the_bounds_together(logits):
    teacher, student = logits
    gaps = []
    for top_k in (2, 8, 24):
        low, high = acceptance(student, top_k_targets(teacher, top_k)).T
        gaps.append((high - low).mean().item())
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]


def test_a_student_like_the_teacher_is_always_accepted(logits):
    found = acceptance(logits[0], top_k_targets(logits[0], 4))
    torch.testing.assert_close(found[:, 1], torch.ones(40))


@pytest.mark.parametrize("accepted", [0.0, 0.3, 0.8, 1.0])
def test_tokens_of_a_verification_are_those_of_a_simulated_draft(accepted):
    rng = np.random.default_rng(0)
    kept = rng.random((50_000, 4)) < accepted
    yielded = np.cumprod(kept, 1).sum(1) + 1  # up to the first that is refused, and the teacher's
    error = yielded.std() / np.sqrt(len(yielded))
    assert tokens_per_verification(accepted, 4) == pytest.approx(yielded.mean(), abs=5 * error)


def test_the_most_accepted_is_what_rejection_sampling_accepts():
    """Speculative sampling itself, with the draws of a small vocabulary counted."""
    t, s = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    rng = np.random.default_rng(1)
    drawn = rng.choice(3, 100_000, p=s.double() / s.double().sum())
    accepted = rng.random(100_000) < np.minimum(1, (t / s).numpy()[drawn])
    found = acceptance(s.log()[None], top_k_targets(t.log()[None], 3))[0]
    assert found.tolist() == pytest.approx([accepted.mean()] * 2, abs=0.01)
    assert found[0].item() == pytest.approx(0.6)


def test_it_is_measured_beside_the_kl_on_held_out_text(tiny_mixtral, tiny_model):
    rng = np.random.default_rng(0)
    made = [TokenSequence(rng.integers(3, 99, 12).astype(np.int32), "a", i > 2) for i in range(6)]
    with open_model(tiny_mixtral) as teacher, open_model(tiny_model("mixtral", seed=3)) as student:
        targets = remember(teacher.model, made, Silent())
        found = measure(student.model, targets, Silent()).divergence().acceptance
        assert measure(teacher.model, targets, Silent()).divergence().acceptance.at_least > 0.9999
        ids = torch.tensor(np.stack([s.tokens for s in made[3:]]), dtype=torch.long)
        t, s = (m.model(input_ids=ids, use_cache=False).logits for m in (teacher, student))
    expected = exact(t.flatten(0, 1), s.flatten(0, 1)).mean().item()
    assert found.at_least == pytest.approx(expected, abs=1e-5)
    assert found.at_most == pytest.approx(expected, abs=1e-5)
    assert 0.1 < expected < 0.99
