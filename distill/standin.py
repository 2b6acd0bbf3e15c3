"""A small Mixture-of-Experts made from a dense model, to stand in for a cloud model.

Each SwiGLU layer is split into experts (after MoEfication, arXiv 2110.01786, and LLaMA-MoE, arXiv
2406.16554), shaped like what is found in trained ones: one expert that nearly every token uses
(DeepSeekMoE's shared expert, arXiv 2401.06066; "super experts", arXiv 2507.23279) and specialists.

1. Expert 0 gets the neurons that contribute most over all tokens. Its router row is the
   least-squares fit of a constant, so it is chosen always and with an almost constant gate.
2. Tokens are clustered by direction (spherical k-means); each cluster has a specialist, whose
   router row is the centroid and whose neurons contribute most on its tokens, among the rest.
3. Each down projection is divided by its mean gate, so that the gated sum has the dense layer's
   scale. (Refitting them by least squares fitted the calibration text and nothing else: perplexity
   5.78 with it, 5.65 without; see docs/decisions/stand-in.md.)

The result is a Mixtral checkpoint: softmax over experts, top-k, renormalised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.architecture import Architecture, TensorSpec
from edgekit.atomic import write_json
from edgekit.checkpoint import Checkpoint, copy_tokenizer, write_checkpoint
from edgekit.describe import describe
from edgekit.distill.loading import Model, load_model
from edgekit.errors import BadInputError
from edgekit.progress import Progress
from edgekit.sequences import TokenSequence

ITERATIONS = 12  # of k-means


@dataclass(frozen=True)
class StandInOptions:
    """``experts`` of ``neurons`` each; router logits are ``constant`` for the common expert and
    ``sharpness`` times the cosine to the centroid for the specialists."""

    experts: int = 8
    experts_per_token: int = 2
    neurons: int = 704
    constant: float = 1.5
    sharpness: float = 0.8
    seed: int = 0


@dataclass(frozen=True)
class StandInReport:
    """What was made and what it costs: perplexities on held-out text."""

    note: str
    options: StandInOptions
    parameters: int
    dense_perplexity: float
    perplexity: float


@dataclass(frozen=True)
class ExpertLayer:
    """Weights of one sparse layer, float32: ``router`` [E, H], ``gate``/``up`` [E, I, H],
    ``down`` [E, H, I]."""

    router: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


def make_standin(
    dense: Path,
    sequences: Sequence[TokenSequence],
    out: Path,
    progress: Progress,
    options: StandInOptions = StandInOptions(),
    name: str = "",
) -> StandInReport:
    """Write the stand-in of ``dense`` into the existing, empty directory ``out``.

    ``name`` is what the note calls the dense model, its directory's name by default.

    Raises:
        BadInputError: the model is not a plain dense llama, or too narrow for the options.
    """
    with Checkpoint(dense) as checkpoint:
        architecture = checkpoint.architecture
        _check(dense, architecture, options)
        config = mixtral_config(checkpoint.config, options)
        model = load_model(dense)
        calibration = [s for s in sequences if not s.held_out]
        layers = _split_layers(model, calibration, progress, options)
        held_out = [s for s in sequences if s.held_out]
        dense_perplexity = perplexity(model, held_out, progress)
        del model
        _write(checkpoint, config, layers, out, progress)
    copy_tokenizer(dense, out)
    del layers
    result = perplexity(load_model(out), held_out, progress)
    note = (
        f"A stand-in for a cloud model: the feed-forward layers of {name or dense.name} split into "
        f"{options.experts} overlapping experts. Not a model that anyone trained as an MoE."
    )
    report = StandInReport(note, options, describe(config).parameters(), dense_perplexity, result)
    write_json(out / "standin.json", asdict(report))
    return report


def _check(dense: Path, architecture: Architecture, options: StandInOptions) -> None:
    if architecture.model_type != "llama" or any(s.role == "bias" for s in architecture.specs):
        raise BadInputError(
            f"{dense}: a stand-in is made from a dense llama without biases, this is "
            f"{architecture.model_type}; choose another model"
        )
    if options.neurons > architecture.intermediate_size:
        raise BadInputError(
            f"{dense}: experts of {options.neurons} neurons do not fit a layer of "
            f"{architecture.intermediate_size}; choose fewer"
        )


def mixtral_config(config: Mapping[str, Any], options: StandInOptions) -> dict[str, Any]:
    """The dense model's config as a Mixtral of the same attention."""
    kept = {
        k: v
        for k, v in config.items()
        if k not in ("architectures", "attention_bias", "mlp_bias", "pretraining_tp")
    }
    return {
        **kept,
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "dtype": "bfloat16",
        "num_local_experts": options.experts,
        "num_experts_per_tok": options.experts_per_token,
        "intermediate_size": options.neurons,
        "sliding_window": None,
        "router_jitter_noise": 0.0,
        "output_router_logits": False,
    }


def _split_layers(
    model: Model,
    sequences: Sequence[TokenSequence],
    progress: Progress,
    options: StandInOptions,
) -> list[ExpertLayer]:
    inputs = layer_inputs(model, sequences, progress)
    layers = []
    with progress.task("split into experts", len(inputs)) as task:
        for index, x in enumerate(inputs):
            mlp = model.model.layers[index].mlp
            generator = torch.Generator().manual_seed(options.seed * 1009 + index)
            layers.append(
                split_layer(mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight, x,
                            options, generator)
            )  # fmt: skip
            task.advance()
    return layers


@torch.inference_mode()
def layer_inputs(
    model: Model, sequences: Sequence[TokenSequence], progress: Progress
) -> list[torch.Tensor]:
    """What reaches each feed-forward layer, after its norm: [T, H] per layer."""
    collected: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
    handles = [
        layer.mlp.register_forward_pre_hook(
            lambda _, args, store=store: store.append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for layer, store in zip(model.model.layers, collected, strict=True)
    ]
    with progress.task("watch the dense model", len(sequences)) as task:
        for sequence in sequences:
            model.model(torch.from_numpy(sequence.tokens.astype(np.int64))[None], use_cache=False)
            task.advance()
    for handle in handles:
        handle.remove()
    return [torch.cat(parts) for parts in collected]


@torch.inference_mode()
def split_layer(
    gate: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    x: torch.Tensor,
    options: StandInOptions,
    generator: torch.Generator,
) -> ExpertLayer:
    """Split one SwiGLU layer on its inputs ``x`` [T, H]; see the module for the steps."""
    router = _router(x, options, generator)
    gates, chosen = (x @ router.T).softmax(-1).topk(options.experts_per_token, dim=-1)
    gates = gates / gates.sum(-1, keepdim=True)
    activation = torch.nn.functional.silu(x @ gate.T) * (x @ up.T)
    importance = activation.abs() * down.norm(dim=0)
    common = importance.sum(0).topk(options.neurons).indices
    importance[:, common] = 0
    neurons, downs = [], []
    for expert in range(options.experts):
        tokens, slot = torch.where(chosen == expert)
        weight = gates[tokens, slot]
        best = importance[tokens].sum(0).topk(options.neurons).indices if expert else common
        best = best.sort().values
        neurons.append(best)
        downs.append(down[:, best] / (weight.mean() if len(weight) else 1.0))
    index = torch.stack(neurons)
    return ExpertLayer(router, gate[index], up[index], torch.stack(downs))


def _router(x: torch.Tensor, options: StandInOptions, generator: torch.Generator) -> torch.Tensor:
    """Rows [E, H]: the constant of the common expert, then the specialists' centroids."""
    gram = x.T @ x
    gram.diagonal().add_(1e-3 * gram.diagonal().mean())
    constant = torch.linalg.solve(gram, x.sum(0)) * options.constant
    directions = torch.nn.functional.normalize(x, dim=-1)
    directions = torch.nn.functional.normalize(directions - directions.mean(0), dim=-1)
    start = torch.randperm(len(x), generator=generator)[: options.experts - 1]
    centroids = directions[start]
    for _ in range(ITERATIONS):
        nearest = (directions @ centroids.T).argmax(-1)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, directions)
        empty = sums.norm(dim=-1) == 0
        sums[empty] = centroids[empty]
        centroids = torch.nn.functional.normalize(sums, dim=-1)
    typical = x.norm(dim=-1).median()
    return torch.cat([constant[None], centroids * (options.sharpness / typical)])


def _write(
    checkpoint: Checkpoint,
    config: dict[str, Any],
    layers: Sequence[ExpertLayer],
    out: Path,
    progress: Progress,
) -> None:
    specs = describe(config).tensors()

    def tensor(spec: TensorSpec) -> NDArray[np.float32]:
        if spec.role == "router":
            return layers[spec.layer].router.numpy()
        if spec.role == "expert":
            return getattr(layers[spec.layer], spec.projection)[spec.expert].numpy()
        return checkpoint.float32(spec.name)

    with progress.task("write the stand-in", len(specs)) as task:
        write_checkpoint(out, config, tensor, "BF16", task.advance)


@torch.inference_mode()
def perplexity(model: Model, sequences: Sequence[TokenSequence], progress: Progress) -> float:
    """exp of the mean negative log-likelihood per token."""
    total = count = 0.0
    with progress.task("measure the perplexity", len(sequences)) as task:
        for sequence in sequences:
            ids = torch.from_numpy(sequence.tokens.astype(np.int64))
            logprobs = model(ids[None], use_cache=False).logits[0, :-1].float().log_softmax(-1)
            total -= float(logprobs.gather(-1, ids[1:, None]).double().sum())
            count += len(ids) - 1
            task.advance()
    return float(np.exp(total / count))
