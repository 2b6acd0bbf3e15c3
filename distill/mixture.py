"""The routed experts of every family as one torch module.

:class:`edgekit.architecture.Mixture` says how a family routes; :class:`MixtureBlock` computes it,
in the place of transformers' own block (:mod:`edgekit.distill.seats`). So whatever measures, masks,
merges or trains experts is written once. Each expert runs on the tokens routed to it and on no
others, and what the forward computes is shown to an observer: measuring costs little more than
running the model.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.architecture import Mixture
from edgekit.distill.routing import choose_experts

CLAMPED_ALPHA, CLAMPED_LIMIT = 1.702, 7.0  # of gpt-oss' SwiGLU


class Routing(NamedTuple):
    """What the router decided for T tokens.

    ``index`` int64 [T, k] names experts; from ``num_experts`` on they give their input back.
    ``weight`` float32 [T, k] is what really multiplies an expert's output. ``logits`` float32
    [T, C] are those of all choices; experts that are not allowed have minus infinity.
    """

    index: Tensor
    weight: Tensor
    logits: Tensor


class Observer(Protocol):
    """Watches a block. ``x`` [T, H] is what the experts read."""

    def routed(self, x: Tensor, routing: Routing) -> None:
        """Called once per forward, before the experts."""

    def expert(
        self, expert: int, tokens: Tensor, gate: Tensor, hidden: Tensor, output: Tensor
    ) -> None:
        """One expert on its tokens: ``tokens`` int64 [n] are rows of x, ``gate`` [n] what will
        multiply ``output`` [n, H], which came from the neurons ``hidden`` [n, I]."""


class Adapter(NamedTuple):
    """Low-rank matrices beside those of all experts: ``down`` [E, r, in], ``up`` [E, out, r]."""

    down: Tensor
    up: Tensor
    factor: float

    def output(self, x: Tensor, expert: int) -> Tensor:
        """What it adds to the output for x [n, in]."""
        inner = functional.linear(x, self.down[expert])
        return self.factor * functional.linear(inner, self.up[expert])


class MixtureBlock(nn.Module):
    """``y = sum over the chosen experts of gate * down(act(gate_proj x) * up_proj x)``.

    Attributes:
        router: [C, H]; ``router_bias`` and ``correction`` [C], ``router_scale`` [H],
            ``expert_scale`` [E] where the family has them. C counts identity experts too.
        gate_up: [E, 2 I, H], the gate's rows first, whatever the family stores.
        down: [E, H, I]; biases: ``gate_up_bias`` [E, 2 I], ``down_bias`` [E, H],
            ``output_bias`` [H].
        observer: is shown every forward.
        allowed: bool [E], the experts that may be chosen, exactly as if the others were not there;
            None for all.
        adapters: what stands beside "gate_up" or "down" (:mod:`edgekit.distill.lora`).
    """

    router_bias: nn.Parameter | None
    correction: nn.Parameter | None
    router_scale: nn.Parameter | None
    expert_scale: nn.Parameter | None
    gate_up_bias: nn.Parameter | None
    down_bias: nn.Parameter | None
    output_bias: nn.Parameter | None

    def __init__(self, mixture: Mixture, hidden_size: int, dtype: torch.dtype) -> None:
        """A block whose weights have no memory yet; :mod:`edgekit.distill.open_model` fills it."""
        super().__init__()
        self.mixture = mixture
        self.observer: Observer | None = None
        self.allowed: Tensor | None = None
        self.adapters: dict[str, Adapter] = {}
        experts, wide = mixture.num_experts, mixture.intermediate_size
        choices = experts + mixture.num_identities
        shapes: dict[str, tuple[int, ...] | None] = {
            "router": (choices, hidden_size),
            "router_bias": (choices,) if mixture.router_bias else None,
            "correction": (choices,) if mixture.correction else None,
            "router_scale": (hidden_size,) if mixture.router_scale else None,
            "expert_scale": (experts,) if mixture.expert_scale else None,
            "gate_up": (experts, 2 * wide, hidden_size),
            "down": (experts, hidden_size, wide),
            "gate_up_bias": (experts, 2 * wide) if mixture.expert_bias else None,
            "down_bias": (experts, hidden_size) if mixture.expert_bias else None,
            "output_bias": (hidden_size,) if mixture.output_bias else None,
        }
        for name, shape in shapes.items():
            if shape is None:
                self.register_parameter(name, None)
                continue
            routing = name in ("router", "router_bias", "correction", "router_scale")
            kind = torch.float32 if routing else dtype  # routers decide in full precision
            empty = torch.empty(shape, dtype=kind, device="meta")
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))

    def forward(self, x: Tensor, router_input: Tensor | None = None) -> Tensor:
        """x [..., H] to [..., H]; ``router_input`` is what the router reads if it is not x."""
        flat = x.reshape(-1, x.shape[-1])
        seen = flat if router_input is None else router_input.reshape(flat.shape)
        routing = self.route(seen)
        return self.combine(flat, routing).reshape(x.shape)

    def combine(self, x: Tensor, routing: Routing) -> Tensor:
        """The gated sum of the chosen experts: x [T, H] to [T, H]."""
        if self.observer:
            self.observer.routed(x, routing)
        result = torch.zeros_like(x)
        for expert, rows, slots in _by_expert(routing.index):
            gate = routing.weight[rows, slots]
            output = self._expert(x[rows], expert, rows, gate)
            if self.mixture.scoring != "sigmoid_input":
                output = output * gate[:, None].to(output.dtype)
            result = result.index_add(0, rows, output.to(result.dtype))
        return result if self.output_bias is None else result + self.output_bias

    def _expert(self, x: Tensor, expert: int, rows: Tensor, gate: Tensor) -> Tensor:
        if expert >= self.mixture.num_experts:
            return x
        inside = self.mixture.scoring == "sigmoid_input"
        hidden = self.hidden(x * gate[:, None].to(x.dtype) if inside else x, expert)
        output = self.output(hidden, expert)
        if self.observer:
            # a gate inside the expert is part of its output: nothing multiplies it any more
            outside = torch.ones_like(gate) if inside else gate
            self.observer.expert(expert, rows, outside, hidden, output)
        return output

    def route(self, x: Tensor) -> Routing:
        """Choose experts for x [T, H], the router's input."""
        m = self.mixture
        x = x.float()
        if m.router_norm is not None:
            x = functional.rms_norm(x, (x.shape[-1],), eps=m.router_norm.eps)
        if self.router_scale is not None:
            x = x * self.router_scale * x.shape[-1] ** -0.5
        with torch.autocast(x.device.type, enabled=False):  # whatever the rest is computed in
            logits = functional.linear(x, self.router, self.router_bias)
        if self.allowed is not None:
            allowed = self.allowed.to(logits.device)
            barred = functional.pad(~allowed, (0, m.num_identities), value=False)
            logits = logits.masked_fill(barred, -torch.inf)
        index, weight = choose_experts(logits, m, self.correction)
        if self.expert_scale is not None:
            weight = weight * self.expert_scale.float()[index]
        return Routing(index, weight, logits)

    def hidden(self, x: Tensor, expert: int) -> Tensor:
        """The neurons [T, I] of one expert for x [T, H]: what its down projection reads."""
        gate, up = self._multiply("gate_up", x, expert).chunk(2, dim=-1)
        return gated(gate, up, self.mixture.activation)

    def output(self, hidden: Tensor, expert: int) -> Tensor:
        """The output [T, H] of one expert from its neurons [T, I], before any gate."""
        return self._multiply("down", hidden, expert)

    def _multiply(self, name: str, x: Tensor, expert: int) -> Tensor:
        bias = getattr(self, f"{name}_bias")
        result = functional.linear(
            x, getattr(self, name)[expert], None if bias is None else bias[expert]
        )
        adapter = self.adapters.get(name)
        return result if adapter is None else result + adapter.output(x, expert)


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """``act(gate) * up`` with one of edgekit's activations."""
    if activation == "clamped":
        gate = gate.clamp(max=CLAMPED_LIMIT)
        up = up.clamp(-CLAMPED_LIMIT, CLAMPED_LIMIT)
        return (up + 1) * gate * torch.sigmoid(gate * CLAMPED_ALPHA)
    if activation == "silu":
        return functional.silu(gate) * up
    if activation == "gelu":
        return functional.gelu(gate) * up
    if activation == "gelu_tanh":
        return functional.gelu(gate, approximate="tanh") * up
    if activation == "relu":
        return functional.relu(gate) * up
    if activation == "relu2":
        return functional.relu(gate).square() * up
    raise ValueError(f"no activation {activation!r}")


def _by_expert(index: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """(expert, rows int64 [n], slots int64 [n]) for every expert in ``index`` [T, k].

    One sort instead of a search per expert; rows ascend.
    """
    chosen = index.reshape(-1)
    order = chosen.argsort(stable=True)
    experts, counts = chosen[order].unique_consecutive(return_counts=True)
    rows = order // index.shape[1]
    slots = order % index.shape[1]
    sizes = counts.tolist()
    return list(zip(experts.tolist(), rows.split(sizes), slots.split(sizes), strict=True))
