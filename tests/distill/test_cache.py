"""Draws and their statistics, and the cache's round trip."""

import json
import math

import numpy as np
import pytest
import torch
from captures import captured, make_text

from edgekit.cli.main import main
from edgekit.distill.cache import INDEX, LogitCache
from edgekit.distill.cache_write import damaged_shards, id_bytes
from edgekit.distill.collect import PassOptions
from edgekit.distill.targets import Room, largest_draws, sampled_targets, uniform_numbers
from edgekit.distill.teacher import teacher_logits
from edgekit.distill.train import train, training_digest
from edgekit.errors import BadInputError
from edgekit.progress import Silent
from edgekit.recipe import DistillSection
from edgekit.sequences import FILE_NAME, TokenSequence, sequences_digest, write_sequences


def teachers_logits(cache, teacher, number):
    logits = torch.from_numpy(teacher_logits(teacher)(cache.sequences[number].tokens))
    return logits[:, : cache.vocab_size]


ROOM = Room(46.0, 3, 2)


def dense(targets, vocab_size):
    """Shares [T, V]."""
    return torch.zeros(len(targets), vocab_size).scatter_add(-1, targets.ids, targets.shares)


def mixed_distributions():
    """Peaked and flat ones."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(0.5, 8, 64)[:, None]
    logits = scales * torch.randn(64, 500, generator=generator)
    return logits, torch.rand(64, 2, generator=generator, dtype=torch.float64)


def test_likely_tokens_are_kept_and_the_others_stand_for_equal_shares():
    logits, uniform = mixed_distributions()
    targets, p = sampled_targets(logits, ROOM, uniform), logits.double().softmax(-1)
    draws = largest_draws(p, ROOM)
    shares, likely = dense(targets, 500), p >= 1 / draws
    assert ((shares - p).abs()[likely] < 1 / 255).all()  # so none of them is missing
    torch.testing.assert_close(shares.sum(-1), torch.ones(64))
    for t in range(64):
        taken = targets.shares[t] > 0
        assert torch.equal(targets.ids[t][targets.kept[t]], likely[t].nonzero()[:, 0])
        others = targets.shares[t][taken & ~targets.kept[t]]
        mass = float(p[t][~likely[t]].sum())
        if len(others):
            assert others.max() == others.min()
            assert len(others) == max(1, math.floor(mass * draws + 1e-9))
            assert float(others.sum()) == pytest.approx(mass, abs=1 / 255)
        assert len(set(targets.ids[t][taken].tolist())) == int(taken.sum())  # none twice
    expected = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(targets.entropy, expected, atol=1e-4, rtol=1e-4)


def test_the_positions_take_together_what_they_may_and_no_more():
    logits, uniform = mixed_distributions()
    targets = sampled_targets(logits, ROOM, uniform)
    taken = ROOM.drawn * (targets.shares > 0) + (ROOM.kept - ROOM.drawn) * targets.kept
    sizes = taken.sum(-1).double()
    assert 0.97 * ROOM.average < sizes.mean() < 1.01 * ROOM.average
    assert sizes.min() < 0.2 * ROOM.average and sizes.max() > 2 * ROOM.average


def test_as_large_a_number_of_draws_as_there_is_room_for():
    flat = torch.full((1, 64), 1 / 64, dtype=torch.float64)
    assert largest_draws(flat, Room(25, 3, 2)) == 12  # 12 of 64, two bytes each
    assert largest_draws(flat, Room(191, 3, 2)) == 63
    assert largest_draws(flat, Room(192, 3, 2)) == 255  # all are kept
    peaked = torch.tensor([[0.97, 0.01, 0.01, 0.01]], dtype=torch.float64)
    assert largest_draws(peaked, Room(12, 3, 2)) == 255
    assert largest_draws(peaked, Room(8, 3, 2)) == 99  # from 100 on the others are kept as well
    assert largest_draws(peaked, Room(6, 3, 2)) == 66  # from 67 on two of them are drawn
    # the flat one has what the peaked one leaves: 5 and 13 bytes
    both = torch.cat([torch.nn.functional.pad(peaked, (0, 60)), flat])
    assert largest_draws(both, Room(9, 3, 2)) == 6


def test_the_variance_is_less_than_with_as_many_bytes_at_every_position():
    """That of 300 draws, and as the formula of threshold sampling has it."""
    logits, _ = mixed_distributions()
    p = logits.double().softmax(-1)
    uniform = torch.rand(
        300, 64, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )

    def error(rows, numbers):
        drawn = torch.stack([dense(sampled_targets(rows, ROOM, u), 500) for u in numbers])
        return float((drawn - rows.softmax(-1)).square().mean(0).sum())

    together = error(logits, uniform)
    alone = sum(error(row[None], uniform[:, t, None]) for t, row in enumerate(logits))
    assert together < 0.7 * alone
    draws = largest_draws(p, ROOM)
    expected = float(torch.where(p < 1 / draws, p / draws - p * p, 0.0).sum())
    assert together == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("average", [3.0, 46.0])
def test_a_single_position_takes_no_more_than_it_may(average):
    """Probabilities of float32 that add up to a little less than 1 make no difference."""
    room = Room(average, 3, 2)
    for seed in range(20):
        logits = 1e-3 * torch.randn(1, 3000, generator=torch.Generator().manual_seed(seed))
        targets = sampled_targets(logits, room, torch.full((1, 2), 0.5, dtype=torch.float64))
        assert 2 * int((targets.shares > 0).sum()) + int(targets.kept.sum()) <= average


def test_uniform_numbers_depend_on_seed_and_text_alone():
    first = uniform_numbers(1, "ab" * 32, 5, 2)
    assert torch.equal(first, uniform_numbers(1, "ab" * 32, 9, 2)[:5])
    assert not torch.equal(first, uniform_numbers(2, "ab" * 32, 5, 2))
    assert not torch.equal(first, uniform_numbers(1, "ac" * 32, 5, 2))


@pytest.mark.parametrize("mode", ["whole", "streamed"])
def test_top_k_targets_are_the_teachers_distribution(tiny_mixtral, sequences, tmp_path, mode):
    captured(tiny_mixtral, sequences, tmp_path / "cache", "top_k", top_k=512,
             running=PassOptions(mode=mode))  # fmt: skip
    cache = LogitCache(tmp_path / "cache")
    assert len(cache.sequences) == 20
    for number in (0, 19):
        expected = teachers_logits(cache, tiny_mixtral, number).log_softmax(-1)
        targets = cache.targets(number)
        found = torch.zeros_like(expected).scatter(-1, targets.ids, targets.logprobs)
        # float16 keeps log-probabilities of size 10 to 0.005
        torch.testing.assert_close(found, expected, atol=6e-3, rtol=0)


@pytest.mark.parametrize("mode", ["whole", "streamed"])
def test_drawn_targets_come_back_as_they_were_drawn(tiny_mixtral, sequences, tmp_path, mode):
    report = captured(tiny_mixtral, sequences, tmp_path / "cache", probabilities=True,
                      running=PassOptions(mode=mode))  # fmt: skip
    cache = LogitCache(tmp_path / "cache")
    training = [n for n, s in enumerate(cache.sequences) if not s.held_out]
    for number in training:
        logits = teachers_logits(cache, tiny_mixtral, number)
        targets = cache.targets(number)
        again = sampled_targets(logits, Room(46, 5, 4), uniform_numbers(
            0, sequences_digest([cache.sequences[number]]), len(logits), 2))  # fmt: skip
        assert torch.equal(dense(targets, 512) > 0, dense(again, 512) > 0)
        torch.testing.assert_close(dense(targets, 512), dense(again, 512))
        taken = targets.shares > 0
        exact = logits.log_softmax(-1).gather(-1, targets.ids)
        torch.testing.assert_close(targets.logprobs[taken], exact[taken], atol=6e-3, rtol=0)
        whole = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
        torch.testing.assert_close(targets.entropy, whole, atol=6e-3, rtol=1e-3)
    assert 5 < report.bytes_per_token < 52  # the header of so small a file is seen


def test_only_counted_positions_are_kept(tiny_mixtral, tmp_path):
    text = make_text(tmp_path / "text", counted=True)
    captured(tiny_mixtral, text, tmp_path / "cache", "top_k", top_k=8)
    cache = LogitCache(tmp_path / "cache")
    for number, sequence in enumerate(cache.sequences):
        logits = teachers_logits(cache, tiny_mixtral, number)[sequence.counted]
        assert len(cache.targets(number)) == sequence.positions == len(logits)
        assert torch.equal(cache.targets(number).ids[:, 0], logits.argmax(-1))


@pytest.mark.parametrize(("vocab_size", "size"), [(256, 2), (65_536, 2), (65_537, 3)])
def test_ids_take_as_few_bytes_as_hold_them(vocab_size, size):
    assert id_bytes(vocab_size) == size


def test_a_missing_shard_is_named_or_left_out(
    tiny_mixtral, sequences, tmp_path, small_shards, capsys
):
    out = tmp_path / "cache"
    captured(tiny_mixtral, sequences, out)
    whole = LogitCache(out)
    gone = whole.index.training[1]
    (out / gone.file).unlink()
    for address in (out, f"file://{out}"):
        with pytest.raises(BadInputError, match=f"{gone.file} is missing.*--skip-missing"):
            LogitCache(address)
        cache = LogitCache(address, skip_missing=True)
        assert cache.missing == [gone.file] == damaged_shards(cache, Silent())
        assert main(["distill", "verify", str(address)]) == 2
        shown = capsys.readouterr().err
        assert f"1 of {whole.shards} shards are damaged or missing, {gone.file}" in shown
        assert len(cache.sequences) == 20 - gone.sequences
        for number in range(len(cache.sequences)):  # all that is left is to be had
            assert len(cache.targets(number)) == cache.sequences[number].positions
        last = len(cache.sequences) - 1  # what follows the gap still has its own targets
        assert torch.equal(cache.targets(last).ids, whole.targets(19).ids)
        assert np.array_equal(cache.sequences[last].tokens, whole.sequences[19].tokens)


def test_a_shard_that_is_cut_short_is_named_or_left_out(
    tiny_mixtral, sequences, tmp_path, small_shards
):
    out = tmp_path / "cache"
    captured(tiny_mixtral, sequences, out)
    short = LogitCache(out).index.training[2]
    content = (out / short.file).read_bytes()
    for length in (0, 20, len(content) - 1):
        (out / short.file).write_bytes(content[:length])
        with pytest.raises(BadInputError, match=f"{short.file} is missing or not whole"):
            LogitCache(out)
        cache = LogitCache(out, skip_missing=True)
        assert cache.missing == [short.file]
        assert len(cache.sequences) == 20 - short.sequences


def test_what_was_skipped_is_told_and_names_the_state(
    tiny_mixtral, sequences, tmp_path, small_shards
):
    """A shard that comes back changes which text is trained on in which step."""

    out = tmp_path / "cache"
    captured(tiny_mixtral, sequences, out)
    params = DistillSection(steps=1, trainable=("norms",))
    shards = LogitCache(out).shards
    gone = out / LogitCache(out).index.training[1].file

    def key():
        return training_digest(tiny_mixtral, out, params, skip_missing=True)

    whole, content = key(), gone.read_bytes()
    gone.unlink()
    (tmp_path / "student").mkdir()
    told = []
    report = train(tiny_mixtral, out, params, tmp_path / "student", Silent(), device="cpu",
                   skip_missing=True, notify=told.append)  # fmt: skip
    assert report.missing_shards == 1
    assert told[0] == f"1 of {shards} shards of the cache are left out"
    assert key() != whole
    gone.write_bytes(content)
    assert key() == whole


def test_a_changed_byte_is_found(tiny_mixtral, sequences, tmp_path):
    out = tmp_path / "cache"
    captured(tiny_mixtral, sequences, out)
    shard = next(out.glob("shard-*"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.unlink()
    shard.write_bytes(content)
    assert damaged_shards(LogitCache(out), Silent()) == [shard.name]


def test_a_cache_of_other_sequences_is_refused(tiny_mixtral, sequences, tmp_path):
    out = tmp_path / "cache"
    captured(tiny_mixtral, sequences, out)
    other = [TokenSequence(np.arange(3, 20, dtype=np.int32), "chat", False)]
    (out / FILE_NAME).unlink()
    write_sequences(out / FILE_NAME, other)
    with pytest.raises(BadInputError, match="not the sequences"):
        LogitCache(out)


def test_an_index_of_another_version_is_refused(tiny_mixtral, sequences, tmp_path):
    out = tmp_path / "cache"
    captured(tiny_mixtral, sequences, out)
    values = json.loads((out / INDEX).read_text())
    (out / INDEX).write_text(json.dumps({**values, "version": 1}))
    with pytest.raises(BadInputError, match="index of a logit cache of this version"):
        LogitCache(out)


def test_a_cache_is_read_through_fsspec(tiny_mixtral, sequences, tmp_path):
    """From memory:// as from an object store."""
    import fsspec

    out = tmp_path / "cache"
    captured(tiny_mixtral, sequences, out)
    store = fsspec.filesystem("memory")
    store.put(str(out), "/bucket/cache", recursive=True)
    local, remote = LogitCache(out), LogitCache("memory://bucket/cache")
    assert torch.equal(local.targets(3).ids, remote.targets(3).ids)
    assert torch.equal(local.targets(3).shares, remote.targets(3).shares)
    for address, reason in (("memory://bucket/other", "index.json"), ("nowhere://x", "nowhere")):
        with pytest.raises(BadInputError, match=rf"{address}/index.json: cannot be .*{reason}"):
            LogitCache(address)
