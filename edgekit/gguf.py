"""GGUF files of llama models as Hugging Face checkpoints, without torch.

The ``gguf`` package reads and dequantizes; names, rotary layout and tokenizer are translated here.
Weights are written as bfloat16: the float16 scales of GGUF blocks times small integers need no
more than its 8 bits for Q4 (checked in the tests to a relative error of 0.4 %).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.architecture import EMBEDDING, FINAL_NORM, HEAD, TensorSpec, describe
from edgekit.checkpoint import write_checkpoint
from edgekit.errors import BadInputError, missing_extra
from edgekit.progress import Progress
from edgekit.text import ChatTokenizer

PRE_TOKENIZERS = {"smollm": True, "gpt-2": False, "default": False}  # digits one by one?
CONTROL = 3  # gguf token type of special tokens
ROUND_TRIP = (
    "The quick brown fox.", "  two  spaces\n\ttab", "def f(x):\n    return x**2  # 1234567890",
    "一个小模型在个人电脑上运行。", "naïve café e\u0301", "👩‍💻 and 🏳️‍🌈",
)  # fmt: skip
LEAVES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
TOP = {EMBEDDING: "token_embd.weight", FINAL_NORM: "output_norm.weight", HEAD: "output.weight"}


def convert_gguf(path: Path, out: Path, progress: Progress) -> None:
    """Write the checkpoint that a GGUF file holds into the existing, empty directory ``out``.

    Raises:
        BadInputError: not a whole GGUF file, or not of a llama with a byte-level BPE tokenizer.
        MissingRuntimeError: the ``build`` extra is not installed.
    """
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        raise missing_extra("gguf", "build") from error
    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise BadInputError(
            f"{path}: not a whole GGUF file ({error}); download it again"
        ) from error
    tensors = {t.name: t for t in reader.tensors}
    config = _config(path, fields, tied=TOP[HEAD] not in tensors)
    architecture = describe(config, str(path))

    def tensor(spec: TensorSpec) -> NDArray[np.float32]:
        name = _gguf_name(spec)
        if name not in tensors:
            raise BadInputError(f"{path}: tensor {name!r} is missing; download the file again")
        stored = tensors[name]
        values = dequantize(stored.data, stored.tensor_type).reshape(spec.shape)
        heads = {"q": architecture.num_attention_heads, "k": architecture.num_key_value_heads}
        if spec.projection in heads:
            values = _half_split(values, heads[spec.projection])
        return values.astype(np.float32)

    with progress.task("read GGUF", len(architecture.tensors())) as task:
        write_checkpoint(out, config, tensor, "BF16", task.advance)
    _write_tokenizer(path, fields, out)


def _config(path: Path, fields: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    kind = fields.get("general.architecture")
    if kind != "llama":
        raise BadInputError(
            f"{path}: a GGUF of architecture {kind!r} is not read, only llama; give the original "
            "checkpoint instead"
        )

    def field(name: str, default: Any = None) -> Any:
        value = fields.get(f"llama.{name}", default)
        if value is None:
            raise BadInputError(f"{path}: llama.{name} is missing; download the file again")
        return value

    heads = field("attention.head_count")
    end = fields.get("tokenizer.ggml.eos_token_id", 0)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": field("embedding_length"),
        "intermediate_size": field("feed_forward_length"),
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("attention.head_count_kv", heads),
        "head_dim": field("rope.dimension_count", field("embedding_length") // heads),
        "max_position_embeddings": field("context_length"),
        "rms_norm_eps": float(field("attention.layer_norm_rms_epsilon")),
        "rope_parameters": {"rope_type": "default",
                            "rope_theta": float(field("rope.freq_base", 10000.0))},
        "vocab_size": len(fields.get("tokenizer.ggml.tokens") or []) or field("vocab_size"),
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id", end),
        "eos_token_id": end,
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id", end),
    }  # fmt: skip


def _gguf_name(spec: TensorSpec) -> str:
    if spec.layer < 0:
        return TOP[spec.name]
    inner = spec.name.split(".", 3)[3].removesuffix(".weight")
    leaf = next(k for k, v in LEAVES.items() if v == inner)
    return f"blk.{spec.layer}.{leaf}.weight"


def _half_split(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo llama.cpp's interleaving of rotary pairs: (head, pair, 2) back to (head, 2, pair)."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write_tokenizer(path: Path, fields: Mapping[str, Any], out: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pre = fields.get("tokenizer.ggml.pre", "default")
    if fields.get("tokenizer.ggml.model") != "gpt2" or pre not in PRE_TOKENIZERS:
        raise BadInputError(
            f"{path}: tokenizer {fields.get('tokenizer.ggml.model')!r} with pre-tokenizer {pre!r} "
            f"cannot be rebuilt, only gpt2 with {', '.join(PRE_TOKENIZERS)}; give the original "
            "checkpoint instead"
        )
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ", 1)) for m in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([digits, level]) if PRE_TOKENIZERS[pre] else level
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, k in zip(tokens, fields["tokenizer.ggml.token_type"]) if k == CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(out / "tokenizer.json"))
    names = {"bos_token": "bos_token_id", "eos_token": "eos_token_id",
             "unk_token": "unknown_token_id", "pad_token": "padding_token_id"}  # fmt: skip
    ids = {key: fields.get(f"tokenizer.ggml.{name}") for key, name in names.items()}
    settings = {key: tokens[number] for key, number in ids.items() if number is not None}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    template = fields.get("tokenizer.chat_template")
    if template:
        (out / "chat_template.jinja").write_text(template, encoding="utf-8")
    ends = {"eos_token_id": ids["eos_token"], "bos_token_id": ids["bos_token"]}
    (out / "generation_config.json").write_text(json.dumps(ends))
    check_round_trip(out)


def check_round_trip(directory: Path) -> None:
    """Refuse a tokenizer that does not give back what it was given."""
    tokenizer = ChatTokenizer(directory)
    for text in ROUND_TRIP:
        if tokenizer.decode(tokenizer.encode(text), skip_special=False) != text:
            raise BadInputError(
                f"{directory}: the tokenizer does not give {text!r} back; give the original "
                "checkpoint instead"
            )
