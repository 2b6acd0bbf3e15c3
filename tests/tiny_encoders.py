"""Tiny random embedding models of every family in the table, with tokenizer and pooling files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PIECES = 200
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "What is the capital of France?",
    "一个小模型在个人电脑上运行，不需要网络。",
    "A hash table answers look-ups in constant time, as long as its load stays moderate.",
    "x",
]
COMMON: dict[str, Any] = {
    "vocab_size": PIECES, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "initializer_range": 0.2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"max_position_embeddings": 48, "type_vocab_size": 2, "layer_norm_eps": 1e-12},
    "roberta": {"max_position_embeddings": 50, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
                "pad_token_id": 1},
    "xlm-roberta": {"max_position_embeddings": 50, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
                    "pad_token_id": 1},
}  # fmt: skip
MARKS = {"bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]"), "roberta": ("<s>", "<pad>", "</s>", "<unk>"),
         "xlm-roberta": ("<s>", "<pad>", "</s>", "<unk>")}  # fmt: skip


def reference_model(family: str, **options: Any) -> Any:
    """The transformers model, random by a fixed seed, biases and norms included."""
    import torch
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family], **options})
    model = AutoModel.from_config(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "LayerNorm.weight")):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def build_encoder(
    directory: Path, family: str, pooling: str = "mean", max_tokens: int = 0, **options: Any
) -> Path:
    """Write a checkpoint as sentence-transformers lays it out."""
    reference_model(family, **options).save_pretrained(directory)
    write_tokenizer(directory, family)
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    write(directory / "modules.json", modules)
    modes = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
    write(
        directory / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 64, **{v: k == pooling for k, v in modes.items()}},
    )
    if max_tokens:
        write(directory / "sentence_bert_config.json", {"max_seq_length": max_tokens})
    return directory


def write(path: Path, value: Any) -> None:
    """A JSON file."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_tokenizer(directory: Path, family: str) -> None:
    """Byte-level pieces between the family's own two special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = MARKS[family]
    alphabet = sorted({c for t in TEXTS for c in _bytes(t)})
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES, special_tokens=list(marks), initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    first, last = ("[CLS]", "[SEP]") if family == "bert" else ("<s>", "</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        special_tokens=[(m, tokenizer.token_to_id(m)) for m in (first, last)],
    )
    tokenizer.enable_truncation(8)  # as published files have it; edgekit cuts by itself
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(directory / "tokenizer.json"))


def _bytes(text: str) -> str:
    from tokenizers import pre_tokenizers

    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    return "".join(piece for piece, _ in pieces)
