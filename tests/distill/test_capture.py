"""Capturing: shared, interrupted and continued, and what is refused."""

import contextlib
import dataclasses
import shutil

import numpy as np
import pytest
from captures import captured, make_text, of_worker, without_numbers

from edgekit.checkpoint import read_config
from edgekit.distill import cache_write
from edgekit.distill.cache import INDEX, LogitCache
from edgekit.distill.cache_write import damaged_shards
from edgekit.distill.capture import CaptureOptions, capture_shards, finish_capture
from edgekit.distill.collect import PassOptions, Share
from edgekit.distill.layerwise import Layerwise
from edgekit.errors import BadInputError, OutOfResourcesError
from edgekit.progress import Silent
from edgekit.sequences import FILE_NAME, TokenSequence, read_sequences, write_sequences


def test_workers_and_resumed_captures_give_the_same_bytes(
    tiny_mixtral, sequences, tmp_path, small_shards, monkeypatch
):
    import edgekit.distill.final_states as running

    whole, work, out = tmp_path / "whole", tmp_path / "work", tmp_path / "out"
    captured(tiny_mixtral, sequences, whole)
    assert of_worker(tiny_mixtral, sequences, work, 0) > 0
    assert of_worker(tiny_mixtral, sequences, work, 1) == 0
    captured(tiny_mixtral, sequences, out, scratch=work)
    files = sorted(f.name for f in whole.iterdir() if f.is_file())
    assert len(files) > 6
    for name in files:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name

    def refuse(*_args, **_kwargs):
        raise AssertionError("the teacher was run again")

    monkeypatch.setattr(running, "_whole", refuse)
    captured(tiny_mixtral, sequences, tmp_path / "again", scratch=work)
    assert (tmp_path / "again" / INDEX).read_bytes() == (whole / INDEX).read_bytes()


def test_a_streamed_capture_that_was_interrupted_runs_no_layer_twice(
    tiny_mixtral, sequences, tmp_path, small_shards, monkeypatch
):
    """Neither among its layers, nor while shards are written and ever fewer are missing."""
    import edgekit.distill.capture as capturing

    streamed = CaptureOptions(running=PassOptions(mode="streamed"))
    work, whole = tmp_path / "work", tmp_path / "whole"
    work.mkdir()
    captured(tiny_mixtral, sequences, whole)
    ran, failing = [], {}
    run_layer, write_shard = Layerwise.run, capturing.write_shard

    def run(self, layer, states):
        if layer == failing.get("layer"):
            raise KeyboardInterrupt
        ran.append(layer)
        return run_layer(self, layer, states)

    def write(path, *arguments):
        if len(list(work.glob("shard-*"))) == failing.get("shards"):
            raise KeyboardInterrupt
        write_shard(path, *arguments)

    monkeypatch.setattr(Layerwise, "run", run)
    monkeypatch.setattr(capturing, "write_shard", write)

    def layers_until(**failure):
        failing.clear()
        failing.update(failure)
        ran.clear()
        with pytest.raises(KeyboardInterrupt) if failing else contextlib.nullcontext():
            capture_shards(tiny_mixtral, sequences, streamed, work, Silent())
        return set(ran)

    (work / "states-of-an-earlier-version").mkdir()
    assert layers_until(layer=1) == {0}
    assert layers_until(shards=2) == {1}
    assert len(list(work.glob("states-*"))) == 1
    assert layers_until(shards=4) == layers_until() == set()
    finished = sorted(f.name for f in work.iterdir())
    assert finished == sorted(f.name for f in whole.glob("shard-*"))
    for name in finished:
        assert (work / name).read_bytes() == (whole / name).read_bytes()
    (work / finished[0]).unlink()  # of which no states are left
    assert layers_until() == {0, 1}
    assert sorted(f.name for f in work.iterdir()) == finished


def test_states_of_other_workers_stay_and_those_of_no_worker_go(
    tiny_mixtral, sequences, tmp_path, small_shards, monkeypatch
):
    import edgekit.distill.capture as capturing

    streamed = CaptureOptions(running=PassOptions(mode="streamed"))

    def left(rank, workers, interrupted=False):
        def interrupt(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            if interrupted:
                patch.setattr(capturing, "write_shard", interrupt)
            with pytest.raises(KeyboardInterrupt) if interrupted else contextlib.nullcontext():
                share = Share(rank, workers)
                capture_shards(tiny_mixtral, sequences, streamed, tmp_path, Silent(), share)
        return sorted(f.name.rpartition("-")[0] for f in tmp_path.glob("states-*"))

    assert left(0, 2, interrupted=True) == ["states-0-of-2"]
    assert left(1, 2, interrupted=True) == ["states-0-of-2", "states-1-of-2"]
    assert left(1, 2) == ["states-0-of-2"]
    assert left(1, 3, interrupted=True) == ["states-1-of-3"]
    assert left(0, 1) == []


@pytest.mark.parametrize("mode", ["whole", "streamed"])
def test_the_states_of_a_whole_shard_are_in_the_memory_estimate(
    tiny_mixtral, sequences, tmp_path, monkeypatch, mode
):
    import edgekit.distill.final_states as running

    def estimate(shard_tokens):
        def refuse(needed, *_):
            raise OutOfResourcesError(str(needed))

        monkeypatch.setattr(cache_write, "SHARD_TOKENS", shard_tokens)
        monkeypatch.setattr(running, "require_memory", refuse)
        with pytest.raises(OutOfResourcesError) as caught:
            captured(tiny_mixtral, sequences, tmp_path / "o", running=PassOptions(mode=mode))
        return int(str(caught.value))

    text = read_sequences(sequences / FILE_NAME)
    training = sum(len(s.tokens) for s in text if not s.held_out)
    more = training - max(len(s.tokens) for s in text)
    assert estimate(1 << 15) - estimate(1) == more * read_config(tiny_mixtral)["hidden_size"] * 4


def test_added_text_keeps_the_shards_that_were_there(tiny_mixtral, tmp_path, small_shards):
    captured(tiny_mixtral, make_text(tmp_path / "a", 20), tmp_path / "cache")
    before = {f.name for f in (tmp_path / "cache").glob("shard-*")}
    captured(tiny_mixtral, make_text(tmp_path / "b", 30), tmp_path / "cache")
    cache = LogitCache(tmp_path / "cache")
    assert len(cache.sequences) == 30
    kept = before & {shard.file for shard in (*cache.index.training, *cache.index.held_out)}
    assert len(kept) >= len(before) - 2  # the last of each split grew


def test_shards_of_two_machines_are_gathered(tiny_mixtral, sequences, tmp_path, small_shards):
    captured(tiny_mixtral, sequences, tmp_path / "whole")
    for rank in (0, 1):
        of_worker(tiny_mixtral, sequences, tmp_path / str(rank), rank)
    whole = LogitCache(tmp_path / "whole")
    (tmp_path / "out").mkdir()

    def gather(*ranks):
        sources = [tmp_path / rank for rank in ranks]
        finish_capture(
            tiny_mixtral, sequences, CaptureOptions(), tmp_path / "out", sources, Silent()
        )

    with pytest.raises(BadInputError, match=r"\d+ of \d+ shards are not there yet"):
        gather("0")
    gather("0", "1")
    assert LogitCache(tmp_path / "out").index == whole.index
    assert not damaged_shards(LogitCache(tmp_path / "out"), Silent())


def test_a_shard_that_was_copied_in_part_is_not_gathered(
    tiny_mixtral, sequences, tmp_path, small_shards
):
    whole, copied, out = tmp_path / "whole", tmp_path / "copied", tmp_path / "out"
    captured(tiny_mixtral, sequences, whole)
    shutil.copytree(whole, copied)
    short = copied / LogitCache(whole).index.training[1].file
    short.write_bytes(short.read_bytes()[:-5])
    out.mkdir()
    with pytest.raises(BadInputError, match=f"1 of .* not there yet, {short.name} the first"):
        finish_capture(tiny_mixtral, sequences, CaptureOptions(), out, [copied], Silent())
    work = tmp_path / "work"
    work.mkdir()
    left = capture_shards(
        tiny_mixtral, sequences, CaptureOptions(), work, Silent(), elsewhere=[copied]
    )
    assert left == 0 and [f.name for f in work.iterdir()] == [short.name]
    finish_capture(tiny_mixtral, sequences, CaptureOptions(), out, [copied, work], Silent())
    assert LogitCache(out).index == LogitCache(whole).index


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokens": np.arange(3, 900, dtype=np.int32)}, "longer than the context"),
        ({"tokens": np.array([3, 100_000], np.int32)}, "text has token 100000"),
        ({"counted": np.zeros(12, np.bool_)}, "no position that counts"),
    ],
)
def test_text_that_does_not_fit_is_refused(tiny_mixtral, tmp_path, change, reason):
    text = TokenSequence(np.arange(3, 15, dtype=np.int32), "chat", False)
    (tmp_path / "text").mkdir()
    write_sequences(tmp_path / "text" / FILE_NAME, [dataclasses.replace(text, **change)])
    with pytest.raises(BadInputError, match=reason):
        captured(tiny_mixtral, tmp_path / "text", tmp_path / "cache")


def test_a_layer_that_gives_no_numbers_is_named_before_the_next_is_run(
    tiny_qwen3_moe, sequences, tmp_path
):
    damaged = without_numbers(
        tiny_qwen3_moe, tmp_path / "damaged", "model.layers.0.self_attn.o_proj.weight"
    )
    with pytest.raises(BadInputError, match=f"{damaged}: layer 0 gives values that are not finite"):
        captured(damaged, sequences, tmp_path / "cache", running=PassOptions(mode="streamed"))


@pytest.mark.parametrize("targets", ["sampled", "top_k"])
def test_a_teacher_that_gives_no_numbers_is_refused(tiny_qwen3_moe, sequences, tmp_path, targets):
    damaged = without_numbers(tiny_qwen3_moe, tmp_path / "damaged")
    with pytest.raises(BadInputError, match=f"{damaged}: gives logits that are not finite"):
        captured(damaged, sequences, tmp_path / "cache", targets)
    assert not list((tmp_path / "cache").iterdir())


def test_too_few_bytes_for_a_token_are_refused(tiny_mixtral, sequences, tmp_path):
    with pytest.raises(BadInputError, match="allow at least 7"):
        captured(tiny_mixtral, sequences, tmp_path / "cache", bytes_per_token=6)


def test_a_full_disk_leaves_no_half_shard(tiny_mixtral, sequences, tmp_path, monkeypatch):
    import errno

    class Full(cache_write.TensorFileWriter):
        def write(self, name, values, first_row=None):
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(cache_write, "TensorFileWriter", Full)
    with pytest.raises(OutOfResourcesError, match="no space left"):
        captured(tiny_mixtral, sequences, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("shard-*.safetensors"))
