"""Intel's offline NPU compiler on our graphs: on Windows, or in the lab that EDGEKIT_LAB names.

EDGEKIT_LAB=DIR python -m pytest -m windows tests/windows     (DIR as made by lab.sh)
"""

import os
import shutil
import sys
from pathlib import Path

import pytest

from edgekit.runtimes.npu_proof import (
    PLATFORMS,
    ask_compiler,
    explain,
    npu_properties,
    prove_compiled,
)
from edgekit.variant_files import OPENVINO_GRAPH

LAB = Path(os.environ["EDGEKIT_LAB"]) if "EDGEKIT_LAB" in os.environ else None
pytestmark = [
    pytest.mark.windows,
    pytest.mark.skipif(
        sys.platform != "win32" and LAB is None, reason="neither Windows nor EDGEKIT_LAB"
    ),
]


# The attention of SmolLM2-135M: compiler 8.4 refuses the toy's for 3720 (UnrollPermuteDMA)
REAL = {
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_compiler_makes_executables_of_a_dense_model(variant, platform):
    proof = prove_compiled(variant("llama", "int4-channel", **REAL), platform, LAB)
    assert proof.passed, proof.error
    assert proof.compiler and proof.openvino
    # at least prefill, decode and the head, each compiled by itself
    assert proof.parts >= 3 and proof.blob_bytes > 0


def test_a_sparse_model_compiles(variant):
    proof = prove_compiled(variant("qwen3_moe", "int4-channel"), "4000", LAB)
    assert proof.passed, proof.error


def test_a_platform_that_does_not_exist_is_refused(variant):
    directory = variant("llama", "int4-channel")
    seen = ask_compiler(directory, "9999", npu_properties(1024, 128), LAB)
    assert "9999" in explain(seen)


def test_an_operation_that_the_compiler_lacks_is_no_proof(variant, tmp_path):
    """A graph that the static pipeline takes and the compiler does not must not pass."""
    copy = shutil.copytree(variant("llama", "int4-channel"), tmp_path / "copy")
    graph = copy / OPENVINO_GRAPH
    text = graph.read_text(encoding="utf-8")
    assert 'type="Swish"' in text
    graph.write_text(text.replace('type="Swish"', 'type="Erfinv"'), encoding="utf-8")
    assert not prove_compiled(copy, "4000", LAB).passed
