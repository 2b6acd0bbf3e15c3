"""GGUF to checkpoint: against transformers, against the original, and damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_files import interleave, write_gguf
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM

from edgekit.checkpoint import Checkpoint, read_json
from edgekit.errors import BadInputError, MissingRuntimeError
from edgekit.gguf import ROUND_TRIP, convert_gguf
from edgekit.progress import Silent
from edgekit.text import ChatTokenizer


def convert(source: Path, target: Path) -> Path:
    target.mkdir()
    convert_gguf(source, target, Silent())
    return target


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        return model(ids).logits


def load(directory: Path, **options: str) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **options)
    return model.eval()


def test_float32_file_gives_the_original_tensors_back_bit_for_bit(
    tiny_llama: Path, tmp_path: Path
) -> None:
    out = convert(write_gguf(tiny_llama, tmp_path / "m.gguf"), tmp_path / "out")
    with Checkpoint(tiny_llama) as original, Checkpoint(out) as converted:
        assert [s.name for s in converted.specs] == [s.name for s in original.specs]
        for spec in original.specs:
            np.testing.assert_array_equal(
                converted.float32(spec.name), original.float32(spec.name), spec.name
            )
        assert converted.architecture == original.architecture


def test_interleaved_rotary_rows_differ_from_the_original_so_the_test_above_sees_them() -> None:
    rows = np.arange(8.0)[:, None]
    assert interleave(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    # float16 keeps a Q8_0 weight to 2^-12 of itself; logits of std 1 add up some of that
    [(Kind.F32, 1e-5), (Kind.F16, 1e-5), (Kind.Q8_0, 1e-2)],
)
def test_logits_equal_those_of_transformers_own_reader(
    tiny_llama: Path, tmp_path: Path, kind: Kind, tolerance: float
) -> None:
    out = convert(write_gguf(tiny_llama, tmp_path / "m.gguf", kind), tmp_path / "out")
    expected = logits(load(tmp_path, gguf_file="m.gguf"))
    torch.testing.assert_close(logits(load(out)), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(Kind.F32, "F32"), (Kind.F16, "F16"), (Kind.BF16, "BF16"), (Kind.Q8_0, "F16")],
)
def test_checkpoint_keeps_the_precision_of_the_file(
    tiny_llama: Path, tmp_path: Path, kind: Kind, dtype: str
) -> None:
    out = convert(write_gguf(tiny_llama, tmp_path / "m.gguf", kind), tmp_path / "out")
    with Checkpoint(out) as checkpoint:
        assert checkpoint.dtype == dtype


def test_untied_head_is_read(tiny_model, tmp_path: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    out = convert(write_gguf(model, tmp_path / "m.gguf"), tmp_path / "out")
    assert read_json(out / "config.json")["tie_word_embeddings"] is False
    torch.testing.assert_close(logits(load(out)), logits(load(model)), rtol=0, atol=1e-5)


def test_tokenizer_template_and_end_token_are_those_of_the_original(
    tiny_llama: Path, tmp_path: Path
) -> None:
    out = convert(write_gguf(tiny_llama, tmp_path / "m.gguf"), tmp_path / "out")
    ours, original = ChatTokenizer(out), ChatTokenizer(tiny_llama)
    for text in ROUND_TRIP:
        assert ours.encode(text) == original.encode(text)
        assert ours.encode(text, allow_special=True) == original.encode(text, allow_special=True)
    messages = [{"role": "user", "content": "2 + 2 <|im_end|>"}]
    assert ours.encode_chat(messages) == original.encode_chat(messages)
    assert ours.end_tokens == frozenset({2})


def test_smollm_tokenizer_splits_digits_and_gpt2_does_not(tiny_llama: Path, tmp_path: Path) -> None:
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "1", "2", "12"]
    tokens += sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"1", "2"})
    tokens += [f"[PAD{i}]" for i in range(len(tokens), 512)]
    vocabulary = {
        "tokenizer__ggml__tokens": tokens,
        "tokenizer__ggml__token_type": [3] * 3 + [1] * 509,
        "tokenizer__ggml__merges": ["1 2"],
    }
    lengths = {}
    for pre in ("smollm", "gpt-2"):
        source = write_gguf(
            tiny_llama, tmp_path / f"{pre}.gguf", **vocabulary, tokenizer__ggml__pre=pre
        )
        lengths[pre] = len(ChatTokenizer(convert(source, tmp_path / pre)).encode("12"))
    assert lengths == {"smollm": 2, "gpt-2": 1}


def test_user_defined_tokens_are_one_token_but_not_special(
    tiny_llama: Path, tmp_path: Path
) -> None:
    kinds = [3, 3, 3] + [1] * 509
    kinds[300] = 4
    source = write_gguf(tiny_llama, tmp_path / "m.gguf", tokenizer__ggml__token_type=kinds)
    out = convert(source, tmp_path / "out")
    added = {t["id"]: t["special"] for t in read_json(out / "tokenizer.json")["added_tokens"]}
    assert added == {0: True, 1: True, 2: True, 300: False}


REFUSED = {
    "architecture": ({"general__architecture": "qwen2"}, "'qwen2'"),
    "scaled positions": ({"llama__rope__scaling__type": "yarn"}, "'yarn'"),
    "partial rotation": ({"llama__rope__dimension_count": 16}, "rope.dimension_count"),
    "heads per layer": ({"llama__attention__head_count": [4, 2]}, "head_count"),
    "no depth": ({"llama__block_count": None}, "block_count is missing"),
    "absurd depth": ({"llama__block_count": 2_000_000_000}, "num_hidden_layers"),
    "no heads": ({"llama__attention__head_count": 0}, "head_count"),
    "epsilon": ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, "rms_norm_eps"),
    "width": ({"llama__feed_forward_length": 96}, "shape"),
    "tokenizer kind": ({"tokenizer__ggml__model": "llama"}, "'llama'"),
    "pre-tokenizer": ({"tokenizer__ggml__pre": "qwen2"}, "'qwen2'"),
    "no pre-tokenizer": ({"tokenizer__ggml__pre": None}, "pre-tokenizer None"),
    "no tokens": ({"tokenizer__ggml__tokens": None}, "vocab_size"),
    "no merges": ({"tokenizer__ggml__merges": None}, "merges is missing"),
    "foreign merges": ({"tokenizer__ggml__merges": ["zq qz"]}, "merges do not fit"),
    "end token": ({"tokenizer__ggml__eos_token_id": 512}, "eos_token_id 512"),
}


@pytest.mark.parametrize(("metadata", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_metadata_that_cannot_be_honoured_is_refused_by_name(
    tiny_llama: Path, tmp_path: Path, metadata: dict, words: str
) -> None:
    source = write_gguf(tiny_llama, tmp_path / "m.gguf", **metadata)
    with pytest.raises(BadInputError, match=r"m\.gguf") as refused:
        convert(source, tmp_path / "out")
    assert words in str(refused.value)


def test_tensors_beyond_a_plain_llama_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    extra = {"rope_freqs.weight": np.ones(16, np.float32)}
    with pytest.raises(BadInputError, match=r"rope_freqs\.weight"):
        convert(write_gguf(tiny_llama, tmp_path / "m.gguf", extra=extra), tmp_path / "out")


def test_missing_tensor_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    source = write_gguf(tiny_llama, tmp_path / "m.gguf", without="blk.1.ffn_up.weight")
    with pytest.raises(BadInputError, match=r"blk\.1\.ffn_up\.weight"):
        convert(source, tmp_path / "out")


def test_tokenizer_that_loses_bytes_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"Ł"})  # "Ł" stands for byte 0x9f
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, "Ġt"]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), 512)]
    source = write_gguf(
        tiny_llama, tmp_path / "m.gguf", tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__merges=["Ġ t"],
    )  # fmt: skip
    with pytest.raises(BadInputError, match="does not give"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_truncated_file_is_refused(tiny_llama: Path, tmp_path: Path, share: float) -> None:
    source = write_gguf(tiny_llama, tmp_path / "m.gguf")
    content = source.read_bytes()
    source.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BadInputError, match=r"m\.gguf: not a whole GGUF file"):
        convert(source, tmp_path / "out")


def test_missing_gguf_package_names_the_extra(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingRuntimeError, match=r"edgekit\[build\]"):
        convert(tmp_path / "m.gguf", tmp_path / "out")
