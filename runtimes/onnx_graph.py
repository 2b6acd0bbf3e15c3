"""Write the ONNX graph of a decoder over the weights file in place, for ONNX Runtime GenAI.

Operators are ONNX Runtime's own fused ones: ``MatMulNBits``, ``GatherBlockQuantized``,
``GroupQueryAttention``, ``SkipSimplifiedLayerNormalization`` and, for sparse layers, ``QMoE``.
The graph lies at the root of the variant, because ONNX Runtime refuses external data outside the
directory of the graph ("External data path escapes model directory").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.architecture import Architecture, Attention, LatentAttention, Layer, Norm, ShortConv
from edgekit.atomic import write_json
from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.runtimes.genai_config import genai_config
from edgekit.runtimes.onnx_attention import Positions, attention, latent_attention
from edgekit.runtimes.onnx_conv import short_conv, state_names
from edgekit.runtimes.onnx_matrices import Matrices
from edgekit.runtimes.onnx_moe import mixture
from edgekit.runtimes.onnx_nodes import MICROSOFT, GraphBuilder, TensorProto, helper
from edgekit.scheme import read_scheme
from edgekit.text import ChatTokenizer
from edgekit.variant_files import ONNX_GRAPH, files_of, size_directories

INT8_ACTIVATIONS = 4  # MatMulNBits accuracy_level: int8 dot products, the fast path of the CPU
FLOAT_ACTIVATIONS = 1


def write_onnx(variant: Path, accuracy_level: int = INT8_ACTIVATIONS) -> None:
    """Write ``model.onnx`` of a variant and of each nested size in it, and ``genai_config.json``.

    ``accuracy_level`` 1 keeps activations in float32, for comparisons with a reference.

    Raises:
        BadInputError: ``variant`` is not a quantized checkpoint of a known family.
        MissingRuntimeError: the ``onnx`` package is not installed.
    """
    architecture = write_onnx_graph(variant, accuracy_level)
    for directory in size_directories(variant)[1:]:
        write_onnx_graph(directory, accuracy_level)
    ends = ChatTokenizer(variant).end_tokens
    write_json(variant / "genai_config.json", genai_config(architecture, ends))


def write_onnx_graph(variant: Path, accuracy_level: int, name: str = ONNX_GRAPH) -> Architecture:
    """Write the graph of one size alone, as ``name`` beside the weights; returns what it computes.

    A nested size puts its folder's name into the graph's (:meth:`VariantFiles.onnx_beside`).
    """
    files = files_of(variant)
    architecture = describe(read_config(variant), str(variant / "config.json"))
    builder = GraphBuilder(files.weights, architecture, files.weights.name)
    matrices = Matrices(builder, architecture, read_scheme(variant), accuracy_level)
    files.onnx_beside(name).write_bytes(_Decoder(matrices, architecture).build())
    return architecture


class _Decoder:
    """Assembles the whole model."""

    def __init__(self, matrices: Matrices, architecture: Architecture) -> None:
        self.m = matrices
        self.b = matrices.b
        self.a = architecture
        self.positions = Positions(matrices, architecture.context_length)
        self.shortcut = ""  # a mixture to be added after the next layer

    def build(self) -> bytes:
        """The serialized model with inputs and outputs as ONNX Runtime GenAI names them."""
        a, m = self.a, self.m
        self.positions.lengths()
        embedding = a.embedding + ".weight"
        residual = m.scaled(m.embed(embedding, "input_ids", "embedded"), a.embedding_scale)
        update = ""
        for layer in a.layers:
            residual, update = self._layer(layer, residual, update)
        x, _ = self._norm(residual, update, a.final_norm)
        self._logits(x)
        return self.b.model(self._inputs(), self._outputs())

    def _logits(self, x: str) -> None:
        a, m, b = self.a, self.m, self.b
        spec = m.specs[(a.embedding if a.tie_word_embeddings else a.head) + ".weight"]
        bias = b.floats(a.head + ".bias") if a.head_bias else ""
        if a.logit_scale == 1.0 and not a.logit_soft_cap:
            m.matmul(x, spec, "logits", bias)
            return
        y = m.scaled(m.matmul(x, spec, "head", bias), a.logit_scale)
        cap = a.logit_soft_cap
        if cap:
            y = b.node("Tanh", [m.scaled(y, 1 / cap)], "head.capped")
        b.node("Mul", [y, b.real(cap or 1.0)], "logits")

    def _inputs(self) -> list[Any]:
        info = helper.make_tensor_value_info
        return [
            info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
            info("attention_mask", TensorProto.INT64, ["batch", "total"]),
            *self._cache("past_key_values", "past", 0),
        ]

    def _outputs(self) -> list[Any]:
        shape = ["batch", "sequence", self.a.vocab_size]
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
        return [logits, *self._cache("present", "total", 1)]

    def _cache(self, prefix: str, length: str, end: int) -> list[Any]:
        """Keys and values, or the state, of every layer; ``end`` 0 for inputs, 1 for outputs."""
        shape = ["batch", self.a.num_key_value_heads, length, self.a.head_dim]
        tensors: list[tuple[str, list[Any]]] = []
        for layer in self.a.layers:
            if isinstance(layer.attention, ShortConv):
                state = ["batch", layer.attention.size, layer.attention.length - 1]
                tensors.append((state_names(layer.index)[end], state))
            else:
                tensors += [(f"{prefix}.{layer.index}.{kind}", shape) for kind in ("key", "value")]
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name, sizes in tensors
        ]

    def _layer(self, layer: Layer, residual: str, update: str) -> tuple[str, str]:
        """One layer on the sum of ``residual`` and ``update``; returns the next two."""
        m, prefix = self.m, f"layers.{layer.index}."
        shortcut, self.shortcut = self.shortcut, ""
        x, residual = self._norm(residual, update, layer.attention_norm, prefix + "sum")
        y = self._mixed(x, layer, prefix)
        y = m.scaled(m.norm(y, layer.attention_post_norm), layer.residual_scale)
        if layer.parallel:
            given = m.norm(residual, layer.feed_forward_norm) if layer.feed_forward_norm else x
            residual = self.b.node("Add", [residual, y], prefix + "attended")
        else:
            given, residual = self._norm(residual, y, layer.feed_forward_norm, prefix + "attended")
        y = self._fed_forward(given, layer)
        if shortcut:
            residual = self.b.node("Add", [residual, shortcut], prefix + "shortcut")
        return residual, m.scaled(m.norm(y, layer.feed_forward_post_norm), layer.residual_scale)

    def _fed_forward(self, x: str, layer: Layer) -> str:
        m = self.m
        if layer.mixture and not layer.shortcut:
            return mixture(m, x, self.a.hidden_size, layer.mixture)
        if layer.mixture:
            self.shortcut = mixture(m, x, self.a.hidden_size, layer.mixture)
        assert layer.dense is not None
        return m.feed_forward(x, layer.dense)

    def _mixed(self, x: str, layer: Layer, prefix: str) -> str:
        if isinstance(layer.attention, Attention):
            return attention(self.positions, x, layer.attention, layer.index, prefix)
        if isinstance(layer.attention, ShortConv):
            return short_conv(self.positions, x, layer.attention, layer.index, prefix)
        assert isinstance(layer.attention, LatentAttention)  # the rules let no other come here
        return latent_attention(self.positions, x, layer.attention, layer.index, prefix)

    def _norm(
        self, residual: str, update: str, norm: Norm | None, total: str = "last.sum"
    ) -> tuple[str, str]:
        """The norm of ``residual + update``, and that sum."""
        if not update:
            return self.m.norm(residual, norm), residual
        if norm is None or norm.kind != "rms":
            self.b.node("Add", [residual, update], total)
            return self.m.norm(total, norm), total
        out = norm.module + ".out"
        self.b.node(
            "SkipSimplifiedLayerNormalization", [residual, update, self.m.norm_weight(norm)],
            [out, "", "", total], MICROSOFT, epsilon=norm.eps,
        )  # fmt: skip
        return out, total
