"""Two processes train one student to where one process trains it."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from training_runs import captured

from edgekit.checkpoint import Checkpoint
from edgekit.cli.main import main
from edgekit.distill.batches import Batch, Lesson, batches, dealt
from edgekit.distill.cache import LogitCache
from edgekit.distill.losses import Loss
from edgekit.distill.processes import Processes
from edgekit.distill.rows import micro_batches
from edgekit.recipe import DistillSection

OPTIONS = ("--steps", "5", "--batch-tokens", "60", "--learning-rate", "0.003", "--trainable",
           "all", "--evaluate-every", "2", "--device", "cpu", "--micro-batch-tokens", "50",
           "--precision", "float32", "--json")  # fmt: skip


# accelerate calls several processes so, also where each computes on the CPU
WHOLE, SPLIT = ("--multi_gpu",), ("--use_fsdp", "--fsdp_version", "2")


def launched(directory, how, *arguments):
    """What two processes of ``accelerate launch`` did with ``edgekit distill train``."""
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *how, "--num_processes", "2",
         "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
         "--main_process_port", "0", "-m", "edgekit", "distill", "train", *arguments, *OPTIONS],
        cwd=directory, capture_output=True, text=True, timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1",
             "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tiny_mixtral, tiny_model, tmp_path_factory):
    """Reports and weights of one process and of two."""
    directory = tmp_path_factory.mktemp("processes")
    captured(tiny_mixtral, directory)
    student = tiny_model("mixtral", seed=3)
    found = launched(directory, WHOLE, str(student), "--cache", "cache", "--out", "two")
    assert found.returncode == 0, found.stderr
    split = launched(directory, SPLIT, str(student), "--cache", "cache", "--out", "split")
    assert split.returncode == 0, split.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert main(
            ["distill", "train", str(student), "--cache", "cache", "--out", "one", *OPTIONS]
        ) == 0  # fmt: skip
    assert not list(directory.glob(".*"))  # no state is left, and nothing half written
    return directory, found.stdout


@pytest.mark.parametrize("several", ["two", "split"])
def test_two_processes_have_the_weights_of_one(trained, several):
    directory, _ = trained
    with Checkpoint(directory / "one") as one, Checkpoint(directory / several) as two:
        for spec in one.specs:
            expected, found = one.float32(spec.name), two.float32(spec.name)
            np.testing.assert_allclose(found, expected, atol=2e-4, err_msg=spec.name)


def test_processes_have_steps_with_unequal_work(trained):
    """So that those of a split student wait for each other."""
    directory, _ = trained
    cache = LogitCache(directory / "cache")
    params = DistillSection(steps=5, batch_tokens=60)
    counts = []
    for numbers in itertools.islice(batches(cache.sequences, params), 5):
        hands = [dealt(Batch(Lesson(cache, Loss()), numbers), rank, 2) for rank in (0, 1)]
        counts.append([len(micro_batches(cache.sequences, h.numbers, 50, True)) for h in hands])
    assert any(one != other for one, other in counts)


def test_only_the_main_process_reports(trained):
    report = json.loads(trained[1])  # one document
    assert report["processes"] == 2 and report["steps"] == 5
    assert [e["step"] for e in report["evaluations"]] == [0, 2, 4, 5]


def test_sums_over_buckets_are_those_of_every_tensor(monkeypatch):
    import edgekit.distill.processes as module

    monkeypatch.setattr(module, "BUCKET_VALUES", 10)
    sent = []

    def all_reduce(whole):
        sent.append(len(whole))
        whole.mul_(3)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    tensors = [torch.arange(float(n)).reshape(-1, 1) for n in (4, 5, 3, 30)]
    expected = [3 * tensor for tensor in tensors]
    Processes(0, 3).add_up(tensors)
    assert sent == [9, 3, 30]
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))
