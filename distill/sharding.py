"""A student whose layers are split over the processes: FSDP of version 2, as accelerate's
configuration asks for it.

Of every weight of a layer, its gradient and what the optimizer keeps of it, a process holds the
rows of its share. A layer is put together while it runs and taken apart again. What is in no layer
(embedding, final norm, head) every process has whole, for the head is read in parts that FSDP knows
nothing of. So processes must run the same layers at the same time, each on text of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from edgekit.distill.open_model import OpenModel
from edgekit.distill.processes import Processes
from edgekit.errors import BadInputError
from edgekit.recipe import DistillSection

ROUNDING = 1e-6  # beside a norm that is divided by, as in torch's clip_grad_norm_


def load_split(opened: OpenModel, processes: Processes) -> None:
    """Load a model that was opened without its weights; no process has more than one layer whole.

    A weight without dimensions cannot be split and stays whole.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(processes.device.type, (processes.count,))
    opened.load_rest()
    for number, layer in enumerate(opened.layers):
        opened.load_layer(number)
        scalars = {parameter for parameter in layer.parameters() if parameter.dim() == 0}
        # layers that stayed whole would go on with old weights when their shares are changed
        split = fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
        split.set_gradient_divide_factor(1.0)  # every share is divided by the step's positions
        split.set_force_sum_reduction_for_comms(True)


def require_splittable(params: DistillSection) -> None:
    """Refuse what does not go with a split student.

    Raises:
        BadInputError: names the option.
    """
    for option, used in {
        "lora_rank": bool(params.lora_rank),
        "optimizer adafactor": params.optimizer == "adafactor",
        "quantization_aware": params.quantization_aware,
        "micro_batch_tokens 0 (a trial)": not params.micro_batch_tokens,
        # what is cast for the forward pass is kept for the backward one, layer after layer
        "precision bfloat16 without activation_checkpointing": params.precision == "bfloat16"
        and not params.activation_checkpointing,
    }.items():
        if used:
            raise BadInputError(
                f"[distill] {option} does not go with a student that FSDP splits; change it, or "
                "train with the whole student in every process (without FSDP)"
            )


def is_split(tensor: Tensor) -> bool:
    """Whether this process has only a share of ``tensor``. Told by what a split one has: its class
    is not imported where nothing is split, and not every torch has it."""
    return hasattr(tensor, "device_mesh")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; every process must ask for a split one."""
    if not is_split(tensor):
        return tensor
    result: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return result


def give_shares(tensors: Iterable[Tensor]) -> None:
    """Let the main process have each of ``tensors`` whole, which it asks for in this order."""
    for tensor in tensors:
        whole(tensor)


def split_like(value: Tensor, other: Tensor) -> Tensor:
    """The share of ``value`` that this process has of ``other``, which may be whole; on its
    device."""
    value = value.to(other.device)
    if not is_split(other):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = other.device_mesh, other.placements  # type: ignore[attr-defined]
    return distribute_tensor(value, mesh, placements, src_data_rank=None)


@torch.no_grad()
def clip(gradients: Iterable[Tensor], limit: float, processes: Processes) -> float:
    """Shorten gradients, of which some are split, to ``limit``; returns their norm before."""
    found = list(gradients)
    of_split = torch.zeros((), dtype=torch.float64, device=processes.device)
    of_whole = of_split.clone()
    for gradient in found:
        if is_split(gradient):
            of_split += gradient.to_local().double().square().sum()  # type: ignore[attr-defined]
        else:
            of_whole += gradient.double().square().sum()
    processes.add_up([of_split])
    norm = float((of_split + of_whole).sqrt())
    if norm > limit:
        for gradient in found:
            gradient.mul_(limit / (norm + ROUNDING))
    return norm


@torch.no_grad()
def put_together(opened: OpenModel, processes: Processes) -> None:
    """Give the main process every weight whole, on the CPU; the model is not run again."""
    for layer in opened.layers:
        for module in layer.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                full = whole(parameter)
                if processes.is_main:
                    setattr(module, name, nn.Parameter(full.cpu(), requires_grad=False))
