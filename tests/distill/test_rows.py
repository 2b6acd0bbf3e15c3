"""Sequences in one forward pass say what each says by itself."""

import numpy as np
import pytest
import torch
from tiny_families import FAMILY_OPTIONS

from edgekit.distill.losses import IGNORED
from edgekit.distill.open_model import open_model
from edgekit.distill.rows import counted, hidden_states, micro_batches, next_tokens, packs
from edgekit.sequences import TokenSequence

LENGTHS = (100, 37, 180, 37, 61)  # in one row past every window, chunk and context of the families
NEVER_PACKED = {
    # states over tokens
    "qwen3_5_text", "qwen3_next", "qwen3_5_moe_text", "lfm2", "lfm2_moe",
    # masks that transformers makes without positions, or of chunks of the row
    "afmoe", "gpt_oss", "granitemoehybrid", "llama4_text",
    # scores of a whole row in memory
    "gemma", "gemma2", "gemma3_text", "vaultgemma", "glm_moe_dsa",
}  # fmt: skip


def text(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [TokenSequence(rng.integers(3, 500, n).astype(np.int32), "a", False) for n in lengths]


@pytest.mark.parametrize("family", FAMILY_OPTIONS)
def test_hidden_states_of_a_group_are_those_of_separate_sequences(tiny_model, family):
    sequences = text(LENGTHS)
    with open_model(tiny_model(family)) as opened, torch.inference_mode():
        packed = packs(opened.architecture)
        groups = micro_batches(sequences, range(len(sequences)), 10_000, packed)
        assert packed == (family not in NEVER_PACKED)
        assert len(groups) == (1 if packed else 4)
        for group in groups:
            chosen = [sequences[n] for n in group]
            apart = [
                opened.decoder(
                    input_ids=torch.from_numpy(s.tokens.astype(np.int64))[None], use_cache=False
                ).last_hidden_state[0]
                for s in chosen
            ]
            torch.testing.assert_close(
                hidden_states(opened, chosen), torch.cat(apart), atol=2e-5, rtol=1e-4
            )


def test_a_family_whose_frequencies_depend_on_the_longest_sequence_is_not_packed(tiny_model):
    scaling = {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 128,
        "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
    }  # fmt: skip
    model = tiny_model(
        "phi3", head_dim=16, rope_parameters=scaling, original_max_position_embeddings=128
    )
    with open_model(model, load=False) as opened:
        assert not packs(opened.architecture)


def test_groups_keep_to_their_limits_and_leave_nothing_out():
    sequences = text([10, 30, 10, 50, 30, 10, 200])
    for packed in (False, True):
        groups = micro_batches(sequences, range(7), 60, packed)
        assert sorted(n for group in groups for n in group) == list(range(7))
        for group in groups:
            lengths = [len(sequences[n].tokens) for n in group]
            assert sum(lengths) <= 60 or len(group) == 1
            assert packed or len(set(lengths)) == 1
    assert micro_batches(sequences, range(7), 60, True) == [[6], [3], [1, 4], [0, 2, 5]]


def test_a_row_is_not_longer_than_its_scores_are_worth():
    sequences = text([3000, 2000, 2000, 900])
    assert micro_batches(sequences, range(4), 10_000, True) == [[0], [1, 2], [3]]


def test_what_follows_and_what_counts_stay_within_a_sequence():
    marks = np.array([False, True, True])
    sequences = [
        TokenSequence(np.array([5, 6], np.int32), "a", False),
        TokenSequence(np.array([7, 8, 9], np.int32), "a", False, marks),
    ]
    assert next_tokens(sequences).tolist() == [6, IGNORED, 8, 9, IGNORED]
    assert counted(sequences).tolist() == [0, 1, 3, 4]
