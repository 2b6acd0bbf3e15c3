"""The published format, read by a program that knows nothing of edgekit."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.cli.main import main
from edgekit.distill.cache import INDEX, LogitCache
from edgekit.distill.cache_write import finish_cache, plan_shards, write_shard
from edgekit.distill.capture import CaptureOptions, capture, capture_settings
from edgekit.distill.targets import SampledTargets, TopTargets
from edgekit.progress import Silent
from edgekit.sequences import FILE_NAME, TokenSequence, read_sequences, write_sequences

READER = Path(__file__).parents[2] / "examples" / "read_cache.py"


@pytest.fixture(scope="module")
def reader():
    spec = importlib.util.spec_from_file_location("read_cache", READER)
    module = importlib.util.module_from_spec(spec)
    sys.modules["read_cache"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["read_cache"]


@pytest.fixture
def text(tmp_path):
    rng = np.random.default_rng(0)
    made = []
    for i in range(20):
        tokens = rng.integers(3, 100, 12 + i).astype(np.int32)
        mask = rng.random(len(tokens)) < 0.5 if i % 2 else None
        made.append(TokenSequence(tokens, "ab"[i % 3 == 0], i % 5 == 4, mask))
    (tmp_path / "text").mkdir()
    write_sequences(tmp_path / "text" / FILE_NAME, made)
    return tmp_path / "text"


def captured(teacher, text, out, monkeypatch, **options):
    import edgekit.distill.cache_write as writing

    monkeypatch.setattr(writing, "SHARD_TOKENS", 64)
    out.mkdir()
    capture(teacher, text, CaptureOptions(**options), out, Silent())
    return out


def agree(cache, reader):
    """Everything that the reader gives is what edgekit reads."""
    opened = LogitCache(cache)
    found = list(reader.read_cache(cache))
    assert len(found) == len(opened.sequences)
    for number, (sequence, taught) in enumerate(found):
        ours, targets = opened.sequences[number], opened.targets(number)
        np.testing.assert_array_equal(sequence.tokens, ours.tokens)
        assert (sequence.domain, sequence.held_out) == (ours.domain, ours.held_out)
        counted = np.ones(len(ours.tokens), bool) if ours.counted is None else ours.counted
        np.testing.assert_array_equal(sequence.counted, counted)
        if isinstance(targets, TopTargets):
            for name in ("ids", "logprobs", "tail"):
                np.testing.assert_array_equal(taught[name], getattr(targets, name).numpy())
            continue
        np.testing.assert_array_equal(taught["entropy"], targets.entropy.numpy())
        assert len(taught["first"]) == len(targets) + 1
        assert ("logprobs" in taught) == (targets.logprobs is not None)
        for t in range(len(targets)):
            entries = slice(taught["first"][t], taught["first"][t + 1])
            taken = targets.shares[t] > 0
            for name in ("ids", "shares", "logprobs")[: 2 + opened.index.probabilities]:
                np.testing.assert_allclose(
                    taught[name][entries], getattr(targets, name)[t][taken].numpy(), rtol=1e-6
                )


@pytest.mark.parametrize(
    "options",
    [{"probabilities": True}, {"probabilities": False}, {"targets": "top_k", "top_k": 7}],
    ids=["probabilities", "draws", "top_k"],
)
def test_the_example_reads_what_edgekit_reads(
    tiny_mixtral, text, tmp_path, monkeypatch, reader, options
):
    cache = captured(tiny_mixtral, text, tmp_path / "cache", monkeypatch, **options)
    assert len(LogitCache(cache).index.training) > 3
    agree(cache, reader)
    assert reader.damaged(cache) == []
    shard = next(cache.glob("shard-*"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert reader.damaged(cache) == [shard.name]


def test_the_example_is_short_and_stands_alone(tiny_mixtral, text, tmp_path, monkeypatch):
    source = READER.read_text()
    assert len(source.splitlines()) < 100
    assert "edgekit" not in "".join(line for line in source.splitlines() if "import" in line)
    cache = captured(tiny_mixtral, text, tmp_path / "cache", monkeypatch)
    run = subprocess.run(
        [sys.executable, str(READER), str(cache), "--verify"], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert len(run.stdout.splitlines()) == 20


def bytes_of(path):
    """{name: (dtype, shape, bytes)} of a safetensors file, by its published layout."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: (entry["dtype"], entry["shape"],
               content[8 + length + entry["data_offsets"][0] : 8 + length
                       + entry["data_offsets"][1]])
        for name, entry in header.items()
    }  # fmt: skip


def half(*values):
    return np.array(values, "<f2").tobytes()


def test_the_bytes_of_draws_by_hand(tmp_path, tiny_mixtral):
    """Two positions, of a share of its own and two equal ones, and of one that is all.

    Token 66,000 takes three bytes: 66000 = 1 * 65536 + 1 * 256 + 208.
    """
    settings = capture_settings(tiny_mixtral, 512, CaptureOptions(probabilities=True))
    settings = settings.model_copy(update={"vocab_size": 70_000})
    targets = SampledTargets(
        torch.tensor([[7, 2, 66_000], [5, 0, 0]]),
        torch.tensor([[205 / 255, 25 / 255, 25 / 255], [1.0, 0.0, 0.0]]),
        torch.tensor([[True, False, False], [True, False, False]]),
        torch.tensor([0.5, 0.25]), torch.tensor([[-0.25, -3.0, -2.0], [-0.125, 0.0, 0.0]]),
    )  # fmt: skip
    write_shard(tmp_path / "shard", [targets], settings)
    assert bytes_of(tmp_path / "shard") == {
        "kept": ("U8", [2], bytes([1, 1])),
        "drawn": ("U8", [2], bytes([2, 0])),
        "entropy": ("F16", [2], half(0.5, 0.25)),
        "ids": ("U8", [4, 3], bytes([7, 0, 0, 2, 0, 0, 208, 1, 1, 5, 0, 0])),
        "shares": ("U8", [2], bytes([205, 255])),
        "logprobs": ("F16", [4], half(-0.25, -3.0, -2.0, -0.125)),
    }


def test_the_bytes_of_top_tokens_by_hand(tmp_path, tiny_mixtral):
    settings = capture_settings(tiny_mixtral, 512, CaptureOptions("top_k", top_k=2))
    targets = TopTargets(
        torch.tensor([[300, 4]]), torch.tensor([[-0.5, -1.5]]), torch.tensor([-60.0])
    )
    write_shard(tmp_path / "shard", [targets], settings)
    assert bytes_of(tmp_path / "shard") == {
        "ids": ("U8", [1, 2, 2], bytes([44, 1, 4, 0])),
        "logprobs": ("F16", [1, 2], half(-0.5, -1.5)),
        "tail": ("F16", [1], half(-60.0)),
    }


def text_digest(sequences):
    """As docs/cache-format.md says."""
    digest = hashlib.sha256()
    for s in sequences:
        digest.update(f"{s.domain}\0{s.held_out}\0{len(s.tokens)}\0".encode())
        digest.update(s.tokens.astype("<i4").tobytes())
        if s.counted is not None:
            digest.update(np.packbits(s.counted).tobytes())
    return digest.hexdigest()


def test_names_and_digests_are_those_of_the_manual(tiny_mixtral, text, tmp_path, monkeypatch):
    cache = captured(tiny_mixtral, text, tmp_path / "cache", monkeypatch, top_k=9)
    index = json.loads((cache / INDEX).read_text())
    sequences = read_sequences(cache / FILE_NAME)
    assert index["sequences"] == text_digest(sequences)
    names = ("version", "teacher", "tokenizer", "vocab_size", "temperature", "targets",
             "bytes_per_token", "probabilities", "seed")  # fmt: skip
    for split, kind in (("training", {}), ("held_out", {"top_k": 9})):
        rest = [s for s in sequences if s.held_out == (split == "held_out")]
        for shard in index[split]:
            mine, rest = rest[: shard["sequences"]], rest[shard["sequences"] :]
            value = [{n: index[n] for n in names}, kind, text_digest(mine)]
            digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
            assert shard["file"] == f"shard-{digest[:16]}.safetensors"
            content = (cache / shard["file"]).read_bytes()
            assert shard["sha256"] == hashlib.sha256(content).hexdigest()
        assert not rest


def test_missing_shards_are_captured_into_a_new_cache(
    tiny_mixtral, text, tmp_path, monkeypatch, capsys
):
    cache = captured(tiny_mixtral, text, tmp_path / "cache", monkeypatch)
    whole = LogitCache(cache).index
    (cache / whole.training[1].file).unlink()
    arguments = ["distill", "capture", str(tiny_mixtral), "--sequences", str(cache), "--shards",
                 str(cache), "--out", str(tmp_path / "new")]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    assert LogitCache(tmp_path / "new").index == whole


def test_a_vocabulary_of_three_bytes_is_read_back(tmp_path, tiny_mixtral, reader):
    settings = capture_settings(tiny_mixtral, 512, CaptureOptions("top_k", top_k=3))
    settings = settings.model_copy(update={"vocab_size": 1 << 18})
    text = [TokenSequence(np.array([1, 2, 262_143], np.int32), "a", False)]
    ids = torch.tensor([[262_143, 0, 65_536], [255, 256, 65_535], [1, 2, 3]])
    targets = TopTargets(ids, torch.zeros(3, 3), torch.zeros(3))
    (shard,) = plan_shards(text, settings)
    write_shard(tmp_path / shard.file, [targets], settings)
    finish_cache(tmp_path, settings, text, [], Silent())
    assert torch.equal(LogitCache(tmp_path).targets(0).ids, ids)
    agree(tmp_path, reader)
