"""A ``tokenizer.json`` as GGUF metadata.

llama.cpp knows pre-tokenizers by name, not by their expressions, so the name is found from what
``tokenizer.json`` does; one that no name fits is refused rather than cut differently. A byte-level
BPE becomes a ``gpt2`` vocabulary with merges; a BPE over ``▁`` with byte fallback, as SentencePiece
trains them, a ``llama`` vocabulary whose scores are the ranks of its merges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.checkpoint import read_json
from edgekit.errors import BadInputError
from edgekit.text import TOKENIZER, ChatTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # gguf.TokenType
SPACE = "\u2581"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_THREE_DIGITS = rf"{_ENDINGS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
# steps of the pre-tokenizer, and whether whole words are looked up before merging -> name
PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    (("words",), False): "gpt-2",
    (("digits", "words"), False): "smollm",
    ((f"{_ENDINGS}|{_WORDS}|\\p{{N}}|{_REST}",), False): "qwen2",
    ((_THREE_DIGITS,), True): "llama-bpe",
    ((_THREE_DIGITS,), False): "dbrx",
}


@dataclass(frozen=True)
class Vocabulary:
    """Fields ``tokenizer.ggml.*`` of the same names; ``merges`` or ``scores`` is empty."""

    model: str
    pre: str
    tokens: list[str]
    token_types: list[int]
    merges: list[str]
    scores: list[float]
    space_prefix: bool | None


def read_vocabulary(directory: Path, size: int, pre: str = "") -> Vocabulary:
    """The vocabulary of a model of ``size`` tokens; ``pre`` names the pre-tokenizer by hand.

    Raises:
        BadInputError: the tokenizer is missing, damaged, or of a kind that GGUF does not express.
    """
    path = directory / TOKENIZER
    ChatTokenizer(directory)  # refuses a file that is missing or that tokenizers does not read
    content = read_json(path)
    model = content["model"]
    if model.get("type") != "BPE":
        raise BadInputError(
            f"{path}: a {model.get('type')} tokenizer is not exported to GGUF, only BPE; give a "
            "model with a BPE tokenizer"
        )
    tokens, types = _tokens(path, content, size)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    if model.get("byte_fallback"):
        prefix = _space_prefix(path, content)
        types = [BYTE if _is_byte(t) and k == NORMAL else k for t, k in zip(tokens, types)]
        unknown = model.get("unk_token")
        types = [UNKNOWN if t == unknown else k for t, k in zip(tokens, types)]
        return Vocabulary("llama", "default", tokens, types, [], _scores(tokens, merges), prefix)
    name = pre or pre_tokenizer(path, content)
    return Vocabulary("gpt2", name, tokens, types, merges, [], None)


def _tokens(path: Path, content: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Tokens by id and their types; ids that the tokenizer does not use are padded."""
    tokens, types = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    added = {t["content"]: CONTROL if t["special"] else USER_DEFINED
             for t in content["added_tokens"]}  # fmt: skip
    numbers = {**content["model"]["vocab"], **{t["content"]: t["id"]
                                               for t in content["added_tokens"]}}  # fmt: skip
    for token, number in numbers.items():
        if not 0 <= number < size:
            raise BadInputError(
                f"{path}: token {token!r} is number {number} but the model has {size} tokens; "
                "tokenizer and weights do not belong together"
            )
        tokens[number], types[number] = token, added.get(token, NORMAL)
    return tokens, types


def pre_tokenizer(path: Path, content: Mapping[str, Any]) -> str:
    """llama.cpp's name for what a byte-level ``tokenizer.json`` does before merging.

    Raises:
        BadInputError: none of the known names does the same.
    """
    steps = _steps(content.get("pre_tokenizer"))
    whole = bool(content["model"].get("ignore_merges"))
    name = PRE_TOKENIZERS.get((tuple(steps), whole))
    normalizer = (content.get("normalizer") or {}).get("type")
    if name is None or normalizer not in (None, "NFC"):
        raise BadInputError(
            f"{path}: no pre-tokenizer of llama.cpp is known to edgekit that does what this one "
            f"does ({', '.join(steps) or 'nothing'}); say its name with --pre, for example "
            f"--pre {PRE_TOKENIZERS[('words',), False]}"
        )
    return name


def _steps(value: Any) -> list[str]:
    """The pre-tokenizer as "digits", "words" (GPT-2's expression) and expressions that split."""
    if not isinstance(value, dict):
        return []
    kind = value.get("type")
    if kind == "Sequence":
        return [step for part in value["pretokenizers"] for step in _steps(part)]
    if kind == "ByteLevel" and not value.get("add_prefix_space"):
        return ["words"] if value.get("use_regex", True) else []
    if kind == "Digits" and value.get("individual_digits"):
        return ["digits"]
    isolated = value.get("behavior") == "Isolated" and not value.get("invert")
    if kind == "Split" and isolated and "Regex" in value["pattern"]:
        return [str(value["pattern"]["Regex"])]
    return [str(kind)]


def _space_prefix(path: Path, content: Mapping[str, Any]) -> bool:
    """Whether a text begins with a space of its own.

    Raises:
        BadInputError: spaces are not simply written as ``▁``.
    """
    parts: list[dict[str, Any]] = []
    for value in (content.get("normalizer"), content.get("pre_tokenizer")):
        if value:
            parts += value.get("normalizers") or value.get("pretokenizers") or [value]
    prefix, replaced = False, False
    for part in parts:
        kind = part.get("type")
        if kind == "Metaspace" and part.get("replacement") == SPACE and not part.get("split"):
            prefix, replaced = part.get("prepend_scheme") in ("always", "first"), True
        elif kind == "Prepend" and part.get("prepend") == SPACE:
            prefix = True
        elif kind == "Replace" and part.get("pattern") == {"String": " "}:
            replaced = part.get("content") == SPACE
        elif kind != "Split":  # Gemma splits at spaces that are gone by then
            replaced = False
            break
    if not replaced:
        raise BadInputError(
            f"{path}: a byte-fallback tokenizer that treats spaces like this is not exported to "
            "GGUF; give a model with a byte-level tokenizer"
        )
    return prefix


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """The pair that merges first has the highest score."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def add_vocabulary(writer: Any, vocabulary: Vocabulary, directory: Path) -> None:
    """Write vocabulary, special tokens and chat template into a ``gguf.GGUFWriter``."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.token_types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.space_prefix)
    tokenizer = ChatTokenizer(directory)
    special = tokenizer.named_special()
    others = sorted(tokenizer.end_tokens - {special.get("eos")})
    if others:  # GGUF has one "eos" and one "end of turn"
        special.setdefault("eos", others[0])
        special["eot"] = others[0]
    for kind, number in special.items():
        getattr(writer, f"add_{kind}_token_id")(number)
    writer.add_add_bos_token(tokenizer.begins_texts())
    writer.add_add_eos_token(False)
    if tokenizer.template_source:
        writer.add_chat_template(tokenizer.template_source)
