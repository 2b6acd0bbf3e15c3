"""The family table in words, for ``edgekit inspect --families``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from edgekit.families import Family, Separate
from edgekit.family_table import FAMILIES, REFUSED

ROUTERS = {
    "softmax": "softmax, top-k",
    "softmax_top_k": "top-k, softmax",
    "sigmoid": "sigmoid",
    "sparsemixer": "sparse mixer",
    "sigmoid_input": "sigmoid on the input",
}


class FamilyLine(BaseModel):
    """One family: what it is made of, and where it runs."""

    model_config = ConfigDict(frozen=True)

    family: str
    sparse: bool
    attention: str
    layers: str
    experts: str
    runtimes: list[str]
    note: str


def family_lines() -> list[FamilyLine]:
    """Every family of the table, sparse ones first, by name."""
    lines = [_line(row) for row in FAMILIES.values()]
    return sorted(lines, key=lambda line: (not line.sparse, line.family))


def refused_families() -> dict[str, str]:
    """Families that are known and cannot be compiled, with the reason."""
    return dict(sorted(REFUSED.items()))


def _line(row: Family) -> FamilyLine:
    return FamilyLine(
        family=row.model_type, sparse=row.moe is not None, attention=_attention(row),
        layers=_layers(row), experts=_experts(row), runtimes=list(row.runtimes), note=row.note,
    )  # fmt: skip


def _attention(row: Family) -> str:
    a = row.attention
    if a.latent:
        return "latent"
    words = ["grouped"]
    if a.qk_norm:
        words.append("norm per head" if a.qk_norm == "head" else "norm over width")
    words += [
        word
        for word, present in (
            ("windows", a.windowed), ("sinks", a.sinks), ("soft cap", a.soft_cap),
            ("gate", a.gate), ("clip", a.clip), ("temperature", a.temperature),
            ("some unrotated", a.rotated), ("experts", a.experts),
            ("short convolutions", a.short_conv), ("delta rules", a.gated_delta),
            ("Mamba-2", a.selective_scan),
        )
        if present
    ]  # fmt: skip
    return ", ".join(words)


def _layers(row: Family) -> str:
    names = row.names
    kind = "LayerNorm" if row.norm_kind == "layer" else "RMS"
    if row.parallel is True:
        return f"{kind}, parallel"
    before, after = bool(names.attention_norm), bool(names.attention_post_norm)
    return f"{kind}, {'sandwich' if before and after else 'before' if before else 'after'}"


def _experts(row: Family) -> str:
    if row.moe is None:
        return ""
    words = [ROUTERS[row.moe.scoring]]
    words += [
        word
        for word, present in (
            ("bias", row.moe.correction), ("groups", row.moe.groups), ("shared", row.moe.shared),
            ("biases", row.moe.expert_bias),
        )
        if present
    ]  # fmt: skip
    apart = isinstance(row.moe.experts, Separate)
    return ", ".join(words) + ("" if apart else "; stored as one")
