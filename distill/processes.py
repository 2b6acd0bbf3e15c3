"""The processes that train together, as ``accelerate launch`` or ``torchrun`` started them.

Each computes its share of a step; gradients are added up over all, so all take the same step and
have the same weights. Every process has the whole student, or with FSDP a share of its layers
(:mod:`edgekit.distill.sharding`). The main process alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from edgekit.errors import BadInputError
from edgekit.recipe import DistillSection

BUCKET_VALUES = 1 << 24  # that are sent together
REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism other than of data",
}  # what accelerate sets
CPU = torch.device("cpu")
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process is number ``rank`` of ``count`` and computes on ``device``, which it shares with
    as many as ``sharing`` says, itself included. ``sharded``: the student's layers are split."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU
    sharing: int = 1
    sharded: bool = False

    @classmethod
    def start(cls, device: str = "auto") -> Processes:
        """Meet the other processes; "auto" computes on the GPU of this one, or on the CPU.

        Raises:
            BadInputError: accelerate is configured for what edgekit cannot do.
        """
        from accelerate import PartialState

        for variable, name in REFUSED.items():
            if _told(variable):
                raise BadInputError(
                    f"accelerate's configuration asks for {name}, which edgekit does not train "
                    "with; choose plain multi-CPU or multi-GPU, or FSDP with fsdp_version: 2"
                )
        fsdp = _told("ACCELERATE_USE_FSDP")
        if fsdp and os.environ.get("FSDP_VERSION", "1") != "2":
            raise BadInputError(
                "accelerate's configuration asks for FSDP of version 1; set fsdp_version: 2"
            )
        if fsdp and _told("FSDP_OFFLOAD_PARAMS"):
            raise BadInputError(
                "accelerate's configuration asks for FSDP with parameters on the CPU; set "
                "fsdp_offload_params: false"
            )
        told = _told("ACCELERATE_USE_CPU")
        on_cpu = device == "cpu" or (device == "auto" and (told or not torch.cuda.is_available()))
        state = PartialState(cpu=on_cpu)
        chosen = CPU if on_cpu else torch.device(state.device)
        if state.num_processes == 1 and device != "auto":
            chosen = torch.device(device)
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if chosen == CPU else 1
        split = fsdp and state.num_processes > 1
        return cls(state.process_index, state.num_processes, chosen, beside, split)

    def require_as_configured(self, params: DistillSection) -> None:
        """Refuse a recipe that says otherwise than accelerate's configuration.

        Raises:
            BadInputError: names both.
        """
        mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
        if mixed not in ("no", "bf16") or (mixed == "bf16" and params.precision == "float32"):
            raise BadInputError(
                f"accelerate's configuration asks for mixed_precision {mixed}, and [distill] "
                f"precision is {params.precision}; set mixed_precision: no, or both to bfloat16"
            )
        if _told("FSDP_ACTIVATION_CHECKPOINTING") and not params.activation_checkpointing:
            raise BadInputError(
                "accelerate's configuration asks for fsdp_activation_checkpointing, and [distill] "
                "activation_checkpointing is false; set it to true"
            )

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one type by their sums over the processes."""
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            whole = torch.cat([tensor.reshape(-1) for tensor in bucket])
            torch.distributed.all_reduce(whole)
            parts = whole.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def gathered(self, value: T) -> list[T]:
        """The ``value`` of every process, by rank."""
        if self.count == 1:
            return [value]
        found: list[T | None] = [None] * self.count
        torch.distributed.all_gather_object(found, value)
        return found  # type: ignore[return-value]

    def of_main(self, value: T) -> T:
        """The main process's ``value``."""
        return self.gathered(value)[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            torch.distributed.barrier()

    def stop(self) -> None:
        """Part from the others."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()


def _told(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    values = 0
    for tensor in tensors:
        if bucket and values + tensor.numel() > BUCKET_VALUES:
            yield bucket
            bucket, values = [], 0
        bucket.append(tensor)
        values += tensor.numel()
    if bucket:
        yield bucket
