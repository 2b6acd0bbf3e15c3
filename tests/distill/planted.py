"""Checkpoints in which neurons, channels or layers are planted that do nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from edgekit.architecture import Attention, FeedForward, LatentAttention, ShortConv, TensorSpec
from edgekit.checkpoint import Checkpoint, copy_tokenizer, write_checkpoint
from edgekit.sequences import TokenSequence

RNG_SEED = 5
Change = Callable[[TensorSpec, np.ndarray], None]  # in place


def text(count: int = 16, length: int = 40) -> list[TokenSequence]:
    """Random sequences of two lengths; every fourth is held out."""
    rng = np.random.default_rng(RNG_SEED)
    return [
        TokenSequence(rng.integers(3, 500, length - i // 8).astype(np.int32), "text", i % 4 == 3)
        for i in range(count)
    ]


def rewritten(model: Path, out: Path, change: Change, **config: object) -> Path:
    """``model`` with ``change`` made to every tensor, in float32, and some keys of its config."""
    out.mkdir()
    with Checkpoint(model) as checkpoint:

        def tensor(spec: TensorSpec) -> np.ndarray:
            values = np.array(checkpoint.float32(spec.name))
            change(spec, values)
            return values

        write_checkpoint(out, {**checkpoint.config, **config}, tensor, "F32")
    copy_tokenizer(model, out)
    return out


def half_precision(model: Path, out: Path) -> Path:
    """``model`` in bfloat16, but for the corrections of its routers' choice: these are float32, of
    values that bfloat16 has not got and that decide."""
    out.mkdir()
    rng = np.random.default_rng(RNG_SEED)
    tensors = load_file(model / "model.safetensors")
    for name, values in tensors.items():
        tensors[name] = values.to(torch.bfloat16)
        if name.endswith("correction_bias"):  # 1/512 apart where bfloat16 has steps of 1/128
            order = torch.from_numpy(rng.permutation(values.numel()).astype(np.float32))
            tensors[name] = 1 + order.reshape(values.shape) / 512
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_bytes((model / "config.json").read_bytes())
    copy_tokenizer(model, out)
    return out


def eight_bits(model: Path, out: Path) -> Path:
    """``model`` with its projections in FP8 and the rest in bfloat16."""
    out.mkdir()
    tensors = load_file(model / "model.safetensors")
    for name, values in list(tensors.items()):
        tensors[name] = values.to(torch.bfloat16)
        if "_proj" in name and values.ndim > 1:
            scale = values.abs().max() / 448
            tensors[name] = (values / scale).to(torch.float8_e4m3fn)
            tensors[name + "_scale_inv"] = scale.reshape(1, 1)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [512, 512]}
    (out / "config.json").write_text(json.dumps(config))
    copy_tokenizer(model, out)
    return out


def feed_forwards(layer) -> list[FeedForward]:
    """The dense and the shared feed-forward of a layer."""
    shared = layer.mixture.shared if layer.mixture else None
    return [block for block in (layer.dense, shared) if block]


def writers(architecture) -> set[str]:
    """Names of the tensors whose rows are what is added to the residual stream, biases too."""
    names = set()
    for layer in architecture.layers:
        mixer = layer.attention
        attention = isinstance(mixer, Attention | LatentAttention)
        modules = [mixer.o if attention else mixer.output]
        modules += [block.down for block in feed_forwards(layer)]
        if layer.mixture:
            count = layer.mixture.num_experts
            modules += [layer.mixture.expert(e, "down") for e in range(count)]
            names.add(layer.mixture.output_bias)
        names |= {module + kind for module in modules for kind in (".weight", ".bias")}
    return names


def convolutions(architecture) -> dict[str, ShortConv]:
    """The short convolutions by the names of their input's weight and bias."""
    mixers = [layer.attention for layer in architecture.layers]
    return {
        mixer.input + kind: mixer
        for mixer in mixers
        if isinstance(mixer, ShortConv)
        for kind in (".weight", ".bias")
    }
