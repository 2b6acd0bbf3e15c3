"""What shrinking does to the miniature, each step with edgekit's own functions.

Every figure is KL(teacher || student) in nats per byte on held-out text.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from miniature_corpus import Corpus
from numpy.typing import NDArray

from edgekit.architecture import TensorSpec
from edgekit.checkpoint import Checkpoint, copy_tokenizer, write_checkpoint
from edgekit.distill.automatic import Candidate, choose_by_measurement
from edgekit.distill.capture import CaptureOptions, capture
from edgekit.distill.collect import collect
from edgekit.distill.criteria import CRITERIA
from edgekit.distill.dense_choice import CHOICES, SCALINGS
from edgekit.distill.densify import DenseOptions, densify
from edgekit.distill.divergence import RememberedTargets, measure, remember
from edgekit.distill.keep import Kept, choose, super_experts
from edgekit.distill.masked import measure_masked
from edgekit.distill.merge import merge
from edgekit.distill.merge_groups import Method as MergeMethod
from edgekit.distill.merge_pass import MergeOptions
from edgekit.distill.open_model import OpenModel, open_model
from edgekit.distill.prune import write_pruned
from edgekit.distill.statistics import Statistics
from edgekit.distill.train import train
from edgekit.progress import Silent
from edgekit.quantize.codes import Method
from edgekit.quantize.write import fake_quantized
from edgekit.recipe import DistillSection
from edgekit.scheme import Packing
from edgekit.sequences import FILE_NAME, write_sequences

KEEPS = (12, 8, 4)
DENSE_EXPERTS = (2, 4)
HEALED = 8  # experts of the students that are healed
CALIBRATION, HELD_OUT, CHOOSING, TAUGHT = 24, 18, 18, 200  # sequences per domain
RANDOM_MASKS = 3
STEP_TOKENS, TOP_K = 1280, 64
HEALING_STEPS, DENSE_STEPS = 80, 120
RATES = {"router": 3e-3, "all": 1e-3}
GROUP = 32  # of quantization
BITS = (4, 3, 2)


@dataclass(frozen=True)
class Row:
    """One figure: in ``setting``, ``method`` leaves ``kl``."""

    experiment: str
    setting: str
    method: str
    kl: float


class Miniature:
    """A trained teacher, opened, with all text that the experiments use.

    Attributes:
        targets: the teacher's answers to the held-out text.
        statistics: of the calibration text.
        cache: a logit cache of the text that students are healed on.
    """

    def __init__(self, teacher: Path, opened: OpenModel, corpus: Corpus, work: Path) -> None:
        self.teacher, self.opened, self.work = teacher, opened, work
        self.targets = self._remember(corpus, HELD_OUT, seed=1)
        self.choosing = self._remember(corpus, CHOOSING, seed=2)
        self.calibration = corpus.windows(CALIBRATION, seed=3)
        self.statistics: Statistics = collect(teacher, self.calibration, work / "chunks", Silent())
        self.cache = work / "cache"
        self.cache.mkdir()
        write_sequences(work / FILE_NAME, corpus.windows(TAUGHT, seed=4))
        capture(teacher, work, CaptureOptions("top_k", top_k=TOP_K), self.cache, Silent())

    def _remember(self, corpus: Corpus, count: int, seed: int) -> RememberedTargets:
        return remember(self.opened.model, corpus.windows(count, seed, held_out=True), Silent())

    def kept(self, criterion: str, keep: int, seed: int = 0) -> Kept:
        """The experts that stay."""
        mixture = self.opened.architecture.moe
        assert mixture is not None
        return choose(self.statistics, mixture, keep, criterion, seed).kept

    def kl_masked(self, kept: Kept) -> float:
        """KL of the teacher with only ``kept`` allowed."""
        return _mean(measure_masked(self.opened, kept, self.targets, Silent(), "student"))

    def kl(self, student: Path) -> float:
        """KL of a checkpoint."""
        with open_model(student) as opened:
            return _mean(measure(opened.model, self.targets, Silent()))

    def healed(self, student: Path, part: str, steps: int) -> float:
        """KL of a checkpoint after ``steps`` of distillation."""
        params = DistillSection(
            steps=steps, batch_tokens=STEP_TOKENS, learning_rate=RATES[part], trainable=(part,),
            precision="float32",
        )  # fmt: skip
        with tempfile.TemporaryDirectory(dir=self.work) as out:
            train(student, self.cache, params, Path(out), Silent())
            return self.kl(Path(out))

    def pruned(self, kept: Kept) -> Path:
        """The checkpoint of fewer experts."""
        out = self.new()
        write_pruned(self.opened.checkpoint, kept, out, Silent())
        return out

    def new(self) -> Path:
        """A new directory."""
        return Path(tempfile.mkdtemp(dir=self.work))


def _mean(measured: object) -> float:
    return float(measured.divergence().all.value)  # type: ignore[attr-defined]


@contextmanager
def miniature(teacher: Path, corpus: Corpus) -> Iterator[Miniature]:
    """Open a teacher with what the experiments need; files are gone afterwards."""
    with tempfile.TemporaryDirectory() as work, open_model(teacher) as opened:
        yield Miniature(teacher, opened, corpus, Path(work))


def prune_or_merge(m: Miniature) -> Iterator[Row]:
    """E1: every criterion, chance and merging, at three sizes."""
    for keep in KEEPS:
        setting = f"keep {keep}"
        masks = {c: m.kept(c, keep) for c in CRITERIA if c != "random"}
        chance = {f"random {s}": m.kept("random", keep, s) for s in range(RANDOM_MASKS)}
        candidates = {name: Candidate(mask) for name, mask in masks.items()}
        found = choose_by_measurement(m.opened, candidates, m.choosing, Silent())
        for name, kept in {**masks, **chance, "auto": masks[found.chosen]}.items():
            yield Row("prune or merge", setting, name, m.kl_masked(kept))
        for method in get_args(MergeMethod):
            yield Row("prune or merge", setting, method, m.kl(merged(m, method, keep)))


def heal(m: Miniature) -> Iterator[Row]:
    """E2: router only and all weights, from pruned and from merged students."""
    students: dict[str, Path] = {
        "reap": m.pruned(m.kept("reap", HEALED)),
        "frequency": m.pruned(m.kept("frequency", HEALED)),
        "random 0": m.pruned(m.kept("random", HEALED)),
    }
    students |= {method: merged(m, method, HEALED) for method in get_args(MergeMethod)}
    for name, student in students.items():
        yield Row("heal", "as it is", name, m.kl(student))
        yield Row("heal", "router", name, m.healed(student, "router", HEALING_STEPS))
        yield Row("heal", "all", name, m.healed(student, "all", HEALING_STEPS))


def quantize_or_prune(m: Miniature) -> Iterator[Row]:
    """E5: bits against experts."""
    for bits in BITS:
        for method in get_args(Method):
            student = rounded(m, Packing(bits, GROUP), method)
            yield Row("quantize or prune", f"int{bits}", method, m.kl(student))
    for keep in KEEPS:
        yield Row("quantize or prune", f"keep {keep}", "reap", m.kl_masked(m.kept("reap", keep)))


def rounded(m: Miniature, packing: Packing, method: Method) -> Path:
    """The teacher with attention and experts rounded; embedding and head stay as they are."""
    out = m.new()

    def tensor(spec: TensorSpec) -> NDArray[np.float32]:
        values = m.opened.checkpoint.float32(spec.name)
        packed = spec.role in ("linear", "expert")
        return fake_quantized(values, packing, method) if packed else values

    write_checkpoint(out, m.opened.checkpoint.config, tensor, "F32")
    copy_tokenizer(m.teacher, out)
    return out


def merged(m: Miniature, method: MergeMethod, keep: int) -> Path:
    """The checkpoint of ``keep`` merged experts per layer."""
    out = m.new()
    mixture = m.opened.architecture.moe
    assert mixture is not None
    options = MergeOptions(
        method=method,
        keep=keep / mixture.num_experts,
        protected=super_experts(m.statistics),
    )
    merge(m.teacher, m.calibration, options, out, m.new(), Silent())
    return out


def make_dense(m: Miniature) -> Iterator[Row]:
    """E6: which experts, how many, and which constants for their gates; then all are trained."""
    for count in DENSE_EXPERTS:
        setting = f"{count} experts"
        for choice in CHOICES:
            student = dense(m, choice, count)
            if choice == "do_acp":
                for kind in SCALINGS:
                    kl = m.kl(dense(m, choice, count, kind))
                    yield Row("sparse to dense", f"{setting}, before", f"{choice} {kind}", kl)
                blank = without_feed_forward(m, student)
                yield Row("sparse to dense", f"{setting}, before", "random weights", m.kl(blank))
                healed = m.healed(blank, "all", DENSE_STEPS)
                yield Row("sparse to dense", f"{setting}, trained", "random weights", healed)
            healed = m.healed(student, "all", DENSE_STEPS)
            yield Row("sparse to dense", f"{setting}, trained", choice, healed)


def dense(m: Miniature, choice: str, count: int, scaling: str = "auto") -> Path:
    """The dense checkpoint of ``count`` experts."""
    out = m.new()
    text = [*m.calibration, *m.choosing.sequences]
    options = DenseOptions(choice=choice, experts=count, scaling=scaling)
    densify(m.teacher, text, options, out, Silent())
    return out


def without_feed_forward(m: Miniature, student: Path) -> Path:
    """The same checkpoint with feed-forwards as a training from nothing begins with them."""
    out = m.new()
    rng = np.random.default_rng(0)
    with Checkpoint(student) as checkpoint:

        def tensor(spec: TensorSpec) -> NDArray[np.float32]:
            if ".mlp." in spec.name:
                return rng.normal(0, 0.02, spec.shape).astype(np.float32)
            return checkpoint.float32(spec.name)

        write_checkpoint(out, checkpoint.config, tensor, checkpoint.dtype)
    copy_tokenizer(student, out)
    return out


EXPERIMENTS: Mapping[str, Callable[[Miniature], Iterator[Row]]] = {
    "E1": prune_or_merge,
    "E2": heal,
    "E5": quantize_or_prune,
    "E6": make_dense,
}
