"""Families and configs that cannot be compiled say why, and which runtime could."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.errors import BadInputError
from edgekit.family_table import FAMILIES, REFUSED
from edgekit.plan import make_plan
from edgekit.rules import check_target, experts_to_keep
from edgekit.scheme import Scheme

INT4 = Scheme.parse("int4-g32")


def test_no_family_is_both_in_the_table_and_refused() -> None:
    assert not FAMILIES.keys() & REFUSED.keys()


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_a_refused_family_is_named_with_its_reason(family: str) -> None:
    with pytest.raises(BadInputError) as refusal:
        describe({"model_type": family})
    assert str(refusal.value) == (
        f"config.json: model_type {family!r} cannot be compiled: {REFUSED[family]}"
    )


@pytest.mark.parametrize("family", [n for n, row in FAMILIES.items() if "onnx" not in row.runtimes])
def test_a_family_without_an_onnx_graph_is_sent_to_openvino(
    family: str, tiny_model: Callable[..., Path]
) -> None:
    architecture = describe(read_config(tiny_model(family)))
    check_target(architecture, INT4, "openvino-cpu")
    with pytest.raises(BadInputError, match=r"onnx-cpu: the ONNX graph has no .*openvino-cpu"):
        check_target(architecture, INT4, "onnx-cpu")


def test_experts_with_another_gate_than_silu_are_not_given_to_onnx(
    tiny_model: Callable[..., Path],
) -> None:
    architecture = describe(read_config(tiny_model("mixtral", hidden_act="gelu")))
    with pytest.raises(BadInputError, match="SiLU gate only"):
        check_target(architecture, INT4, "onnx-cpu")
    check_target(architecture, INT4, "openvino-cpu")


@pytest.mark.parametrize("family", ["lfm2", "qwen3_5_text"])
def test_states_beside_the_cache_are_not_given_to_the_npu(
    family: str, tiny_model: Callable[..., Path]
) -> None:
    architecture = describe(read_config(tiny_model(family)))
    with pytest.raises(BadInputError, match="keys and values only"):
        check_target(architecture, Scheme.parse("int4-channel"), "openvino-npu")


@pytest.mark.parametrize("family", ["jetmoe"])
def test_experts_that_more_depends_on_cannot_be_left_out(
    family: str, tiny_model: Callable[..., Path]
) -> None:
    architecture = describe(read_config(tiny_model(family)))
    with pytest.raises(BadInputError, match=r"remove \[shrink\]"):
        experts_to_keep(architecture, 0.75, "recipe.toml")
    candidates = make_plan(architecture, ["openvino-cpu"], 16 << 30, 512).candidates
    assert {candidate.keep for candidate in candidates} == {1.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "hidden_size_per_layer_input is 256"),
        ({"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 2}, "num_kv_shared_layers"),
        (
            {"hidden_size_per_layer_input": 0, "use_bidirectional_attention": "all"},
            "use_bidirectional_attention",
        ),
    ],
)
def test_parts_of_gemma_4_that_no_graph_has_are_named(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(BadInputError, match=words):
        describe({
            "model_type": "gemma4_text", "hidden_size": 64, "num_hidden_layers": 2, **changes
        })  # fmt: skip
