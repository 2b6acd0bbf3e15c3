"""A small Mixture-of-Experts made from a dense model, to stand in for a cloud model.

Each feed-forward layer is split into overlapping experts (after MoEfication, arXiv 2110.01786, and
LLaMA-MoE, arXiv 2406.16554, with overlap instead of a partition):

1. the tokens that reach the layer are clustered by direction (spherical k-means);
2. the expert of a cluster gets the neurons that contribute most on its tokens;
3. the router's rows are the centroids, scaled so that its softmax prefers the nearest cluster;
4. every expert's down projection is refitted by ridge regression to the dense layer's output on
   the tokens that the router sends it, since the neurons it lacks are partly predictable.

Each expert alone approximates the dense layer on its own tokens, so the gated sum of two does too.
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

from edgekit.architecture import Architecture, TensorSpec, describe
from edgekit.atomic import write_json
from edgekit.checkpoint import Checkpoint, copy_tokenizer, write_checkpoint
from edgekit.distill.loading import Model, load_model
from edgekit.errors import BadInputError
from edgekit.progress import Progress
from edgekit.sequences import TokenSequence

ITERATIONS = 12  # of k-means


@dataclass(frozen=True)
class StandInOptions:
    """``experts`` of ``neurons`` each; ``sharpness`` scales the router's cosine."""

    experts: int = 8
    experts_per_token: int = 2
    neurons: int = 1152
    sharpness: float = 12.0
    ridge: float = 0.02
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
) -> StandInReport:
    """Write the stand-in of ``dense`` into the existing, empty directory ``out``.

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
        f"A stand-in for a cloud model: the feed-forward layers of {dense.name} split into "
        f"{options.experts} overlapping experts. Not a model that anyone trained as an MoE."
    )
    report = StandInReport(
        note, options, describe(config).parameters(), dense_perplexity, result
    )
    write_json(out / "standin.json", asdict(report))
    return report


def _check(dense: Path, architecture: Architecture, options: StandInOptions) -> None:
    if architecture.model_type != "llama" or architecture.attention_bias:
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
    kept = {k: v for k, v in config.items() if k not in ("architectures", "attention_bias",
                                                         "mlp_bias", "pretraining_tp")}
    return {
        **kept,
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
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
    inputs = _layer_inputs(model, sequences, progress)
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
def _layer_inputs(
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
    wanted: torch.Tensor | None = None,
) -> ExpertLayer:
    """Split one SwiGLU layer on its inputs ``x`` [T, H]; see the module for the steps."""
    router = _router(x, options, generator)
    _, chosen = (x @ router.T).topk(options.experts_per_token, dim=-1)
    activation = torch.nn.functional.silu(x @ gate.T) * (x @ up.T)
    target = activation @ down.T if wanted is None else wanted
    importance = activation.abs() * down.norm(dim=0)
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    for expert in range(options.experts):
        tokens = (chosen == expert).any(-1)
        first = chosen[:, 0] == expert
        score = importance[first].sum(0) + importance[tokens].sum(0)
        neurons = score.topk(options.neurons).indices.sort().values
        refit = _refit(activation[tokens][:, neurons], target[tokens], down[:, neurons], options)
        parts.append((neurons, refit))
    neurons = torch.stack([n for n, _ in parts])
    return ExpertLayer(router, gate[neurons], up[neurons], torch.stack([d for _, d in parts]))


def _router(x: torch.Tensor, options: StandInOptions, generator: torch.Generator) -> torch.Tensor:
    """Centroids of the directions of ``x``, scaled to ``sharpness`` per unit of cosine."""
    directions = torch.nn.functional.normalize(x, dim=-1)
    centre = directions.mean(0)
    directions = torch.nn.functional.normalize(directions - centre, dim=-1)
    start = torch.randperm(len(x), generator=generator)[: options.experts]
    centroids = directions[start]
    for _ in range(ITERATIONS):
        nearest = (directions @ centroids.T).argmax(-1)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, directions)
        empty = sums.norm(dim=-1) == 0
        sums[empty] = centroids[empty]
        centroids = torch.nn.functional.normalize(sums, dim=-1)
    typical = x.norm(dim=-1).median()
    return centroids * (options.sharpness / typical)


def _refit(
    activation: torch.Tensor, target: torch.Tensor, down: torch.Tensor, options: StandInOptions
) -> torch.Tensor:
    """argmin_D ||activation D^T - target||^2 + r ||D - down||^2, in closed form."""
    if len(activation) == 0:
        return down
    gram = activation.T @ activation
    strength = options.ridge * gram.diagonal().mean() + 1e-6
    gram.diagonal().add_(strength)
    residual = target - activation @ down.T
    correction = torch.cholesky_solve(activation.T @ residual, torch.linalg.cholesky(gram))
    return down + correction.T


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
