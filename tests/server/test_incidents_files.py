"""Incidents with files: what is loaded, and where secrets are."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from edgekit.errors import BadInputError
from edgekit.manifest import Lineage, Manifest, Student, TargetResult, Teacher, Variant
from edgekit.pack import copy_variant, write_manifest
from edgekit.progress import Silent
from edgekit.server.serve import Loader, Options


def test_a_pack_whose_bytes_changed_is_not_loaded(tmp_path: Path) -> None:
    """CVE-2025-53630, lmstudio-bug-tracker#2289: what is loaded is what was made."""
    variant, pack = tmp_path / "variant", tmp_path / "pack"
    variant.mkdir()
    pack.mkdir()
    (variant / "weights.safetensors").write_bytes(b"w" * 5000)
    files = copy_variant(variant, pack, "sparse", Silent())
    write_manifest(
        pack,
        Manifest(
            name="tiny",
            version="1.0.0",
            teacher=Teacher(name="t", digest="d"),
            student=Student(
                architecture="llama",
                parameters=1,
                active_parameters=1,
                context_length=8,
                scheme="x",
            ),
            lineage=Lineage(recipe_digest="0" * 64),
            variants=[
                Variant(
                    id="sparse",
                    weights_file="weights.safetensors",
                    targets=[TargetResult(target="openvino-cpu")],
                    memory_estimate_bytes=1,
                    files=files,
                )
            ],
        ),
    )
    weights = pack / "variants" / "sparse" / "weights.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(b"w" * 4999 + b"x")
    with pytest.raises(BadInputError, match=r"weights\.safetensors"):
        Loader(Options(pack, device="openvino-cpu"), Silent())()


def test_no_secret_is_in_arguments_output_or_logs(tmp_path: Path) -> None:
    """Tokens in URLs, arguments and logs: ours is in its file of mode 0600 alone."""
    state, token_file = tmp_path / "state.json", tmp_path / "token"
    command = [
        sys.executable, "-m", "edgekit", "serve", str(tmp_path / "pack"), "--json",
        "--state-file", str(state), "--token-file", str(token_file), "--exit-with-parent",
    ]  # fmt: skip
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "config.json").write_text("{}")
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        state_told = json.loads(state.read_text())
        httpx.get(told["url"] + "/v1/models", headers={"x-api-key": state_told["token"]})
        assert (
            stat.S_IMODE(state.stat().st_mode) == stat.S_IMODE(token_file.stat().st_mode) == 0o600
        )
        arguments = Path(f"/proc/{process.pid}/cmdline")
        said = arguments.read_text() if arguments.exists() else ""
        output, errors = process.communicate(timeout=60)  # closes standard input: it ends
    secrets = {state_told["token"], state_told["admin_token"], token_file.read_text().strip()}
    assert len(secrets) == 2
    assert not [s for s in secrets if s in json.dumps(told) + output + errors + said]
    assert process.returncode == 0 and not state.exists()
