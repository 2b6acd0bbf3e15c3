"""Without a network the assistant does all it does with one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from visits import why_no_browser

PROGRAM = Path(__file__).with_name("offline_visit.py")
NAMESPACE = ("unshare", "--user", "--map-root-user", "--net")


def permitted() -> bool:
    """Whether a network namespace can be made here."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0


def test_documents_are_indexed_and_questions_answered_in_a_namespace_without_routes(
    tmp_path: Path,
) -> None:
    if missing := why_no_browser():
        pytest.skip(missing)
    if not permitted():
        pytest.skip("network namespaces are not permitted here")
    done = subprocess.run(
        [*NAMESPACE, sys.executable, str(PROGRAM), str(tmp_path)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip().endswith("answered"), done.stderr[-4000:]
