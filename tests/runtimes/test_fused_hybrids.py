"""Layers that keep a state or route twice still become OpenVINO's fused operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.progress import Silent
from edgekit.runtimes.compile import compile_variant
from edgekit.runtimes.graph_sessions import OpenVINOSession


@pytest.mark.parametrize(
    ("family", "fused"),
    [
        ("lfm2_moe", {"ScaledDotProductAttention": 1, "GatherMatmul": 6}),
        ("gemma4_text", {"ScaledDotProductAttention": 2, "GatherMatmul": 6}),
        ("jetmoe", {"ScaledDotProductAttention": 2, "GatherMatmul": 6}),
        ("longcat_flash", {"ScaledDotProductAttention": 4, "GatherMatmul": 6}),
        ("qwen3_next", {"ScaledDotProductAttention": 1, "GatherMatmul": 9, "GatedDeltaNet": 2}),
        ("qwen3_5_text", {"ScaledDotProductAttention": 1, "GatedDeltaNet": 2}),
    ],
)
def test_hybrid_layers_are_fused(
    family: str, fused: dict[str, int], quantized: Callable[..., Path], tmp_path: Path
) -> None:
    compile_variant(quantized(family, "int4-g32"), ["openvino-cpu"], tmp_path, Silent())
    operations = OpenVINOSession(tmp_path).compiled.get_runtime_model().get_ordered_ops()
    kinds = Counter(str(o.get_rt_info()["layerType"].astype(str)) for o in operations)
    assert {kind: kinds[kind] for kind in fused} == fused
    assert kinds["TensorIterator"] == 0
