"""Memory and disk: what there is, what a process has used, and refusing work that will not fit."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path

from edgekit.errors import OutOfResourcesError

CGROUP_V2 = Path("/sys/fs/cgroup")
CGROUP_V1 = Path("/sys/fs/cgroup/memory")


def available_memory() -> int:
    """Bytes a process may still use: the system's, or less inside a container."""
    import psutil

    available = int(psutil.virtual_memory().available)
    limit, used = _cgroup()
    return min(available, limit - used) if limit else available


def _cgroup() -> tuple[int, int]:
    """Limit and use of the control group in bytes; limit 0 when there is none."""
    for root, limit_name, used_name in (
        (CGROUP_V2, "memory.max", "memory.current"),
        (CGROUP_V1, "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            limit = (root / limit_name).read_text().strip()
            used = int((root / used_name).read_text())
        except (OSError, ValueError):
            continue
        if limit.isdecimal() and int(limit) < 1 << 60:
            return int(limit), used
    return 0, 0


def reset_peak_memory() -> None:
    """Begin measuring the peak anew, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Largest resident set of this process so far, or since the reset, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # unlike getrusage, not inherited from the process that started us
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def require_memory(
    needed: int,
    what: str,
    force: bool = False,
    *,
    available: int | None = None,
    advice: str = "close other programs, use a larger machine, or pass --force",
) -> None:
    """Refuse work that needs more memory than there is; ``available`` is the system's by default.

    Raises:
        OutOfResourcesError: ``what`` needs more than is available, and ``force`` is false.
    """
    if available is None:
        available = available_memory()
    if needed > available and not force:
        raise OutOfResourcesError(
            f"{what} needs about {needed / 1e9:.1f} GB of memory but {available / 1e9:.1f} GB are "
            f"available; {advice}"
        )


def require_disk(path: Path, needed: int, what: str) -> None:
    """Refuse work whose output does not fit on the disk of ``path``.

    Raises:
        OutOfResourcesError: too little is free.
    """
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OutOfResourcesError(
            f"{path}: {what} needs about {needed / 1e9:.1f} GB of disk but {free / 1e9:.1f} GB are "
            "free; free some or choose another --out"
        )
