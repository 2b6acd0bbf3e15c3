"""GGUF files of llama models as Hugging Face checkpoints, without torch.

The ``gguf`` package reads and dequantizes; names, rotary layout and tokenizer are translated here.
The checkpoint's precision is the file's: bfloat16 and float32 matrices stay what they are, all
others become float16 (files that mix become float32). The scales of GGUF blocks are float16
themselves, so its 11 bits lose at most 1/2048 of a weight, well below the step of an 8-bit block;
bfloat16 would lose 1/256.

What would change the model if it were ignored is refused: experts, scaled rotary positions, biases
and any other tensor that a plain llama does not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.architecture import Architecture, TensorSpec
from edgekit.atomic import write_json, write_text
from edgekit.checkpoint import write_checkpoint
from edgekit.describe import describe
from edgekit.errors import BadInputError, missing_extra
from edgekit.progress import Progress
from edgekit.text import ChatTokenizer

PRE_TOKENIZERS = {"smollm": True, "gpt-2": False}  # name in the file: digits one by one?
CONTROL, USER_DEFINED = 3, 4  # gguf token types of special and of other added tokens
KEPT_DTYPES = {"BF16": "BF16", "F32": "F32"}  # matrices of every other type become float16
CONFIG_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
ROUND_TRIP = (
    "The quick brown fox.", "  two  spaces\n\ttab\r\n ", "def f(x):\n    return x**2  # 1234567890",
    "一个小模型在个人电脑上运行。", "naïve café e\u0301", "👩‍💻 and 🏳️‍🌈", "it's we'LL", "٣½Ⅷ 3.14",
    "<|im_start|><|im_end|><|endoftext|>", "\u200b\ufeff\u00a0|\x00\x7f", "\U0010ffff\ue000",
)  # fmt: skip
LEAVES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
HEAD = "lm_head.weight"
TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    HEAD: "output.weight",
}


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
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise BadInputError(
            f"{path}: not a whole GGUF file ({error}); download it again"
        ) from error
    tensors = {t.name: t for t in reader.tensors}
    dtype = _dtype(t.tensor_type.name for t in reader.tensors if len(t.shape) > 1)
    config = _config(path, fields, CONFIG_DTYPES[dtype], tied=TOP[HEAD] not in tensors)
    architecture = describe(config, str(path))
    _check_names(path, tensors, architecture)
    heads = {"q": architecture.num_attention_heads, "k": architecture.num_key_value_heads}

    def tensor(spec: TensorSpec) -> NDArray[np.float32]:
        stored = tensors[_gguf_name(spec)]
        shape = tuple(int(side) for side in reversed(stored.shape))
        if shape != spec.shape:
            raise BadInputError(
                f"{path}: tensor {stored.name!r} has shape {list(shape)} but the metadata imply "
                f"{list(spec.shape)}; download the file again"
            )
        values = dequantize(stored.data, stored.tensor_type).reshape(shape).astype(np.float32)
        if not np.all(np.abs(values) < np.finfo(np.float16).max):  # catches NaN as well
            raise BadInputError(
                f"{path}: tensor {stored.name!r} holds absurd values; download the file again"
            )
        count = heads.get(spec.projection)
        return _half_split(values, count) if count else values

    with progress.task("read GGUF", len(architecture.tensors())) as task:
        write_checkpoint(out, config, tensor, dtype, task.advance)
    _write_tokenizer(path, fields, out)


def _dtype(kinds: Iterable[str]) -> str:
    """The dtype that keeps matrices of the gguf types ``kinds``."""
    found = {KEPT_DTYPES.get(kind, "F16") for kind in kinds}
    return found.pop() if len(found) == 1 else "F32"


def _check_names(path: Path, tensors: Mapping[str, Any], architecture: Architecture) -> None:
    expected = {_gguf_name(spec) for spec in architecture.tensors()}
    for name in sorted(expected - tensors.keys()):
        raise BadInputError(f"{path}: tensor {name!r} is missing; download the file again")
    for name in sorted(tensors.keys() - expected):
        raise BadInputError(
            f"{path}: tensor {name!r} does not belong to a plain llama; give the original "
            "checkpoint instead"
        )


def _config(path: Path, fields: Mapping[str, Any], dtype: str, tied: bool) -> dict[str, Any]:
    kind = fields.get("general.architecture")
    if kind != "llama":
        raise BadInputError(
            f"{path}: a GGUF of architecture {kind!r} is not read, only llama; give the original "
            "checkpoint instead"
        )

    scaling = fields.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise BadInputError(
            f"{path}: rotary positions of scaling {scaling!r} are not read; give the original "
            "checkpoint instead"
        )

    def field(name: str, default: Any = None) -> Any:
        value = fields.get(f"llama.{name}", default)
        if value is None:
            raise BadInputError(f"{path}: llama.{name} is missing; download the file again")
        return value

    heads = field("attention.head_count")
    width = field("embedding_length")
    if type(heads) is not int or type(width) is not int or heads < 1:
        raise BadInputError(
            f"{path}: llama.attention.head_count is {heads!r}; only one positive number for all "
            "layers is read, give the original checkpoint instead"
        )
    head_dim = field("attention.key_length", field("rope.dimension_count", width // heads))
    if field("rope.dimension_count", head_dim) != head_dim:
        raise BadInputError(
            f"{path}: llama.rope.dimension_count is not the head's {head_dim}; partly rotated "
            "heads are not read, give the original checkpoint instead"
        )
    end = fields.get("tokenizer.ggml.eos_token_id", 0)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": dtype,
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": field("feed_forward_length"),
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": field("context_length"),
        "rms_norm_eps": _decimal(field("attention.layer_norm_rms_epsilon")),
        "rope_parameters": {"rope_type": "default",
                            "rope_theta": _decimal(field("rope.freq_base", 10000.0))},
        "vocab_size": len(fields.get("tokenizer.ggml.tokens") or []),
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id", end),
        "eos_token_id": end,
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id", end),
    }  # fmt: skip


def _decimal(value: float) -> float:
    """The shortest number that rounds to the file's float32: 1e-06, not 9.99999997e-07."""
    return float(str(np.float32(value)))


def _gguf_name(spec: TensorSpec) -> str:
    if spec.layer < 0:
        return TOP[spec.name]
    inner = spec.name.split(".", 3)[3].removesuffix(".weight")
    leaf = next(k for k, v in LEAVES.items() if v == inner)
    return f"blk.{spec.layer}.{leaf}.weight"


def _half_split(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo llama.cpp's interleaving of rotary pairs: (head, pair, 2) back to (head, 2, pair)."""
    rows, columns = values.shape
    pairs = values.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _write_tokenizer(path: Path, fields: Mapping[str, Any], out: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise BadInputError(
            f"{path}: tokenizer {kind!r} with pre-tokenizer {pre!r} cannot be rebuilt, only 'gpt2' "
            f"with {' or '.join(map(repr, PRE_TOKENIZERS))}; give the original checkpoint instead"
        )
    tokens, kinds, lines = (
        _list(path, fields, name) for name in ("tokens", "token_type", "merges")
    )
    merges = [tuple(line.split(" ", 1)) for line in lines]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # tokenizers raises plain Exception
        raise BadInputError(
            f"{path}: the tokenizer's merges do not fit its tokens ({error}); download the file "
            "again"
        ) from error
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([digits, level]) if PRE_TOKENIZERS[pre] else level
    )
    tokenizer.decoder = decoders.ByteLevel()
    for token, number in zip(tokens, kinds, strict=False):
        if number == CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif number == USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    tokenizer.save(str(out / "tokenizer.json"))
    names = {"bos_token": "bos_token_id", "eos_token": "eos_token_id",
             "unk_token": "unknown_token_id", "pad_token": "padding_token_id"}  # fmt: skip
    ids = {key: fields.get(f"tokenizer.ggml.{name}") for key, name in names.items()}
    for key, number in ids.items():
        if number is not None and not 0 <= number < len(tokens):
            raise BadInputError(
                f"{path}: {names[key]} {number} is not one of the {len(tokens)} tokens; download "
                "the file again"
            )
    settings = {key: tokens[number] for key, number in ids.items() if number is not None}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(out / "tokenizer_config.json", settings)
    template = fields.get("tokenizer.chat_template")
    if template:
        write_text(out / "chat_template.jinja", template)
    ends = {names[key]: ids[key] for key in ("bos_token", "eos_token") if ids[key] is not None}
    write_json(out / "generation_config.json", ends)
    check_round_trip(out)


def _list(path: Path, fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not value:
        raise BadInputError(f"{path}: tokenizer.ggml.{name} is missing; download the file again")
    return value


def check_round_trip(directory: Path) -> None:
    """Refuse a tokenizer that does not give back what it was given."""
    tokenizer = ChatTokenizer(directory)
    for text in ROUND_TRIP:
        if tokenizer.decode(tokenizer.encode(text), skip_special=False) != text:
            raise BadInputError(
                f"{directory}: the tokenizer does not give {text!r} back; give the original "
                "checkpoint instead"
            )
