"""A training that is killed at any moment continues from the command line to the same weights."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import captured

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
OPTIONS = ("--steps", "9", "--batch-tokens", "60", "--learning-rate", "0.003", "--save-every", "2",
           "--trainable", "all", "--evaluate-every", "3", "--patience", "5",
           "--json")  # fmt: skip
RUNS, KILLS_PER_RUN = 4, 4


class Driver:
    """The forking helper process, in a directory with ``student`` and ``cache``."""

    def __init__(self, directory: Path) -> None:
        script = Path(__file__).with_name("training_driver.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)], cwd=directory,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.directory = directory

    def run(self, out: str, *options: str, kill_at: int = 0, what: str = "step") -> dict:
        arguments = ["distill", "train", "student", "--cache", "cache", "--out", out]
        job = {"arguments": [*arguments, *OPTIONS, *options], "kill_at": kill_at, "what": what}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        result = json.loads(self.process.stdout.readline())
        assert result["killed"] or result["code"] == 0, "the training failed by itself"
        return result

    def weights(self, out: str) -> bytes:
        return (self.directory / out / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def driver(tiny_mixtral, tiny_model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("kills")
    captured(tiny_mixtral, directory)
    (directory / "student").symlink_to(tiny_model("mixtral", seed=3))
    driver = Driver(directory)
    yield driver
    driver.process.stdin.close()
    driver.process.wait()


@pytest.fixture(scope="module", params=[("--optimizer", "adamw"), ("--lora-rank", "2")], ids=str)
def undisturbed(driver, request):
    out = f"whole-{request.param[0]}"
    result = driver.run(out, *request.param)
    assert result["step"] == 9 and result["file"] > 30
    return request.param, driver.weights(out), result["file"]


@pytest.mark.parametrize("seed", range(RUNS))
def test_killed_again_and_again_it_ends_in_the_same_weights(driver, undisturbed, seed):
    options, expected, files = undisturbed
    random_ = random.Random(seed)
    out, killed = f"killed-{options[0]}-{seed}", 0
    for _ in range(KILLS_PER_RUN):
        what = random_.choice(["step", "file"])
        at = random_.randint(1, 4 if what == "step" else files)
        result = driver.run(out, *options, kill_at=at, what=what)
        killed += result["killed"]
        if (driver.directory / out).exists():  # whatever is there is whole, if killed or not
            break
    else:
        driver.run(out, *options)
        left = [p.name for p in driver.directory.iterdir() if p.name.startswith(f".{out}.")]
        assert not left
    assert killed
    assert driver.weights(out) == expected


@pytest.mark.parametrize("step", [1, 5, 9])
def test_a_continued_training_does_not_begin_again(driver, undisturbed, step):
    options, expected, _ = undisturbed
    out = f"step-{options[0]}-{step}"
    assert driver.run(out, *options, kill_at=step)["killed"]
    saved = max(n for n in (0, 2, 3, 4, 6, 8) if n < step)  # every second, and evaluations
    assert driver.run(out, *options)["step"] == 9 - saved
    assert driver.weights(out) == expected
