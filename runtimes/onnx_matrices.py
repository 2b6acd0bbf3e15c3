"""Matrices of the weights file as ONNX Runtime multiplies them: codes in place, scales folded.

ONNX Runtime wants one float32 scale per block of 16 to 128 inputs. The file has float16 scales, one
per group or per channel, so a Cast (and an Expand) stands before each; the runtime computes it
once while it loads. Inline float32 copies of SmolLM2-135M's scales made ``model.onnx`` 8.6 MB
instead of 0.2 MB, with the same speed, load time and memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.architecture import FeedForward, Norm, TensorSpec, TensorTable
from edgekit.runtimes.onnx_nodes import MICROSOFT, GraphBuilder, TensorProto, block_size
from edgekit.scheme import Packing, Scheme
from edgekit.tensorfile import TensorInfo


class Matrices:
    """Writes products with the matrices of one checkpoint.

    Attributes:
        accuracy: ``accuracy_level`` of the products: 4 quantizes activations to int8, 1 does not.
    """

    def __init__(
        self, builder: GraphBuilder, architecture: TensorTable, scheme: Scheme, accuracy: int
    ) -> None:
        self.b = builder
        self.specs = architecture.by_name
        self.scheme = scheme
        self.accuracy = accuracy

    def packs(self, module: str) -> bool:
        """Whether the matrix of ``module`` is stored as codes."""
        return self.scheme.packing(self.specs[module + ".weight"]) is not None

    def linear(self, x: str, module: str) -> str:
        """x W^T (+ bias) of a module such as ``model.layers.0.self_attn.q_proj``."""
        bias = self.b.floats(module + ".bias") if module + ".bias" in self.specs else ""
        return self.matmul(x, self.specs[module + ".weight"], module, bias)

    def matmul(self, x: str, spec: TensorSpec, out: str, bias: str = "") -> str:
        """x W^T (+ bias) of a matrix [N, K]."""
        packing = self.scheme.packing(spec)
        if packing is None:
            turned = self.b.node(
                "Transpose", [self.b.floats(spec.name)], out + ".transposed", perm=[1, 0]
            )
            plain = self.b.node("MatMul", [x, turned], out + ".product" if bias else out)
            return self.b.node("Add", [plain, bias], out) if bias else plain
        codes = self.b.info(spec.name + "_packed")
        return self._product(x, codes, spec.name, spec.shape, packing, out, bias)

    def joined(self, x: str, modules: Sequence[str], out: str) -> str:
        """x W^T (+ bias) of several modules in one product, [..., sum of their N].

        Their packed codes and scales lie side by side in the file (:mod:`edgekit.layout`).
        """
        specs = [self.specs[m + ".weight"] for m in modules]
        packing = self.scheme.packing(specs[0])
        assert packing is not None
        rows = sum(s.shape[0] for s in specs)
        codes = self.b.adjacent([s.name + "_packed" for s in specs])
        self.b.adjacent([s.name + "_scale" for s in specs])
        bias = ""
        if modules[0] + ".bias" in self.specs:
            biases = [self.b.floats(m + ".bias") for m in modules]
            bias = self.b.node("Concat", biases, out + ".bias", axis=0)
        shape = (rows, specs[0].shape[1])
        return self._product(x, codes, specs[0].name, shape, packing, out, bias)

    def _product(
        self, x: str, codes: TensorInfo, name: str, shape: tuple[int, ...], packing: Packing,
        out: str, bias: str,
    ) -> str:  # fmt: skip
        """x W^T (+ bias) of packed rows [N, K] that begin at ``codes`` and at ``name``'s scales."""
        rows, columns = shape
        block = block_size(columns, packing.group_size)
        blocks = self.b.stored(
            name + ".blocks", codes, TensorProto.UINT8,
            (rows, columns // block, block * packing.bits // 8),
        )  # fmt: skip
        inputs = [x, blocks, self.scales(name, shape, packing, block)]
        if bias:
            inputs += ["", "", bias]
        return self.b.node(
            "MatMulNBits", inputs, out, MICROSOFT, K=columns, N=rows,
            bits=packing.bits, block_size=block, accuracy_level=self.accuracy,
        )  # fmt: skip

    def embed(self, name: str, token_ids: str, out: str) -> str:
        """Rows of the embedding ``name``, which a tied head shares."""
        spec = self.specs[name]
        packing = self.scheme.packing(spec)
        if packing is None:
            return self.b.node("Gather", [self.b.floats(name), token_ids], out)
        codes = self.b.stored(
            name + ".rows", self.b.info(name + "_packed"), TensorProto.UINT8, spec.shape
        )
        block = block_size(spec.shape[1], packing.group_size)
        scales = self.scales(name, spec.shape, packing, block)
        return self.b.node(
            "GatherBlockQuantized", [codes, token_ids, scales], out, MICROSOFT,
            bits=packing.bits, block_size=block, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def scales(self, name: str, shape: tuple[int, ...], packing: Packing, block: int) -> str:
        """float32 scales [..., N, K / block] of a matrix, or of all experts of a projection.

        Each scale is repeated for the blocks of its group, which changes nothing in the product.
        """
        groups, repeats = shape[-1] // packing.group_size, packing.group_size // block
        stored = self.b.stored(
            name + "_scale", self.b.info(name + "_scale"), TensorProto.FLOAT16,
            (*shape[:-1], groups),
        )  # fmt: skip
        scales = self.b.cast(stored)
        out = scales + ".blocks"
        if repeats == 1 or self.b.has(out):
            return out if repeats > 1 else scales
        self.b.node("Unsqueeze", [scales, self.b.ints(-1)], scales + ".column")
        wide = self.b.ints(*shape[:-1], groups, repeats)
        self.b.node("Expand", [scales + ".column", wide], scales + ".wide")
        flat = self.b.ints(*shape[:-1], groups * repeats)
        return self.b.node("Reshape", [scales + ".wide", flat], out)

    def norm(self, x: str, norm: Norm | None) -> str:
        """The normalization over the last axis; the identity for None."""
        if norm is None:
            return x
        out, weight = f"{norm.module}.out", self.norm_weight(norm)
        if norm.kind == "rms":
            return self.b.node(
                "SimplifiedLayerNormalization", [x, weight], out,
                axis=-1, epsilon=norm.eps, stash_type=1,
            )  # fmt: skip
        bias = [self.b.floats(norm.module + ".bias")] if norm.bias else []
        inputs = [x, weight, *bias]
        return self.b.node("LayerNormalization", inputs, out, axis=-1, epsilon=norm.eps)

    def norm_weight(self, norm: Norm) -> str:
        """What a norm multiplies by [size]."""
        if not norm.weight:
            return self.b.value(f"ones_{norm.size}", np.ones(norm.size, np.float32))
        weight = self.b.floats(norm.module + ".weight")
        if not norm.unit_offset:
            return weight
        out = weight + ".offset"
        return out if self.b.has(out) else self.b.node("Add", [weight, self.b.real(1.0)], out)

    def feed_forward(self, x: str, f: FeedForward) -> str:
        """A dense feed-forward of x [B, T, H]."""
        up = self.linear(x, f.up)
        if not f.gate:
            return self.linear(self.activation(up, f.activation), f.down)
        gate = self.activation(self.linear(x, f.gate), f.activation)
        return self.linear(self.b.node("Mul", [gate, up], up + ".gated"), f.down)

    def activation(self, x: str, kind: str) -> str:
        """The activation function ``kind`` of :mod:`edgekit.family_values`."""
        b, out = self.b, f"{x}.{kind}"
        if kind == "silu":
            return b.node("Mul", [x, b.node("Sigmoid", [x], x + ".sigmoid")], out)
        if kind in ("gelu", "gelu_tanh"):
            return b.node("Gelu", [x], out, approximate="tanh" if kind == "gelu_tanh" else "none")
        positive = b.node("Relu", [x], x + ".relu")
        return b.node("Mul", [positive, positive], out) if kind == "relu2" else positive

    def scaled(self, x: str, factor: float) -> str:
        """x times a constant; x itself for 1."""
        return x if factor == 1.0 else self.b.node("Mul", [x, self.b.real(factor)], x + ".scaled")

    def clipped(self, x: str, bound: float) -> str:
        """x within +-bound; x itself for 0."""
        if not bound:
            return x
        return self.b.node("Clip", [x, self.b.real(-bound), self.b.real(bound)], x + ".clipped")
