"""Find the experts and routers of a model that the table of families does not know.

transformers gives most sparse models one form: a module with ``gate_up_proj`` [E, 2 I, H] and
``down_proj`` [E, H, I] that is called with hidden states, the experts of every token and their
gates, and beside it one router matrix [E, H], perhaps with vectors of length E. That form is found
by shapes alone. What is ambiguous is refused: a wrong guess would prune the wrong rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgekit.distill.accumulate import LayerSums
from edgekit.distill.chunks import not_finite
from edgekit.distill.loading import Model, quiet_transformers
from edgekit.errors import BadInputError

GATED_TOLERANCE = 1e-4  # of the largest output: gates multiply outputs, or they do not


@dataclass(frozen=True)
class FoundMixture:
    """The routed experts of one layer.

    Attributes:
        layer: its number.
        experts: the module that is called with hidden states, experts and gates.
        router: the router's matrix [E, H].
        axes: names of all tensors that have one entry per expert, and the axis that counts them.
        vectors: those of them that are one number per expert.
    """

    layer: int
    experts: nn.Module
    router: Tensor
    axes: dict[str, int]
    vectors: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of experts."""
        return int(self.experts.gate_up_proj.shape[0])  # type: ignore[operator,index]


def load_unlisted(directory: Path, dtype: torch.dtype | str = torch.float32) -> Model:
    """A model of a family that transformers knows by itself; code in a checkpoint never runs.

    Raises:
        BadInputError: transformers does not know the family, or the weights are not all there.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        except (ValueError, OSError) as error:
            raise BadInputError(
                f"{directory / 'config.json'}: transformers does not know the family without code "
                "from the checkpoint, which edgekit never runs; give a model that it knows"
            ) from error
        known = next(
            (
                auto
                for auto in (AutoModelForCausalLM, AutoModelForImageTextToText)
                if type(config) in auto._model_mapping  # transformers has no public question
            ),
            None,
        )
        if known is None:
            raise BadInputError(
                f"{directory / 'config.json'}: transformers has no language model for "
                f"model_type {config.model_type!r}; give one that writes text"
            )
        model, loaded = known.from_pretrained(
            directory,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            experts_implementation="eager",
            ignore_mismatched_sizes=True,  # they are refused by name below
            output_loading_info=True,
        )
    for kind in ("missing_keys", "mismatched_keys"):
        if loaded[kind]:
            raise BadInputError(
                f"{directory}: {sorted(map(str, loaded[kind]))[0]} is not in the weights as "
                "transformers expects it; download the checkpoint again"
            )
    model.eval()
    model.requires_grad_(False)
    return model


def find_mixtures(model: Model, source: str) -> list[FoundMixture]:
    """The mixtures of all layers, in order.

    Raises:
        BadInputError: says what was not found, or was found more than once.
    """
    modules = dict(model.named_modules())
    names = [name for name, module in modules.items() if _is_experts(module)]
    if not names:
        raise BadInputError(
            f"{source}: no module has gate_up_proj [experts, 2 x width, hidden] and down_proj "
            "[experts, hidden, width], the only form in which experts of an unlisted family are "
            "found; give a model of a listed one (edgekit inspect --families)"
        )
    found = [_found(model, modules, name, source) for name in names]
    layers = [mixture.layer for mixture in found]
    if len(set(layers)) < len(layers) or len({mixture.count for mixture in found}) > 1:
        raise BadInputError(
            f"{source}: layers have several sets of experts, or different numbers of them, and "
            "which belong together cannot be told; give a model with one set per layer"
        )
    return sorted(found, key=lambda mixture: mixture.layer)


def _is_experts(module: nn.Module) -> bool:
    wide, narrow = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if not (isinstance(wide, Tensor) and isinstance(narrow, Tensor)):
        return False
    if wide.ndim != 3 or narrow.ndim != 3:
        return False
    count, rows, hidden = wide.shape
    return tuple(narrow.shape) == (count, hidden, rows // 2)


def _found(model: Model, modules: Mapping[str, nn.Module], name: str, source: str) -> FoundMixture:
    experts: Any = modules[name]
    count, _, hidden = experts.gate_up_proj.shape
    own = {f"{name}.{key}": value for key, value in experts.state_dict().items()}
    for key, value in own.items():
        if value.shape[0] != count:
            raise BadInputError(
                f"{source}: {key} is {list(value.shape)} among {count} experts, so what belongs to "
                "an expert cannot be told; give a model of a listed family"
            )
    scope = name.rpartition(".")[0]
    beside = _beside(modules, scope, name)
    routers = [key for key, value in beside.items() if tuple(value.shape) == (count, hidden)]
    if not routers and "." in scope:  # some layers call router and experts themselves
        scope = scope.rpartition(".")[0]
        beside = _beside(modules, scope, name)
        routers = [key for key, value in beside.items() if tuple(value.shape) == (count, hidden)]
    if len(routers) != 1:
        what = "no matrix" if not routers else f"{len(routers)} matrices ({', '.join(routers)})"
        raise BadInputError(
            f"{source}: beside {name} there is {what} [{count}, {hidden}] where one router is "
            "expected; give a model of a listed family"
        )
    if count == hidden:
        raise BadInputError(
            f"{source}: {name} has as many experts as the model is wide, so their vectors cannot "
            "be told apart; give a model of a listed family"
        )
    per_expert = {(count,): 0, (1, count): 1, (count, 1): 0}
    vectors = {k: per_expert[tuple(v.shape)] for k, v in beside.items()
               if tuple(v.shape) in per_expert}  # fmt: skip
    number = re.search(r"\.(\d+)\.", name)
    return FoundMixture(
        layer=int(number[1]) if number else 0,
        experts=experts,
        router=_tensor(modules, routers[0]),
        axes={**dict.fromkeys(own, 0), routers[0]: 0, **vectors},
        vectors=tuple(vectors),
    )


def _beside(modules: Mapping[str, nn.Module], scope: str, experts: str) -> dict[str, Tensor]:
    """What is stored in the module ``scope``, without the experts."""
    state = modules[scope].state_dict()
    whole = {f"{scope}.{key}": value for key, value in state.items()}
    return {k: v for k, v in whole.items() if not k.startswith(experts + ".")}


def _tensor(modules: Mapping[str, nn.Module], name: str) -> Tensor:
    module, _, leaf = name.rpartition(".")
    value: Tensor = getattr(modules[module], leaf)
    return value


@contextmanager
def experts_masked(
    model: Model, found: Sequence[FoundMixture], kept: Mapping[int, Sequence[int]], source: str
) -> Iterator[None]:
    """Have the routers choose among ``kept`` only, as if the other experts were not there.

    Their logits become minus infinity where the router's matrix is applied, and so do biases, one
    of which may be added to scores instead of logits.

    Raises:
        BadInputError: a router did not apply its matrix in a way that can be seen.
    """
    modules = dict(model.named_modules())
    gone = {
        mixture.layer: [e for e in range(mixture.count) if e not in kept[mixture.layer]]
        for mixture in found
    }
    biases = [
        (_tensor(modules, name), gone[mixture.layer])
        for mixture in found
        for name in mixture.vectors
        if "bias" in name
    ]
    before = [values.clone() for values, _ in biases]
    mode = _MaskedRouters([(m.router, gone[m.layer]) for m in found])
    with torch.no_grad():
        for values, experts in biases:
            values.view(-1)[experts] = -torch.inf
        try:
            with mode:
                yield
        finally:
            for (values, _), saved in zip(biases, before, strict=True):
                values.copy_(saved)
    if mode.unseen:
        raise BadInputError(
            f"{source}: the router of layer {found[min(mode.unseen)].layer} is not applied as a "
            "linear map, so the result could not be checked; give a model of a listed family"
        )


class _MaskedRouters(TorchFunctionMode):
    """Sets logits of some experts to minus infinity wherever a router's matrix is applied."""

    def __init__(self, routers: Sequence[tuple[Tensor, Sequence[int]]]) -> None:
        super().__init__()
        self._routers = {
            router.data_ptr(): (number, experts) for number, (router, experts) in enumerate(routers)
        }
        self.unseen = set(range(len(routers)))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not nn.functional.linear:
            return result
        weight = args[1] if len(args) > 1 else (kwargs or {})["weight"]
        place = self._routers.get(weight.data_ptr())
        if place is not None:
            self.unseen.discard(place[0])
            result[..., place[1]] = -torch.inf
        return result


@contextmanager
def experts_watched(
    found: Sequence[FoundMixture], sums: Mapping[int, LayerSums], source: str
) -> Iterator[None]:
    """Add up what every expert does while the model runs.

    The experts' module is called once per expert with gates of one, which gives an expert's output
    whatever arithmetic it is; the sum of gates times outputs is what the module would have given.

    Raises:
        BadInputError: it is not, because the gates are not multiplied with the outputs, or a part
            gives values that are not finite.
    """
    for mixture in found:
        _watch(mixture, sums[mixture.layer], source)
    try:
        yield
    finally:
        for mixture in found:
            del mixture.experts.forward  # what the class defines comes back


def _watch(mixture: FoundMixture, sums: LayerSums, source: str) -> None:
    original = mixture.experts.forward
    checked = False

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        nonlocal checked
        if not hidden_states.isfinite().all():
            raise not_finite(source, f"what the experts of layer {mixture.layer} read")
        if not top_k_weights.isfinite().all():
            raise not_finite(source, f"the router of layer {mixture.layer}")
        result = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            rows, slots = torch.where(top_k_index == expert)
            alone = torch.full_like(rows, expert)[:, None]
            gate = top_k_weights[rows, slots]
            output = original(hidden_states[rows], alone, torch.ones_like(gate)[:, None])
            if not output.isfinite().all():
                raise not_finite(source, f"expert {expert} of layer {mixture.layer}")
            sums.expert(expert, rows, gate, output.new_zeros(len(rows), 0), output)
            result.index_add_(0, rows, (gate[:, None] * output).to(result.dtype))
        if not checked:
            expected = original(hidden_states, top_k_index, top_k_weights)
            error = float((result - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
            if not error <= GATED_TOLERANCE:
                raise BadInputError(
                    f"{source}: the gates of layer {mixture.layer} do not multiply the outputs of "
                    "its experts, so their worth is not known; give a model of a listed family"
                )
            checked = True
        return result

    mixture.experts.forward = forward


@contextmanager
def top_k_seen(mixture: FoundMixture) -> Iterator[list[int]]:
    """While the model runs, appends how many experts each token of a layer uses."""
    seen: list[int] = []

    def look(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        index = named["top_k_index"] if "top_k_index" in named else arguments[1]
        seen.append(int(index.shape[-1]))

    handle = mixture.experts.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def slice_experts(
    model: Model, found: Sequence[FoundMixture], kept: Mapping[int, Sequence[int]]
) -> None:
    """Leave only ``kept`` in every tensor that has an entry per expert, in place."""
    modules = dict(model.named_modules())
    for mixture in found:
        for name, axis in mixture.axes.items():
            module, _, leaf = name.rpartition(".")
            old: Tensor = getattr(modules[module], leaf)
            new = old.detach().index_select(axis, torch.tensor(kept[mixture.layer]))
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=False)
            setattr(modules[module], leaf, new)


def expert_count_keys(config: Mapping[str, Any], count: int) -> list[tuple[str, ...]]:
    """Paths of the config's keys that state the number of experts: named for them, with its value.

    Keys of other meaning that happen to have the value (experts per token, shared ones, widths) are
    told by their names.
    """
    paths: list[tuple[str, ...]] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            paths += [(key, *rest) for rest in expert_count_keys(value, count)]
        elif type(value) is int and value == count and _counts_experts(key):
            paths.append((key,))
    return paths


def _counts_experts(key: str) -> bool:
    other = ("per_tok", "shared", "topk", "top_k", "size", "dim", "layer", "group", "zero", "used")
    return "expert" in key and not any(word in key for word in other)
