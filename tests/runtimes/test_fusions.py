"""A graph that misses a fusion is correct and slow: every family's fused operations are counted."""

from collections import Counter

import onnx
import pytest
from tiny_families import FAMILY_OPTIONS

from edgekit.architecture import Attention, LatentAttention
from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.family_table import FAMILIES
from edgekit.runtimes.graph_sessions import OpenVINOSession

WITH_ONNX = sorted(f for f in FAMILY_OPTIONS if "onnx" in FAMILIES[f].runtimes)
EXPERT_ATTENTION = {"jetmoe"}  # queries of all attention experts are one dense product


def attentions(architecture):
    found = [layer.attention for layer in architecture.layers]
    return [a for a in found if isinstance(a, Attention | LatentAttention)]


@pytest.mark.parametrize("family", sorted(FAMILY_OPTIONS))
def test_openvino_fuses_attention_positions_and_experts(variant, family):
    directory = variant(family, "int4-g32")
    architecture = describe(read_config(directory))
    compiled = OpenVINOSession(directory, exact=True).compiled
    kinds = Counter(
        str(o.get_rt_info()["layerType"].astype(str))
        for o in compiled.get_runtime_model().get_ordered_ops()
    )
    plain = [a for a in attentions(architecture) if not getattr(a, "soft_cap", 0.0)]
    assert kinds["ScaledDotProductAttention"] == len(plain)  # it has no soft cap
    mixtures = [layer.mixture for layer in architecture.layers if layer.mixture]
    assert kinds["GatherMatmul"] == sum(len(m.expert_names) for m in mixtures)
    if family not in EXPERT_ATTENTION:
        turned = [a for a in attentions(architecture) if a.rope]
        # the two rotated parts of latent attention stand apart from the rest of a head
        assert kinds["RoPE"] == 2 * len(turned)
    assert kinds["FullyConnected"] >= 2 * len(architecture.layers)


@pytest.mark.parametrize("family", WITH_ONNX)
def test_onnx_uses_the_runtimes_own_operators(variant, family):
    directory = variant(family, "int4-g32")
    architecture = describe(read_config(directory))
    model = onnx.load(str(directory / "model.onnx"), load_external_data=False)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["GroupQueryAttention"] == len(attentions(architecture))
    assert kinds["QMoE"] == sum(layer.mixture is not None for layer in architecture.layers)
    assert kinds["MatMulNBits"] >= len(architecture.layers)
    assert kinds["GatherBlockQuantized"] == 1
    # what stays in floats: absorbed latent attention, shared gates, JetMoE's choice of heads
    latent = sum(isinstance(a, LatentAttention) for a in attentions(architecture))
    gates = sum(bool(layer.mixture and layer.mixture.shared_gate) for layer in architecture.layers)
    chosen = sum(bool(getattr(a, "experts", None)) for a in attentions(architecture))
    assert kinds["MatMul"] == 2 * latent + gates + 2 * chosen
