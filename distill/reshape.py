"""A student of another shape from end to end: dense and warmed up, or sliced in depth and width."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edgekit.distill.dense_layer import WarmUpOptions
from edgekit.distill.dense_warm_up import WarmUpReport, text_to_learn_from, warm_up
from edgekit.distill.densify import REPORT, DenseOptions, DenseReport, densify
from edgekit.distill.slice_depth import DepthOptions, DepthReport, require_layers, slice_depth
from edgekit.distill.slice_plan import REPORT as SLICING
from edgekit.distill.slice_plan import WidthOptions, require_sizes
from edgekit.distill.slice_width import WidthReport, slice_width
from edgekit.progress import Progress
from edgekit.sequences import TokenSequence

DEPTH = "depth.json"  # the report of the first of two cuts


class Dense(BaseModel):
    """A model made dense, and what its warm-up gained if there was one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    made: DenseReport
    warmed: WarmUpReport | None


class Sliced(BaseModel):
    """A model without some layers, and then with fewer neurons or channels; each KL is to the model
    that was given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    depth: DepthReport | None
    width: WidthReport | None


def make_dense(
    model: Path,
    text: Sequence[TokenSequence],
    options: DenseOptions,
    steps: int,
    out: Path,
    scratch: Path,
    progress: Progress,
) -> Dense:
    """Write ``model`` as a dense one into the existing, empty ``out``, its layers warmed up in so
    many ``steps``; 0 leaves them as they were cut. ``scratch`` is for what lies between.

    Raises:
        EdgekitError: see :func:`densify` and :func:`warm_up`.
    """
    if not steps:
        return Dense(made=densify(model, text, options, out, progress), warmed=None)
    text_to_learn_from(text)  # refused before anything is run
    cut = _empty(scratch / "cut")
    made = densify(model, text, options, cut, progress)
    learning = WarmUpOptions(steps=steps, seed=options.seed, force=options.force)
    warmed = warm_up(model, cut, text, learning, out, progress)
    shutil.copyfile(cut / REPORT, out / REPORT)
    shutil.rmtree(cut)
    return Dense(made=made, warmed=warmed)


def require_slices(model: Path, width: WidthOptions, layers: int) -> None:
    """Refuse what no smaller ``model`` can be.

    Raises:
        BadInputError: names the option, or says why the family cannot be sliced so.
    """
    if layers:
        require_layers(model, DepthOptions(layers))
    if width.narrower:
        require_sizes(model, width)


def slice_model(
    model: Path,
    text: Sequence[TokenSequence],
    width: WidthOptions,
    layers: int,
    out: Path,
    scratch: Path,
    progress: Progress,
) -> Sliced:
    """Write ``model`` without ``layers`` layers, then narrower, into the existing, empty ``out``.

    Raises:
        EdgekitError: see :func:`slice_depth` and :func:`slice_width`.
    """
    require_slices(model, width, layers)
    if not layers:
        return Sliced(depth=None, width=slice_width(model, text, width, out, progress))
    if not width.narrower:
        depth = slice_depth(model, text, DepthOptions(layers), out, progress)
        return Sliced(depth=depth, width=None)
    cut = _empty(scratch / "cut")
    depth = slice_depth(model, text, DepthOptions(layers), cut, progress)
    narrowed = slice_width(cut, text, width, out, progress, model)
    shutil.copyfile(cut / SLICING, out / DEPTH)
    shutil.rmtree(cut)
    return Sliced(depth=depth, width=narrowed)


def _empty(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)  # of an interrupted run
    directory.mkdir(parents=True)
    return directory
