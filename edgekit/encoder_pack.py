"""Make an embedding pack: one weights file, graphs over it, and what was measured on them.

Neither PyTorch nor a calibration is needed: matrices are rounded to int8 in groups, the graphs are
written, and every target that this machine has is compared with the unquantized model, computed in
float32 by numpy.
"""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.checkpoint import copy_tokenizer, shard_names
from edgekit.digests import json_digest, tool_versions
from edgekit.encoder_checkpoint import EncoderCheckpoint
from edgekit.encoder_quality import quality, sample_texts, speed
from edgekit.encoder_reference import reference_vectors
from edgekit.encoder_text import PassageTokenizer
from edgekit.errors import BadInputError, MissingRuntimeError
from edgekit.layout import check_groups, layout
from edgekit.make_pack import FIXED_MEMORY, RUNTIME_PACKAGES
from edgekit.manifest import Embedding, Lineage, Manifest, Student, TargetResult, Teacher, Variant
from edgekit.memory import require_disk
from edgekit.pack import copy_variant, file_sha256, write_manifest
from edgekit.progress import Progress
from edgekit.quantize.write import quantization_settings, write_weights
from edgekit.rules import TARGETS
from edgekit.runtimes.embedding import BATCH_TOKENS, PackEmbedder
from edgekit.runtimes.embedding_sessions import open_session
from edgekit.runtimes.encoder_openvino import write_openvino_encoder
from edgekit.scheme import VARIANT_WEIGHTS, Scheme
from edgekit.sources import known_package

VARIANT = "encoder"
# One scale per row loses more: all-MiniLM-L6-v2 in int8, activations too (ONNX Runtime), had a
# smallest cosine of 0.9976 with it and of 0.9992 with groups of 32, at 5 % more bytes.
SCHEMES = {"none": Scheme.parse("none"), "int8": Scheme("int8-g32", 8, 32)}
EMBEDDING_TARGETS = ("openvino-cpu", "openvino-gpu", "onnx-cpu")


@dataclass(frozen=True)
class PackOptions:
    """What a person says about an embedding pack; None and "" leave it to the model's files."""

    name: str = ""
    version: str = "1.0.0"
    license: str = ""
    languages: tuple[str, ...] = ()
    query_prefix: str | None = None
    passage_prefix: str | None = None


def make_embedding_pack(
    source: str, model: Path, scheme: str, targets: Sequence[str], options: PackOptions, out: Path,
    progress: Progress,
) -> Manifest:  # fmt: skip
    """Write the pack of the checkpoint ``model`` into the existing, empty directory ``out``.

    ``source`` is what the person calls the model. Without ``targets`` there are graphs for
    OpenVINO, and for ONNX Runtime where the ``onnx`` package is installed.

    Raises:
        BadInputError: the scheme or a target is not for embedding models, or the checkpoint is
            damaged.
        MissingRuntimeError: an ONNX graph is wanted and ``onnx`` is not installed.
        OutOfResourcesError: too little disk.
    """
    packing = _scheme(scheme)
    chosen = _targets(targets)
    with EncoderCheckpoint(model) as checkpoint, tempfile.TemporaryDirectory(dir=out) as scratch:
        variant = Path(scratch)
        architecture = checkpoint.architecture
        check_groups(architecture, packing, str(model / "config.json"))
        weights = sum(tensor.nbytes for tensor in layout(architecture, packing))
        require_disk(out, 2 * weights, "the pack")
        embedding = _embedding(checkpoint, options, source)
        write_weights(checkpoint, packing, variant / VARIANT_WEIGHTS, progress)
        _write_config(checkpoint, packing, variant)
        copy_tokenizer(model, variant)
        _write_graphs(checkpoint, packing, chosen, variant)
        results = _measured(checkpoint, embedding, chosen, variant, progress)
        packed = _packed(checkpoint, results, variant, out, progress)
        student = Student(
            architecture=architecture.model_type,
            parameters=architecture.parameters(),
            active_parameters=architecture.parameters(),
            context_length=embedding.max_tokens,
            scheme=packing.name,
        )
    known = known_package(source)
    manifest = Manifest(
        kind="embedding",
        name=_name(options.name or source),
        version=options.version,
        license=options.license or (known.license if known else ""),
        teacher=Teacher(name=source.rstrip("/").split("/")[-1], digest=_digest(model)),
        student=student,
        lineage=Lineage(
            recipe_digest=json_digest({"source": source, "scheme": scheme, "targets": chosen}),
            tool_versions=tool_versions(),
        ),
        variants=[packed],
        embedding=embedding,
    )
    write_manifest(out, manifest)
    return manifest


def _scheme(name: str) -> Scheme:
    if name not in SCHEMES:
        raise BadInputError(
            f"scheme {name!r} is not for embedding models; choose one of {', '.join(SCHEMES)}"
        )
    return SCHEMES[name]


def _targets(wanted: Sequence[str]) -> list[str]:
    for target in wanted:
        if target not in EMBEDDING_TARGETS:
            raise BadInputError(
                f"target {target!r} has no graph of embedding models; choose among "
                f"{', '.join(EMBEDDING_TARGETS)}"
            )
    if wanted:
        return list(dict.fromkeys(wanted))
    onnx = importlib.util.find_spec("onnx") is not None
    return [t for t in EMBEDDING_TARGETS if onnx or TARGETS[t].runtime != "onnx"]


def _embedding(checkpoint: EncoderCheckpoint, options: PackOptions, source: str) -> Embedding:
    settings = checkpoint.settings
    query, passage = options.query_prefix, options.passage_prefix
    known = known_package(source)
    return Embedding(
        dim=checkpoint.architecture.hidden_size,
        max_tokens=settings.max_tokens,
        pooling=settings.pooling,
        query_prefix=settings.query_prefix if query is None else query,
        passage_prefix=settings.passage_prefix if passage is None else passage,
        languages=list(options.languages or (known.languages if known else ())),
    )


def _name(text: str) -> str:
    """An identifier of at most 64 characters made of a model's name."""
    last = text.rstrip("/").split("/")[-1].removeprefix("package:")
    last = re.split("[@=]", last)[0].lower()
    return re.sub(r"[^a-z0-9._-]+", "-", last).strip("-._")[:64] or "embedding"


def _digest(model: Path) -> str:
    """sha256 over config, weights and tokenizer."""
    names = ["config.json", "tokenizer.json", *shard_names(model)]
    return json_digest({n: file_sha256(model / n) for n in names if (model / n).is_file()})


def _write_config(checkpoint: EncoderCheckpoint, scheme: Scheme, variant: Path) -> None:
    config: dict[str, Any] = {
        **checkpoint.config,
        "dtype": "float16",
        "edgekit_scheme": scheme.name,
    }
    config.pop("torch_dtype", None)
    if scheme.bits != 16:
        specs = checkpoint.architecture.tensors()
        tables = [s.name.removesuffix(".weight") for s in specs
                  if s.role == "vector" and len(s.shape) == 2]  # fmt: skip
        config["quantization_config"] = quantization_settings(scheme, ["Embedding"], tables)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (variant / "config.json").write_text(text, encoding="utf-8")


def _write_graphs(
    checkpoint: EncoderCheckpoint, scheme: Scheme, targets: Sequence[str], variant: Path
) -> None:
    runtimes = {TARGETS[target].runtime for target in targets}
    parts = (variant, checkpoint.architecture, scheme, checkpoint.settings.pooling)
    if "openvino" in runtimes:
        write_openvino_encoder(*parts)
    if "onnx" in runtimes:
        from edgekit.runtimes.encoder_onnx import write_onnx_encoder

        write_onnx_encoder(*parts)


def _measured(
    checkpoint: EncoderCheckpoint, embedding: Embedding, targets: Sequence[str], variant: Path,
    progress: Progress,
) -> list[TargetResult]:  # fmt: skip
    tokenizer = PassageTokenizer(variant, embedding.max_tokens)
    rows = checkpoint.architecture.vocab_size
    if tokenizer.vocab_size > rows:
        raise BadInputError(
            f"{checkpoint.path / 'tokenizer.json'}: has {tokenizer.vocab_size} tokens, the model "
            f"{rows}; give the tokenizer that belongs to it"
        )
    tokens = tokenizer.encode([embedding.passage_prefix + text for text in sample_texts()])
    reference = reference_vectors(checkpoint, tokens, progress)
    results = []
    with progress.task("measure", len(targets)) as task:
        for target in targets:
            results.append(_result(target, variant, tokenizer, embedding, tokens, reference))
            task.advance()
    return results


def _result(
    target: str, variant: Path, tokenizer: PassageTokenizer, embedding: Embedding,
    tokens: Sequence[Sequence[int]], reference: NDArray[np.float32],
) -> TargetResult:  # fmt: skip
    """What one target does, without figures where this machine does not have it."""
    try:
        session = open_session(variant, target)
    except MissingRuntimeError:
        return TargetResult(target=target)
    embedder = PackEmbedder(session, tokenizer, embedding, VARIANT)
    return TargetResult(
        target=target,
        embedding_quality=quality(embedder.embed_tokens(tokens), reference),
        embedding_speed=speed(embedder, tokens),
    )


def _packed(
    checkpoint: EncoderCheckpoint, results: list[TargetResult], variant: Path, out: Path,
    progress: Progress,
) -> Variant:  # fmt: skip
    """Copy the variant into the pack and describe it."""
    files = copy_variant(variant, out, VARIANT, progress)
    versions = tool_versions()
    runtimes = sorted({TARGETS[result.target].runtime for result in results})
    return Variant(
        id=VARIANT,
        weights_file=VARIANT_WEIGHTS,
        targets=results,
        minimum_runtime_versions={
            package: versions[package]
            for package in (RUNTIME_PACKAGES[runtime] for runtime in runtimes)
            if package in versions
        },
        memory_estimate_bytes=_memory(checkpoint),
        files=files,
    )


def _memory(checkpoint: EncoderCheckpoint) -> int:
    """The runtime, the weights in float32 as a device may hold them, and a batch's activations."""
    a = checkpoint.architecture
    width = 8 * a.hidden_size + 2 * a.layers[0].feed_forward.size
    return FIXED_MEMORY + 4 * a.parameters() + 4 * BATCH_TOKENS * width
