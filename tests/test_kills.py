"""A build that is killed at any moment continues, and its pack is the undisturbed one."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
KILLS_PER_RUN = 5
RUNS = 8

RECIPE = """
[teacher]
model = "{teacher}"
[data]
tokens = 256
held_out_tokens = 96
sequence_length = 32
domains = ["chat", "prose"]
[shrink]
keep = 0.5
[distill]
steps = 3
batch_tokens = 32
top_k = 8
learning_rate = 1e-3
[quantize]
scheme = "int4-g32"
[[targets]]
name = "openvino-cpu"
[[targets]]
name = "onnx-cpu"
[pack]
name = "tiny"
reproducible = true
"""


class Driver:
    """The forking helper process."""

    def __init__(self, recipe: Path) -> None:
        script = Path(__file__).with_name("kill_driver.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(recipe)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def run(self, out: Path, kill_at: int = 0, renames: bool = False) -> dict:
        job = {"out": str(out), "kill_at": kill_at, "renames": renames}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        result = json.loads(self.process.stdout.readline())
        assert not result["failed"], "the build failed by itself"
        return result


@pytest.fixture(scope="module")
def driver(tiny_model, tmp_path_factory):
    recipe = tmp_path_factory.mktemp("recipe") / "r.toml"
    recipe.write_text(RECIPE.format(teacher=tiny_model("mixtral")))
    driver = Driver(recipe)
    yield driver
    driver.process.stdin.close()
    driver.process.wait()


@pytest.fixture(scope="module")
def undisturbed(driver, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    result = driver.run(out)
    assert result["events"] > 50
    return contents(out / "pack"), result["events"]


def contents(pack: Path) -> dict[str, bytes]:
    return {str(f.relative_to(pack)): f.read_bytes() for f in pack.rglob("*") if f.is_file()}


def assert_whole(out: Path, expected: dict[str, bytes]) -> None:
    found = contents(out / "pack")
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert not list(out.glob(".*.partial"))
    assert not (out / ".scratch").exists()


@pytest.mark.parametrize("seed", range(RUNS))
def test_random_kills_leave_a_run_that_ends_in_the_same_pack(driver, undisturbed, tmp_path, seed):
    expected, events = undisturbed
    generator = random.Random(seed)
    out = tmp_path / "run"
    kills = 0
    for _ in range(KILLS_PER_RUN):
        kills += driver.run(out, generator.randint(1, events // 2))["killed"]
    assert kills >= 3
    driver.run(out)
    assert_whole(out, expected)


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_every_boundary_of_a_step(driver, undisturbed, tmp_path, after):
    """Killed just before each rename that finishes a step, or at the first event after it."""
    expected, _ = undisturbed
    out = tmp_path / "run"
    kills = 0
    for _ in range(8):
        kills += driver.run(out, 2 if after else 1, renames=True)["killed"]
        if not after:  # let this one step finish, then be killed before the next
            kills += driver.run(out, 2, renames=True)["killed"]
    assert kills >= 8
    driver.run(out)
    assert_whole(out, expected)
