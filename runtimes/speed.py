"""Speed and memory of a variant, measured in a process that does nothing else.

Run as a module it measures and prints JSON: ``python -m edgekit.runtimes.speed VARIANT TARGET``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from edgekit.errors import MissingRuntimeError
from edgekit.manifest import Speed
from edgekit.memory import peak_memory
from edgekit.runtimes.engine import Sampling, load_engine

QUESTION = (
    "Describe in a few sentences what a lighthouse is for and how it works. Then compare it with a "
    "buoy, with a beacon on land and with satellite navigation, and say in which weather, at what "
    "distance and for which kind of ship each of them is the best choice. Explain why the colours, "
    "the rhythm of the flashes and the height of the tower matter, how the light is kept running "
    "when the power fails, and who looks after it today. End with one sentence that a child of "
    "eight years would understand, and one that an old captain would agree with."
)
NEW_TOKENS = 64
RUNS = 5


def measure_speed(variant: Path, target: str) -> Speed:
    """Median time to first token and decode rate of a short chat, and the peak memory.

    Raises:
        MissingRuntimeError: the variant could not be run.
    """
    command = [sys.executable, "-m", "edgekit.runtimes.speed", str(variant), target]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise MissingRuntimeError(f"{target}: the speed could not be measured ({reason})")
    return Speed.model_validate_json(result.stdout.strip().splitlines()[-1])


def run_once(variant: Path, target: str) -> Speed:
    """Measure in this process."""
    engine = load_engine(variant, target)
    question = engine.tokenizer.encode(QUESTION)
    prompts = [[*question[run:], *question[:run]] for run in range(RUNS + 1)]
    sampling = Sampling(
        max_tokens=NEW_TOKENS, temperature=0.0, repetition_penalty=1.0, ignore_end=True
    )
    first, rate = [], []
    for prompt in prompts:  # rotated: OpenVINO GenAI keeps the cache of a prefix it has seen
        stats = list(engine.generate_tokens(prompt, sampling))[-1].stats
        first.append(stats.time_to_first_token)
        if stats.tokens_per_second:
            rate.append(stats.tokens_per_second)
    warm = sorted(first[1:])  # the first run compiles and pages in
    rates = sorted(rate[1:]) or [0.0]
    return Speed(
        tokens_per_second=round(rates[len(rates) // 2], 2),
        time_to_first_token_ms=round(1e3 * warm[len(warm) // 2], 2),
        prompt_tokens=len(question),
        peak_memory_bytes=peak_memory(),
    )


if __name__ == "__main__":
    print(json.dumps(run_once(Path(sys.argv[1]), sys.argv[2]).model_dump()))
