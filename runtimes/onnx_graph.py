"""Write the ONNX graph of a decoder over the weights file in place, for ONNX Runtime GenAI.

Operators are ONNX Runtime's own fused ones: ``MatMulNBits``, ``GatherBlockQuantized``,
``GroupQueryAttention``, ``SkipSimplifiedLayerNormalization`` and, for sparse layers, ``QMoE``,
which computes the chosen experts only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgekit.architecture import EMBEDDING, FINAL_NORM, HEAD, Architecture, TensorSpec, describe
from edgekit.atomic import write_json
from edgekit.checkpoint import read_config
from edgekit.runtimes.genai_config import genai_config
from edgekit.runtimes.onnx_nodes import MICROSOFT, GraphBuilder, TensorProto, block_size, helper
from edgekit.scheme import Packing, Scheme, read_scheme
from edgekit.text import ChatTokenizer

GRAPH = "model.onnx"
WEIGHTS = "weights.safetensors"
INT8_ACTIVATIONS = 4  # MatMulNBits accuracy_level: int8 dot products, the fast path of the CPU
FLOAT_ACTIVATIONS = 1


def write_onnx(variant: Path, accuracy_level: int = INT8_ACTIVATIONS) -> None:
    """Write ``model.onnx`` and ``genai_config.json`` beside the weights file.

    Beside it, because ONNX Runtime refuses external data outside the directory of the graph.

    ``accuracy_level`` 1 keeps activations in float32, for comparisons with a reference.

    Raises:
        BadInputError: ``variant`` is not a quantized checkpoint of a known family.
        MissingRuntimeError: the ``onnx`` package is not installed.
    """
    architecture = describe(read_config(variant), str(variant / "config.json"))
    builder = GraphBuilder(variant / WEIGHTS, WEIGHTS)
    decoder = _Decoder(builder, architecture, read_scheme(variant), accuracy_level)
    (variant / GRAPH).write_bytes(decoder.build())
    ends = ChatTokenizer(variant).end_tokens
    write_json(variant / "genai_config.json", genai_config(architecture, ends))


class _Decoder:
    """Assembles the whole model."""

    def __init__(
        self, builder: GraphBuilder, architecture: Architecture, scheme: Scheme, accuracy: int
    ) -> None:
        self.b = builder
        self.a = architecture
        self.scheme = scheme
        self.accuracy = accuracy
        self.specs = {s.name: s for s in architecture.tensors()}

    def build(self) -> bytes:
        """The serialized model with inputs and outputs as ONNX Runtime GenAI names them."""
        self._positions()
        residual, update = self._embed(), ""
        for layer in range(self.a.num_hidden_layers):
            prefix = self.a.layer_prefix(layer)
            x, residual = self._norm(residual, update, prefix + "input_layernorm.weight")
            update = self._attention(x, layer)
            x, residual = self._norm(residual, update, prefix + "post_attention_layernorm.weight")
            update = self._mixture(x, layer) if self.a.is_sparse(layer) else self._dense(x, layer)
        x, _ = self._norm(residual, update, FINAL_NORM)
        head = EMBEDDING if self.a.tie_word_embeddings else HEAD
        self._matmul(x, self.specs[head], "logits")
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

    def _embed(self) -> str:
        spec = self.specs[EMBEDDING]
        packing = self.scheme.packing(spec)
        if packing is None:
            return self.b.node("Gather", [self.b.floats(EMBEDDING), "input_ids"], "embedded")
        codes = self.b.stored(
            EMBEDDING + ".rows", self.b.info(EMBEDDING + "_packed"), TensorProto.UINT8, spec.shape
        )
        block = block_size(spec.shape[1], packing.group_size)
        scales = self._scales(EMBEDDING, spec.shape, packing)
        return self.b.node(
            "GatherBlockQuantized", [codes, "input_ids", scales], "embedded", MICROSOFT,
            bits=8, block_size=block, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def _norm(self, residual: str, update: str, name: str) -> tuple[str, str]:
        """RMSNorm of ``residual + update``; returns it and the sum."""
        out, weight = name + ".out", self.b.floats(name)
        if not update:
            attributes = {"axis": -1, "epsilon": self.a.rms_norm_eps, "stash_type": 1}
            return self.b.node("SimplifiedLayerNormalization", [residual, weight], out,
                               **attributes), residual  # fmt: skip
        total = name + ".sum"
        self.b.node(
            "SkipSimplifiedLayerNormalization", [residual, update, weight],
            [out, "", "", total], MICROSOFT, epsilon=self.a.rms_norm_eps,
        )  # fmt: skip
        return out, total

    def _scales(
        self, name: str, shape: tuple[int, ...], packing: Packing, block: int = 0
    ) -> str:
        """float32 scales [..., N, K / block] of a matrix, or of all experts of a projection."""
        info = self.b.info(name + "_scale")
        groups = shape[-1] // packing.group_size
        stored = self.b.stored(
            name + "_scale", info, TensorProto.FLOAT16, (*shape[:-1], groups)
        )
        block = block or block_size(shape[-1], packing.group_size)
        return self._repeat(self.b.cast(stored), shape, packing, block)

    def _repeat(self, scales: str, shape: tuple[int, ...], packing: Packing, block: int) -> str:
        """Repeat each scale for the blocks of its group where a group is not one block."""
        repeats = packing.group_size // block
        if repeats == 1:
            return scales
        groups = shape[-1] // packing.group_size
        out = scales + ".blocks"
        if any(node.name == out for node in self.b.nodes):
            return out
        self.b.node("Unsqueeze", [scales, self.b.ints(-1)], scales + ".column")
        wide = self.b.ints(*shape[:-1], groups, repeats)
        self.b.node("Expand", [scales + ".column", wide], scales + ".wide")
        flat = self.b.ints(*shape[:-1], groups * repeats)
        return self.b.node("Reshape", [scales + ".wide", flat], out)

    def _matmul(self, x: str, spec: TensorSpec, out: str, bias: str = "") -> str:
        """x W^T (+ bias)."""
        packing = self.scheme.packing(spec)
        rows, columns = spec.shape
        if packing is None:
            weight = self.b.floats(spec.name)
            turned = self.b.node("Transpose", [weight], out + ".transposed", perm=[1, 0])
            plain = self.b.node("MatMul", [x, turned], out + ".product" if bias else out)
            return self.b.node("Add", [plain, bias], out) if bias else plain
        block = block_size(columns, packing.group_size)
        codes = self.b.stored(
            spec.name + ".blocks", self.b.info(spec.name + "_packed"), TensorProto.UINT8,
            (rows, columns // block, block * packing.bits // 8),
        )  # fmt: skip
        inputs = [x, codes, self._scales(spec.name, spec.shape, packing)]
        if bias:
            inputs += ["", "", bias]
        return self.b.node(
            "MatMulNBits", inputs, out, MICROSOFT, K=columns, N=rows,
            bits=packing.bits, block_size=block, accuracy_level=self.accuracy,
        )  # fmt: skip

    def _linear(self, x: str, module: str) -> str:
        bias = self.b.floats(module + ".bias") if module + ".bias" in self.specs else ""
        return self._matmul(x, self.specs[module + ".weight"], module, bias)

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
        q, k, v = (self._linear(x, a.attention(layer, name)) for name in "qkv")
        if a.family.qk_norm:
            prefix = a.layer_prefix(layer) + "self_attn."
            q = self._head_norm(q, a.num_attention_heads, prefix + "q_norm.weight")
            k = self._head_norm(k, a.num_key_value_heads, prefix + "k_norm.weight")
        past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        y = self.b.node(
            "GroupQueryAttention",
            [q, k, v, *past, "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache"],
            [f"{a.layer_prefix(layer)}attention", *present], MICROSOFT,
            num_heads=a.num_attention_heads, kv_num_heads=a.num_key_value_heads,
            scale=a.head_dim**-0.5, do_rotary=1, rotary_interleaved=0,
        )  # fmt: skip
        return self._linear(y, a.attention(layer, "o"))

    def _dense(self, x: str, layer: int) -> str:
        b = self.b
        gate = self._linear(x, self.a.feed_forward(layer, "gate"))
        up = self._linear(x, self.a.feed_forward(layer, "up"))
        sigmoid = b.node("Sigmoid", [gate], gate + ".sigmoid")
        silu = b.node("Mul", [gate, sigmoid], gate + ".silu")
        return self._linear(
            b.node("Mul", [silu, up], up + ".gated"), self.a.feed_forward(layer, "down")
        )

    def _mixture(self, x: str, layer: int) -> str:
        b, moe = self.b, self.a.moe
        assert moe is not None
        router = self.a.router(layer)
        flat = b.node("Reshape", [x, b.ints(-1, self.a.hidden_size)], router + ".tokens")
        weight = b.floats(router + ".weight")
        probabilities = b.node("Gemm", [flat, weight], router + ".logits", transB=1)
        out = self.a.layer_prefix(layer) + "experts"
        attributes: dict[str, Any] = {
            "k": moe.num_experts_per_tok,
            "activation_type": "swiglu",
            "swiglu_fusion": 1,
            "activation_alpha": 1.0,
            "activation_beta": 0.0,
            "normalize_routing_weights": int(moe.norm_topk_prob),
        }
        down = self._experts(layer, "down")
        gate_up = self._interleaved(layer)
        packing = self.scheme.packing(self.specs[self.a.expert(layer, 0, "gate") + ".weight"])
        if packing is None:
            return b.node("MoE", [x, probabilities, gate_up[0], "", down[0]], out, MICROSOFT,
                          **attributes)  # fmt: skip
        inputs = [x, probabilities, *gate_up, "", *down]
        if not moe.norm_topk_prob:
            # QMoE on the CPU normalises what it computes itself, so give it the probabilities
            inputs += [""] * 7 + [b.node("Softmax", [probabilities], router + ".softmax", axis=-1)]
        return b.node(
            "QMoE", inputs, out, MICROSOFT,
            expert_weight_bits=packing.bits, block_size=self._expert_block(), weights_prepacked=0,
            accuracy_level=self.accuracy, **attributes,
        )  # fmt: skip

    def _experts(self, layer: int, projection: str) -> list[str]:
        """Codes [E, N, K / 2] and scales [E, N, K / block], or the float32 weights alone."""
        assert self.a.moe is not None
        name = self.a.expert(layer, 0, projection) + ".weight"
        spec = self.specs[name]
        packing = self.scheme.packing(spec)
        shape = (self.a.moe.num_experts, *spec.shape)
        if packing is None:
            info = self.b.info(name)
            return [self.b.cast(self.b.stored(name, info, TensorProto.FLOAT16, shape))]
        codes = self.b.stored(
            name + ".codes", self.b.info(name + "_packed"), TensorProto.UINT8,
            (*shape[:-1], shape[-1] * packing.bits // 8),
        )  # fmt: skip
        return [codes, self._scales(name, shape, packing, self._expert_block())]

    def _expert_block(self) -> int:
        """One block size for all projections of the experts, as QMoE has one attribute for it."""
        assert self.a.moe is not None
        sizes = (self.a.hidden_size, self.a.moe.intermediate_size)
        return min(block_size(size, self.scheme.group_size or size) for size in sizes)

    def _interleaved(self, layer: int) -> list[str]:
        """Gate and up rows alternating [E, 2 I, ...], which QMoE on the CPU insists on."""
        b = self.b
        names = []
        for gate, up in zip(
            self._experts(layer, "gate"), self._experts(layer, "up"), strict=True
        ):
            parts = [b.node("Unsqueeze", [n, b.ints(2)], n + ".part") for n in (gate, up)]
            pair = b.node("Concat", parts, gate + ".pair", axis=2)
            assert self.a.moe is not None
            shape = b.ints(self.a.moe.num_experts, 2 * self.a.moe.intermediate_size, -1)
            names.append(b.node("Reshape", [pair, shape], gate + ".interleaved"))
        return names
