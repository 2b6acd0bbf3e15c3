"""Nodes and initializers of an ONNX graph over the weights file.

Big tensors are external data, read in place by offset. What ONNX Runtime wants in another form
(float32 scales, experts with gate and up interleaved) is written as Cast, Expand and Concat of
the tensors in place, which the runtime folds once while it loads: nothing is stored twice on disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.architecture import TensorTable
from edgekit.errors import missing_extra
from edgekit.runtimes.stored import StoredTensors
from edgekit.tensorfile import TensorInfo

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise missing_extra("onnx", "build") from error

MICROSOFT = "com.microsoft"
IR_VERSION = 10
OPSET = 21
MAX_BLOCK = 128
ONNX_TYPES = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16}
ITEM_BYTES = {TensorProto.UINT8: 1, TensorProto.FLOAT16: 2, TensorProto.FLOAT: 4}


class GraphBuilder(StoredTensors):
    """Collects nodes and initializers; names of tensors are Python strings."""

    def __init__(self, weights: Path, table: TensorTable, location: str) -> None:
        super().__init__(weights, table)
        self.location = location  # of the weights file, relative to the graph
        self.nodes: list[onnx.NodeProto] = []
        self._made: set[str] = set()
        self.initializers: dict[str, onnx.TensorProto] = {}

    def node(
        self,
        op: str,
        inputs: list[str],
        output: str | list[str],
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Append a node named after its first output, which is returned."""
        outputs = [output] if isinstance(output, str) else output
        self._made.update(outputs)
        self.nodes.append(
            helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attributes)
        )
        return outputs[0]

    def has(self, output: str) -> bool:
        """Whether a node makes ``output`` already."""
        return output in self._made

    def value(self, name: str, array: NDArray[Any]) -> str:
        """A small initializer inside the graph file."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def ints(self, *values: int) -> str:
        """An int64 vector."""
        return self.value("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def real(self, value: float) -> str:
        """A float32 number."""
        return self.value(f"real_{value!r}", np.array(value, np.float32))

    def stored(self, name: str, info: TensorInfo, kind: int, shape: tuple[int, ...]) -> str:
        """An initializer over the bytes of ``info``, read in place."""
        if name in self.initializers:
            return name
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        length = int(np.prod(shape)) * ITEM_BYTES[kind]
        for key, value in (
            ("location", self.location), ("offset", info.offset), ("length", length)
        ):  # fmt: skip
            tensor.external_data.add(key=key, value=str(value))
        self.initializers[name] = tensor
        return name

    def floats(self, name: str) -> str:
        """A float32 or float16 tensor of the file, as float32."""
        parts = self.parts(name)
        kind = parts[0].dtype
        names = [name if len(parts) == 1 else f"{name}.rows{i}" for i in range(len(parts))]
        for part, called in zip(parts, names, strict=True):
            self.stored(called, part, ONNX_TYPES[kind], part.shape)
        if len(parts) > 1 and not self.has(name):
            self.node("Concat", names, name, axis=0)
        return name if kind == "F32" else self.cast(name)

    def cast(self, name: str) -> str:
        """``name`` as float32; written once however often it is used."""
        output = name + ".f32"
        if not self.has(output):
            self.node("Cast", [name], output, to=TensorProto.FLOAT)
        return output

    def model(self, inputs: list[Any], outputs: list[Any]) -> bytes:
        """The serialized model."""
        graph = helper.make_graph(
            self.nodes, "edgekit", inputs, outputs, list(self.initializers.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        model.producer_name = "edgekit"
        return bytes(model.SerializeToString(deterministic=True))


def block_size(columns: int, group_size: int) -> int:
    """ONNX Runtime's block for a group: a power of two from 16 to 128 that divides the group."""
    block = MAX_BLOCK
    while block > 16 and (columns % block or group_size % block):
        block //= 2
    return block
