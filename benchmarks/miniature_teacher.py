"""The miniature's teacher: a byte-level Qwen3-MoE of a million parameters, trained in minutes.

    python benchmarks/miniature_teacher.py DIRECTORY [--steps 3000] [--seed 0]

transformers' own model and optimizer loop on one core; what is written is an ordinary checkpoint
with a tokenizer whose tokens are the bytes.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from miniature_corpus import LENGTH, Corpus, read_corpus
from torch.nn import functional

from edgekit.progress import Progress, Silent, default_progress

BATCH = 10  # sequences of a step
RATE, WARMUP, FINAL = 3e-3, 100, 0.1  # of AdamW; steps; part of the rate at the end of the cosine
BALANCE = 0.01  # weight of the load-balancing loss
EXPERTS, TOP_K, WIDTH = 16, 2, 64
CONFIG = {
    "vocab_size": 256,
    "hidden_size": 96,
    "intermediate_size": 192,
    "moe_intermediate_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 24,
    "num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "norm_topk_prob": True,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 0,  # bytes that no text has
    "pad_token_id": 0,
}


def train_teacher(
    directory: Path, corpus: Corpus, steps: int, seed: int, progress: Progress
) -> float:
    """Write a trained checkpoint into the existing, empty ``directory``.

    Returns its held-out cross-entropy in nats per byte.
    """
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(seed)
    config = Qwen3MoeConfig(**CONFIG, experts_implementation="eager")
    model = Qwen3MoeForCausalLM(config)
    routed = _watch_routers(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.01)
    everything = np.concatenate(list(corpus.train.values()))
    rng = np.random.default_rng(seed)
    with progress.task("train the miniature", steps) as task:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = RATE * _schedule(step, steps)
            begin = rng.integers(len(everything) - LENGTH, size=BATCH)
            ids = torch.from_numpy(
                np.stack([everything[b : b + LENGTH] for b in begin]).astype(np.int64)
            )
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            balance = torch.stack([_imbalance(logits) for logits in routed]).mean()
            routed.clear()
            (loss + BALANCE * balance).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            task.advance()
    held_out = np.stack([s.tokens for s in corpus.windows(18, 1, held_out=True)])
    with torch.inference_mode():
        ids = torch.from_numpy(held_out.astype(np.int64))
        entropy = float(model(input_ids=ids, labels=ids, use_cache=False).loss)
    model.save_pretrained(directory)
    write_byte_tokenizer(directory)
    return entropy


def _watch_routers(model: torch.nn.Module) -> list[torch.Tensor]:
    """A list to which every forward adds the routers' logits [tokens, experts]."""
    seen: list[torch.Tensor] = []
    for name, module in model.named_modules():
        if name.endswith("mlp.gate"):
            # transformers hands out softmax probabilities under the name of logits
            module.register_forward_hook(
                lambda gate, args, _: seen.append(functional.linear(args[0], gate.weight))
            )
    return seen


def _imbalance(logits: torch.Tensor) -> torch.Tensor:
    """The load-balancing loss of Switch Transformers (arXiv 2101.03961); 1 when balanced."""
    chosen = logits.topk(TOP_K, dim=-1).indices
    share = functional.one_hot(chosen, EXPERTS).float().mean((0, 1))
    return EXPERTS * (share * logits.softmax(-1).mean(0)).sum()


def _schedule(step: int, steps: int) -> float:
    if step < WARMUP:
        return (step + 1) / WARMUP
    turn = (step - WARMUP) / max(1, steps - WARMUP)
    return FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * turn))


def write_byte_tokenizer(directory: Path) -> None:
    """A tokenizer without merges: token b is the byte b."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}\n', encoding="utf-8"
    )


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level vocabularies."""
    spare = iter(range(256, 512))
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def main() -> None:
    """Train one teacher."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.directory.mkdir(parents=True)
    progress = Silent() if arguments.quiet else default_progress()
    corpus = read_corpus()
    entropy = train_teacher(arguments.directory, corpus, arguments.steps, arguments.seed, progress)
    print(f"held-out cross-entropy {entropy:.3f} nats per byte")


if __name__ == "__main__":
    main()
