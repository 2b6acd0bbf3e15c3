"""The report's plots, as SVG text that needs nothing else to be shown."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgekit.evaluate import EvaluationReport

INK, ACCENT, PALE = "#1f2933", "#0b7285", "#9bd1d9"


def new_figure(
    width: float = 6.2, height: float = 3.2, columns: int = 1, rows: int = 1
) -> tuple[Any, Any]:
    """An empty figure in the report's style, in inches, and its axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams.update(
        {"svg.hashsalt": "edgekit", "font.size": 9, "axes.spines.top": False,
         "axes.spines.right": False, "axes.edgecolor": INK, "text.color": INK}
    )  # fmt: skip
    return pyplot.subplots(rows, columns, figsize=(width, height), constrained_layout=True)


def svg(figure: Any) -> str:
    """The figure as SVG text; it is closed."""
    from matplotlib import pyplot

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)


def size_against_quality(evaluation: EvaluationReport) -> str:
    """Teacher and student: size on disk against perplexity on held-out text."""
    figure, axes = new_figure()
    quality = evaluation.results[0].quality["all"]
    points = [("teacher", evaluation.teacher_bytes, quality.teacher_perplexity, INK)]
    points += [
        (r.target, evaluation.size_bytes, r.quality["all"].perplexity, ACCENT)
        for r in evaluation.results
    ]
    for index, (label, size, value, colour) in enumerate(points):
        error = [[side] for side in value.errors]
        axes.errorbar(
            size / 1e6, value.value, yerr=error if any(value.errors) else None, fmt="o",
            color=colour, capsize=3,
        )  # fmt: skip
        axes.annotate(label, (size / 1e6, value.value), xytext=(8, 8 - 14 * index),
                      textcoords="offset points")  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")  # 200, not 2 x 10^2
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.margins(x=0.3, y=0.3)
    axes.set_xlabel("size, MB")
    axes.set_ylabel("perplexity (95 % interval)")
    return svg(figure)


def expert_usage(report: Mapping[str, Any]) -> str:
    """Share of routed tokens per layer and expert, before and after shrinking."""
    figure, axes = new_figure(7.2, 3.6, columns=2)
    before, after = np.array(report["usage_before"]), np.array(report["usage_after"])
    for panel, values, title in zip(axes, (before, after), ("before", "after"), strict=True):
        image = panel.imshow(values, aspect="auto", cmap="GnBu", vmin=0,
                             vmax=max(before.max(), after.max()))  # fmt: skip
        panel.set_title(title)
        panel.set_xlabel("expert")
        panel.set_ylabel("sparse layer")
    figure.colorbar(image, ax=axes, label="share of routed tokens")
    return svg(figure)


def domain_kl(evaluation: EvaluationReport) -> str:
    """KL per domain and target with intervals."""
    figure, axes = new_figure()
    names = sorted(evaluation.domains)
    width = 0.8 / len(evaluation.results)
    for index, result in enumerate(evaluation.results):
        values = [result.quality[name].kl for name in names]
        places = np.arange(len(names)) + index * width
        error = [[v.errors[side] for v in values] for side in (0, 1)]
        known = any(map(any, error))
        axes.bar(places, [v.value for v in values], width * 0.92,
                 yerr=error if known else None, capsize=2,
                 color=(ACCENT, PALE, INK)[index % 3], label=result.target)  # fmt: skip
    axes.set_xticks(np.arange(len(names)) + 0.4 - width / 2, names)
    axes.set_ylabel("KL, nats per token")
    axes.legend(frameon=False)
    return svg(figure)
