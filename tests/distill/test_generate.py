"""Continuations: their frequencies, what they depend on, and that the cache changes nothing."""

import numpy as np
import pytest
import torch

import edgekit.distill.generate as module
from edgekit.distill.generate import Sampling, draw, generate
from edgekit.distill.open_model import open_model
from edgekit.errors import BadInputError
from edgekit.progress import Silent

PROMPTS = [[5, 9, 11], [40, 41, 42, 43, 44, 45, 46], [7], [300, 2, 17, 300, 2, 17], [8, 8, 8]]


def continued(opened, prompts, sampling, end_tokens=frozenset(), vocab_size=0):
    with Silent().task("sample", len(prompts)) as task:
        return generate(opened, prompts, sampling, end_tokens, task, vocab_size)


def recomputed(opened, prompt, sampling):
    """The same continuation without a cache, one prompt by itself."""
    tokens, numbers = list(prompt), module._numbers(prompt, sampling)
    for number in numbers:
        with torch.no_grad():
            logits = opened.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[:, -1]
        tokens.append(int(draw(logits.float(), number[None], sampling)))
    return tokens[len(prompt) :]


def test_frequencies_are_the_models_probabilities(tiny_qwen3_moe):
    """Of the first token over many seeds: Pearson's statistic stays within five deviations."""
    draws = 20_000
    with open_model(tiny_qwen3_moe) as opened, torch.no_grad():
        logits = opened.model(input_ids=torch.tensor([[5, 9, 11]]), use_cache=False).logits[0, -1]
    sampling = Sampling(1, temperature=0.3)
    expected = (logits / 0.3).double().softmax(-1)
    seeded = [Sampling(1, temperature=0.3, seed=seed) for seed in range(draws)]
    uniform = torch.cat([module._numbers([5, 9, 11], one) for one in seeded])
    found = draw(logits.expand(draws, -1), uniform, sampling).bincount(minlength=len(logits))
    common = expected * draws >= 5
    assert common.sum() > 50
    groups = torch.cat([expected[common], expected[~common].sum()[None]]) * draws
    counted = torch.cat([found[common], found[~common].sum()[None]]).double()
    statistic = ((counted - groups) ** 2 / groups).sum()
    freedom = len(groups) - 1
    assert abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5


def test_generated_pairs_follow_the_models_chain(tiny_model):
    """Whole continuations by seed, against the probabilities of both tokens of a tiny vocabulary:
    the second one is drawn from what follows the first."""
    with open_model(tiny_model("llama", vocab_size=64)) as opened:
        count, size = 500, 4  # the first ``size`` tokens of the vocabulary are drawn
        found = torch.zeros(size, size)
        for seed in range(count):
            ((first, second),) = continued(opened, [[5]], Sampling(2, seed=seed), vocab_size=size)
            found[first, second] += 1
        with torch.no_grad():
            ids = torch.tensor([[5, token] for token in range(size)])
            logits = opened.model(input_ids=ids, use_cache=False).logits[:, :, :size].double()
        expected = logits[0, 0].softmax(-1)[:, None] * logits[:, 1].softmax(-1)
        assert ((found / count - expected).abs() < 5 * (expected / count).sqrt()).all()


@pytest.mark.parametrize("family", ["llama", "mixtral", "gemma3_text", "deepseek_v3", "gpt_oss",
                                    "qwen3_next"])  # fmt: skip
def test_the_cache_gives_what_recomputing_gives(tiny_model, family):
    sampling = Sampling(10, temperature=0.5, seed=3)
    with open_model(tiny_model(family)) as opened:
        found = continued(opened, PROMPTS, sampling)
        for prompt, answer in zip(PROMPTS, found, strict=True):
            assert answer.tolist() == recomputed(opened, prompt, sampling), prompt


def test_a_continuation_does_not_depend_on_its_batch(tiny_mixtral, monkeypatch):
    sampling = Sampling(12, seed=1)
    with open_model(tiny_mixtral) as opened:
        together = continued(opened, PROMPTS, sampling)
        for prompt, answer in zip(PROMPTS, together, strict=True):
            (alone,) = continued(opened, [prompt], sampling)
            assert alone.tolist() == answer.tolist()
        backwards = continued(opened, PROMPTS[::-1], sampling)[::-1]
        monkeypatch.setattr(module, "WRITTEN_TOKENS", 40)  # two rows at most
        smaller = continued(opened, PROMPTS, sampling)
        other = continued(opened, PROMPTS, Sampling(12, seed=2))
    assert [a.tolist() for a in backwards] == [a.tolist() for a in together]
    assert [a.tolist() for a in smaller] == [a.tolist() for a in together]
    assert all(a.tolist() != b.tolist() for a, b in zip(together, other, strict=True))


def test_an_answer_ends_with_its_end_token_and_others_go_on(tiny_mixtral):
    sampling = Sampling(30, seed=1)
    with open_model(tiny_mixtral) as opened:
        whole = continued(opened, PROMPTS, sampling)
        ends = frozenset(whole[0][4:6].tolist())
        cut = continued(opened, PROMPTS, sampling, ends)
    for long, short in zip(whole, cut, strict=True):
        stops = [place for place, token in enumerate(long.tolist()) if token in ends]
        assert short.tolist() == long[: stops[0] + 1 if stops else None].tolist()
    assert len(cut[0]) <= 5 and len({len(answer) for answer in cut}) > 1


def test_temperature_nought_takes_the_most_probable(tiny_qwen3_moe):
    with open_model(tiny_qwen3_moe) as opened:
        found = continued(opened, PROMPTS, Sampling(6, temperature=0.0))
        tokens = [*PROMPTS[1], *found[1].tolist()]
        logits = opened.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    assert logits.argmax(-1)[len(PROMPTS[1]) - 1 : -1].tolist() == found[1].tolist()


@pytest.mark.parametrize("likeliest", [1, 256])
def test_a_nucleus_is_the_fewest_tokens_with_the_mass(monkeypatch, likeliest):
    monkeypatch.setattr(module, "LIKELIEST", likeliest)
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().expand(4000, -1)
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    found = draw(logits, uniform, Sampling(1, top_p=0.65)).bincount(minlength=4) / 4000
    np.testing.assert_allclose(found, [0, 4 / 7, 0, 3 / 7], atol=1e-3)  # 0.4 + 0.3 >= 0.65


def test_numbers_at_the_ends_draw_tokens_that_have_mass():
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]).clamp(min=-1e4)
    uniform = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits.expand(2, -1), uniform, Sampling(1)).tolist() == [1, 3]


def test_padding_of_the_vocabulary_is_never_drawn(tiny_mixtral):
    with open_model(tiny_mixtral) as opened:
        found = continued(opened, PROMPTS, Sampling(20), vocab_size=50)
    assert max(answer.max() for answer in found) < 50


def test_what_cannot_be_continued_is_refused(tiny_mixtral):
    with open_model(tiny_mixtral) as opened:
        context = opened.architecture.context_length
        with pytest.raises(BadInputError, match="prompts must have 1 to"):
            continued(opened, [[5], []], Sampling(4))
        with pytest.raises(BadInputError, match="lower new_tokens"):
            continued(opened, [[5]], Sampling(context))
        opened.model.get_output_embeddings().weight.data.fill_(torch.nan)
        with pytest.raises(BadInputError, match="not finite"):
            continued(opened, [[5]], Sampling(4))
