"""Write the ONNX graph of a decoder over the weights file in place, for ONNX Runtime GenAI.

Operators are ONNX Runtime's own fused ones: ``MatMulNBits``, ``GatherBlockQuantized``,
``GroupQueryAttention``, ``SkipSimplifiedLayerNormalization`` and, for sparse layers, ``QMoE``.
The graph lies at the root of the variant, because ONNX Runtime refuses external data outside the
directory of the graph ("External data path escapes model directory").

The rotary tables are computed from the inverse frequencies while the runtime loads, which takes
``context_length * head_dim * 4`` bytes: 8 MB for 32,768 positions of 64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgekit.architecture import EMBEDDING, FINAL_NORM, HEAD, Architecture, describe
from edgekit.atomic import write_json
from edgekit.checkpoint import read_config
from edgekit.runtimes.genai_config import genai_config
from edgekit.runtimes.onnx_matrices import Matrices
from edgekit.runtimes.onnx_moe import mixture
from edgekit.runtimes.onnx_nodes import MICROSOFT, GraphBuilder, TensorProto, helper
from edgekit.scheme import read_scheme
from edgekit.text import ChatTokenizer

GRAPH = "model.onnx"
WEIGHTS = "weights.safetensors"
INT8_ACTIVATIONS = 4  # MatMulNBits accuracy_level: int8 dot products, the fast path of the CPU
FLOAT_ACTIVATIONS = 1


def write_onnx(variant: Path, accuracy_level: int = INT8_ACTIVATIONS) -> None:
    """Write ``model.onnx`` and ``genai_config.json`` beside the weights file.

    ``accuracy_level`` 1 keeps activations in float32, for comparisons with a reference.

    Raises:
        BadInputError: ``variant`` is not a quantized checkpoint of a known family.
        MissingRuntimeError: the ``onnx`` package is not installed.
    """
    architecture = describe(read_config(variant), str(variant / "config.json"))
    builder = GraphBuilder(variant / WEIGHTS, WEIGHTS)
    matrices = Matrices(builder, architecture, read_scheme(variant), accuracy_level)
    (variant / GRAPH).write_bytes(_Decoder(matrices, architecture).build())
    ends = ChatTokenizer(variant).end_tokens
    write_json(variant / "genai_config.json", genai_config(architecture, ends))


class _Decoder:
    """Assembles the whole model."""

    def __init__(self, matrices: Matrices, architecture: Architecture) -> None:
        self.m = matrices
        self.b = matrices.b
        self.a = architecture

    def build(self) -> bytes:
        """The serialized model with inputs and outputs as ONNX Runtime GenAI names them."""
        self._positions()
        residual, update = self.m.embed("input_ids", "embedded"), ""
        for layer in range(self.a.num_hidden_layers):
            prefix = self.a.layer_prefix(layer)
            x, residual = self._norm(residual, update, prefix + "input_layernorm.weight")
            update = self._attention(x, layer)
            x, residual = self._norm(residual, update, prefix + "post_attention_layernorm.weight")
            update = self._feed_forward(x, layer)
        x, _ = self._norm(residual, update, FINAL_NORM)
        head = EMBEDDING if self.a.tie_word_embeddings else HEAD
        self.m.matmul(x, self.m.specs[head], "logits")
        return self.b.model(self._inputs(), self._outputs())

    def _inputs(self) -> list[Any]:
        info = helper.make_tensor_value_info
        return [
            info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
            info("attention_mask", TensorProto.INT64, ["batch", "total"]),
            *self._cache("past_key_values", "past"),
        ]

    def _outputs(self) -> list[Any]:
        shape = ["batch", "sequence", self.a.vocab_size]
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
        return [logits, *self._cache("present", "total")]

    def _cache(self, prefix: str, length: str) -> list[Any]:
        shape = ["batch", self.a.num_key_value_heads, length, self.a.head_dim]
        return [
            helper.make_tensor_value_info(f"{prefix}.{layer}.{kind}", TensorProto.FLOAT, shape)
            for layer in range(self.a.num_hidden_layers)
            for kind in ("key", "value")
        ]

    def _positions(self) -> None:
        """Lengths for the attention, and rotary tables that the runtime folds while loading."""
        b = self.b
        b.node("ReduceSum", ["attention_mask", b.ints(1)], "lengths", keepdims=0)
        b.node("Sub", ["lengths", b.ints(1)], "last")
        b.node("Cast", ["last"], "seqlens_k", to=TensorProto.INT32)
        b.node("Shape", ["attention_mask"], "mask_shape")
        b.node("Gather", ["mask_shape", b.value("one", np.array(1, np.int64))], "total")
        b.node("Cast", ["total"], "total_sequence_length", to=TensorProto.INT32)
        b.value("zero", np.array(0, np.int64))
        b.value("context", np.array(self.a.context_length, np.int64))
        b.node("Range", ["zero", "context", "one"], "positions")
        b.node("Cast", ["positions"], "positions_f32", to=TensorProto.FLOAT)
        b.node("Unsqueeze", ["positions_f32", b.ints(1)], "positions_column")
        frequencies = b.value("inv_freq", np.array([self.a.inv_freq], np.float32))
        b.node("Mul", ["positions_column", frequencies], "angles")
        b.node("Cos", ["angles"], "cos_cache")
        b.node("Sin", ["angles"], "sin_cache")

    def _norm(self, residual: str, update: str, name: str) -> tuple[str, str]:
        """RMSNorm of ``residual + update``; returns it and the sum."""
        out, weight = name + ".out", self.b.floats(name)
        if not update:
            self.b.node(
                "SimplifiedLayerNormalization", [residual, weight], out,
                axis=-1, epsilon=self.a.rms_norm_eps, stash_type=1,
            )  # fmt: skip
            return out, residual
        total = name + ".sum"
        self.b.node(
            "SkipSimplifiedLayerNormalization", [residual, update, weight],
            [out, "", "", total], MICROSOFT, epsilon=self.a.rms_norm_eps,
        )  # fmt: skip
        return out, total

    def _head_norm(self, x: str, count: int, name: str) -> str:
        """RMSNorm of each head of [B, T, heads * head_dim]."""
        b, size = self.b, self.a.head_dim
        split = b.node("Reshape", [x, b.ints(0, 0, count, size)], x + ".heads")
        normed = b.node(
            "SimplifiedLayerNormalization", [split, b.floats(name)], x + ".normed",
            axis=-1, epsilon=self.a.rms_norm_eps, stash_type=1,
        )  # fmt: skip
        return b.node("Reshape", [normed, b.ints(0, 0, count * size)], x + ".joined")

    def _attention(self, x: str, layer: int) -> str:
        a = self.a
        q, k, v = self._queries_keys_values(x, layer)
        past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        y = self.b.node(
            "GroupQueryAttention",
            [q, k, v, *past, "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache"],
            [f"{a.layer_prefix(layer)}attention", *present], MICROSOFT,
            num_heads=a.num_attention_heads, kv_num_heads=a.num_key_value_heads,
            scale=a.head_dim**-0.5, do_rotary=1, rotary_interleaved=0,
        )  # fmt: skip
        return self.m.linear(y, a.attention(layer, "o"))

    def _queries_keys_values(self, x: str, layer: int) -> tuple[str, str, str]:
        """The attention's first inputs: all three in the first one, or one each.

        One product is faster than three (SmolLM2-135M, 2 cores: all products of a token take 6.5 ms
        instead of 7.3), but norms per head and unpacked weights need them apart.
        """
        a = self.a
        modules = [a.attention(layer, name) for name in "qkv"]
        prefix = a.layer_prefix(layer) + "self_attn."
        if self.m.packs(modules[0]) and not a.family.qk_norm:
            return self.m.joined(x, modules, prefix + "qkv"), "", ""
        q, k, v = (self.m.linear(x, module) for module in modules)
        if a.family.qk_norm:
            q = self._head_norm(q, a.num_attention_heads, prefix + "q_norm.weight")
            k = self._head_norm(k, a.num_key_value_heads, prefix + "k_norm.weight")
        return q, k, v

    def _feed_forward(self, x: str, layer: int) -> str:
        if self.a.is_sparse(layer):
            return mixture(self.m, self.a, x, layer)
        b = self.b
        gate = self.m.linear(x, self.a.feed_forward(layer, "gate"))
        up = self.m.linear(x, self.a.feed_forward(layer, "up"))
        sigmoid = b.node("Sigmoid", [gate], gate + ".sigmoid")
        silu = b.node("Mul", [gate, sigmoid], gate + ".silu")
        return self.m.linear(
            b.node("Mul", [silu, up], up + ".gated"), self.a.feed_forward(layer, "down")
        )
