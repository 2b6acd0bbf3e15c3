"""Tokenizers as GGUF metadata: which pre-tokenizer, which vocabulary, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from edgekit.checkpoint import read_json
from edgekit.errors import BadInputError
from edgekit.gguf_export import export_gguf
from edgekit.gguf_tokenizer import pre_tokenizer, read_vocabulary
from edgekit.progress import Silent

LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PLAIN_LEVEL = {**LEVEL, "use_regex": False}
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("steps", "whole", "name"),
    [
        ([LEVEL], False, "gpt-2"),
        ([{"type": "Digits", "individual_digits": True}, LEVEL], False, "smollm"),
        ([split(QWEN2), PLAIN_LEVEL], False, "qwen2"),
        ([split(QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")), PLAIN_LEVEL], True, "llama-bpe"),
    ],
)
def test_pre_tokenizer_is_found(steps: list[dict[str, Any]], whole: bool, name: str) -> None:
    content = {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "model": {"ignore_merges": whole},
    }
    assert pre_tokenizer(Path("tokenizer.json"), content) == name


@pytest.mark.parametrize(
    "content",
    [
        {"pre_tokenizer": split(r"\p{N}{1,2}"), "model": {}},
        {"pre_tokenizer": {**LEVEL, "add_prefix_space": True}, "model": {}},
        {"pre_tokenizer": {"type": "Digits", "individual_digits": False}, "model": {}},
        {"pre_tokenizer": LEVEL, "model": {"ignore_merges": True}},
        {"pre_tokenizer": LEVEL, "model": {}, "normalizer": {"type": "Lowercase"}},
        {"model": {}},
    ],
)
def test_unknown_pre_tokenizer_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="--pre"):
        pre_tokenizer(Path("tokenizer.json"), content)


def changed(source: Path, target: Path, name: str, change: Callable[[Any], None]) -> Path:
    """A copy of a checkpoint with one JSON file changed."""
    shutil.copytree(source, target)
    content = read_json(target / name)
    change(content)
    (target / name).write_text(json.dumps(content))
    return target


def test_pre_tokenizer_can_be_said_by_hand(quantized: Callable[..., Path], tmp_path: Path) -> None:
    def change(content: Any) -> None:
        content["pre_tokenizer"] = {
            "type": "Sequence", "pretokenizers": [split(r"\p{N}{1,2}"), LEVEL],
        }  # fmt: skip

    source = changed(quantized("qwen3", "int8"), tmp_path / "q", "tokenizer.json", change)
    with pytest.raises(BadInputError, match=r"tokenizer\.json.*--pre"):
        export_gguf(source, tmp_path / "m.gguf", Silent())
    export_gguf(source, tmp_path / "m.gguf", Silent(), pre="tekken")
    pre = gguf.GGUFReader(tmp_path / "m.gguf").fields["tokenizer.ggml.pre"]
    assert pre.contents() == "tekken"


def test_byte_fallback_becomes_scores_by_rank(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers

    tokens = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]
    merges = [("a", "b"), ("▁", "ab"), ("▁", "a")]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={t: i for i, t in enumerate(tokens)}, merges=merges, byte_fallback=True,
            unk_token="<unk>",
        )
    )  # fmt: skip
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = read_vocabulary(tmp_path, 264)
    scores = dict(zip(vocabulary.tokens, vocabulary.scores, strict=True))
    assert scores["ab"] > scores["▁ab"] > scores["▁a"] > scores["a"]
    assert (vocabulary.model, vocabulary.space_prefix, vocabulary.merges) == ("llama", True, [])
    assert vocabulary.token_types[:2] == [2, 6]
    assert (vocabulary.token_types[257], vocabulary.token_types[263]) == (1, 5)


def test_tokenizer_with_more_tokens_than_the_model_is_refused(
    quantized: Callable[..., Path], tmp_path: Path
) -> None:
    source = quantized("llama", "int8", vocab_size=300)
    with pytest.raises(BadInputError, match="do not belong together"):
        export_gguf(source, tmp_path / "m.gguf", Silent())


def test_end_of_turn_is_the_other_end_token(quantized: Callable[..., Path], tmp_path: Path) -> None:
    source = changed(
        quantized("llama", "int8"), tmp_path / "q", "generation_config.json",
        lambda content: content.update(eos_token_id=[0, 2]),
    )  # fmt: skip
    export_gguf(source, tmp_path / "m.gguf", Silent())
    found = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert found["tokenizer.ggml.eos_token_id"].contents() == 2
    assert found["tokenizer.ggml.eot_token_id"].contents() == 0


def test_unigram_tokenizer_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.Unigram([("a", -1.0)], unk_id=0)).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BadInputError, match="a Unigram tokenizer is not exported"):
        read_vocabulary(tmp_path, 1)


def test_missing_tokenizer_is_named(quantized: Callable[..., Path], tmp_path: Path) -> None:
    source = shutil.copytree(quantized("llama", "int8"), tmp_path / "q")
    (source / "tokenizer.json").unlink()
    with pytest.raises(BadInputError, match=r"tokenizer\.json is missing"):
        export_gguf(source, tmp_path / "m.gguf", Silent())
