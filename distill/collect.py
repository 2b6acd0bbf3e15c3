"""The calibration pass: run the text through the model once and write what its experts did.

The text is cut into chunks that depend on the text alone. Each chunk's sums are a file of their
own, written whole or not at all, so an interrupted pass continues, several workers each take a
share, and their result is the same as that of one, bit for bit. A model that takes too much of the
memory is run a layer at a time (:mod:`edgekit.distill.streamed`), with the same sums.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from edgekit.atomic import disk_errors
from edgekit.checkpoint import read_config, shard_names
from edgekit.digests import json_digest
from edgekit.distill.accumulate import LayerSums, TokenClasses, add_cosines
from edgekit.distill.chunks import Text, assembled, require_finite
from edgekit.distill.masked import Mask, masked
from edgekit.distill.open_model import OpenModel, open_model
from edgekit.distill.pass_memory import SHARE, free_memory, pass_needs
from edgekit.distill.resident import in_memory
from edgekit.distill.same_tokenizer import tokenizer_digest
from edgekit.distill.statistics import Statistics, StatisticsInfo, add_up, save_whole
from edgekit.distill.streamed import run_streamed
from edgekit.errors import BadInputError
from edgekit.memory import peak_memory, require_disk, require_memory, reset_peak_memory
from edgekit.progress import Progress, Task
from edgekit.sequences import TokenSequence, sequences_digest
from edgekit.tensorfile import TensorInfo, read_header

MAX_CHUNKS, CHUNK_TOKENS = 32, 2048  # not more chunks, not smaller ones: batches would be small
# What of the weights enters a checkpoint's digest: tensors of this size, unless they are of an
# expert, and a sample of every stride of the others. A router is far below it.
WHOLE_BYTES, SAMPLE_BYTES, STRIDE_BYTES = 16 << 20, 4 << 10, 4 << 20


@dataclass(frozen=True)
class Share:
    """This worker's part of the chunks: number ``rank`` of ``workers``."""

    rank: int = 0
    workers: int = 1

    @classmethod
    def of_process(cls) -> Share:
        """As ``accelerate launch`` and ``torchrun`` say."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def own_device(device: str) -> str:
    """torch's ``device`` for this process: of plain "cuda" the GPU that ``accelerate launch`` or
    ``torchrun`` means for it."""
    rank = os.environ.get("LOCAL_RANK", "")
    return f"{device}:{rank}" if device == "cuda" and rank else device


@dataclass(frozen=True)
class PassOptions:
    """How to run the model.

    ``dtype`` is its precision; sums are float64 whatever it is. ``device`` is torch's. ``mode``
    "whole" has all weights in memory, "streamed" those of one layer; "auto" streams what would take
    more than about 60 % of the available memory. ``force`` goes on where memory seems too small.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    mode: Literal["auto", "whole", "streamed"] = "auto"
    force: bool = False


@dataclass(frozen=True)
class PassReport:
    """What a worker's pass cost. ``seconds`` and ``tokens`` are of what was not there already;
    ``peak_memory`` bytes of this process beside ``expected_memory``, which was said before."""

    mode: str
    tokens: int
    seconds: float
    tokens_per_second: float
    peak_memory: int
    expected_memory: int


def collect(
    model: Path,
    sequences: Sequence[TokenSequence],
    scratch: Path,
    progress: Progress,
    share: Share | None = None,
    options: PassOptions | None = None,
    report: Callable[[PassReport], None] = lambda _: None,
) -> Statistics:
    """Statistics of ``model`` on ``sequences``; held-out ones are left out.

    What lies in ``scratch`` already is not run again. A worker returns what is there after its
    share; :func:`edgekit.distill.statistics.require_whole` says whether that is all. ``report`` is
    told what it cost, if anything was run.

    Raises:
        BadInputError: the model is dense, a domain has no text, a sequence is empty or longer than
            the context, or weights or activations are not finite.
        OutOfResourcesError: memory or disk are too small, or the disk is full.
    """
    share, options = share or Share(), options or PassOptions()
    text = calibration_text(sequences)
    digest = checkpoint_digest(model)
    key = json_digest([digest, sequences_digest(text.sequences), options.dtype])[:16]
    with disk_errors(scratch):
        scratch.mkdir(parents=True, exist_ok=True)
    files = [scratch / f"chunk-{key}-{n:02}.safetensors" for n in range(len(text.chunks))]
    mine = [n for n in range(len(files)) if n % share.workers == share.rank]
    if not mine:
        raise BadInputError(
            f"the text has {len(files)} chunks for {share.workers} processes; start at most "
            f"{len(files)}, or raise [data] tokens"
        )
    if not all(files[n].is_file() for n in mine):
        dtype = getattr(torch, options.dtype)
        with open_model(model, dtype=dtype, device=options.device, load=False) as opened:
            require_fit(opened, text.sequences)
            mode, expected = _plan(opened, text, options, scratch)
            here = scratch / f"streamed-{key}-{share.rank}-of-{share.workers}"
            missing = [n for n in mine if not files[n].is_file()]
            reset_peak_memory()
            begin = time.perf_counter()
            tokens = sum(text.size(n) for n in missing)
            with progress.task("measure the experts", tokens) as task:
                if mode == "streamed":
                    run_streamed(opened, digest, text, mine, files, here, task)
                else:
                    _run_whole(opened, digest, text, missing, files, task)
            seconds = time.perf_counter() - begin
        speed = tokens / seconds
        report(PassReport(mode, tokens, seconds, speed, peak_memory(), expected))
    there = [file for file in files if file.is_file()]
    if not there:
        raise BadInputError(f"{scratch}: what was measured has been removed; measure it again")
    found = add_up(map(Statistics.load, there))
    info = found.info.model_copy(update={"tokenizer": tokenizer_digest(model)})
    return dataclasses.replace(found, info=info)


def calibration_text(sequences: Sequence[TokenSequence]) -> Text:
    """The sequences that are not held out, in chunks.

    Raises:
        BadInputError: there are none, a domain has none, or one is empty.
    """
    text = [s for s in sequences if not s.held_out]
    if not text:
        raise BadInputError("no calibration text; raise [data] tokens")
    without = {s.domain for s in sequences} - {s.domain for s in text}
    if without:
        raise BadInputError(
            f"no calibration text of the domain {min(without)!r}; raise [data] tokens, or leave it "
            "out"
        )
    if not all(len(s.tokens) for s in text):
        raise BadInputError("a sequence of the calibration text is empty; make the text again")
    return Text.of(text, chunk_bounds(text))


def _plan(opened: OpenModel, text: Text, options: PassOptions, scratch: Path) -> tuple[str, int]:
    """The mode and the memory that it will need; refuses what will not fit."""
    needs = pass_needs(opened, text)
    mode = options.mode
    if mode == "auto":
        mode = "whole" if needs.whole <= SHARE * free_memory(opened.device) else "streamed"
    expected = needs.whole if mode == "whole" else needs.streamed
    what = f"{opened.path}: measuring the experts of the {mode} model"
    if opened.device.type == "cpu":
        require_memory(expected, what, options.force)
    if not options.force:
        disk = needs.sums_disk + (needs.states_disk if mode == "streamed" else 0)
        require_disk(scratch, disk, what)
    return mode, expected


def _run_whole(
    opened: OpenModel,
    digest: str,
    text: Text,
    missing: Sequence[int],
    files: Sequence[Path],
    task: Task,
) -> None:
    opened.load()
    for number in missing:
        save_whole(run_chunk(opened, digest, text.sequences, text.chunks, number, task),
                   files[number])  # fmt: skip


def collect_masked(
    opened: OpenModel, sequences: Sequence[TokenSequence], mask: Mask, progress: Progress
) -> Statistics:
    """Statistics with only the experts of ``mask`` allowed, at once. Layers of ``opened`` that are
    not in memory are read one after another."""
    text = [s for s in sequences if not s.held_out]
    chunks = [(0, len(text))]
    total = sum(len(s.tokens) for s in text)
    digest = checkpoint_digest(opened.path)
    with masked(opened, mask), progress.task("measure who is left", total) as task:
        if in_memory(opened):
            return run_chunk(opened, digest, text, chunks, 0, task)
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "statistics.safetensors"
            layers = Path(scratch) / "layers"
            run_streamed(opened, digest, Text.of(text, chunks), [0], [file], layers, task)
            return Statistics.load(file)


def chunk_bounds(text: Sequence[TokenSequence]) -> list[tuple[int, int]]:
    """Ranges [begin, end) of sequences: at most ``MAX_CHUNKS``, of about one size."""
    size = max(CHUNK_TOKENS, sum(len(s.tokens) for s in text) / MAX_CHUNKS)
    bounds, begin, tokens = [], 0, 0
    for number, sequence in enumerate(text, 1):
        tokens += len(sequence.tokens)
        if tokens >= size or number == len(text):
            bounds.append((begin, number))
            begin, tokens = number, 0
    return bounds


@torch.inference_mode()
def run_chunk(
    opened: OpenModel,
    digest: str,
    sequences: Sequence[TokenSequence],
    chunks: Sequence[tuple[int, int]],
    number: int,
    task: Task | None = None,
) -> Statistics:
    """The sums of one chunk of ``sequences``, whose model is loaded; ``digest`` is the model's."""
    text = Text.of(sequences, chunks)
    current = TokenClasses(len(text.domains), torch.zeros(0, dtype=torch.int64))
    device, hidden = opened.device, opened.architecture.hidden_size
    sums = {
        layer: LayerSums(block.mixture, hidden, current, device)
        for layer, block in opened.mixtures.items()
    }
    cosines = torch.zeros(len(opened.layers), len(text.domains), dtype=torch.float64, device=device)
    with _watching(opened, sums, _block_cosines(cosines, current)):
        for ids, classes in text.batches(number):
            current.of_tokens = classes.to(device)
            opened.decoder(input_ids=ids.to(device), use_cache=False)
            if task:
                task.advance(ids.numel())
    found = {layer: layer_sums.arrays() for layer, layer_sums in sums.items()}
    alike = cosines.cpu().numpy()
    for layer in range(len(opened.layers)):
        inside = {n: f for n, f in found.items() if n // opened.parts == layer}
        require_finite(inside, alike[layer], layer, str(opened.path))
    info = text.info(number, digest, opened.architecture.model_type, tuple(found))
    return assembled(info, text.seen(number), list(found.values()), alike)


@contextmanager
def _watching(
    opened: OpenModel, sums: dict[int, LayerSums], layer_hook: Callable[[int], Callable[..., None]]
) -> Iterator[None]:
    handles = []
    for number, layer in enumerate(opened.layers):
        handles.append(layer.register_forward_hook(layer_hook(number)))
    for layer, block in opened.mixtures.items():
        block.observer = sums[layer]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for block in opened.mixtures.values():
            block.observer = None


def _block_cosines(sums: Tensor, classes: TokenClasses) -> Callable[[int], Callable[..., None]]:
    """Hooks that add up, per layer and domain, how alike a layer's input and output are."""

    def of_layer(number: int) -> Callable[..., None]:
        def hook(_: object, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            add_cosines(sums[number], classes, arguments[0], output)

        return hook

    return of_layer


def require_fit(opened: OpenModel, text: Sequence[TokenSequence]) -> None:
    """Refuse a dense model, and sequences that are longer than the context.

    Raises:
        BadInputError: says which it is.
    """
    architecture = opened.architecture
    if not opened.mixtures:
        raise BadInputError(
            f"{opened.path}: a dense {architecture.model_type} has no experts to measure"
        )
    longest = max(len(s.tokens) for s in text)
    if longest > architecture.context_length:
        raise too_long(str(opened.path), longest, architecture.context_length)


def too_long(source: str, longest: int, context: int) -> BadInputError:
    """The error for a sequence of ``longest`` tokens that the model in ``source`` cannot read."""
    return BadInputError(
        f"{source}: a sequence of {longest} tokens is longer than the context of {context}; lower "
        "[data] sequence_length"
    )


def require_same(
    info: StatisticsInfo, model: Path, sequences: Sequence[TokenSequence], source: str
) -> None:
    """Refuse statistics of anything but ``model`` and the calibration text of ``sequences``.

    Raises:
        BadInputError: says what they are not of.
    """
    calibration = sequences_digest([s for s in sequences if not s.held_out])
    wanted = {
        "checkpoint": (info.checkpoint, checkpoint_digest(model)),
        "tokenizer or chat template": (info.tokenizer, tokenizer_digest(model)),
        "text": (info.sequences, calibration),
    }
    for name, (found, expected) in wanted.items():
        if found != expected:
            raise BadInputError(
                f"{source}: statistics of another {name}; make them again with edgekit shrink stats"
            )


def checkpoint_digest(directory: Path) -> str:
    """Names a checkpoint without reading all of it: its config, every tensor's name, type and
    shape, the bytes of all routers and other small tensors beside the experts, and of the rest
    4 KiB amid every 4 MiB."""
    digest = hashlib.sha256(json_digest(read_config(directory)).encode())
    for name in shard_names(directory):
        path = directory / name
        tensors, _ = read_header(path)
        described = [[t, info.dtype, list(info.shape)] for t, info in tensors.items()]
        digest.update(json_digest([name, path.stat().st_size, described]).encode())
        with path.open("rb", buffering=0) as file:
            for begin, end in itertools.chain.from_iterable(map(_sampled, tensors.values())):
                file.seek(begin)
                digest.update(file.read(end - begin))
    return digest.hexdigest()


def _sampled(tensor: TensorInfo) -> Iterator[tuple[int, int]]:
    """The places [begin, end) in its file of what enters the digest of a tensor."""
    last = tensor.offset + tensor.nbytes
    whole = tensor.nbytes <= WHOLE_BYTES and ".experts." not in tensor.name
    if whole:
        yield tensor.offset, last
        return
    for begin in range(tensor.offset, last, STRIDE_BYTES):
        end = min(begin + STRIDE_BYTES, last)
        middle = (begin + end - SAMPLE_BYTES) // 2
        yield max(begin, middle), min(end, middle + SAMPLE_BYTES)
