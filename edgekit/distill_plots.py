"""The pictures of a training: what it minimised, what came of it on held-out text, and how hard it
was pulled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgekit.plots import ACCENT, INK, PALE, new_figure, svg
from edgekit.shrink_plots import COLOURS


def training_curves(report: Mapping[str, Any]) -> str:
    """Losses; where they were recorded, held-out KL per domain and the norm of the gradient.

    ``report`` is a :class:`edgekit.distill.train_report.TrainReport` as JSON values. Held-out KL is
    that of the first student.
    """
    evaluations = report.get("evaluations", [])
    norms = report.get("gradient_norms", [])
    panels = [lambda axes: _losses(axes, report["losses"])]
    if len(evaluations) > 1:
        panels.append(lambda axes: _held_out(axes, evaluations, report["written_step"]))
    if norms:
        panels.append(lambda axes: _norms(axes, norms))
    figure, axes = new_figure(3.4 * len(panels) + 2.8, 3.0, columns=len(panels))
    for draw, panel in zip(panels, np.atleast_1d(axes), strict=True):
        draw(panel)
        panel.set_xlabel("step")
    return svg(figure)


def _losses(axes: Any, losses: Sequence[float]) -> None:
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color=PALE, linewidth=0.8, label="step")
    window = min(20, len(losses) // 5)
    if window > 1:
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color=ACCENT, label=f"mean of {window}")
        axes.legend(frameon=False)
    axes.set_ylabel("loss, nats per token")


def _held_out(axes: Any, evaluations: Sequence[Mapping[str, Any]], written: int) -> None:
    steps = [e["step"] for e in evaluations]
    first = [e["students"][0] for e in evaluations]
    for number, domain in enumerate(sorted(first[0]["domains"])):
        values = [student["domains"][domain]["value"] for student in first]
        axes.plot(steps, values, "o-", markersize=3, linewidth=0.9,
                  color=COLOURS[number % len(COLOURS)], label=domain)  # fmt: skip
    axes.plot(steps, [s["all"]["value"] for s in first], color=INK, linewidth=1.8, label="all")
    axes.axvline(written, color=INK, linewidth=0.7, linestyle=":", label="what was written")
    axes.set_ylabel("held-out KL, nats per token")
    highest = max(d["value"] for s in first for d in (s["all"], *s["domains"].values()))
    axes.set_ylim(0, 1.5 * highest)  # room for the legend, above all curves
    axes.legend(frameon=False, fontsize=7, loc="upper center", ncols=3)


def _norms(axes: Any, norms: Sequence[float]) -> None:
    axes.plot(np.arange(1, len(norms) + 1), norms, color=ACCENT, linewidth=0.8)
    if min(norms) > 0:
        axes.set_yscale("log")
    axes.set_ylabel("norm of the gradient, unclipped")
