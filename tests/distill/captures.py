"""Short texts and the caches of tiny teachers."""

import shutil

import numpy as np
from safetensors.numpy import load_file, save_file

from edgekit.distill.capture import CaptureOptions, capture, capture_shards
from edgekit.distill.collect import Share
from edgekit.progress import Silent
from edgekit.sequences import FILE_NAME, TokenSequence, write_sequences


def make_text(directory, count=20, counted=False):
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        tokens = rng.integers(3, 100, 12 + i).astype(np.int32)
        mask = rng.random(len(tokens)) < 0.5 if counted else None
        made.append(TokenSequence(tokens, "chat", i % 5 == 4, mask))
    directory.mkdir(exist_ok=True)
    write_sequences(directory / FILE_NAME, made)
    return directory


def captured(teacher, sequences, out, *args, scratch=None, **options):
    out.mkdir(exist_ok=True)
    return capture(teacher, sequences, CaptureOptions(*args, **options), out, Silent(), scratch)


def of_worker(teacher, sequences, work, rank):
    work.mkdir(exist_ok=True)
    return capture_shards(teacher, sequences, CaptureOptions(), work, Silent(), Share(rank, 2))


def without_numbers(teacher, out, tensor="model.norm.weight"):
    """A copy of ``teacher`` in which a weight is damaged, by default one of the last norm."""
    shutil.copytree(teacher, out)
    tensors = load_file(out / "model.safetensors")
    tensors[tensor][3] = np.nan
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out
