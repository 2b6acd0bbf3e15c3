"""One page about a model's experts: what they are worth, who uses them, what each size costs."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.atomic import write_json, write_text
from edgekit.report import STYLE, candidates_table
from edgekit.shrink_plots import cost_of_size, layers_at_work, saliency_map, usage_by_domain


def write_comparison(
    out: Path, comparison: Mapping[str, Any], points: Sequence[Mapping[str, Any]]
) -> Path:
    """Write ``comparison.html`` and ``comparison.json`` into ``out``; returns the page.

    ``comparison`` is a :class:`edgekit.distill.comparison.Comparison` as JSON values.
    """
    title = f"{comparison['experts']} experts per layer of a {comparison['model_type']}"
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p><b>Recommended:</b> {html.escape(comparison['recommendation'])}.</p>",
        f'<p class="note">{html.escape(comparison["skew"])}.</p>',
        "<h2>Size against KL</h2>", cost_of_size(points),
        "<h2>Worth, and what stays at the largest size</h2>",
        saliency_map(comparison["saliency"], comparison["kept"]),
    ]  # fmt: skip
    if len(comparison["usage_by_domain"]) > 1:
        sections += ["<h2>Use by domain</h2>", usage_by_domain(comparison["usage_by_domain"])]
    sections += [
        "<h2>Layers and routers</h2>",
        layers_at_work(comparison["block_influence"], comparison["router_entropy"]),
    ]
    for size in comparison["sizes"]:
        table = size["table"]
        text = f"{size['experts']} experts, {size['share']:.0%} of the parameters"
        sections += [
            f"<h2>{html.escape(text)}</h2>",
            f"<p>{html.escape(table['reason'])}</p>",
            candidates_table(table["candidates"]),
        ]
    body = "\n".join(sections)
    page = out / "comparison.html"
    write_text(
        page,
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style><body>\n{body}\n</body></html>\n",
    )
    write_json(out / "comparison.json", dict(comparison))
    return page
