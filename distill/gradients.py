"""The gradient of a step: micro-batch after micro-batch, process beside process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgekit.distill.batches import Batch, Lesson, dealt
from edgekit.distill.head import Head
from edgekit.distill.open_model import OpenModel
from edgekit.distill.processes import Processes
from edgekit.distill.rows import counted, hidden_states, micro_batches, next_tokens, packs
from edgekit.distill.sharding import is_split
from edgekit.distill.targets import joined
from edgekit.distill.working import Working, recomputed
from edgekit.errors import OutOfResourcesError


class Gradients:
    """Computes gradients of ``parameters``.

    Attributes:
        processes: among which a step is shared out.
        packed: whether sequences of several lengths may share a row.
    """

    def __init__(
        self,
        opened: OpenModel,
        head: Head,
        parameters: Mapping[str, nn.Parameter],
        processes: Processes,
        recompute: bool,
    ) -> None:
        self._opened, self._head = opened, head
        self._parameters, self.processes = parameters, processes
        self._recompute = recompute
        self.packed = packs(opened.architecture)

    def add(self, parts: Sequence[Batch], working: Working) -> float:
        """Give every parameter the gradient of the loss, a mean over the counted positions of each
        part; returns the loss. All processes have the same afterwards.

        Raises:
            OutOfResourcesError: a micro-batch does not fit in memory.
        """
        processes, found = self.processes, 0.0
        for part in parts:
            mine = dealt(part, processes.rank, processes.count)
            idle = self._fewer(mine, working)
            found += self.add_share(mine, part.positions, working)
            self._keep_company(part, idle, working)
        for parameter in self._parameters.values():
            if parameter.grad is None:  # unused by this step; its moments must exist all the same
                parameter.grad = torch.zeros_like(parameter)
        total = torch.tensor([found], dtype=torch.float64, device=self._opened.device)
        processes.add_up([total])
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        processes.add_up([g for g in gradients if not is_split(g)])  # FSDP has added up the others
        return float(total)

    def add_share(self, share: Batch, positions: int, working: Working) -> float:
        """Add the gradient of the losses of ``share``, times the weight of its lesson, divided by
        ``positions``; returns their sum."""
        found = 0.0
        layers = recomputed(self._opened.layers) if self._recompute else nullcontext()
        with layers, _memory_errors(working.micro_batch_tokens):
            for group in self._groups(share, working):
                with self._precision(working):
                    loss = self._of_group(share.lesson, group)
                loss = loss * (share.lesson.weight / positions)
                loss.backward()  # type: ignore[no-untyped-call]
                found += loss.item()
        return found

    def _groups(self, share: Batch, working: Working) -> list[list[int]]:
        return micro_batches(
            share.sequences, share.numbers, working.micro_batch_tokens, self.packed
        )

    def _fewer(self, mine: Batch, working: Working) -> int:
        """How many micro-batches fewer than another process this one has, if that matters."""
        if not self.processes.sharded:
            return 0
        count = len(self._groups(mine, working))
        return max(self.processes.gathered(count)) - count

    def _keep_company(self, part: Batch, times: int, working: Working) -> None:
        """Run micro-batches that count nothing: a split layer is put together by all processes."""
        idle = replace(part, numbers=part.numbers[:1], lesson=replace(part.lesson, weight=0.0))
        for _ in range(times):
            self.add_share(idle, 1, working)

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def _precision(self, working: Working) -> torch.autocast:
        """Matrix products in bfloat16, if asked for; weights, sums and losses stay float32. What
        a split layer was cast to is not kept for another use of it."""
        enabled, cached = working.precision == "bfloat16", not self.processes.sharded
        return torch.autocast(
            self._opened.device.type, torch.bfloat16, enabled=enabled, cache_enabled=cached
        )

    def _of_group(self, lesson: Lesson, group: Sequence[int]) -> Tensor:
        """Σ of the loss over the positions of the sequences ``group``."""
        device = self._opened.device
        sequences = [lesson.targets.sequences[n] for n in group]
        rows = counted(sequences)
        taught = joined([lesson.targets.targets(n) for n in group]).to(device)
        labels = next_tokens(sequences)[rows].to(device)
        hidden = hidden_states(self._opened, sequences)[rows.to(device)]
        return self._head.summed(
            hidden, lambda logits, part: lesson.loss(logits, taught[part], labels[part])
        )


@contextmanager
def _memory_errors(micro_batch_tokens: int) -> Iterator[None]:
    """Say in a sentence that a micro-batch did not fit."""
    try:
        yield
    except RuntimeError as error:
        full = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not full:
            raise
        raise OutOfResourcesError(
            f"[distill] micro_batch_tokens: {micro_batch_tokens} tokens in one forward pass did "
            f"not fit in memory; lower it to {max(16, micro_batch_tokens // 2)} and train again, "
            "which continues"
        ) from error
