"""The recipe: one TOML file that says everything a build needs.

Each section is a strict pydantic model and is handed as it stands to the step it configures. An
unknown key is an error that names its nearest neighbour.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli_w
from pydantic import (
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from edgekit.errors import BadInputError
from edgekit.recipe_section import CONTRADICTION, DivergenceName, Fraction, Section, contradiction
from edgekit.recipe_shapes import DenseSection, SliceSection
from edgekit.recipe_stages import OnPolicySection, SupervisedSection
from edgekit.recipe_training import TrainingOptions
from edgekit.scheme import SCHEMES

DOMAINS = ("chat", "prose", "code", "math", "tools", "chinese")  # that edgekit has prompts of
OfflineCriterion = Literal[
    "reap", "ean", "gated_ean", "man", "msan", "frequency", "cp", "acp", "coverage", "random"
]
Criterion = Literal[OfflineCriterion, "auto"]
Trainable = Literal["router", "norms", "attention", "experts", "mlp", "embedding", "all"]
Target = Literal["openvino-cpu", "openvino-gpu", "openvino-npu", "onnx-cpu", "onnx-dml"]
SchemeName = Literal["none", "int8", "int4-g32", "int4-g64", "int4-g128", "int4-channel"]
assert SchemeName.__args__ == SCHEMES  # type: ignore[attr-defined]
Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class TeacherSection(Section):
    """``[teacher]``: the model that the student must resemble."""

    model: str = Field(min_length=1, description="directory, hf://owner/name, x.gguf, package:NAME")
    license: str = Field("", description="SPDX identifier, copied into the pack's manifest")


class StudentSection(Section):
    """``[student]``: a given student instead of the shrunk teacher, e.g. a dense one for an NPU.

    Its tokenizer must be the teacher's.
    """

    model: str = Field(min_length=1, description="same forms as teacher.model")


class DomainSection(Section):
    """``[data.domains.NAME]``: a domain's share of the text, and the user's files for it."""

    weight: float = Field(1.0, gt=0, le=1e6, allow_inf_nan=False, description="relative share")
    files: tuple[str, ...] = Field(
        (), description=".txt, .jsonl or .parquet; empty: edgekit's prompts of that name"
    )


def _as_tables(value: Any) -> Any:
    """A list of names means domains of equal weight."""
    return {name: {} for name in value} if isinstance(value, tuple) else value


class DataSection(Section):
    """``[data]``: text for calibration, distillation and evaluation."""

    files: tuple[str, ...] = Field(
        (),
        max_length=255,  # a file is a domain, and sequences store the domain in one byte
        description=".txt, .jsonl or .parquet, up to 255; empty: prompts continued by the teacher",
    )
    domains: Annotated[dict[str, DomainSection], BeforeValidator(_as_tables)] = Field(
        DOMAINS, validate_default=True, min_length=1, max_length=255,
        description="a list of edgekit's domains, or a table for each with weight and files",
    )  # fmt: skip
    tokens: int = Field(
        8192, ge=0, le=10**10, description="tokens for calibration and training; 0: none"
    )
    held_out_tokens: int = Field(
        2048, ge=0, le=10**8, description="tokens for evaluation only; 0: none"
    )
    sequence_length: int = Field(
        256, ge=16, le=131_072, description="tokens per sequence, at most the teacher's context"
    )
    count: Literal["all", "assistant"] = Field(
        "all",
        description="positions that are learned and measured; assistant: those that predict an "
        "assistant's words in messages, or the teacher's after edgekit's prompts",
    )
    seed: int = Field(0, ge=0, lt=2**32)

    def shares(self) -> dict[str, float]:
        """Each domain's share of the tokens; they add up to 1."""
        total = sum(domain.weight for domain in self.domains.values())
        return {name: domain.weight / total for name, domain in self.domains.items()}

    @field_validator("domains")
    @classmethod
    def _domains_have_text(cls, domains: dict[str, DomainSection]) -> dict[str, DomainSection]:
        for name, domain in domains.items():
            if not domain.files and name not in DOMAINS:
                raise contradiction(
                    f"domain {name!r} is none of {', '.join(DOMAINS)} and names no files",
                )
        return domains


class ShrinkSection(Section):
    """``[shrink]``: fewer experts."""

    keep: Fraction = Field(description="fraction of the experts of each layer that stays")
    criterion: Criterion = Field(
        "reap", description="what an expert is worth; auto: measured on held-out text"
    )
    nested: tuple[Fraction, ...] = Field(
        (),
        description="store experts in the order of their worth, so that these shares of them, the "
        "largest of which is keep, are students over one file",
    )
    previous: str = Field(
        "", description="an earlier shrink of the same teacher, whose experts are kept if they can"
    )
    margin: float = Field(
        0.05, ge=0, le=10, allow_inf_nan=False,
        description="how much more an expert must be worth than one of previous to replace it",
    )  # fmt: skip
    seed: int = Field(0, ge=0, lt=2**32, description="of random keep-sets")

    @model_validator(mode="after")
    def _nested_from_keep(self) -> ShrinkSection:
        if self.nested and max(self.nested) != self.keep:
            raise contradiction("the largest share of nested must be keep; make them equal")
        if self.nested and self.criterion == "auto":
            raise contradiction(
                "nested needs an order of worth, which auto has not; name a criterion"
            )
        if self.nested and self.previous:
            raise contradiction(
                "previous: an order of all experts has no use for an earlier choice of some; leave "
                "out previous or nested",
            )
        return self


class DistillSection(TrainingOptions):
    """``[distill]``: healing by KL to the teacher's cached logits."""

    steps: int = Field(ge=0, le=10**7)
    batch_tokens: int = Field(1024, ge=16, le=10**7, description="tokens per optimizer step")
    learning_rate: float = Field(1e-4, gt=0, le=1, allow_inf_nan=False)
    targets: Literal["sampled", "top_k"] = Field(
        "sampled",
        description="what is kept of the teacher's distribution over training text: draws from it, "
        "which teach as all of it would on average, or its most probable tokens and their rest",
    )
    bytes_per_token: int = Field(
        50, ge=7, le=2000, description="size of sampled targets on disk, on average at most"
    )
    top_k: int = Field(
        64, ge=1, le=4096,
        description="teacher logits kept per position of held-out text, and of training text with "
        "top_k targets; the rest is one tail mass",
    )  # fmt: skip
    loss: DivergenceName = Field("forward_kl", description="between teacher and student")
    beta: float = Field(0.5, gt=0, lt=1, description="of jsd: near 0 like forward, near 1 reverse")
    skew: float = Field(0.1, gt=0, lt=1, description="of the skewed losses: how much is mixed in")
    cross_entropy: float = Field(
        0.0, ge=0, le=1, description="share of the text's own next tokens in the loss"
    )
    temperature: float = Field(
        1.0, gt=0, le=100, allow_inf_nan=False, description="softens teacher and student"
    )
    trainable: tuple[Trainable, ...] = Field(
        ("router", "norms", "attention"), min_length=1, description="what is trained"
    )
    quantization_aware: bool = Field(
        False,
        description="train router and norms against the weights as [quantize] will store them",
    )
    seed: int = Field(0, ge=0, lt=2**32)
    on_policy: OnPolicySection | None = None
    supervised: SupervisedSection | None = None

    @model_validator(mode="after")
    def _temperature_needs_draws(self) -> DistillSection:
        if self.temperature != 1.0 and self.targets == "top_k":
            raise contradiction(
                "a temperature other than 1 softens what top_k targets have lumped together; set "
                'targets = "sampled"',
            )
        return self


class QuantizeSection(Section):
    """``[quantize]``: the weights' format."""

    scheme: SchemeName = Field("int4-g64", description="none keeps float16")
    method: Literal["mse", "rtn"] = Field("mse", description="mse searches each group's scale")


class TargetSection(Section):
    """``[[targets]]``: a runtime and a device that must run the pack."""

    name: Target
    context: int = Field(2048, ge=64, le=1 << 20, description="prompt and answer, in tokens")
    prove: bool = Field(False, description="openvino-npu: ask Intel's NPU compiler (Windows)")


class GatesSection(Section):
    """``[gates]``: measured conditions; a missed one stops the build with exit code 3."""

    max_kl: float | None = Field(None, gt=0, allow_inf_nan=False, description="nats per token")
    min_top1_agreement: Fraction | None = None
    max_perplexity_ratio: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="student / teacher"
    )
    min_tokens_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)
    max_time_to_first_token_ms: float | None = Field(None, gt=0, allow_inf_nan=False)
    max_size_mb: float | None = Field(None, gt=0, allow_inf_nan=False, description="MB of 10^6 B")


class PackSection(Section):
    """``[pack]``: the name under which the result ships."""

    name: Identifier
    version: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+([-+][0-9A-Za-z.-]+)?$")] = (
        "0.1.0"
    )
    license: str = Field("", description="SPDX identifier; empty: the teacher's")
    reproducible: bool = Field(
        False, description="leave speed and memory, which no two runs share, out of the manifest"
    )


class Recipe(Section):
    """A whole recipe."""

    teacher: TeacherSection
    student: StudentSection | None = None
    data: DataSection = DataSection()
    shrink: ShrinkSection | None = None
    dense: DenseSection | None = None
    slice: SliceSection | None = None
    distill: DistillSection | None = None
    quantize: QuantizeSection = QuantizeSection()
    targets: tuple[TargetSection, ...] = Field((TargetSection(name="openvino-cpu"),), min_length=1)
    gates: GatesSection = GatesSection()
    pack: PackSection

    def to_toml(self) -> str:
        """The resolved recipe, every default spelled out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def digest(self) -> str:
        """sha256 of the resolved recipe."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe file.

    Raises:
        BadInputError: the file is missing, not TOML, or a table, key or value is wrong; the
            sentence names file, table and key.
    """
    try:
        return parse_recipe(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:  # covers TOMLDecodeError and UnicodeDecodeError
        raise BadInputError(f"{path}: not valid TOML ({error}); correct it") from error
    except RecursionError:
        raise BadInputError(
            f"{path}: not valid TOML for a recipe (nested too deeply); correct it"
        ) from None


def parse_recipe(values: dict[str, Any], source: str) -> Recipe:
    """Check a recipe given as a dictionary; ``source`` names it in errors."""
    try:
        recipe = Recipe.model_validate(_tuples(values))
    except ValidationError as error:
        raise BadInputError(_sentence(error, source)) from None
    names = [target.name for target in recipe.targets]
    if len(set(names)) != len(names):
        raise BadInputError(f"{source}: [[targets]] names a target twice; remove one")
    if recipe.student and recipe.shrink:
        raise BadInputError(
            f"{source}: [student] and [shrink] exclude each other: the student is either given or "
            "the shrunk teacher; remove one"
        )
    if recipe.shrink and recipe.shrink.nested and (recipe.dense or recipe.slice):
        raise BadInputError(
            f"{source}: [shrink] nested gives a student of several sizes, which [dense] and "
            "[slice] do not take; remove one"
        )
    return recipe


AnySection = TypeVar("AnySection", bound=Section)


def checked(section: type[AnySection], **values: Any) -> AnySection:
    """A section from command-line options.

    Raises:
        BadInputError: names the option that is wrong.
    """
    try:
        return section(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if not first["loc"]:  # of several options together
            raise BadInputError(first["msg"]) from None
        option = str(first["loc"][0]).replace("_", "-")
        raise BadInputError(
            f"--{option}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}; "
            "correct it"
        ) from None


def _tuples(value: Any) -> Any:
    """TOML arrays as tuples, which strict validation of immutable fields wants."""
    if isinstance(value, list):
        return tuple(_tuples(v) for v in value)
    if isinstance(value, dict):
        return {key: _tuples(v) for key, v in value.items()}
    return value


def _sentence(error: ValidationError, source: str) -> str:
    errors = error.errors(include_url=False)
    # a misspelt key also leaves the right one missing: report the cause
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    location = first["loc"]
    table = ".".join(str(part) for part in location[:-1])
    where = f"{source}: [{table}] {location[-1]}" if table else f"{source}: {location[-1]}"
    if first["type"] == CONTRADICTION:
        return f"{where}: {first['msg']}; correct it"
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key{_nearest(location)}; see docs/recipe.md for all keys"
    if first["type"] == "missing":
        kind = "table" if len(location) == 1 else "key"
        return f"{where}: this {kind} is missing; add it"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{where}: {message}, got {first['input']!r}; correct it"


def _nearest(location: tuple[int | str, ...]) -> str:
    fields: dict[str, FieldInfo] = Recipe.model_fields
    if location[:2] in TABLES:
        fields = TABLES[location[:2]].model_fields
    elif isinstance(location[0], str) and len(location) > 1:
        fields = SECTIONS[location[0]].model_fields
    close = difflib.get_close_matches(str(location[-1]), fields, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else f" (known: {', '.join(fields)})"


SECTIONS: dict[str, type[Section]] = {
    "teacher": TeacherSection,
    "student": StudentSection,
    "data": DataSection,
    "shrink": ShrinkSection,
    "dense": DenseSection,
    "slice": SliceSection,
    "distill": DistillSection,
    "quantize": QuantizeSection,
    "targets": TargetSection,
    "gates": GatesSection,
    "pack": PackSection,
}
TABLES: dict[tuple[int | str, ...], type[Section]] = {
    ("data", "domains"): DomainSection,
    ("distill", "on_policy"): OnPolicySection,
    ("distill", "supervised"): SupervisedSection,
}
