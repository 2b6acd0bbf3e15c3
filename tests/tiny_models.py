"""Tiny checkpoints of every family, built from real Hugging Face config classes.

Each is a directory with seeded random weights and a byte-level BPE tokenizer of 512 tokens with a
ChatML template. Sizes divide by 32 and 64 so that every int4 group fits.
"""

from __future__ import annotations

import json
from pathlib import Path

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
