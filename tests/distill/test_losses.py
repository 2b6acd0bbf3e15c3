"""Every divergence against its definition over the whole vocabulary, and the head in chunks."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from edgekit.distill.head import Head
from edgekit.distill.losses import IGNORED, Loss
from edgekit.distill.open_model import open_model
from edgekit.distill.outcomes import log_probabilities, log_probabilities_and_rest
from edgekit.distill.targets import Room, sampled_targets, top_k_targets
from edgekit.errors import BadInputError

VOCABULARY = 50
NAMES = (
    "forward_kl", "reverse_kl", "jsd", "skew_forward", "skew_reverse", "total_variation"
)  # fmt: skip
NO_LABELS = torch.full((7,), IGNORED)


def top_k_kl(logits, targets, temperature=1.0):
    return Loss(temperature=temperature).of_targets(logits, targets)


def kl(p, q):
    return (p * (p.log() - q.log())).sum(-1)


def defined(name, t, s, beta=0.3, skew=0.1):
    """From probabilities, as the papers write them."""
    middle = beta * t + (1 - beta) * s
    return {
        "forward_kl": lambda: kl(t, s),
        "reverse_kl": lambda: kl(s, t),
        "jsd": lambda: beta * kl(t, middle) + (1 - beta) * kl(s, middle),
        "skew_forward": lambda: kl(t, skew * t + (1 - skew) * s),
        "skew_reverse": lambda: kl(s, (1 - skew) * t + skew * s),
        "total_variation": lambda: (t - s).abs().sum(-1) / 2,
    }[name]()


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(7, VOCABULARY, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("name", NAMES)
def test_with_k_of_the_whole_vocabulary_value_and_gradient_are_exact(logits, name):
    teacher, student = logits
    student.requires_grad_()
    found = Loss(name, beta=0.3)(student, top_k_targets(teacher, VOCABULARY), NO_LABELS)
    exact_student = student.detach().double().requires_grad_()
    expected = defined(name, teacher.double().softmax(-1), exact_student.softmax(-1))
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(student.grad.double(), exact_student.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_fewer_tokens_give_a_lower_bound_that_grows_with_k(logits, name):
    teacher, student = logits
    loss = Loss(name)
    bounds = [
        loss.of_targets(student, top_k_targets(teacher, k)).mean() for k in (1, 4, 16, VOCABULARY)
    ]
    assert all(a <= b + 1e-5 for a, b in itertools.pairwise(bounds))
    assert 0 <= bounds[0] < 0.9 * bounds[-1]


@pytest.mark.parametrize("name", NAMES)
def test_a_student_equal_to_the_teacher_has_no_loss(logits, name):
    targets = top_k_targets(logits[0], 8)
    assert Loss(name).of_targets(logits[0], targets).abs().max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_finite_when_the_tail_is_negligible(name):
    teacher = torch.tensor([[50.0, 0.0, 0.0, 0.0]])
    student = torch.zeros(1, 4, requires_grad=True)
    Loss(name).of_targets(student, top_k_targets(teacher, 2)).sum().backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("surer", [0.0, 13.0])
@pytest.mark.parametrize("name", NAMES)
def test_draws_are_unbiased_in_value_and_gradient(name, surer):
    """The mean over 20,000 positions of one distribution, within five standard errors; also of one
    in which the others seldom leave a 255th for a token to be drawn."""
    generator = torch.Generator().manual_seed(1)
    teacher, student = (1.5 * torch.randn(20, generator=generator) for _ in range(2))
    teacher[3] += surer
    count = 20_000
    rows = student.expand(count, -1).clone().requires_grad_()
    uniform = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    targets = sampled_targets(teacher.expand(count, -1), Room(12, 3, 2), uniform)
    drawn = ((targets.shares > 0) & ~targets.kept).sum(-1).double()
    assert 0.1 < drawn.mean() < 0.9 if surer else drawn.min() >= 2
    values = Loss(name).of_targets(rows, targets)
    values.sum().backward()
    exact = student.double().requires_grad_()
    expected = defined(name, teacher.double().softmax(-1), exact.softmax(-1), beta=0.5)
    expected.backward()
    for found, wanted in ((values.detach()[:, None], expected.detach()), (rows.grad, exact.grad)):
        error = found.double().std(0) / math.sqrt(count)
        assert ((found.double().mean(0) - wanted).abs() < 5 * error + 1e-6).all()


@pytest.mark.parametrize("with_rest", [False, True])
def test_the_written_gradient_of_log_probabilities_is_that_of_torch(logits, with_rest):
    """Also for a token that comes twice, as in the padding of drawn targets, and for a rest that is
    less than a float can say; float32 against float64."""
    student = logits[1].clone()
    student[3, :5] += 200.0
    generator = torch.Generator().manual_seed(3)
    ids = torch.stack([torch.randperm(VOCABULARY, generator=generator)[:6] for _ in range(7)])
    ids[3] = torch.arange(6)
    ids[5, 5] = ids[5, 4]
    outer = torch.linspace(-1, 2, 7 * (6 + with_rest)).view(7, -1)
    student.requires_grad_()
    function = log_probabilities_and_rest if with_rest else log_probabilities
    found = function(student, ids)
    (found * outer).sum().backward(retain_graph=True)

    exact = student.detach().double().requires_grad_()
    whole = exact.log_softmax(-1)
    expected = whole.gather(-1, ids)
    if with_rest:
        rest = whole.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
        expected = torch.cat([expected, rest], -1)
    (expected * outer).sum().backward()
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(student.grad.double(), exact.grad, atol=2e-5, rtol=1e-4)
    with pytest.raises(RuntimeError, match="inplace"):  # not a wrong gradient
        found.sum().backward()


def test_naive_top_k_would_be_biased(logits):
    """The tail is what keeps the gradient's sum over the vocabulary in balance."""
    teacher, student = logits
    student.requires_grad_()
    top_k_kl(student, top_k_targets(teacher, 2)).sum().backward()
    t, s = teacher.softmax(-1), student.detach().softmax(-1)
    outside = torch.ones_like(t).scatter(-1, teacher.topk(2).indices, 0.0).bool()
    tail_t, tail_s = ((p * outside).sum(-1, keepdim=True) for p in (t, s))
    expected = torch.where(outside, s * (1 - tail_t / tail_s), s - t)
    torch.testing.assert_close(student.grad, expected, atol=1e-5, rtol=1e-4)


def test_draws_without_probabilities_carry_forward_kl_only(logits):
    teacher, student = logits
    drawn = sampled_targets(teacher, Room(20, 3, 2), torch.full((7, 2), 0.5, dtype=torch.float64))
    bare = replace(drawn, logprobs=None)
    assert torch.isfinite(Loss().of_targets(student, bare)).all()
    with pytest.raises(BadInputError, match=r"reverse_kl needs .* --loss reverse_kl"):
        Loss("reverse_kl").of_targets(student, bare)


def test_cross_entropy_is_mixed_in_where_the_next_token_is_known(logits):
    teacher, student = logits
    targets, labels = top_k_targets(teacher, VOCABULARY), torch.arange(7)
    labels[-1] = IGNORED
    found = Loss(cross_entropy=0.25)(student, targets, labels)
    taught = -student.log_softmax(-1)[torch.arange(7), torch.arange(7)]
    taught[-1] = 0.0
    expected = 0.75 * top_k_kl(student, targets) + 0.25 * taught
    torch.testing.assert_close(found, expected)


def test_a_temperature_softens_both_distributions_and_keeps_the_gradients_size(logits):
    teacher, student = logits
    softened = 4.0 * defined("forward_kl", (teacher / 2).softmax(-1), (student / 2).softmax(-1))
    found = top_k_kl(student, top_k_targets(teacher, VOCABULARY), temperature=2.0)
    torch.testing.assert_close(found, softened, atol=1e-4, rtol=1e-4)
    # with fewer tokens all others are one outcome, which is softened as one
    targets = top_k_targets(teacher, 8)
    outcomes = torch.cat([targets.logprobs, targets.tail[:, None]], 1)
    q = student.double().log_softmax(-1)
    rest = q.exp().scatter(-1, targets.ids, 0.0).sum(-1, keepdim=True).log()
    bins = torch.cat([q.gather(-1, targets.ids), rest], 1)
    expected = 4.0 * kl((outcomes.double() / 2).softmax(-1), (bins / 2).softmax(-1))
    found = top_k_kl(student, targets, temperature=2.0)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


def test_draws_at_a_temperature_are_of_the_softened_teacher():
    generator = torch.Generator().manual_seed(2)
    teacher, student = (2 * torch.randn(20, generator=generator) for _ in range(2))
    uniform = torch.rand(20_000, 2, generator=generator, dtype=torch.float64)
    room = Room(12, 3, 2)
    targets = sampled_targets(teacher.expand(20_000, -1), room, uniform, temperature=2.0)
    values = Loss(temperature=2.0).of_targets(student.expand(20_000, -1), targets)
    expected = 4 * kl((teacher / 2).softmax(-1), (student / 2).softmax(-1))
    assert abs(values.mean() - expected) < 5 * values.std() / math.sqrt(20_000)


def test_the_head_in_chunks_gives_the_gradients_of_the_whole(tiny_qwen3_moe):
    """Of hidden states and of the head's own weights, whatever the number of rows at once."""
    with open_model(tiny_qwen3_moe) as opened:
        head = Head(opened)
        weight = opened.model.get_output_embeddings().weight.requires_grad_()
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(11, opened.architecture.hidden_size, generator=generator)
        hidden.requires_grad_()
        targets = top_k_targets(torch.randn(11, head.vocab_size, generator=generator), 8)

        def loss(logits, rows):
            return Loss().of_targets(logits, targets[rows])

        whole = loss(head.logits(hidden), slice(0, 11)).sum()
        expected = torch.autograd.grad(2 * whole, [hidden, weight])
        for rows in (1, 4, 11):
            head.rows = rows
            summed = head.summed(hidden, loss)
            found = torch.autograd.grad(2 * summed, [hidden, weight])
            torch.testing.assert_close(summed, whole)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
            with torch.no_grad():
                torch.testing.assert_close(head.summed(hidden, loss), whole)


def test_a_token_without_probability_is_never_drawn():
    """Also where a number is so close to 1 that it rounds to the end of the distribution."""
    logits = torch.tensor([[1.0, 0.5, -torch.inf, 0.2, -torch.inf]]).expand(1000, -1)
    uniform = torch.full((1000, 2), 1 - 2**-53, dtype=torch.float64)
    for average in (3, 6, 9):
        drawn = sampled_targets(logits, Room(average, 3, 2), uniform)
        assert set(drawn.ids[drawn.shares > 0].tolist()) <= {0, 1, 3}
        torch.testing.assert_close(drawn.shares.sum(-1), torch.ones(1000))
    t = logits[0, [0, 1, 3]].softmax(-1)
    assert drawn.entropy[0].item() == pytest.approx(-(t * t.log()).sum().item(), rel=1e-5)
