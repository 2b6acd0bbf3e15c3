"""Tiny checkpoints of every family, built from real Hugging Face config classes.

Each fixture is a directory with seeded random weights and a byte-level BPE tokenizer of 512
tokens with a ChatML template. Sizes divide by 32 and 64 so that every int4 group fits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_families import build_weights

VOCAB_SIZE = 512
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRAINING_TEXT = [
    "The quick brown fox jumps over the lazy dog while the sun sets behind the hills.",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))",
    "What is the capital of France? The capital of France is Paris.",
    "一个小模型在个人电脑上运行，不需要网络。",
]


def write_tokenizer(directory: Path) -> None:
    """A byte-level BPE tokenizer with ChatML special tokens 0, 1 and 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT * 4, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(CHATML)
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<|im_start|>",
                "eos_token": "<|im_end|>",
                "pad_token": "<|im_end|>",
                "unk_token": "<|endoftext|>",
            }
        )
    )


def build_model(directory: Path, family: str, seed: int = 0, **options: object) -> Path:
    """Write a random model of ``family``; ``options`` override its config."""
    build_weights(directory, family, seed, **options)
    write_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_model("mixtral", num_local_experts=8)``: a directory, built once per options."""
    cache: dict[str, Path] = {}

    def make(family: str, seed: int = 0, **options: object) -> Path:
        key = json.dumps([family, seed, options], sort_keys=True)
        if key not in cache:
            directory = tmp_path_factory.mktemp(family)
            cache[key] = build_model(directory, family, seed, **options)
        return cache[key]

    return make


@pytest.fixture(scope="session")
def tiny_llama(tiny_model: Callable[..., Path]) -> Path:
    """A dense llama with a tied head."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def tiny_mixtral(tiny_model: Callable[..., Path]) -> Path:
    """Four experts, top-2, tied head."""
    return tiny_model("mixtral")


@pytest.fixture(scope="session")
def tiny_qwen3_moe(tiny_model: Callable[..., Path]) -> Path:
    """Four experts, top-2, qk-norm, untied head."""
    return tiny_model("qwen3_moe")


@pytest.fixture(scope="session")
def quantized(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """``quantized("llama", "int4-g32")``: a quantized checkpoint, made once."""
    from edgekit.progress import Silent
    from edgekit.quantize.write import quantize
    from edgekit.scheme import Scheme

    cache: dict[str, Path] = {}

    def make(family: str, scheme: str, **options: object) -> Path:
        key = json.dumps([family, scheme, options], sort_keys=True)
        if key not in cache:
            out = tmp_path_factory.mktemp("quantized")
            quantize(tiny_model(family, **options), Scheme.parse(scheme), out, Silent())
            cache[key] = out
        return cache[key]

    return make


@pytest.fixture(scope="session")
def variant(
    quantized: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """``variant("llama", "int4-g32")``: compiled for every runtime of the family, made once."""
    from edgekit.family_table import FAMILIES
    from edgekit.progress import Silent
    from edgekit.runtimes.compile import compile_variant

    cache: dict[str, Path] = {}

    def make(family: str, scheme: str = "int4-g32", **options: object) -> Path:
        key = json.dumps([family, scheme, options], sort_keys=True)
        if key not in cache:
            out = tmp_path_factory.mktemp("variant")
            source = quantized(family, scheme, **options)
            targets = [f"{runtime}-cpu" for runtime in FAMILIES[family].runtimes]
            compile_variant(source, targets, out, Silent())
            cache[key] = out
        return cache[key]

    return make


@pytest.fixture(scope="session")
def reference(
    quantized: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., object]:
    """The dequantized weights of ``quantized(...)`` in float32 transformers."""
    from edgekit.distill.loading import load_model
    from edgekit.progress import Silent
    from edgekit.quantize.reference import dequantized_checkpoint

    cache: dict[str, object] = {}

    def make(family: str, scheme: str, **options: object) -> object:
        key = json.dumps([family, scheme, options], sort_keys=True)
        if key not in cache:
            out = tmp_path_factory.mktemp("reference")
            dequantized_checkpoint(quantized(family, scheme, **options), out, Silent())
            cache[key] = load_model(out)
        return cache[key]

    return make
