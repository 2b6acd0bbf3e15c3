"""Building blocks of the OpenVINO graph, written as OpenVINO's fusions expect them.

A block that misses its fusion is correct and slow; the tests count the fused operations. What the
pattern matchers want is noted where it is not obvious.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino.utils.node_factory import NodeFactory

from edgekit.architecture import Architecture, TensorSpec
from edgekit.runtimes.openvino_constants import PACKED_TYPES, ConstantPool, Node
from edgekit.scheme import Packing, Scheme

I64 = np.int64
F32 = np.float32


class Blocks:
    """Blocks of one model over one weights file."""

    def __init__(self, pool: ConstantPool, architecture: Architecture, scheme: Scheme) -> None:
        self.pool = pool
        self.architecture = architecture
        self.scheme = scheme
        self._specs = {s.name: s for s in architecture.tensors()}
        self._opset4 = NodeFactory("opset4")

    def ints(self, *values: int) -> Node:
        """An int64 vector."""
        return self.pool.value(list(values), I64)

    def scalar(self, value: float, dtype: Any = I64) -> Node:
        """A constant of rank 0."""
        return self.pool.value(value, dtype)

    def matrix(self, name: str) -> Node:
        """The matrix ``name`` [N, K] as float32, decompressed inside the matrix product."""
        spec = self._specs[name]
        packing = self.scheme.packing(spec)
        if packing is None:
            return self._as_float32(self.pool.floats(name))
        codes, scale = self.pool.info(name + "_packed"), self.pool.info(name + "_scale")
        return self._decompress(codes, scale, spec.shape, packing)

    def experts(self, layer: int, projection: str) -> Node:
        """All experts of a projection as one tensor [E, N, K], float32."""
        assert self.architecture.moe is not None
        names = [
            self.architecture.expert(layer, e, projection) + ".weight"
            for e in range(self.architecture.moe.num_experts)
        ]
        spec: TensorSpec = self._specs[names[0]]
        shape = (len(names), *spec.shape)
        packing = self.scheme.packing(spec)
        if packing is None:
            info = self.pool.stacked(names)
            return self._as_float32(self.pool.stored(info, ov.Type.f16, shape))
        codes = self.pool.stacked([n + "_packed" for n in names])
        scale = self.pool.stacked([n + "_scale" for n in names])
        return self._decompress(codes, scale, shape, packing)

    def _decompress(self, codes: Any, scale: Any, shape: tuple[int, ...], packing: Packing) -> Node:
        """Constant -> Convert -> Subtract -> Multiply -> Reshape -> Convert."""
        *outer, columns = shape
        groups = columns // packing.group_size
        split = [*outer, groups, packing.group_size] if groups > 1 else list(shape)
        scale_shape = [*outer, groups, 1] if groups > 1 else [*outer, 1]
        weights = op.convert(self.pool.stored(codes, PACKED_TYPES[packing.bits], split), "f16")
        zero = self.pool.value(np.full([1] * len(split), packing.zero_point), np.float16)
        weights = op.subtract(weights, zero)
        weights = op.multiply(weights, self.pool.stored(scale, ov.Type.f16, scale_shape))
        if groups > 1:
            weights = op.reshape(weights, self.ints(*shape), False)
        return op.convert(weights, "f32")

    def _as_float32(self, node: Node) -> Node:
        return op.convert(node, "f32")

    def linear(self, x: Node, module: str) -> Node:
        """x W^T (+ b)."""
        y = op.matmul(x, self.matrix(module + ".weight"), False, True)
        if module + ".bias" in self._specs:
            bias = self._specs[module + ".bias"]
            y = op.add(y, self.pool.floats(bias.name, (1, 1, *bias.shape)))
        return y

    def rms_norm(self, x: Node, name: str, rank: int = 3) -> Node:
        """RMSNorm over the last axis (arXiv 1910.07467, eq. 4)."""
        size = self._specs[name].shape[0]
        weight = self.pool.floats(name, [1] * (rank - 1) + [size])
        square = op.power(x, self.pool.value([2.0], F32))
        variance = op.reduce_mean(square, self.ints(-1), True)
        epsilon = self.pool.value([self.architecture.rms_norm_eps], F32)
        inverse = op.divide(self.pool.value([1.0], F32), op.sqrt(op.add(variance, epsilon)))
        return op.multiply(weight, op.multiply(x, inverse))

    def silu(self, x: Node) -> Node:
        """x sigmoid(x); with a second input (beta) the experts would not fuse."""
        return self._opset4.create("Swish", [x.output(0)], {})

    def heads(self, x: Node, count: int, norm: str = "") -> Node:
        """[B, T, heads * D] to [B, heads, T, D], with a norm per head where the family has one."""
        shape = self.ints(0, 0, count, self.architecture.head_dim)
        split = op.reshape(x, shape, True)
        if norm:
            split = self.rms_norm(split, norm, rank=4)
        return op.transpose(split, self.ints(0, 2, 1, 3))

    def rotate(self, x: Node, cos: Node, sin: Node) -> Node:
        """Rotary positions in the half-split form of Hugging Face (arXiv 2104.09864)."""
        half = self.architecture.head_dim // 2
        axis, one = self.ints(3), self.ints(1)
        upper = op.slice(x, self.ints(half), self.ints(2**63 - 1), one, axis)
        lower = op.slice(x, self.ints(0), self.ints(half), one, axis)
        negative = op.multiply(upper, self.scalar(-1.0, F32))
        rotated = op.concat([negative, lower], -1)
        return op.add(op.multiply(x, cos), op.multiply(rotated, sin))

    def repeat_heads(self, x: Node) -> Node:
        """Key or value heads repeated for their group of query heads, [B, heads, T, D].

        The broadcast must be bidirectional for the cache to fuse with the attention.
        """
        a = self.architecture
        repeats = a.num_attention_heads // a.num_key_value_heads
        shape = op.shape_of(x, "i64")
        batch = op.gather(shape, self.ints(0), self.scalar(0))
        length = op.gather(shape, self.ints(2), self.scalar(0))
        wide = op.concat(
            [batch, self.ints(a.num_key_value_heads), self.ints(repeats), length,
             self.ints(a.head_dim)], 0,
        )  # fmt: skip
        wide = op.broadcast(op.unsqueeze(x, self.scalar(2)), wide, broadcast_spec="BIDIRECTIONAL")
        target = self.ints(0, a.num_attention_heads, -1, a.head_dim)
        return op.reshape(wide, target, True)

    def mixture(self, x: Node, layer: int) -> Node:
        """The sparse feed-forward, in the form that OpenVINO fuses into GatherMatmul.

        Tokens are tiled over experts, every expert is a batched MatMul, and the gates are
        scattered to zeros for experts that were not chosen; the fusion computes the chosen only.
        """
        moe = self.architecture.moe
        assert moe is not None
        count, hidden = moe.num_experts, self.architecture.hidden_size
        shape = op.shape_of(x, "i64")
        flat = op.reshape(x, self.ints(-1, hidden), False)
        tiled = op.tile(flat, self.ints(count, 1))
        tiled = op.reshape(tiled, self.ints(count, -1, hidden), False)
        gate = op.matmul(tiled, self.experts(layer, "gate"), False, True)
        up = op.matmul(tiled, self.experts(layer, "up"), False, True)
        down = self.experts(layer, "down")
        y = op.matmul(op.multiply(self.silu(gate), up), down, False, True)
        y = op.reshape(y, self.ints(count, -1, hidden), False)
        gates = op.reshape(self._gates(flat, layer), self.ints(count, -1), False)
        weighted = op.multiply(y, op.unsqueeze(gates, self.scalar(-1)))
        return op.reshape(op.reduce_sum(weighted, self.ints(0), False), shape, False)

    def _gates(self, flat: Node, layer: int) -> Node:
        """Gate of every expert for every token [E, T]; zero for experts that are not chosen."""
        moe = self.architecture.moe
        assert moe is not None
        router = self.pool.floats(self.architecture.router(layer) + ".weight")
        probabilities = op.softmax(op.matmul(flat, router, False, True), -1)
        top = op.topk(
            probabilities, self.scalar(moe.num_experts_per_tok), -1, "max", "value", "i64"
        )
        chosen = top.output(0)
        if moe.norm_topk_prob:
            chosen = op.divide(chosen, op.reduce_sum(chosen, self.ints(-1), True))
        tokens = op.gather(op.shape_of(flat, "i64"), self.ints(0), self.scalar(0))
        zeros = op.broadcast(
            self.scalar(0.0, F32), op.concat([tokens, self.ints(moe.num_experts)], 0)
        )
        scattered = op.scatter_elements_update(zeros, top.output(1), chosen, self.scalar(1))
        return op.transpose(scattered, self.ints(1, 0))
