"""Decode speed and size beside the peers: one model, one run, in turn.

    pip install ".[bench]"
    python benchmarks/decode.py MODEL_DIR [--rounds 9]

Builds the same checkpoint four ways: edgekit for both runtimes, optimum-intel with NNCF, and
onnxruntime-genai's builder. Each round measures all four, in shuffled order, each in a process of
its own: of several models in one process the one loaded first was up to 10 % slower, whoever had
made it. Reports tokens/s as medians and edgekit's ratio to each peer with its spread over rounds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from edgekit.progress import Silent
from edgekit.quantize.write import quantize
from edgekit.runtimes.compile import compile_variant
from edgekit.runtimes.engine import Sampling, load_engine
from edgekit.scheme import Scheme
from edgekit.text import ChatTokenizer

PROMPT = "Write a short story about a fisherman who finds a message in a bottle."
TOKENS = 96
RUNS = 4  # in one process, after one that is not counted
PAIRS = (("edgekit openvino", "optimum-intel"), ("edgekit onnx", "genai builder"))
Speed = tuple[float, float]  # tokens/s, seconds to the first token
Run = Callable[[list[int]], Speed]


def edgekit_runner(variant: Path, target: str) -> Run:
    """Our engine."""
    engine = load_engine(variant, target)
    sampling = Sampling(max_tokens=TOKENS, temperature=0, repetition_penalty=1.0, ignore_end=True)

    def run(prompt: list[int]) -> Speed:
        stats = list(engine.generate_tokens(prompt, sampling))[-1].stats
        return stats.tokens_per_second, stats.time_to_first_token

    return run


def optimum_runner(directory: Path) -> Run:
    """optimum-intel's export in OpenVINO GenAI's pipeline, activations in the weights' groups."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    pipeline = genai.LLMPipeline(directory, "CPU", DYNAMIC_QUANTIZATION_GROUP_SIZE="64")

    def run(prompt: list[int]) -> Speed:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.apply_chat_template = TOKENS, True, False
        times: list[float] = []

        class Streamer(genai.StreamerBase):
            def write(self, token: object) -> object:
                times.extend(
                    time.perf_counter() for _ in (token if isinstance(token, list) else [token])
                )
                return genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        ids = np.array([prompt], np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        begin = time.perf_counter()
        pipeline.generate(inputs, config, Streamer())
        return (len(times) - 1) / (times[-1] - times[0]), times[0] - begin

    return run


def builder_runner(directory: Path) -> Run:
    """The model of onnxruntime-genai's builder."""
    import numpy as np
    import onnxruntime_genai as genai

    loaded = genai.Model(str(directory))

    def run(prompt: list[int]) -> Speed:
        parameters = genai.GeneratorParams(loaded)
        length = len(prompt) + TOKENS
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
        begin = time.perf_counter()
        generator = genai.Generator(loaded, parameters)
        generator.append_tokens(np.array(prompt, np.int32))
        times: list[float] = []
        while not generator.is_done():
            generator.generate_next_token()
            times.append(time.perf_counter())
        return (len(times) - 1) / (times[-1] - times[0]), times[0] - begin

    return run


def measure(name: str, directory: Path, prompt: list[int]) -> Speed:
    """Medians of ``RUNS`` in this process, after a first run that warms up."""
    if name.startswith("edgekit"):
        run = edgekit_runner(directory, f"{name.split()[1]}-cpu")
    else:
        run = (optimum_runner if name == "optimum-intel" else builder_runner)(directory)
    # rotated: OpenVINO GenAI keeps the cache of a prefix that it has seen
    speeds = [run([*prompt[turn:], *prompt[:turn]]) for turn in range(RUNS + 1)][1:]
    rates, firsts = zip(*speeds, strict=True)
    return statistics.median(rates), statistics.median(firsts)


def build_all(model: Path, work: Path) -> dict[str, tuple[Path, float]]:
    """Directory and build seconds of each way."""
    quantized, variant = work / "quantized", work / "variant"
    quantized.mkdir(), variant.mkdir()
    start = time.perf_counter()
    quantize(model, Scheme.parse("int4-g64"), quantized, Silent())
    compile_variant(quantized, ["openvino-cpu", "onnx-cpu"], variant, Silent())
    ours = (variant, time.perf_counter() - start)
    commands = {
        "optimum-intel": [
            "optimum.commands.optimum_cli", "export", "openvino", "-m", str(model), "--task",
            "text-generation-with-past", "--weight-format", "int4", "--sym", "--group-size", "64",
            "--ratio", "1.0", str(work / "optimum-intel"),
        ],
        "genai builder": [
            "onnxruntime_genai.models.builder", "-i", str(model), "-o", str(work / "genai builder"),
            "-p", "int4", "-e", "cpu", "-c", str(work / "cache"),
            "--extra_options", "int4_accuracy_level=4",
        ],
    }  # fmt: skip
    built = {"edgekit openvino": ours, "edgekit onnx": ours}
    for name, command in commands.items():
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
        built[name] = (work / name, time.perf_counter() - start)
    return built


def main() -> None:
    """Build, measure in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    prompt = ChatTokenizer(arguments.model).encode_chat([{"role": "user", "content": PROMPT}])
    with tempfile.TemporaryDirectory() as directory:
        built = build_all(arguments.model, Path(directory))
        speeds: dict[str, list[Speed]] = {name: [] for name in built}
        pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1)
        with pool:
            for number in range(arguments.rounds):
                order = list(built)
                random.Random(number).shuffle(order)
                for name in order:
                    speeds[name].append(pool.submit(measure, name, built[name][0], prompt).result())
        sizes = {
            name: sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
            for name, (path, _) in built.items()
        }
    print(f"{'':18}{'tokens/s':>10}{'first token ms':>16}{'build s':>9}{'MB':>8}")
    for name, values in speeds.items():
        rate, first = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{name:18}{rate:10.1f}{1e3 * first:16.1f}{built[name][1]:9.1f}"
              f"{sizes[name] / 1e6:8.1f}")  # fmt: skip
    for ours, peer in PAIRS:
        ratios = sorted(a[0] / b[0] for a, b in zip(speeds[ours], speeds[peer], strict=True))
        print(f"{ours} / {peer}: median {statistics.median(ratios):.3f}, "
              f"from {ratios[0]:.3f} to {ratios[-1]:.3f} over {len(ratios)} rounds")  # fmt: skip


if __name__ == "__main__":
    main()
