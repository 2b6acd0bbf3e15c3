"""``report.html`` and ``report.json``: what was done, kept, lost and measured, in one file each."""

from __future__ import annotations

import html
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.atomic import write_json, write_text
from edgekit.bootstrap import FEWEST
from edgekit.checkpoint import read_json
from edgekit.distill_plots import training_curves
from edgekit.evaluate import EvaluationReport
from edgekit.manifest import GateResult
from edgekit.plots import domain_kl, expert_usage, size_against_quality
from edgekit.recipe import Recipe
from edgekit.shrink_plots import nested_cost, saliency_map, usage_by_domain

# steps that train, and what they are called
STAGES = {
    "distill": "Distillation",
    "on-policy": "On-policy distillation",
    "supervised": "Supervised tuning",
}
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1f2933}
body{max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;margin:.6rem 0}
td,th{padding:.25rem .8rem .25rem 0;text-align:right;border-bottom:1px solid #e4e7eb}
td:first-child,th:first-child{text-align:left}pre{background:#f5f7fa;padding:.8rem;overflow:auto}
.bad{color:#b42318;font-weight:600}.note{color:#52606d}svg{max-width:100%;height:auto}
"""


def write_report(
    out: Path,
    recipe: Recipe,
    records: Mapping[str, Mapping[str, Any]],
    evaluation: EvaluationReport,
    gates: Sequence[GateResult],
    teacher: Path,
) -> Path:
    """Write both reports into the run directory and return the path of the HTML one."""
    standin = teacher / "standin.json"
    note = read_json(standin)["note"] if standin.is_file() else ""
    values = {
        "recipe": recipe.model_dump(mode="json"),
        "recipe_digest": recipe.digest(),
        "teacher_note": note,
        "machine": machine(),
        "steps": dict(records),
        "evaluation": evaluation.model_dump(mode="json"),
        "gates": [gate.model_dump() for gate in gates],
    }
    write_json(out / "report.json", values)
    path = out / "report.html"
    write_text(path, _page(recipe, records, evaluation, gates, note))
    return path


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import psutil

    return {
        "system": platform.platform(terse=True),
        "processor": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(logical=True),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
    }


def _page(
    recipe: Recipe,
    records: Mapping[str, Mapping[str, Any]],
    evaluation: EvaluationReport,
    gates: Sequence[GateResult],
    note: str,
) -> str:
    sections = [
        f"<h1>{html.escape(recipe.pack.name)} {html.escape(recipe.pack.version)}</h1>",
        f'<p class="note">{html.escape(note)}</p>' if note else "",
        "<h2>Quality and speed</h2>", _results(evaluation),
        *(f'<p class="note">{html.escape(t)} was not measured here: {html.escape(why)}</p>'
          for t, why in evaluation.skipped.items()),
        "<h2>Gates</h2>", _gates(gates),
        "<h2>Size against quality</h2>", size_against_quality(evaluation),
        "<h2>KL per domain</h2>", domain_kl(evaluation),
    ]  # fmt: skip
    if "shrink" in records:
        sections += _experts(records["shrink"]["report"])
    sections += _shape(records)
    sections += [part for name in STAGES for part in _stage(name, records)]
    sections += [
        "<h2>Steps</h2>", _steps(records),
        "<h2>How it was measured</h2>", f"<p>{_method(evaluation)}</p>",
        "<h2>Do it again</h2>",
        "<p>Save as <code>recipe.toml</code> and run "
        "<code>edgekit build recipe.toml --out RUN</code>.</p>",
        f"<pre>{html.escape(recipe.to_toml())}</pre>",
        html_table(["tool", "version"], next(iter(records.values()))["versions"].items()),
    ]  # fmt: skip
    body = "\n".join(s for s in sections if s)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{recipe.pack.name}</title>'
        f"<style>{STYLE}</style><body>\n{body}\n</body></html>\n"
    )


def _shape(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How the student was made dense, shallower or narrower, in words."""
    sentences = []
    if "dense" in records:
        found = records["dense"]["report"]
        made = found["made"]
        kl = made["divergence"][made["scaling"]]["all"]["value"]
        sentences.append(
            f"Dense: {made['source_family']} became {made['family']} of width {made['width']} "
            f"({made['choice']}, constants {made['scaling']}), {kl:.4f} nats per token from the "
            "sparse one before any training."
        )
        if found["warmed"]:
            before, after = (_median(found["warmed"][key]) for key in ("before", "after"))
            sentences.append(
                f"The warm-up took the median layer's error from {before:.2f} to {after:.2f}."
            )
        sentences += [f"{note[:1].upper()}{note[1:]}." for note in made["notes"]]
    for cut in ("depth", "width") if "slice" in records else ():
        report = records["slice"]["report"][cut]
        if report:
            change = (
                f"{report['layers_before']} to {report['layers_after']} layers"
                if cut == "depth"
                else f"{report['parameters_before']:,} to {report['parameters_after']:,} parameters"
            )
            kl = report["divergence"]["all"]["value"]
            sentences.append(
                f"Sliced from {change}: {kl:.4f} nats per token from the model before, without any "
                "training."
            )
    if not sentences:
        return []
    return ["<h2>Shape</h2>", f"<p>{html.escape(' '.join(sentences))}</p>"]


def _median(values: Mapping[str, float]) -> float:
    return statistics.median(values.values())


def _stage(name: str, records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A stage of training in words and curves; nothing where the recipe leaves it out."""
    if name not in records:
        return []
    report = records[name]["report"]
    sentences: list[str] = []
    if name == "on-policy":
        trained = report["training"]
        before, after = report["own_before"], report["own_after"]
        if before and after:
            sentences = [
                f"On what the student itself writes, {report['loss']} went from "
                f"{before['all']['value']:.4f} to {after['all']['value']:.4f}."
            ]
        if report["left_out"]:
            sentences.append(f"{report['left_out']} prompts were too long for the context.")
    elif name == "supervised":
        trained, sentences = report["anchored"]["training"], report["sentences"]
    else:
        trained = report
    sentences = [_held_out(trained), *sentences]
    text = html.escape(" ".join(sentences))
    return [f"<h2>{STAGES[name]}</h2>", f"<p>{text}</p>", training_curves(trained)]


def _held_out(training: Mapping[str, Any]) -> str:
    before, after = training["held_out_kl_before"], training["held_out_kl_after"]
    if before is None or after is None:
        return f"{training['steps']} steps; there was no held-out text to measure on."
    text = f"KL on held-out text {before:.4f} before, {after:.4f} after {training['steps']} steps."
    students = training["students"]
    bounds = students[0]["after"]["acceptance"] if students else None
    if bounds:
        text += (
            f" As a draft, {bounds['at_least']:.1%} to {bounds['at_most']:.1%} of its tokens would "
            "be accepted by the teacher."
        )
    return text


def _experts(shrink: Mapping[str, Any]) -> list[str]:
    """What was kept and why, in words, pictures and, where it was measured, a table."""
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in shrink["notes"])
    sections = [
        "<h2>Experts</h2>",
        f"<p>{shrink['experts_before']} to {shrink['experts_after']} per layer by "
        f"{html.escape(shrink['criterion'])}.</p><ul>{notes}</ul>",
        saliency_map(shrink["saliency"], shrink["kept"]),
        "<h3>Use</h3>", expert_usage(shrink),
    ]  # fmt: skip
    if len(shrink["usage_by_domain"]) > 1:
        sections += ["<h3>Use by domain</h3>", usage_by_domain(shrink["usage_by_domain"])]
    if shrink["automatic"]:
        table = candidates_table(shrink["automatic"]["candidates"])
        sections += ["<h3>Every criterion, measured</h3>", table]
    if shrink["nested"]:
        sections += ["<h3>Nested students</h3>", nested_cost(shrink["nested"]["prefixes"])]
    return sections


def candidates_table(candidates: Sequence[Mapping[str, Any]]) -> str:
    """What each keep-set that was tried costs."""
    rows = []
    for candidate in candidates:
        domains = candidate["divergence"]["domains"]
        worst = max(domains, key=lambda name: domains[name]["value"])
        note = "control" if candidate["control"] else candidate["same_as"]
        rows.append(
            (candidate["name"], f"{domains[worst]['value']:.4f}", worst,
             f"{candidate['divergence']['all']['value']:.4f}", note)
        )  # fmt: skip
    head = ["criterion", "KL, worst domain", "which", "KL, all text", "same as"]
    return html_table(head, rows)


def _method(evaluation: EvaluationReport) -> str:
    where = machine()
    return html.escape(
        f"{evaluation.positions} positions of text held out from calibration. KL is taken over the "
        "whole vocabulary between the teacher in float32 and the compiled variant as it runs; "
        f"intervals are 95 % bootstrap over sequences, given from {FEWEST} sequences on. Speed: 64 "
        "tokens after a prompt not seen before, greedy, median of 5 runs after a first one, "
        f"in a process of its own, on {where['system']}, {where['cores']} cores, "
        f"{where['memory_bytes'] / 1e9:.0f} GB."
    )


def _results(evaluation: EvaluationReport) -> str:
    rows = []
    for result in evaluation.results:
        for domain, quality in result.quality.items():
            overall = domain == "all"
            speed = result.speed if overall else None
            rows.append(
                (
                    f"{result.target}" if overall else f"– {domain}",
                    quality.kl.text(3),
                    quality.top1_agreement.text(3),
                    quality.perplexity.text(2),
                    f"{quality.teacher_perplexity.value:.2f}",
                    f"{speed.tokens_per_second:.1f}" if speed else "",
                    f"{speed.time_to_first_token_ms:.0f}" if speed else "",
                    f"{speed.peak_memory_bytes / 1e6:.0f}" if speed else "",
                )
            )
    head = ["target", "KL, nats/token", "top-1 agreement", "perplexity", "teacher", "tokens/s",
            "TTFT ms", "memory MB"]  # fmt: skip
    return html_table(head, rows)


def _gates(gates: Sequence[GateResult]) -> str:
    if not gates:
        return "<p>The recipe sets none.</p>"
    rows = []
    for gate in gates:
        state = "passed" if gate.passed else "overridden" if gate.overridden else "FAILED"
        rows.append((gate.name, f"{gate.measured:.4g}", f"{gate.limit:.4g}", state))
    return html_table(["gate", "measured", "limit", ""], rows)


def _steps(records: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (name, f"{r['seconds']:.1f}", f"{r['peak_memory_bytes'] / 1e9:.2f}", r["digest"][:12])
        for name, r in records.items()
    ]
    return html_table(["step", "seconds", "peak memory GB", "digest"], rows)


def html_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table whose cells are text, not markup."""

    def cells(values: Iterable[str], tag: str) -> str:
        return "".join(f"<{tag}{_mark(v)}>{html.escape(str(v))}</{tag}>" for v in values)

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><tr>{cells(head, 'th')}</tr>{body}</table>"


def _mark(value: str) -> str:
    return ' class="bad"' if value == "FAILED" else ""
