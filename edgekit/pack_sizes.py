"""Which of the sizes nested in a pack's variant a machine runs: the largest that fits.

Memory is what the manifest estimates for a size, against what is free when the pack is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import BadInputError
from edgekit.manifest import Manifest, Variant
from edgekit.variant_files import size_folder


@dataclass(frozen=True)
class Chosen:
    """A size of a variant; ``reason`` is empty where there was nothing to choose from."""

    num_experts: int
    memory_bytes: int
    reason: str
    folder: str = ""  # inside the variant; "" for all experts

    def inside(self, variant: Path) -> Path:
        """The directory to load from."""
        return variant / self.folder if self.folder else variant


def choose_size(
    manifest: Manifest, variant: Variant, free: int, experts: int = 0, source: str = ""
) -> Chosen:
    """The size with ``experts`` experts, or the largest that ``free`` bytes of memory hold.

    Where none fits it is the smallest. ``source`` names the pack in errors.

    Raises:
        BadInputError: no size of ``variant`` has ``experts`` experts.
    """
    total = manifest.student.num_experts
    sizes = _memory_by_size(manifest, variant)
    if experts:
        require_size(experts, list(sizes), source)
        chosen, why = experts, f"{_gb(sizes[experts])}, as asked; {_gb(free)} are free"
    else:
        chosen = next((n for n, needed in sizes.items() if needed <= free), min(sizes))
        why = f"{_gb(sizes[chosen])} of the {_gb(free)} of memory that are free"
        if sizes[chosen] > free:
            why = f"the smallest size needs {_gb(sizes[chosen])}, only {_gb(free)} are free"
        elif chosen != total:
            why = f"{_gb(sizes[chosen])}; all need {_gb(sizes[total])}, {_gb(free)} are free"
    named = f"all {total} experts" if chosen == total else f"the first {chosen} of {total} experts"
    reason = f"{named}: {why}" if variant.nested else ""
    return Chosen(chosen, sizes[chosen], reason, _folder(chosen, total))


def fitting_sizes(manifest: Manifest, variant: Variant, free: int) -> list[Chosen]:
    """Every size that ``free`` bytes of memory hold, the largest first; the smallest if none."""
    sizes, total = _memory_by_size(manifest, variant), manifest.student.num_experts
    fitting = [n for n, needed in sizes.items() if needed <= free] or [min(sizes)]
    return [Chosen(n, sizes[n], "", _folder(n, total)) for n in fitting]


def _memory_by_size(manifest: Manifest, variant: Variant) -> dict[int, int]:
    """Bytes that each number of experts needs, the largest first."""
    return {manifest.student.num_experts: variant.memory_estimate_bytes} | {
        n.num_experts: n.memory_estimate_bytes for n in variant.nested
    }


def _folder(experts: int, total: int) -> str:
    return "" if experts == total else size_folder(experts)


def require_size(experts: int, sizes: list[int], source: str) -> None:
    """Refuse a number of experts that is none of ``sizes``.

    Raises:
        BadInputError: names those that there are.
    """
    if experts in sizes:
        return
    if sizes == [0]:
        raise BadInputError(f"{source}: a dense model, which has no experts; leave --experts out")
    known = " or ".join(map(str, sizes))
    raise BadInputError(f"{source}: has no size of {experts} experts; choose {known}")


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
