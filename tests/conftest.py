"""Fixtures: tiny checkpoints of every family, quantized, compiled and as transformers sees them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

# before torch is imported: handing tiny matrices to more threads takes longer than computing them
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tiny_models import build_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_model("mixtral", num_local_experts=8)``: a directory, built once per options."""
    cache: dict[str, Path] = {}

    def make(family: str, seed: int = 0, **options: object) -> Path:
        key = json.dumps([family, seed, options], sort_keys=True)
        if key not in cache:
            directory = tmp_path_factory.mktemp(family)
            cache[key] = build_model(directory, family, seed, **options)
        return cache[key]

    return make


@pytest.fixture(scope="session")
def tiny_llama(tiny_model: Callable[..., Path]) -> Path:
    """A dense llama with a tied head."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def tiny_mixtral(tiny_model: Callable[..., Path]) -> Path:
    """Four experts, top-2, tied head."""
    return tiny_model("mixtral")


@pytest.fixture(scope="session")
def tiny_qwen3_moe(tiny_model: Callable[..., Path]) -> Path:
    """Four experts, top-2, qk-norm, untied head."""
    return tiny_model("qwen3_moe")


@pytest.fixture(scope="session")
def quantized(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """``quantized("llama", "int4-g32")``: a quantized checkpoint, made once."""
    from edgekit.progress import Silent
    from edgekit.quantize.write import quantize
    from edgekit.scheme import Scheme

    cache: dict[str, Path] = {}

    def make(family: str, scheme: str, **options: object) -> Path:
        key = json.dumps([family, scheme, options], sort_keys=True)
        if key not in cache:
            out = tmp_path_factory.mktemp("quantized")
            quantize(tiny_model(family, **options), Scheme.parse(scheme), out, Silent())
            cache[key] = out
        return cache[key]

    return make


@pytest.fixture(scope="session")
def variant(
    quantized: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """``variant("llama", "int4-g32")``: compiled for every runtime of the family, made once."""
    from edgekit.family_table import FAMILIES
    from edgekit.progress import Silent
    from edgekit.runtimes.compile import compile_variant

    cache: dict[str, Path] = {}

    def make(family: str, scheme: str = "int4-g32", **options: object) -> Path:
        key = json.dumps([family, scheme, options], sort_keys=True)
        if key not in cache:
            out = tmp_path_factory.mktemp("variant")
            source = quantized(family, scheme, **options)
            targets = [f"{runtime}-cpu" for runtime in FAMILIES[family].runtimes]
            compile_variant(source, targets, out, Silent())
            cache[key] = out
        return cache[key]

    return make


@pytest.fixture(scope="session")
def reference(
    quantized: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., object]:
    """The dequantized weights of ``quantized(...)`` in float32 transformers."""
    from edgekit.distill.loading import load_model
    from edgekit.progress import Silent
    from edgekit.quantize.reference import dequantized_checkpoint

    cache: dict[str, object] = {}

    def make(family: str, scheme: str, **options: object) -> object:
        key = json.dumps([family, scheme, options], sort_keys=True)
        if key not in cache:
            out = tmp_path_factory.mktemp("reference")
            dequantized_checkpoint(quantized(family, scheme, **options), out, Silent())
            cache[key] = load_model(out)
        return cache[key]

    return make
