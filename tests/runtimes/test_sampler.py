"""The sampler's meaning of every option, and the cache's plan."""

import numpy as np
import pytest

from edgekit.describe import describe
from edgekit.errors import OutOfResourcesError
from edgekit.runtimes.cache_plan import plan_cache
from edgekit.runtimes.engine import Sampling
from edgekit.runtimes.sampler import Sampler

LOGITS = np.log(np.array([0.05, 0.4, 0.3, 0.2, 0.05], np.float32))
PLAIN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}


def shares(draws=4000, logits=LOGITS, allowed=None, **options):
    """How often each token is drawn as the first of an answer."""
    sampler = Sampler(Sampling(**{**PLAIN, "seed": 0, **options}), [], None)
    counts = np.zeros(len(logits))
    for _ in range(draws):
        sampler._counts.clear()
        counts[sampler.choose(logits, allowed).token] += 1
    return counts / draws


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.05, 0.4, 0.3, 0.2, 0.05]),
        ({"temperature": 0.5}, [0.0085, 0.542, 0.305, 0.136, 0.0085]),
        ({"top_k": 2}, [0, 4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.65}, [0, 4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.75}, [0, 4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 1e-6}, [0, 1, 0, 0, 0]),
    ],
)
def test_tokens_come_as_often_as_the_options_say(options, expected):
    assert shares(**options) == pytest.approx(expected, abs=0.03)


def test_a_mask_leaves_the_shares_of_what_it_allows():
    allowed = np.array([True, False, True, False, True])
    assert shares(allowed=allowed) == pytest.approx([1 / 8, 0, 6 / 8, 0, 1 / 8], abs=0.03)


def test_repetition_counts_prompt_and_answer_and_the_other_penalties_the_answer():
    logits = np.array([2.0, -2.0, 1.5, 1.4], np.float32)
    greedy = {**PLAIN, "temperature": 0.0}
    repeated = Sampler(Sampling(**{**greedy, "repetition_penalty": 2.0}), [0, 1], None)
    assert [repeated.choose(logits).token for _ in range(3)] == [2, 3, 0]  # 2.0 / 2 is the largest
    present = Sampler(Sampling(**{**greedy, "presence_penalty": 0.55}), [0], None)
    assert [present.choose(logits).token for _ in range(4)] == [0, 2, 0, 0]
    frequent = Sampler(Sampling(**{**greedy, "frequency_penalty": 0.55}), [0], None)
    assert [frequent.choose(logits).token for _ in range(4)] == [0, 2, 0, 3]


def test_a_seed_repeats_the_draws():
    def draws(seed):
        sampler = Sampler(Sampling(**PLAIN, seed=seed), [], None)
        return [sampler.choose(LOGITS).token for _ in range(30)]

    assert draws(7) == draws(7) != draws(8)


def test_log_probabilities_ignore_what_guides_the_choice():
    options = {**PLAIN, "temperature": 0.1, "top_k": 1, "repetition_penalty": 5.0}
    allowed = np.array([True, False, False, False, False])
    produced = Sampler(Sampling(**options), [0], 2).choose(LOGITS, allowed)
    assert (produced.token, produced.logprob) == (0, pytest.approx(np.log(0.05), rel=1e-5))
    assert [t for t, _ in produced.top] == [1, 2]
    assert Sampler(Sampling(**options), [0], 0).choose(LOGITS, allowed).top == ()
    assert Sampler(Sampling(**options), [0], None).choose(LOGITS, allowed).logprob is None


@pytest.fixture
def architecture():
    """256 kB of cache a token with 2 bytes a value, context 8192."""
    return describe(
        {
            "model_type": "llama", "vocab_size": 512, "hidden_size": 1024, "num_hidden_layers": 32,
            "intermediate_size": 128, "num_attention_heads": 32, "num_key_value_heads": 32,
            "head_dim": 64, "max_position_embeddings": 8192,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "tokens", "context"),
    [
        ({"capacity": 16, "free_bytes": 1 << 40}, 16 * 4096, 8192),
        ({"capacity": 1, "free_bytes": 1 << 40}, 8192, 8192),
        ({"capacity": 16, "free_bytes": 4 * 10_000 * 262_144}, 10_000, 8192),
        ({"capacity": 16, "free_bytes": 4 * 6000 * 262_144}, 6000, 6000),
        ({"capacity": 16, "cache_bytes": 20_000 * 262_144}, 20_000, 8192),
        ({"capacity": 2, "cache_bytes": 1 << 40}, 16_384, 8192),
    ],
)
def test_the_cache_is_what_answers_need_and_a_quarter_of_memory_at_most(
    architecture, options, tokens, context
):
    plan = plan_cache(architecture, 8192, **{"cache_bytes": None, **options})
    assert (plan.tokens, plan.context_length) == (tokens, context)
    assert plan.answers(4) == max(1, min(4, tokens // 4096))


def test_too_little_memory_for_one_conversation_is_refused_with_figures(architecture):
    with pytest.raises(OutOfResourcesError, match=r"512 tokens needs 134 MB, 26 MB are allowed"):
        plan_cache(architecture, 8192, 4, cache_bytes=100 * 262_144)
