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

from edgekit.architecture import FeedForward, Mixture, Norm, TensorTable
from edgekit.runtimes.openvino_constants import PACKED_TYPES, ConstantPool, Node
from edgekit.scheme import Packing, Scheme

I64 = np.int64
F32 = np.float32
CLAMP_ALPHA, CLAMP_LIMIT = 1.702, 7.0  # gpt-oss: gate sigmoid(1.702 gate), both bounded by 7


class Blocks:
    """Blocks of one model over one weights file."""

    def __init__(self, pool: ConstantPool, architecture: TensorTable, scheme: Scheme) -> None:
        self.pool = pool
        self.architecture = architecture
        self.scheme = scheme
        self.specs = architecture.by_name
        self._opset4 = NodeFactory("opset4")

    def ints(self, *values: int) -> Node:
        """An int64 vector."""
        return self.pool.value(list(values), I64)

    def scalar(self, value: float, dtype: Any = I64) -> Node:
        """A constant of rank 0."""
        return self.pool.value(value, dtype)

    def real(self, value: float) -> Node:
        """A float32 constant of rank 0."""
        return self.pool.value(value, F32)

    def matrix(self, name: str) -> Node:
        """The matrix ``name`` [N, K] as float32, decompressed inside the matrix product."""
        spec = self.specs[name]
        packing = self.scheme.packing(spec)
        if packing is None:
            return op.convert(self.pool.floats(name), "f32")
        codes, scale = self.pool.info(name + "_packed"), self.pool.info(name + "_scale")
        return self._decompress(codes, scale, spec.shape, packing)

    def experts(self, mixture: Mixture, projection: str) -> Node:
        """All experts of a projection as one tensor [E, N, K], float32."""
        names = [mixture.expert(e, projection) + ".weight" for e in range(mixture.num_experts)]
        spec = self.specs[names[0]]
        shape = (len(names), *spec.shape)
        packing = self.scheme.packing(spec)
        if packing is None:
            info = self.pool.stacked(names)
            return op.convert(self.pool.stored(info, ov.Type.f16, shape), "f32")
        codes = self.pool.stacked([n + "_packed" for n in names])
        scale = self.pool.stacked([n + "_scale" for n in names])
        return self._decompress(codes, scale, shape, packing)

    def expert_biases(self, mixture: Mixture, projection: str) -> Node:
        """Biases of all experts [E, 1, N]."""
        names = [mixture.expert(e, projection) + ".bias" for e in range(mixture.num_experts)]
        shape = (len(names), 1, *self.specs[names[0]].shape)
        return self.pool.stored(self.pool.stacked(names), ov.Type.f32, shape)

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

    def linear(self, x: Node, module: str) -> Node:
        """x W^T (+ b) of x [B, T, K]."""
        y = op.matmul(x, self.matrix(module + ".weight"), False, True)
        if module + ".bias" in self.specs:
            bias = self.specs[module + ".bias"]
            y = op.add(y, self.pool.floats(bias.name, (1, 1, *bias.shape)))
        return y

    def norm(self, x: Node, norm: Norm | None, rank: int = 3) -> Node:
        """The normalization over the last axis; the identity for None."""
        if norm is None:
            return x
        if norm.kind == "rms":
            return self._rms_norm(x, norm, rank)
        y = op.mvn(x, self.ints(-1), True, norm.eps, "inside_sqrt")
        if norm.weight:
            y = op.multiply(y, self._norm_weight(norm, rank))
        if norm.bias:
            y = op.add(y, self.pool.floats(norm.module + ".bias", self._wide(norm, rank)))
        return y

    def _rms_norm(self, x: Node, norm: Norm, rank: int) -> Node:
        square = op.power(x, self.pool.value([2.0], F32))
        variance = op.reduce_mean(square, self.ints(-1), True)
        epsilon = self.pool.value([norm.eps], F32)
        inverse = op.divide(self.pool.value([1.0], F32), op.sqrt(op.add(variance, epsilon)))
        y = op.multiply(x, inverse)
        return op.multiply(self._norm_weight(norm, rank), y) if norm.weight else y

    def _norm_weight(self, norm: Norm, rank: int) -> Node:
        weight = self.pool.floats(norm.module + ".weight", self._wide(norm, rank))
        return op.add(weight, self.pool.value([1.0], F32)) if norm.unit_offset else weight

    def _wide(self, norm: Norm, rank: int) -> list[int]:
        return [1] * (rank - 1) + [norm.size]

    def activation(self, x: Node, kind: str) -> Node:
        """The activation function ``kind`` of :mod:`edgekit.family_values`."""
        if kind == "silu":  # with a second input (beta) the experts would not fuse
            return self._opset4.create("Swish", [x.output(0)], {})
        if kind in ("gelu", "gelu_tanh"):
            return op.gelu(x, "tanh" if kind == "gelu_tanh" else "erf")
        y = op.relu(x)
        return op.multiply(y, y) if kind == "relu2" else y

    def gated(self, gate: Node, up: Node, kind: str) -> Node:
        """The activated gate times ``up``."""
        if kind != "clamped":
            return op.multiply(self.activation(gate, kind), up)
        gate = op.minimum(gate, self.real(CLAMP_LIMIT))
        up = op.add(op.clamp(up, -CLAMP_LIMIT, CLAMP_LIMIT), self.real(1.0))
        inputs = [gate.output(0), self.real(CLAMP_ALPHA).output(0)]
        return op.multiply(up, self._opset4.create("Swish", inputs, {}))

    def feed_forward(self, x: Node, f: FeedForward) -> Node:
        """A dense feed-forward of x [B, T, H]."""
        up = self.linear(x, f.up)
        if not f.gate:
            return self.linear(self.activation(up, f.activation), f.down)
        return self.linear(self.gated(self.linear(x, f.gate), up, f.activation), f.down)

    def heads(self, x: Node, count: int, size: int) -> Node:
        """[B, T, count * size] to [B, T, count, size]."""
        return op.reshape(x, self.ints(0, 0, count, size), True)

    def heads_first(self, x: Node) -> Node:
        """[B, T, heads, D] to [B, heads, T, D]."""
        return op.transpose(x, self.ints(0, 2, 1, 3))

    def scaled(self, x: Node, factor: float) -> Node:
        """x times a constant; x itself for 1."""
        return x if factor == 1.0 else op.multiply(x, self.real(factor))

    def soft_capped(self, x: Node, cap: float) -> Node:
        """cap * tanh(x / cap); x itself for 0."""
        if not cap:
            return x
        return op.multiply(op.tanh(op.divide(x, self.real(cap))), self.real(cap))
