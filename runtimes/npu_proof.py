"""Proofs of an NPU variant on a machine without the NPU (docs/npu.md says what each one shows).

:func:`prove_static` runs NPUW, the static pipeline that OpenVINO puts before its NPU compiler, on
the CPU and compares its logits with the CPU plugin's. :func:`prove_compiled` asks the compiler
itself, which only OpenVINO's Windows wheel holds: there directly, elsewhere through a lab that
``tests/windows/lab.sh`` builds.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import BadInputError, MissingRuntimeError
from edgekit.proofs import NpuProof, Platform, StaticProof
from edgekit.runtimes import npu_compile_probe
from edgekit.runtimes.openvino_engine import (
    EXACT,
    NPU_ANSWER,
    NPU_PROMPT,
    last_line,
)
from edgekit.text import ChatTokenizer
from edgekit.variant_files import files_of

PLATFORMS: tuple[Platform, ...] = get_args(Platform)
QUESTION = "What is a lighthouse for? Answer in two sentences."
STEPS = 16
# The static pipeline keeps the cache in float16: 1e-3 of the largest logit in a 30-layer model
# with everything else in float32. A padded position that is attended to moves them by far more.
TOLERANCE = 0.01
COMPILE_LIMIT = 1800.0  # seconds for one platform; a dense model of 135 M parameters takes 15
NOISE = ("Exception from ", "Check '")

Logits = NDArray[np.float32]


def prove_static(
    variant: Path, prompt_length: int = NPU_PROMPT, answer_length: int = NPU_ANSWER
) -> StaticProof:
    """Prefill and decode of the NPU's static pipeline on the CPU against the CPU plugin.

    Both compute in float32, since what a CPU chooses by default (bfloat16, int8 activations)
    differs between the two and hides errors of the graph.

    Raises:
        BadInputError: there is no OpenVINO graph, or the static pipeline refuses it.
    """
    start = time.perf_counter()
    _require_graph(variant)
    tokens = ChatTokenizer(variant).encode_chat([{"role": "user", "content": QUESTION}])
    tokens = tokens[:prompt_length]
    steps = min(STEPS, answer_length)
    expected, answer = _decode(variant, "CPU", dict(EXACT), tokens, steps)
    properties = {
        **npu_properties(prompt_length, answer_length),
        **npu_compile_probe.PINNED,
        "NPUW_DEVICES": "CPU",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    del properties["NPU_COMPILER_TYPE"]
    found, _ = _decode(variant, "NPU", properties, tokens, steps, answer)
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    return StaticProof(
        prompt_length=prompt_length,
        answer_length=answer_length,
        tokens=steps,
        agreement=float((found.argmax(1) == expected.argmax(1)).mean()),
        error=error if np.isfinite(error) else float("inf"),
        seconds=time.perf_counter() - start,
        passed=error <= TOLERANCE,  # false for NaN
    )


def prove_compiled(
    variant: Path,
    platform: Platform,
    lab: Path | None = None,
    prompt_length: int = NPU_PROMPT,
    answer_length: int = NPU_ANSWER,
) -> NpuProof:
    """Compile the variant for one NPU platform with the compiler of OpenVINO's Windows wheel.

    Raises:
        BadInputError: there is no OpenVINO graph, or ``lab`` is not a lab.
        MissingRuntimeError: the compiler is not here, or Windows Python did not run.
    """
    start = time.perf_counter()
    seen = ask_compiler(variant, platform, npu_properties(prompt_length, answer_length), lab)
    error = explain(seen)
    return NpuProof(
        platform=platform,
        compiler=seen["compiler"],
        openvino=seen["openvino"],
        prompt_length=prompt_length,
        answer_length=answer_length,
        parts=seen["parts"],
        blob_bytes=seen["blob_bytes"],
        seconds=time.perf_counter() - start,
        passed=not error,
        error=error,
    )


def ask_compiler(
    variant: Path, platform: str, properties: Mapping[str, str], lab: Path | None = None
) -> dict[str, Any]:
    """What the probe saw (:data:`npu_compile_probe.NOTHING`) when it compiled the variant."""
    _require_graph(variant)
    command = [
        *_windows_python(lab),
        str(Path(npu_compile_probe.__file__).resolve()),
        str(files_of(variant).openvino_graph.resolve()),
        str(files_of(variant).weights.resolve()),
        platform,
        ",".join(f"{name}={value}" for name, value in properties.items()),
    ]
    return read_probe(_run(command, COMPILE_LIMIT))


def prove(
    variant: Path,
    platforms: Sequence[Platform] = PLATFORMS,
    lab: Path | None = None,
    done: Callable[[NpuProof], None] = lambda proof: None,
) -> list[NpuProof]:
    """:func:`prove_compiled` for every platform; ``done`` hears of each as it is known."""
    proofs = []
    for platform in platforms:
        proofs.append(prove_compiled(variant, platform, lab))
        done(proofs[-1])
    return proofs


def npu_properties(prompt_length: int, answer_length: int) -> dict[str, str]:
    """The fixed lengths of the static pipeline as the NPU's plugin spells them."""
    return {
        "NPUW_LLM_MAX_PROMPT_LEN": str(prompt_length),
        "NPUW_LLM_MIN_RESPONSE_LEN": str(answer_length),
    }


def read_probe(output: str | None) -> dict[str, Any]:
    """The probe's line with the compiler's own words of failure as ``log``; None is a timeout.

    Raises:
        MissingRuntimeError: the probe did not come to its end.
    """
    if output is None:
        error = f"the compiler did not finish in {COMPILE_LIMIT:.0f} s"
        return {**npu_compile_probe.NOTHING, "error": error, "log": []}
    lines = output.strip().splitlines()
    try:
        seen: dict[str, Any] = {**npu_compile_probe.NOTHING, **json.loads(lines[-1])}
    except (IndexError, ValueError, TypeError):
        reason = lines[-1] if lines else "no message"
        raise MissingRuntimeError(
            f"the NPU compiler could not be asked ({reason}); check that `import openvino` works "
            "in that Windows Python"
        ) from None
    failed = [line for line in lines if "[vpux-compiler]" in line and " failed :" in line]
    return {**seen, "log": [line.partition("[vpux-compiler]")[2].strip() for line in failed[:1]]}


def explain(seen: dict[str, Any]) -> str:
    """Why what the probe saw is no proof; empty when it is one."""
    if seen["error"]:
        lines = [line.strip() for line in seen["error"].splitlines()]
        said = [line for line in lines if line and not line.startswith(NOISE)]
        return " ".join([*seen["log"], *(said or lines[-1:])])[:1000]
    if not seen["parts"]:
        return "the compiled blob holds no NPU executable: the model fell back to another device"
    if seen["targeted"] != seen["parts"]:
        return (
            f"{seen['parts'] - seen['targeted']} of the {seen['parts']} NPU executables were made "
            "for another platform"
        )
    return ""


def _require_graph(variant: Path) -> None:
    graph = files_of(variant).openvino_graph
    if not graph.is_file():
        raise BadInputError(f"{graph} is missing; run `edgekit compile --target openvino-npu`")


def _decode(
    variant: Path,
    device: str,
    properties: dict[str, Any],
    prompt: Sequence[int],
    steps: int,
    answer: Sequence[int] | None = None,
) -> tuple[Logits, list[int]]:
    """Logits [steps, vocab_size] after a prompt and along ``answer``, greedy where it is None."""
    import openvino

    core = openvino.Core()
    weights = openvino.Tensor(np.memmap(files_of(variant).weights, np.uint8, mode="c"))
    try:
        model = core.read_model(files_of(variant).openvino_graph.read_bytes(), weights)
        compiled = core.compile_model(model, device, properties)
    except RuntimeError as error:  # what OpenVINO raises for everything
        raise BadInputError(
            f"{variant}: the {device} pipeline of OpenVINO refuses the graph ({last_line(error)}); "
            "compile it again"
        ) from error
    request = compiled.create_infer_request()
    rows, chosen, tokens, past = [], [], list(prompt), 0
    for step in range(steps):
        result = request.infer(
            {
                "input_ids": np.array([tokens], np.int64),
                "attention_mask": np.ones((1, past + len(tokens)), np.int64),
                "position_ids": np.arange(past, past + len(tokens), dtype=np.int64)[None],
                "beam_idx": np.zeros(1, np.int32),
            }
        )
        rows.append(np.array(result[compiled.output("logits")][0, -1], np.float32))
        past += len(tokens)
        chosen.append(int(rows[-1].argmax()) if answer is None else answer[step])
        tokens = chosen[-1:]
    return np.stack(rows), chosen


def _windows_python(lab: Path | None) -> list[str]:
    """The command that starts a Windows Python which has OpenVINO."""
    if lab is not None:
        if not (lab / "python").is_file():
            raise BadInputError(f"{lab}: not a lab; build one with `tests/windows/lab.sh {lab}`")
        return [str((lab / "python").resolve())]
    if sys.platform == "win32":
        return [sys.executable]
    raise MissingRuntimeError(
        "Intel's NPU compiler comes only with OpenVINO for Windows; run this on Windows, or build "
        "a lab with `tests/windows/lab.sh DIR` and give --lab DIR"
    )


def _run(command: Sequence[str], limit: float) -> str | None:
    """All that the command printed, None when it took too long; its whole session ends with it."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        encoding="utf-8", errors="replace", start_new_session=True,
    ) as process:  # fmt: skip
        try:
            return process.communicate(timeout=limit)[0]
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)  # the lab's wine, too
