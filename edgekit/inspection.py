"""Inspect: what a checkpoint is, from ``config.json`` alone or with its weights verified."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edgekit.checkpoint import Checkpoint, read_config
from edgekit.describe import describe
from edgekit.layout import misfit
from edgekit.plan import SCHEMES, weights_bytes
from edgekit.resemblance import is_unknown
from edgekit.scheme import Scheme, is_quantized
from edgekit.text import ChatTokenizer


class Inspection(BaseModel):
    """Shape and sizes of a model; bytes unless the name says otherwise."""

    model_config = ConfigDict(frozen=True)

    family: str
    parameters: int
    active_parameters: int
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_experts: int
    num_experts_per_tok: int
    context_length: int
    tie_word_embeddings: bool
    kv_bytes_per_token: int
    size_per_scheme: dict[str, int]
    weights_verified: bool
    dtype: str
    stored_bytes: int
    chat_template: bool
    notes: list[str]


def inspect_model(directory: Path, family: str = "") -> Inspection:
    """Describe the checkpoint in ``directory``; weights are verified where they are present.

    ``family`` reads one of an unknown ``model_type`` as that family.

    Raises:
        BadInputError: the config is absurd or unknown, or the weights contradict it.
    """
    config = read_config(directory)
    if not family and is_unknown(config) and any(directory.glob("*.safetensors*")):
        Checkpoint(directory)  # raises, and says what it resembles
    architecture = describe(config, str(directory / "config.json"), family)
    notes: list[str] = []
    dtype, stored, verified = "", 0, False
    files = [*directory.glob("*.safetensors*"), *directory.glob("*.bin"), *directory.glob("*.pt*")]
    if is_quantized(directory):
        stored = sum(f.stat().st_size for f in directory.glob("*.safetensors"))
        notes.append("quantized already: the sizes above are those of the original model")
    elif files:
        with Checkpoint(directory, family) as checkpoint:
            dtype, stored, verified = checkpoint.stored_as, checkpoint.nbytes, True
    else:
        notes.append("no weights here: sizes are computed from the config")
    template = False
    if (directory / "tokenizer.json").is_file():
        template = ChatTokenizer(directory).has_template
        if not template:
            notes.append("no chat template: `chat` will refuse it")
    else:
        notes.append("no tokenizer.json: `chat` and `build` will refuse it")
    moe = architecture.moe
    sizes = {
        s: weights_bytes(architecture, Scheme.parse(s))
        for s in SCHEMES
        if misfit(architecture, Scheme.parse(s)) is None
    }
    return Inspection(
        family=architecture.model_type,
        parameters=architecture.parameters(),
        active_parameters=architecture.active_parameters(),
        vocab_size=architecture.vocab_size,
        hidden_size=architecture.hidden_size,
        num_hidden_layers=architecture.num_hidden_layers,
        num_attention_heads=architecture.num_attention_heads,
        num_key_value_heads=architecture.num_key_value_heads,
        head_dim=architecture.head_dim,
        num_experts=moe.num_experts if moe else 0,
        num_experts_per_tok=moe.num_experts_per_tok if moe else 0,
        context_length=architecture.context_length,
        tie_word_embeddings=architecture.tie_word_embeddings,
        kv_bytes_per_token=architecture.kv_bytes_per_token(),
        size_per_scheme=sizes,
        weights_verified=verified,
        dtype=dtype,
        stored_bytes=stored,
        chat_template=template,
        notes=notes,
    )
