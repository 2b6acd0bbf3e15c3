"""A warm process of ``benchmarks/families.py``: imports one tool once, then forks for every job.

    python benchmarks/families_worker.py TOOL

Reads jobs as lines of JSON on standard input and answers each with a line. The import of torch
takes longer than the export of a tiny model, so it is paid once and not counted; the fork gives
every job a process of its own, whose memory grows from that of the imports.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

PROMPT, DECODED = 100, 8  # tokens; the tiny models' sliding windows are 24
REASON_LENGTH = 400
SLICE = 0.05  # seconds between looks at a running job

Job = Callable[..., dict[str, Any] | None]


class Ended(NamedTuple):
    """How a forked job ended; ``reason`` is empty when it returned."""

    reason: str
    timed_out: bool
    cpu_seconds: float
    peak_mb: float


def reference_job() -> Job:
    """Writes a tiny checkpoint of float16 values, or the float32 form of a quantized one, and its
    logits in float32 transformers."""
    import numpy as np
    import torch
    from families_beyond import AS_PUBLISHED, BEYOND
    from safetensors.torch import load_file, save_file
    from tiny_families import FAMILY_OPTIONS, build_weights
    from tiny_models import write_tokenizer
    from transformers import AutoModelForCausalLM

    from edgekit.progress import Silent
    from edgekit.quantize.reference import dequantized_checkpoint

    FAMILY_OPTIONS.update(BEYOND)

    def build(directory: Path, family: str) -> None:
        build_weights(directory, family, **AS_PUBLISHED.get(family, {}))
        weights = directory / "model.safetensors"
        # whoever stores float16 stores the same numbers
        rounded = {
            name: tensor.half().to(tensor.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in load_file(weights).items()
        }
        save_file(rounded, weights, {"format": "pt"})
        write_tokenizer(directory)

    def run(family: str, model: str, logits: str, quantized: str = "") -> dict[str, Any]:
        directory = Path(model)
        if quantized:
            dequantized_checkpoint(Path(quantized), directory, Silent())
        else:
            build(directory, family)
        loaded = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
        ).eval()
        as_published(loaded, family)
        generator = np.random.default_rng(0)
        tokens = generator.integers(3, loaded.config.vocab_size, PROMPT + DECODED)
        with torch.inference_mode():
            expected = loaded(torch.from_numpy(tokens)[None], use_cache=False).logits[0]
        if not torch.isfinite(expected).all():
            raise ValueError("the logits of transformers are not finite")
        np.savez(logits, tokens=tokens, logits=expected.numpy())
        return {"spread": float(expected.std())}

    return run


def as_published(model: Any, family: str) -> None:
    """Undo what transformers 5.5 changes in the mathematics of a published model."""
    if family == "deepseek_v2":  # its choice of groups reads an attribute that it does not set
        for module in model.modules():
            if type(module).__name__.endswith(("MoE", "Moe")):
                module.num_experts = model.config.n_routed_experts
    if family == "dbrx":  # multiplies by the transpose of each (here square) expert matrix
        for name, tensor in model.named_parameters():
            if name.endswith(("mlp.w1", "mlp.v1", "mlp.w2")):
                experts = tensor.data.view(-1, tensor.shape[1], tensor.shape[1])
                tensor.data = experts.transpose(1, 2).reshape(tensor.shape).contiguous()


def edgekit_job() -> Job:
    """Quantizes and compiles for one target."""
    from edgekit.progress import Silent
    from edgekit.quantize.write import quantize
    from edgekit.runtimes import onnx_graph, openvino_graph  # noqa: F401 - imports here
    from edgekit.runtimes.compile import compile_variant
    from edgekit.scheme import Scheme

    def run(model: str, out: str, target: str, scheme: str = "none") -> None:
        quantized, variant = Path(out) / "quantized", Path(out) / "variant"
        quantized.mkdir(parents=True)
        variant.mkdir()
        quantize(Path(model), Scheme.parse(scheme), quantized, Silent())
        compile_variant(quantized, [target], variant, Silent())
        if target == "onnx-cpu" and scheme != "none":  # its fast path rounds activations to int8
            onnx_graph.write_onnx(variant, onnx_graph.FLOAT_ACTIVATIONS)

    return run


def optimum_job() -> Job:
    """What ``optimum-cli export openvino --weight-format fp32`` does, without the tokenizer."""
    from optimum.exporters.openvino.__main__ import main_export
    from optimum.intel import OVConfig, OVModelForCausalLM  # noqa: F401 - imports paid here

    def run(model: str, out: str) -> None:
        main_export(
            model,
            out,
            task="text-generation-with-past",
            library_name="transformers",
            ov_config=OVConfig(dtype="fp32"),
        )

    return run


def builder_job() -> Job:
    """What ``python -m onnxruntime_genai.models.builder -p fp32 -e cpu`` does."""
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    def run(model: str, out: str) -> None:
        place = (None, model, out, "fp32", "cpu", f"{out}-cache")
        create_model(*place, **parse_extra_options(*place, []))

    return run


def check_job() -> Job:
    """Compares the logits of what a tool has written with those of the reference."""
    import numpy as np
    import onnxruntime_genai  # noqa: F401 - imports paid here
    import openvino  # noqa: F401
    from families_check import compare, onnx_logits, openvino_logits

    def run(graph: str, weights: str, logits: str) -> dict[str, Any]:
        with np.load(logits) as stored:
            tokens, expected = stored["tokens"], stored["logits"]
        if graph.endswith(".xml"):
            found = openvino_logits(Path(graph), Path(weights), tokens, PROMPT)
        else:
            found = onnx_logits(Path(graph).parent, tokens, PROMPT)
        return compare(expected, found, PROMPT)

    return run


TOOLS: dict[str, Callable[[], Job]] = {
    "reference": reference_job,
    "edgekit": edgekit_job,
    "optimum-intel": optimum_job,
    "genai builder": builder_job,
    "check": check_job,
}


def first_line(error: BaseException, work: str) -> str:
    """One line that says why, without the paths of this machine."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else ""
    if said.startswith("Check ") and len(lines) > 1:  # OpenVINO's lines name C++ sources first
        said = f"{said} {lines[-1]}"
    said = re.sub(r"\S*/(?=[\w.-]+)", "", said.replace(work, ""))
    return f"{type(error).__name__}: {said}"[:REASON_LENGTH].rstrip(" :")


def child(job: Job, arguments: dict[str, Any], log: Path, answer: Path, work: str) -> None:
    """Run one job in this forked process and leave its answer in a file."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1), os.dup2(descriptor, 2)
    said: dict[str, Any] = {"at_fork_mb": resident_mb()}
    start = time.perf_counter()
    try:
        said |= job(**arguments) or {}
    except BaseException as error:
        traceback.print_exc()
        said["error"] = first_line(error, work)
    said["seconds"] = time.perf_counter() - start
    answer.write_text(json.dumps(said))
    os._exit(0)


def resident_mb() -> float:
    """The most memory that this process has held, in MB; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def wait(process: int, limit: float) -> Ended:
    """Wait for a forked job and kill it at its limit of ``limit`` seconds."""
    deadline, timed_out = time.monotonic() + limit, False
    while True:
        ended, status, usage = os.wait4(process, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline and not timed_out:
            os.killpg(process, signal.SIGKILL)
            timed_out = True
        time.sleep(SLICE)
    code = os.waitstatus_to_exitcode(status)
    reason = f"ended by {signal.Signals(-code).name}" if code < 0 else ""
    return Ended(reason, timed_out, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3)


def serve(tool: str) -> None:
    """Answer jobs until standard input ends."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print; the channel is for answers alone
    job = TOOLS[tool]()
    imports = resident_mb()
    print("ready", file=channel)
    for line in sys.stdin:
        order = json.loads(line)
        answer, start = Path(order["answer"]), time.perf_counter()
        process = os.fork()
        if not process:
            child(job, order["arguments"], Path(order["log"]), answer, order["work"])
        ended = wait(process, order["limit"])
        said: dict[str, Any] = {"error": ended.reason}
        if answer.is_file():
            said = json.loads(answer.read_text())
        # a fork counts the libraries' own pages only when it touches them, so add its growth to
        # what the imports have taken
        growth = max(0.0, ended.peak_mb - said.pop("at_fork_mb", ended.peak_mb))
        said.setdefault("seconds", time.perf_counter() - start)
        said |= {"cpu_seconds": ended.cpu_seconds, "imports_mb": imports, "growth_mb": growth}
        print(json.dumps({**said, "timed_out": ended.timed_out}), file=channel)
    os._exit(0)  # these libraries take seconds to go


if __name__ == "__main__":
    serve(sys.argv[1])
