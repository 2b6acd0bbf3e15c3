"""What an embedding model's encoder is: a table of families, and one resolved from its config.

The families differ in two things only, so the table is here and not among the decoders': which
prefix a model with a head stores the encoder under, and where positions begin. All of them are
BERT (arXiv 1810.04805): learned absolute positions, and a LayerNorm after each sum:

    x = norm(words[id] + positions[offset + p] + types[0])
    x = norm(x + attention(x)),  x = norm(x + down(act(up x)))      for every layer
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from edgekit.architecture import FeedForward, Norm, TensorSpec
from edgekit.config_values import ConfigReader
from edgekit.errors import BadInputError
from edgekit.family_values import ACTIVATIONS
from edgekit.stored_parts import Part

MAX_LAYERS = 1000
WORDS = "embeddings.word_embeddings"
POSITIONS = "embeddings.position_embeddings.weight"
TYPES = "embeddings.token_type_embeddings.weight"
# Heads of pre-training, and buffers that old versions of transformers stored.
LEFT_OUT = re.compile(
    r"(.+\.)?pooler\..+|cls\..+|lm_head\..+|(.+\.)?embeddings\.(position_ids|token_type_ids)"
)


@dataclass(frozen=True)
class EncoderFamily:
    """``wrapper`` is the prefix of tensors stored with a head; ``positions_after_padding`` says
    that the first token has the position after ``pad_token_id`` instead of 0."""

    wrapper: str
    positions_after_padding: bool = False


ENCODERS = {
    "bert": EncoderFamily("bert."),
    "roberta": EncoderFamily("roberta.", positions_after_padding=True),
    "xlm-roberta": EncoderFamily("roberta.", positions_after_padding=True),
}


@dataclass(frozen=True)
class EncoderLayer:
    """One layer; ``q``, ``k``, ``v`` and ``o`` name modules, all with a bias."""

    q: str
    k: str
    v: str
    o: str
    attention_norm: Norm
    feed_forward: FeedForward
    feed_forward_norm: Norm


@dataclass(frozen=True)
class Encoder:
    """An encoder's shape. ``positions`` tokens fit; the first has row ``position_offset`` of the
    table of positions."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_heads: int
    positions: int
    position_offset: int
    embedding_norm: Norm
    layers: tuple[EncoderLayer, ...]
    specs: tuple[TensorSpec, ...]

    @property
    def head_dim(self) -> int:
        """Dimensions of a head."""
        return self.hidden_size // self.num_heads

    def tensors(self) -> tuple[TensorSpec, ...]:
        """Every tensor, in forward order."""
        return self.specs

    @cached_property
    def by_name(self) -> dict[str, TensorSpec]:
        """The tensors by name."""
        return {spec.name: spec for spec in self.specs}

    def without(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` in a checkpoint that the encoder does without."""
        return [name for name in names if LEFT_OUT.fullmatch(name)]

    def parameters(self) -> int:
        """Parameters in total."""
        return sum(spec.parameters for spec in self.specs)


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a config's ``model_type`` is in the table."""
    name = config.get("model_type")
    return isinstance(name, str) and name in ENCODERS


def describe_encoder(
    config: Mapping[str, Any], source: str = "config.json", prefix: str = ""
) -> Encoder:
    """The encoder that ``config`` promises, stored under names that begin with ``prefix``.

    Raises:
        BadInputError: the family is not in the table, or a value cannot be computed with.
    """
    read = ConfigReader(config, source)
    if not is_encoder(config):
        raise BadInputError(
            f"{source}: model_type {read.text('model_type', '')!r} is not an encoder that edgekit "
            f"makes embedding packs of; give a model of {', '.join(ENCODERS)}"
        )
    if read.text("position_embedding_type", "absolute") != "absolute":
        raise read.bad("position_embedding_type", "is not absolute, which is all there is here")
    if read.flag("is_decoder", False):
        raise read.bad("is_decoder", "is true, an encoder was expected")
    family = ENCODERS[config["model_type"]]
    hidden, heads = read.count("hidden_size"), read.count("num_attention_heads")
    if hidden % heads:
        raise read.bad("num_attention_heads", f"is {heads}, which does not divide {hidden}")
    offset = 1 + read.whole("pad_token_id", 1) if family.positions_after_padding else 0
    rows = read.count("max_position_embeddings")
    if rows <= offset + 2:
        raise read.bad("max_position_embeddings", f"is {rows}, too few for any text")
    shape = _Shape(
        hidden, read.count("intermediate_size"), read.number("layer_norm_eps", 1e-12, 0.0, 1.0),
        _activation(read),
    )  # fmt: skip
    layers = tuple(
        _layer(i, shape) for i in range(read.count("num_hidden_layers", maximum=MAX_LAYERS))
    )
    norm = shape.norm("embeddings.LayerNorm")
    vocabulary = read.count("vocab_size")
    tables = {
        f"{WORDS}.weight": ("embedding", vocabulary),
        POSITIONS: ("vector", rows),
        TYPES: ("vector", read.count("type_vocab_size", 2)),
    }
    specs = [_spec(n, (size, hidden), role, prefix) for n, (role, size) in tables.items()]
    specs += _norm_specs(norm, prefix)
    for index, layer in enumerate(layers):
        specs += _layer_specs(index, layer, hidden, prefix)
    return Encoder(
        config["model_type"], vocabulary, hidden, heads, rows - offset, offset, norm, layers,
        tuple(specs),
    )  # fmt: skip


@dataclass(frozen=True)
class _Shape:
    """What all layers of an encoder have in common."""

    hidden: int
    inner: int
    eps: float
    activation: str

    def norm(self, module: str) -> Norm:
        return Norm(module, self.hidden, self.eps, kind="layer", bias=True)


def _activation(read: ConfigReader) -> str:
    name = read.text("hidden_act", "gelu")
    kind = ACTIVATIONS.get(name, "")
    if kind not in ("gelu", "gelu_tanh", "relu"):
        raise read.bad("hidden_act", f"is {name!r}, edgekit's encoders know gelu and relu")
    return kind


def _layer(index: int, shape: _Shape) -> EncoderLayer:
    base = f"encoder.layer.{index}"
    attention = f"{base}.attention"
    return EncoderLayer(
        q=f"{attention}.self.query",
        k=f"{attention}.self.key",
        v=f"{attention}.self.value",
        o=f"{attention}.output.dense",
        attention_norm=shape.norm(f"{attention}.output.LayerNorm"),
        feed_forward=FeedForward(
            "", f"{base}.intermediate.dense", f"{base}.output.dense", shape.inner,
            shape.activation, bias=True,
        ),
        feed_forward_norm=shape.norm(f"{base}.output.LayerNorm"),
    )  # fmt: skip


def _layer_specs(index: int, layer: EncoderLayer, hidden: int, prefix: str) -> Iterator[TensorSpec]:
    f = layer.feed_forward
    matrices = (("q", layer.q), ("k", layer.k), ("v", layer.v), ("o", layer.o))
    for projection, module in matrices:
        yield _spec(f"{module}.weight", (hidden, hidden), "linear", prefix, index, projection)
        yield _spec(f"{module}.bias", (hidden,), "bias", prefix, index)
    yield from _norm_specs(layer.attention_norm, prefix, index)
    yield _spec(f"{f.up}.weight", (f.size, hidden), "linear", prefix, index, "up")
    yield _spec(f"{f.up}.bias", (f.size,), "bias", prefix, index)
    yield _spec(f"{f.down}.weight", (hidden, f.size), "linear", prefix, index, "down")
    yield _spec(f"{f.down}.bias", (hidden,), "bias", prefix, index)
    yield from _norm_specs(layer.feed_forward_norm, prefix, index)


def _norm_specs(norm: Norm, prefix: str, layer: int = -1) -> Iterator[TensorSpec]:
    for part in ("weight", "bias"):
        yield _spec(f"{norm.module}.{part}", (norm.size,), "norm", prefix, layer)


def _spec(
    name: str, shape: tuple[int, ...], role: str, prefix: str, layer: int = -1, projection: str = ""
) -> TensorSpec:
    return TensorSpec(name, shape, role, Part(prefix + name, shape), layer, projection=projection)
