"""A build that is killed at any moment continues, and its pack is the undisturbed one."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
KILLS_PER_RUN = 5
RUNS = 10
STEPS = 8  # seven of the recipe, and the pack

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

    def run(self, out: Path, kill_at: int = 0, boundary: str = "") -> dict:
        job = {"out": str(out), "kill_at": kill_at, "boundary": boundary}
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
    while kills < KILLS_PER_RUN:
        if driver.run(out, generator.randint(1, events // 2))["killed"]:
            kills += 1
        else:  # it ended before its turn came
            assert_whole(out, expected)
            shutil.rmtree(out)
    driver.run(out)
    assert_whole(out, expected)


def test_a_kill_just_before_each_step_is_finished(driver, undisturbed, tmp_path):
    out = tmp_path / "run"
    kills = 0
    for _ in range(STEPS):
        kills += driver.run(out, 1, "before")["killed"]
        kills += driver.run(out, 2, "before")["killed"]  # this step ends, the next one does not
    assert kills == 2 * STEPS - 1
    assert_whole(out, undisturbed[0])


def test_a_kill_right_after_each_step_is_finished(driver, undisturbed, tmp_path):
    out = tmp_path / "run"
    kills = sum(driver.run(out, 1, "after")["killed"] for _ in range(STEPS))
    assert kills == STEPS
    driver.run(out)
    assert_whole(out, undisturbed[0])
