"""Decode speed and size beside the peers: one model, one run, interleaved.

    python benchmarks/decode.py MODEL_DIR [--rounds 7]

Builds the same checkpoint four ways (edgekit for both runtimes, optimum-intel with NNCF, and
onnxruntime-genai's builder), loads all four, and measures them in turn, round after round, so that
a busy machine slows everybody. Reports tokens/s as medians and edgekit's ratio to each peer with
its spread over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from edgekit.progress import Silent
from edgekit.quantize.write import quantize
from edgekit.runtimes.compile import compile_variant
from edgekit.runtimes.engine import Sampling, load_engine
from edgekit.scheme import Scheme

PROMPT = "Write a short story about a fisherman who finds a message in a bottle."
TOKENS = 96
Run = Callable[[list[int]], tuple[float, float]]  # prompt -> (tokens/s, seconds to first token)


def edgekit_runner(variant: Path, target: str) -> Run:
    """Our engine."""
    engine = load_engine(variant, target)
    sampling = Sampling(max_tokens=TOKENS, temperature=0, repetition_penalty=1.0, ignore_end=True)

    def run(prompt: list[int]) -> tuple[float, float]:
        stats = list(engine.generate_tokens(prompt, sampling))[-1].stats
        return stats.tokens_per_second, stats.time_to_first_token

    return run


def optimum_runner(model: Path, work: Path) -> tuple[Run, float, int]:
    """optimum-intel's export with NNCF int4, in OpenVINO GenAI's pipeline with its own defaults."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    out = work / "optimum"
    start = time.perf_counter()
    command = [
        sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino",
        "-m", str(model), "--task", "text-generation-with-past", "--weight-format", "int4",
        "--sym", "--group-size", "64", "--ratio", "1.0", str(out),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    built = time.perf_counter() - start
    pipeline = genai.LLMPipeline(out, "CPU", DYNAMIC_QUANTIZATION_GROUP_SIZE="64")

    def run(prompt: list[int]) -> tuple[float, float]:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.apply_chat_template = TOKENS, True, False
        times: list[float] = []

        def note(_: object) -> None:
            times.append(time.perf_counter())

        class Streamer(genai.StreamerBase):
            def write(self, token: object) -> object:
                for _ in token if isinstance(token, list) else [token]:
                    note(_)
                return genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        ids = np.array([prompt], np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        begin = time.perf_counter()
        pipeline.generate(inputs, config, Streamer())
        return (len(times) - 1) / (times[-1] - times[0]), times[0] - begin

    return run, built, folder_bytes(out)


def builder_runner(model: Path, work: Path) -> tuple[Run, float, int]:
    """onnxruntime-genai's model builder, int4 for the CPU."""
    import numpy as np
    import onnxruntime_genai as genai

    out = work / "builder"
    start = time.perf_counter()
    command = [
        sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(model), "-o", str(out),
        "-p", "int4", "-e", "cpu", "-c", str(work / "cache"),
        "--extra_options", "int4_accuracy_level=4",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    built = time.perf_counter() - start
    loaded = genai.Model(str(out))

    def run(prompt: list[int]) -> tuple[float, float]:
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

    return run, built, folder_bytes(out)


def folder_bytes(path: Path) -> int:
    """Bytes of everything in a directory."""
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def main() -> None:
    """Build, measure in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        start = time.perf_counter()
        (work / "q").mkdir(), (work / "v").mkdir()
        quantize(arguments.model, Scheme.parse("int4-g64"), work / "q", Silent())
        quantized = time.perf_counter() - start
        start = time.perf_counter()
        compile_variant(work / "q", ["openvino-cpu", "onnx-cpu"], work / "v", Silent())
        compiled = time.perf_counter() - start
        engine = load_engine(work / "v", "onnx-cpu")
        prompt = engine.tokenizer.encode_chat([{"role": "user", "content": PROMPT}])
        runs: dict[str, Run] = {
            "edgekit openvino": edgekit_runner(work / "v", "openvino-cpu"),
            "edgekit onnx": edgekit_runner(work / "v", "onnx-cpu"),
        }
        built = {"edgekit openvino": quantized + compiled, "edgekit onnx": quantized + compiled}
        sizes = dict.fromkeys(runs, folder_bytes(work / "v"))
        for name, make in (("optimum-intel", optimum_runner), ("genai builder", builder_runner)):
            runs[name], built[name], sizes[name] = make(arguments.model, work)
        rates: dict[str, list[float]] = {name: [] for name in runs}
        firsts: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(arguments.rounds + 1):
            # rotated: OpenVINO GenAI keeps the cache of a prefix that it has seen
            turned = [*prompt[number:], *prompt[:number]]
            for name, run in runs.items():
                rate, first = run(turned)
                if number:  # the first round warms up
                    rates[name].append(rate)
                    firsts[name].append(first)
    print(f"{'':18}{'tokens/s':>10}{'first token ms':>16}{'build s':>9}{'MB':>8}")
    for name in runs:
        print(f"{name:18}{statistics.median(rates[name]):10.1f}"
              f"{1e3 * statistics.median(firsts[name]):16.1f}{built[name]:9.1f}"
              f"{sizes[name] / 1e6:8.1f}")  # fmt: skip
    for ours, peer in (("edgekit openvino", "optimum-intel"), ("edgekit onnx", "genai builder")):
        ratios = sorted(a / b for a, b in zip(rates[ours], rates[peer], strict=True))
        print(f"{ours} / {peer}: median {statistics.median(ratios):.3f}, "
              f"from {ratios[0]:.3f} to {ratios[-1]:.3f} over {len(ratios)} rounds")  # fmt: skip


if __name__ == "__main__":
    main()
