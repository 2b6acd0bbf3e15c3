"""What every stage of training begins and ends with: a student opened, and a student written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from edgekit.atomic import write_json
from edgekit.checkpoint import read_json
from edgekit.digests import json_digest
from edgekit.distill.divergence import Divergence
from edgekit.distill.fake_quantize import fake_quantize
from edgekit.distill.masked import Mask, prefix_mask
from edgekit.distill.open_model import OpenModel, open_model
from edgekit.distill.pass_memory import free_memory
from edgekit.distill.processes import Processes
from edgekit.distill.same_tokenizer import real_tokens
from edgekit.distill.sharding import load_split, put_together, require_splittable
from edgekit.distill.training_memory import require_training_memory, training_needs
from edgekit.distill.write_student import write_student
from edgekit.errors import BadInputError
from edgekit.nested import stored_sizes
from edgekit.progress import Progress
from edgekit.recipe import DistillSection, QuantizeSection
from edgekit.rules import require_unpacked


@dataclass(frozen=True)
class Student:
    """An opened student, as ``processes`` train it together.

    ``nested`` are its sizes in experts, if it has several, and ``masks`` makes each of them; one of
    one size has the mask None. ``rounding`` is what its matrices were rounded as, if they were.
    ``largest`` tokens are the largest micro-batch that fits in memory, about.
    """

    opened: OpenModel
    nested: Sequence[int]
    masks: Sequence[Mask | None]
    rounding: QuantizeSection | None
    processes: Processes
    largest: int

    @property
    def vocab_size(self) -> int:
        """Tokens that it can write; further rows of its head only pad it."""
        return real_tokens(self.opened.path, self.opened.architecture.vocab_size)

    def write(self, out: Path, progress: Progress) -> None:
        """Write its weights as they are now into ``out``. A split one is not run afterwards."""
        if self.processes.sharded:
            put_together(self.opened, self.processes)
        if self.processes.is_main:
            write_student(self.opened, out, self.rounding, progress)
        self.processes.wait()


@contextmanager
def open_student(
    path: Path,
    params: DistillSection,
    quantization: QuantizeSection | None,
    device: str,
    progress: Progress,
    *,
    longest: int = 0,
    beside: int = 0,
    force: bool = False,
) -> Iterator[Student]:
    """Open a checkpoint to train it on sequences of at most ``longest`` tokens; its matrices
    rounded as ``quantization`` says, if ``params`` are quantization-aware. ``beside`` bytes are
    for something else.

    Raises:
        BadInputError: it cannot be read, what would be trained is rounded, or a sequence is longer
            than its context.
        OutOfResourcesError: training will not fit in memory, unless ``force``.
    """
    rounding = quantization if params.quantization_aware else None
    processes = Processes.start(device)
    processes.require_as_configured(params)
    if processes.sharded:
        require_splittable(params)
    torch.manual_seed(params.seed)
    with open_model(path, device=str(processes.device), load=False) as opened:
        context = opened.architecture.context_length
        if longest > context:
            raise BadInputError(
                f"{path}: its context is {context} tokens, and a sequence to train on has "
                f"{longest}; capture shorter ones ([data] sequence_length)"
            )
        shares = processes.count if processes.sharded else 1
        needs = training_needs(opened, params, longest, shares)
        needs = replace(needs, fixed=needs.fixed + beside)
        require_training_memory(needs, opened, params, processes, force)
        largest = needs.largest(free_memory(processes.device) // processes.sharing)
        if processes.sharded:
            load_split(opened, processes)
        else:
            opened.load()
        if rounding:
            require_unpacked(params.trainable)
            fake_quantize(opened, rounding, progress)
        config = str(path / "config.json")
        nested = stored_sizes(opened.checkpoint.config, opened.architecture, config)
        masks = [prefix_mask(opened.mixtures, count) for count in nested] or [None]
        yield Student(opened, nested, masks, rounding, processes, largest)


def state_directory(out: Path, inputs: Sequence[Path], values: Sequence[object]) -> Path:
    """Where a training that writes ``out`` keeps its state: beside it, under a name that depends on
    the files that it reads and on its options, so that it is continued only with the same."""
    found = [f for path in inputs for f in (path, *(path.iterdir() if path.is_dir() else ()))]
    files = sorted(
        [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns]
        for file in found
        if file.is_file()
    )
    key = json_digest([files, [repr(value) for value in values]])
    return out.with_name(f".{out.name}.state-{key[:12]}")


def remembered(
    scratch: Path | None,
    name: str,
    processes: Processes,
    measure: Callable[[], Divergence | None],
) -> Divergence | None:
    """What ``measure`` says of the student before training; an interrupted run said it already."""
    path = scratch / name if scratch else None
    if path and processes.of_main(path.is_file()):
        value = read_json(path)["measured"]
        return Divergence.model_validate(value) if value else None
    found = measure()
    if path and processes.is_main:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"measured": found.model_dump(mode="json") if found else None})
    return found
