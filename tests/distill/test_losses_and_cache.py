"""The loss from its definition, and the cache's round trip."""

import numpy as np
import pytest
import torch

from edgekit.distill.cache import LogitCache, top_k_targets
from edgekit.distill.capture import capture
from edgekit.distill.losses import top_k_kl
from edgekit.errors import BadInputError
from edgekit.progress import Silent
from edgekit.sequences import FILE_NAME, TokenSequence, write_sequences


def exact_kl(teacher, student):
    p, q = teacher.double().log_softmax(-1), student.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return [4 * torch.randn(7, 50, generator=generator) for _ in range(2)]


def test_with_k_of_the_whole_vocabulary_it_is_the_exact_kl(logits):
    teacher, student = logits
    found = top_k_kl(student, top_k_targets(teacher, 50))
    torch.testing.assert_close(found.double(), exact_kl(teacher, student), atol=1e-4, rtol=1e-4)


def test_fewer_tokens_give_a_lower_bound_that_grows_with_k(logits):
    teacher, student = logits
    bounds = [top_k_kl(student, top_k_targets(teacher, k)).mean() for k in (1, 4, 16, 50)]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[-1]


def test_a_student_equal_to_the_teacher_has_no_loss(logits):
    targets = top_k_targets(logits[0], 8)
    assert top_k_kl(logits[0], targets).abs().max() < 1e-5


def test_the_gradient_is_finite_when_the_tail_is_negligible():
    teacher = torch.tensor([[50.0, 0.0, 0.0, 0.0]])
    student = torch.zeros(1, 4, requires_grad=True)
    top_k_kl(student, top_k_targets(teacher, 2)).sum().backward()
    assert torch.isfinite(student.grad).all()


def test_a_temperature_softens_both_distributions_and_keeps_the_gradients_size(logits):
    teacher, student = logits
    student = student.requires_grad_()
    softened = 4.0 * exact_kl(teacher / 2, student / 2)
    found = top_k_kl(student, top_k_targets(teacher, 50), temperature=2.0)
    torch.testing.assert_close(found.double(), softened, atol=1e-4, rtol=1e-4)
    # with fewer tokens all others are one outcome, which is softened as one
    targets = top_k_targets(teacher, 8)
    outcomes = torch.cat([targets.logprobs, targets.tail[:, None]], 1)
    q = student.double().log_softmax(-1)
    rest = q.exp().scatter(-1, targets.ids, 0.0).sum(-1, keepdim=True).log()
    bins = torch.cat([q.gather(-1, targets.ids), rest], 1)
    expected = 4.0 * exact_kl(outcomes / 2, bins / 2)
    found = top_k_kl(student, targets, temperature=2.0)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)
    assert top_k_kl(teacher, targets, temperature=2.0).abs().max() < 1e-4


@pytest.fixture
def sequences(tmp_path):
    rng = np.random.default_rng(0)
    made = [
        TokenSequence(rng.integers(3, 500, 12 + i).astype(np.int32), "chat", i % 5 == 4)
        for i in range(20)
    ]
    directory = tmp_path / "sequences"
    directory.mkdir()
    write_sequences(directory / FILE_NAME, made)
    return directory


def test_capture_keeps_the_teachers_distribution(tiny_mixtral, sequences, tmp_path):
    from edgekit.distill.teacher import teacher_logits

    out = tmp_path / "cache"
    out.mkdir()
    report = capture(tiny_mixtral, sequences, 512, out, Silent())
    cache = LogitCache(out)
    assert report.positions == sum(len(s.tokens) for s in cache.sequences)
    expected = torch.from_numpy(teacher_logits(tiny_mixtral)(cache.sequences[17].tokens))
    targets = cache.targets(17)
    found = torch.zeros_like(expected).scatter(-1, targets.ids, targets.logprobs)
    # float16 keeps log-probabilities of size 10 to 0.005
    torch.testing.assert_close(found, expected.log_softmax(-1), atol=6e-3, rtol=0)


def test_capture_continues_from_finished_shards(tiny_mixtral, sequences, tmp_path, monkeypatch):
    import edgekit.distill.capture as module

    whole, scratch, out = (tmp_path / n for n in ("whole", "scratch", "out"))
    for directory in (whole, scratch, out):
        directory.mkdir()
    capture(tiny_mixtral, sequences, 8, whole, Silent())
    capture(tiny_mixtral, sequences, 8, out, Silent(), scratch)

    def refuse(*_args, **_kwargs):
        raise AssertionError("the teacher was run again")

    monkeypatch.setattr(module, "load_model", refuse)
    again = tmp_path / "again"
    again.mkdir()
    capture(tiny_mixtral, sequences, 8, again, Silent(), scratch)
    for file in whole.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()


def test_a_cache_of_other_sequences_is_refused(tiny_mixtral, sequences, tmp_path):
    out = tmp_path / "cache"
    out.mkdir()
    capture(tiny_mixtral, sequences, 8, out, Silent())
    other = [TokenSequence(np.arange(3, 20, dtype=np.int32), "chat", False)]
    (out / FILE_NAME).unlink()
    write_sequences(out / FILE_NAME, other)
    with pytest.raises(BadInputError, match="not the sequences"):
        LogitCache(out)
