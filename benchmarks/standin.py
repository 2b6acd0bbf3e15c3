"""How the demo's stand-in MoE behaves, against other constructions.

    python benchmarks/standin.py DENSE_MODEL_DIR

Prints perplexity on held-out text for the dense model and for stand-ins of several constructions,
and what dropping a quarter of the experts of each costs by criterion and by chance: perplexity, and
KL to the whole mixture. About twenty minutes on two cores.

Constructions: a common expert and specialists (what the demo uses) of two widths, and
branch-train-mix (arXiv 2403.07816): copies of the feed-forward layers trained for half a minute
each on one domain, routed by the domain's mean input.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from edgekit.architecture import TensorSpec
from edgekit.checkpoint import Checkpoint, copy_tokenizer, write_checkpoint
from edgekit.describe import describe
from edgekit.distill.calibration import make_sequences
from edgekit.distill.collect import collect
from edgekit.distill.keep import choose
from edgekit.distill.loading import Model, load_model
from edgekit.distill.prune import write_pruned
from edgekit.distill.standin import (
    StandInOptions,
    layer_inputs,
    make_standin,
    mixtral_config,
    perplexity,
)
from edgekit.progress import Silent, default_progress
from edgekit.recipe import DataSection, ShrinkSection
from edgekit.sequences import FILE_NAME, TokenSequence, read_sequences

SAMPLES = DataSection(tokens=12_288, held_out_tokens=2048, sequence_length=128, seed=7)
SPLITS = {"704 neurons": StandInOptions(), "576 neurons": StandInOptions(neurons=576)}
BRANCHES = ("chat", "prose", "code", "chinese")
STEPS, RATE, BATCH = 24, 2e-4, 4  # of each branch; sequences of 128 tokens


def branch_train_mix(dense: Path, sequences: Sequence[TokenSequence], out: Path) -> None:
    """Write the mixture of one expert per domain into ``out``."""
    branches, means = [], []
    for domain in BRANCHES:
        mine = [s for s in sequences if s.domain == domain and not s.held_out]
        model = load_model(dense)
        inputs = layer_inputs(model, mine, Silent())
        means.append([torch.nn.functional.normalize(x, dim=-1).mean(0) for x in inputs])
        _train(model, mine)
        branches.append({n: p.detach().bfloat16() for n, p in model.named_parameters()})
    with Checkpoint(dense) as checkpoint:
        width = checkpoint.architecture.intermediate_size
        options = StandInOptions(experts=len(BRANCHES), neurons=width)
        config = mixtral_config(checkpoint.config, options)

        def tensor(spec: TensorSpec) -> np.ndarray:
            if spec.role == "router":
                rows = torch.stack([means[b][spec.layer] for b in range(len(BRANCHES))])
                return torch.nn.functional.normalize(rows - rows.mean(0), dim=-1).numpy()
            if spec.role == "expert":
                name = f"model.layers.{spec.layer}.mlp.{spec.projection}_proj"
                return branches[spec.expert][name + ".weight"].float().numpy()
            return checkpoint.float32(spec.name)

        write_checkpoint(out, config, tensor)
    copy_tokenizer(dense, out)


def _train(model: Model, sequences: Sequence[TokenSequence]) -> None:
    parameters = [p.requires_grad_(True) for n, p in model.named_parameters() if ".mlp." in n]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    order = np.random.default_rng(0).integers(len(sequences), size=(STEPS, BATCH))
    for row in order:
        ids = torch.from_numpy(np.stack([sequences[i].tokens for i in row]).astype(np.int64))
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.inference_mode()
def log_probabilities(model: Model, sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
    """[T, vocab_size] of every sequence."""
    ids = [torch.from_numpy(s.tokens.astype(np.int64))[None] for s in sequences]
    return [model(i, use_cache=False).logits[0].float().log_softmax(-1) for i in ids]


def drop_a_quarter(teacher: Path, sequences: Sequence[TokenSequence], work: Path) -> None:
    """Print what each way to choose costs."""
    held_out = [s for s in sequences if s.held_out]
    calibration = [s for s in sequences if not s.held_out][:48]
    statistics = collect(teacher, calibration, work / teacher.name / "statistics", Silent())
    whole = log_probabilities(load_model(teacher), held_out)
    with Checkpoint(teacher) as checkpoint:
        moe = checkpoint.architecture.moe
        assert moe is not None
        ways = [ShrinkSection(keep=0.75, criterion=c) for c in ("reap", "frequency")]
        ways += [ShrinkSection(keep=0.75, criterion="random", seed=s) for s in range(3)]
        keep = round(0.75 * moe.num_experts)
        for way in ways:
            with tempfile.TemporaryDirectory(dir=work) as directory:
                out = Path(directory)
                choice = choose(statistics, moe, keep, way.criterion, way.seed)
                write_pruned(checkpoint, choice.kept, out, Silent())
                smaller = load_model(out)
            value = perplexity(smaller, held_out, Silent())
            fewer = log_probabilities(smaller, held_out)
            kl = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in zip(whole, fewer)]).mean()
            label = way.criterion + (f" {way.seed}" if way.criterion == "random" else "")
            print(
                f"    keep {keep} by {label:12} perplexity {value:10.2f}   KL {kl:.3f}", flush=True
            )


def main() -> None:
    """Compare the constructions."""
    dense = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        make_sequences(dense, SAMPLES, work, default_progress())
        sequences = read_sequences(work / FILE_NAME)
        held_out = [s for s in sequences if s.held_out]
        base = perplexity(load_model(dense), held_out, Silent())
        print(f"dense: perplexity {base:.2f}")
        for name in (*SPLITS, "branch-train-mix"):
            out = work / name.replace(" ", "-")
            out.mkdir()
            start = time.perf_counter()
            if name in SPLITS:
                make_standin(dense, sequences, out, default_progress(), SPLITS[name])
            else:
                branch_train_mix(dense, sequences, out)
            seconds = time.perf_counter() - start
            value = perplexity(load_model(out), held_out, Silent())
            size = describe(Checkpoint(out).config).parameters() / 1e6
            print(f"{name}: {size:.0f} M parameters, perplexity {value:.2f} "
                  f"({value / base - 1:+.1%}), made in {seconds:.0f} s", flush=True)  # fmt: skip
            drop_a_quarter(out, sequences, work)


if __name__ == "__main__":
    main()
