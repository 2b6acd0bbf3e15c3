"""``pack.json``: what a pack is, where it came from and what was measured.

The published JSON schema is ``edgekit/data/pack.schema.json``, generated from these models.
Version 2 says which sizes are nested in a variant; a pack that has none is written as version 1, so
that any edgekit reads it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from edgekit.bootstrap import Interval
from edgekit.checkpoint import read_json
from edgekit.errors import BadInputError
from edgekit.proofs import NpuProof
from edgekit.variant_files import size_folder

MANIFEST = "pack.json"
SCHEMA_VERSION = 2
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Kind = Literal["chat", "embedding"]
Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class Part(BaseModel):
    """Base of the manifest's objects: strict about keys, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Teacher(Part):
    """The model that the student was made from."""

    name: str
    digest: str
    training_step: int | None = None


class Student(Part):
    """The model inside."""

    architecture: str
    parameters: int = Field(gt=0)
    active_parameters: int = Field(gt=0)
    num_experts: int = 0
    num_experts_per_tok: int = 0
    context_length: int = Field(gt=0)
    scheme: str


class Lineage(Part):
    """Everything needed to make it again."""

    recipe_digest: Sha256
    calibration_digest: str = ""
    kept_experts: dict[str, list[int]] = {}
    seeds: dict[str, int] = {}
    tool_versions: dict[str, str] = {}


class PackedFile(Part):
    """One file of the pack; ``path`` is relative, with forward slashes."""

    path: str = Field(min_length=1, max_length=240)
    size: int = Field(ge=0, le=1 << 42)
    sha256: Sha256


class Quality(Part):
    """Measured on held-out sequences against the teacher; KL in nats per token."""

    kl: Interval
    top1_agreement: Interval
    perplexity: Interval
    teacher_perplexity: Interval


class Speed(Part):
    """Measured on the machine that built the pack."""

    tokens_per_second: float
    time_to_first_token_ms: float
    prompt_tokens: int
    peak_memory_bytes: int


class EmbeddingQuality(Part):
    """Cosine between a target's vectors and those of the unquantized model in float32."""

    mean_cosine: float
    min_cosine: float
    texts: int = Field(gt=0)


class EmbeddingSpeed(Part):
    """Texts per second on the machine that built the pack: passages in batches, queries singly."""

    passages_per_second: float
    passage_tokens: int
    queries_per_second: float
    query_tokens: int


class TargetResult(Part):
    """What one target did; quality and speed are absent where it could not be run.

    ``npu_proofs`` are what Intel's NPU compiler said, where it was asked. Embedding packs have
    ``embedding_quality`` and ``embedding_speed`` instead of ``quality`` and ``speed``.
    """

    target: str
    quality: dict[str, Quality] = {}
    speed: Speed | None = None
    npu_proofs: list[NpuProof] = []
    embedding_quality: EmbeddingQuality | None = None
    embedding_speed: EmbeddingSpeed | None = None


class NestedVariant(Part):
    """The model of a variant's first ``num_experts`` experts, over the same weights file.

    Its own files lie in the variant's folder ``experts-<num_experts>``, with the shared ones above.
    """

    num_experts: int = Field(gt=0)
    parameters: int = Field(gt=0)
    active_parameters: int = Field(gt=0)
    memory_estimate_bytes: int = Field(ge=0)
    targets: list[TargetResult] = Field(min_length=1)


class Variant(Part):
    """One weights file and the graphs over it; ``files`` lie under ``variants/<id>/``.

    What is said of a variant holds for all of its experts; ``nested`` are its smaller sizes, the
    largest first.
    """

    id: Identifier
    weights_file: str
    targets: list[TargetResult] = Field(min_length=1)
    minimum_runtime_versions: dict[str, str] = {}
    memory_estimate_bytes: int = Field(ge=0)
    files: list[PackedFile] = Field(min_length=1, max_length=10_000)
    nested: list[NestedVariant] = Field([], max_length=16)

    @model_validator(mode="after")
    def _shrinks(self) -> Self:
        known, files = {t.target for t in self.targets}, {f.path for f in self.files}
        sizes = [n.num_experts for n in self.nested]
        if sizes != sorted(set(sizes), reverse=True):
            raise ValueError("nested sizes do not fall")
        for size in self.nested:
            if {t.target for t in size.targets} != known:
                raise ValueError(f"{size.num_experts} nested experts have other targets")
            if f"{size_folder(size.num_experts)}/config.json" not in files:
                raise ValueError(f"the files of {size.num_experts} nested experts are not listed")
        return self


class Embedding(Part):
    """How an embedding pack makes vectors of ``dim`` numbers.

    ``max_tokens`` of a text count, special tokens and prefix included; the prefixes stand before
    queries and passages. ``languages`` are BCP 47 codes, none where nobody said.
    """

    dim: int = Field(gt=0)
    max_tokens: int = Field(gt=0)
    pooling: Literal["mean", "cls"]
    query_prefix: str = ""
    passage_prefix: str = ""
    languages: list[str] = []


class GateResult(Part):
    """One gate of the recipe; ``overridden`` when it failed and was waived by name."""

    name: str
    limit: float
    measured: float
    passed: bool
    overridden: bool = False


class Manifest(Part):
    """A whole ``pack.json``. ``embedding`` is there if and only if ``kind`` says so."""

    schema_version: Literal[1, 2] = 1
    kind: Kind = "chat"
    name: Identifier
    version: str
    license: str = ""
    teacher: Teacher
    student: Student
    lineage: Lineage
    variants: list[Variant] = Field(min_length=1, max_length=16)
    gates: list[GateResult] = []
    embedding: Embedding | None = None

    @model_validator(mode="after")
    def _has_its_part(self) -> Self:
        if (self.kind == "embedding") != (self.embedding is not None):
            raise ValueError("kind and embedding contradict each other")
        return self

    @model_validator(mode="after")
    def _nests(self) -> Self:
        largest = [v.nested[0].num_experts for v in self.variants if v.nested]
        smallest = [v.nested[-1].num_experts for v in self.variants if v.nested]
        if bool(largest) != (self.schema_version == 2):
            raise ValueError("schema_version 2 and nested sizes belong together")
        if any(n >= self.student.num_experts for n in largest):
            raise ValueError("a nested size has no fewer experts than the student")
        if any(n < self.student.num_experts_per_tok for n in smallest):
            raise ValueError("a nested size has fewer experts than every token uses")
        return self

    def to_json(self) -> str:
        """The file's text."""
        values = self.model_dump(mode="json")
        if self.schema_version == 1:
            for variant in values["variants"]:
                del variant["nested"]
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def read_manifest(pack: Path) -> Manifest:
    """Read ``pack.json``.

    Raises:
        BadInputError: it is missing, not JSON, of a newer schema, or a field is wrong.
    """
    if not (pack / MANIFEST).is_file():
        raise BadInputError(f"{pack}: not a pack, {MANIFEST} is missing; give a pack's directory")
    return parse_manifest(read_json(pack / MANIFEST), str(pack / MANIFEST))


def parse_manifest(values: dict[str, Any], source: str) -> Manifest:
    """Check a manifest; ``source`` names it in errors."""
    version = values.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BadInputError(
            f"{source}: schema version {version} is newer than this edgekit reads "
            f"({SCHEMA_VERSION}); update edgekit"
        )
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "manifest"
        raise BadInputError(
            f"{source}: {field}: {first['msg'].lower()}; the pack is damaged, get it again"
        ) from None


def require_kind(manifest: Manifest, pack: Path, kind: Kind) -> None:
    """Refuse a pack that is for something else.

    Raises:
        BadInputError: says what it is for.
    """
    if manifest.kind == kind:
        return
    if kind == "chat":
        raise BadInputError(
            f"{pack}: an embedding pack, which turns texts into vectors and cannot chat; give a "
            "chat pack"
        )
    raise BadInputError(
        f"{pack}: a chat pack, which makes no vectors; give an embedding pack (`edgekit pack "
        "embedding` makes one)"
    )


def json_schema() -> dict[str, Any]:
    """The published schema."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema",
            **Manifest.model_json_schema()}  # fmt: skip
