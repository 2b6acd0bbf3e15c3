"""What sentence-transformers' files say about an embedding model beside its weights.

``modules.json`` lists the steps from tokens to vector: the encoder, the pooling, a normalization.
``1_Pooling/config.json`` says how tokens become one vector, ``sentence_bert_config.json`` how many
tokens count, ``config_sentence_transformers.json`` which words the model wants before a text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgekit.checkpoint import read_json
from edgekit.config_values import ConfigReader
from edgekit.encoder import Encoder
from edgekit.errors import BadInputError

Pooling = Literal["mean", "cls"]
MODULES = "modules.json"
POOLING = "1_Pooling"
LENGTH = "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"
QUERY_PROMPTS = ("query",)
PASSAGE_PROMPTS = ("document", "passage", "corpus")  # the names that sentence-transformers tries


@dataclass(frozen=True)
class EmbeddingSettings:
    """How texts become vectors: ``max_tokens`` includes special tokens and prefix."""

    pooling: Pooling
    max_tokens: int
    query_prefix: str = ""
    passage_prefix: str = ""


def read_settings(directory: Path, encoder: Encoder) -> EmbeddingSettings:
    """The settings beside the weights in ``directory``.

    Raises:
        BadInputError: the pooling is not said or not one that edgekit computes, or a further step
            (such as a projection) follows it.
    """
    _check_modules(directory)
    read = _reader(directory / LENGTH)
    length = min(read.count("max_seq_length", encoder.positions), encoder.positions)
    prompts = _prompts(directory / PROMPTS)
    return EmbeddingSettings(
        _pooling(directory / POOLING / "config.json", encoder),
        length,
        _first(prompts, QUERY_PROMPTS),
        _first(prompts, PASSAGE_PROMPTS),
    )


def _reader(path: Path) -> ConfigReader:
    return ConfigReader(read_json(path) if path.is_file() else {}, str(path))


def _check_modules(directory: Path) -> None:
    path = directory / MODULES
    steps = _module_types(path)
    if steps[:2] != ["Transformer", "Pooling"] or steps[2:] not in ([], ["Normalize"]):
        raise BadInputError(
            f"{path}: the model's steps are {', '.join(steps) or 'none'}; edgekit computes "
            "Transformer, Pooling and Normalize, choose another embedding model"
        )


def _module_types(path: Path) -> list[str]:
    """Class names of the steps, in order."""
    try:
        steps = json.loads(path.read_bytes())
        return [str(step["type"]).rpartition(".")[2] for step in steps]
    except FileNotFoundError:
        raise BadInputError(
            f"{path} is missing, so nothing says how tokens become one vector; give a "
            "sentence-transformers model"
        ) from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadInputError(
            f"{path}: not a list of sentence-transformers modules; download the file again"
        ) from error


def _pooling(path: Path, encoder: Encoder) -> Pooling:
    read = ConfigReader(read_json(path), str(path))
    width = read.count("word_embedding_dimension", encoder.hidden_size)
    if width != encoder.hidden_size:
        raise read.bad(
            "word_embedding_dimension", f"is {width}, the encoder's is {encoder.hidden_size}"
        )
    named = read.text("pooling_mode", "")  # the newer form
    chosen = [named] if named else [
        key for key in read.config if key.startswith("pooling_mode_") and read.flag(key, False)
    ]  # fmt: skip
    modes: dict[str, Pooling] = {
        "mean": "mean", "cls": "cls",
        "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls",
    }  # fmt: skip
    if len(chosen) != 1 or chosen[0] not in modes:
        raise read.bad("pooling_mode", f"is {' and '.join(chosen) or 'missing'}, not mean or cls")
    if not read.flag("include_prompt", True):
        raise read.bad("include_prompt", "is false, and edgekit pools the prefix with the text")
    return modes[chosen[0]]


def _prompts(path: Path) -> dict[str, Any]:
    prompts = _reader(path).config.get("prompts")
    if prompts is None:
        return {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise BadInputError(f"{path}: prompts is not an object of texts; download the file again")
    return prompts


def _first(prompts: dict[str, Any], names: tuple[str, ...]) -> str:
    return next((prompts[name] for name in names if prompts.get(name)), "")
