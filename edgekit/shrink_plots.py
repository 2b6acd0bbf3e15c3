"""The pictures of a shrink: what experts are worth, who uses them, what leaving them out costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.plots import ACCENT, INK, PALE, new_figure, svg

CONTROL = "#adb5bd"
COLOURS = ("#0b7285", "#e8590c", "#5f3dc4", "#2b8a3e", "#c2255c", "#1971c2", "#f08c00", "#495057",
           "#9c36b5", "#099268")  # fmt: skip


def saliency_map(saliency: Sequence[Sequence[float]], kept: Mapping[Any, Sequence[int]]) -> str:
    """What each expert is worth within its layer, the most worthy of a layer left; those that were
    left out are crossed out in the second panel.

    ``saliency`` [layers][experts]; ``kept``: the experts that stay, layer by layer in that order.
    """
    worth = np.array(saliency, float)
    stays = np.zeros(worth.shape, bool)
    for row, experts in enumerate(kept.values()):
        stays[row, list(experts)] = True
    share = worth / np.maximum(worth.max(1, keepdims=True), 1e-30)
    figure, axes = new_figure(7.4, 0.9 + 0.12 * min(60, max(12, len(worth))), columns=2)
    order = np.argsort(-share, axis=1, kind="stable")
    image = axes[0].imshow(np.take_along_axis(share, order, 1), aspect="auto", cmap="viridis",
                           vmin=0, vmax=1, interpolation="nearest")  # fmt: skip
    axes[0].set_title("worth, most worthy first")
    axes[0].set_xlabel("rank in its layer")
    axes[1].imshow(np.where(stays, share, np.nan), aspect="auto", cmap="viridis", vmin=0, vmax=1,
                   interpolation="nearest")  # fmt: skip
    axes[1].set_facecolor("#f1f3f5")
    axes[1].set_title("what stays, by expert (grey: left out)")
    axes[1].set_xlabel("expert")
    for panel in axes:
        panel.set_ylabel("sparse layer")
    figure.colorbar(image, ax=axes, label="share of the layer's most worthy expert")
    return svg(figure)


def usage_by_domain(usage: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """How far each domain's use of the experts is from the mean of all: [layers][experts] each."""
    names = sorted(usage)
    values = np.array([usage[name] for name in names], float)
    mean = values.mean(0)
    ratio = np.log2((values + 1e-6) / (mean + 1e-6))
    limit = 3.0  # eight times as much or as little as the mean; more looks the same
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = new_figure(7.4, 2.0 * rows, columns=columns, rows=rows)
    panels = np.atleast_1d(axes).ravel()
    for panel, name, value in zip(panels, names, ratio, strict=False):
        image = panel.imshow(value, aspect="auto", cmap="PuOr_r", vmin=-limit, vmax=limit,
                             interpolation="nearest")  # fmt: skip
        panel.set_title(name)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    for panel in panels[-columns:]:
        panel.set_xlabel("expert")
    panels[0].set_ylabel("sparse layer")
    figure.colorbar(image, ax=list(panels), label="use against the mean, doublings", extend="both")
    return svg(figure)


def cost_of_size(points: Sequence[Mapping[str, Any]]) -> str:
    """KL on the worst domain against the share of parameters that stays, a line per criterion.

    A point is ``{"criterion", "parameters" (share), "worst", "low", "high", "control"}``.
    """
    figure, axes = new_figure(7.0, 3.8)
    names = sorted({p["criterion"] for p in points if not p["control"]})
    for number, name in enumerate(names):
        mine = _line(points, name)
        error = np.abs(mine[:, 2:].T - mine[:, 1])
        axes.errorbar(
            mine[:, 0] * 100, mine[:, 1], yerr=error, fmt="o-", markersize=4, linewidth=1.2,
            capsize=2, color=COLOURS[number % len(COLOURS)], label=name,
        )  # fmt: skip
    chance = np.array([[p["parameters"] * 100, p["worst"]] for p in points if p["control"]])
    if len(chance):
        axes.plot(*chance.T, "x", color=CONTROL, markersize=5, label="random")
    values = [p["worst"] for p in points if p["worst"] > 0]
    if values and max(values) > 20 * min(values):  # a choice that ruins the model hides the rest
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("parameters that stay, %")
    axes.set_ylabel("KL on the worst domain, nats per token")
    axes.legend(frameon=False, fontsize=8, ncols=2)
    axes.margins(x=0.08)
    return svg(figure)


def layers_at_work(influence: Sequence[float], entropy: Sequence[float]) -> str:
    """How much each decoder layer changes its input, and how undecided each router is."""
    figure, axes = new_figure(7.4, 2.6, columns=2)
    axes[0].bar(range(len(influence)), influence, color=ACCENT)
    axes[0].set_title("1 - cosine of a layer's input and output")
    axes[0].set_xlabel("layer")
    axes[1].bar(range(len(entropy)), entropy, color=INK)
    axes[1].set_title("router's entropy, share of its maximum")
    axes[1].set_xlabel("sparse layer")
    axes[1].set_ylim(0, 1)
    return svg(figure)


def nested_cost(prefixes: Sequence[Mapping[str, Any]]) -> str:
    """What sharing one file costs: KL of each prefix beside a student chosen for its size."""
    figure, axes = new_figure(6.2, 3.2)
    kinds = (
        ("prefix", "prefix", ACCENT),
        ("separate", "separate", PALE),
        ("healed", "prefix, healed", INK),
        ("healed_separate", "separate, healed", CONTROL),
    )
    shown = [k for k in kinds if all(p.get(k[0]) for p in prefixes)]
    width = 0.8 / len(shown)
    places = np.arange(len(prefixes))
    for number, (key, label, colour) in enumerate(shown):
        values = [p[key]["all"]["value"] for p in prefixes]
        axes.bar(places + number * width, values, width * 0.92, color=colour, label=label)
    axes.set_xticks(places + 0.4 - width / 2, [f"{p['experts']} experts" for p in prefixes])
    axes.set_ylabel("KL, nats per token")
    axes.legend(frameon=False)
    return svg(figure)


def _line(points: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    rows = [
        (p["parameters"], p["worst"], p["low"], p["high"]) for p in points if p["criterion"] == name
    ]
    return np.array(sorted(rows), float)
