"""Which dense architecture a sparse model becomes.

Each sparse family has candidates: a dense family, or its own with every layer dense. A candidate is
described from its config as any other model is, and compared with the source field by field. The
first that differs in nothing but its feed-forward and the names of its modules is taken, so a row
here is a proposal and never a promise; where none agrees, the first difference is the refusal. The
pairs of module names that the comparison meets on its way are what renames the tensors.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.architecture import Architecture, Attention, LatentAttention, Layer, TensorSpec
from edgekit.atomic import write_json
from edgekit.describe import describe
from edgekit.errors import BadInputError
from edgekit.family_table import FAMILIES
from edgekit.quantize.reference import plain_config

WORDS = ("kind", "activation")  # strings that say something; every other one names a module
READ_KEYS = ("head_dim",)  # read by every class of transformers, if the config has it
GENERAL_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "dtype")
WHOLE_MODEL = (
    "vocab_size", "hidden_size", "tie_word_embeddings", "context_length", "embedding_scale",
    "logit_scale", "logit_soft_cap", "head_bias",
)  # fmt: skip
LAYER_PARTS = (
    "attention", "attention_norm", "attention_post_norm", "feed_forward_norm",
    "feed_forward_post_norm", "parallel", "residual_scale", "scalar",
)  # fmt: skip

Settings = Callable[[Architecture], dict[str, Any]]


@dataclass(frozen=True)
class Candidate:
    """A dense architecture to try: ``settings`` of its config, whose width is under ``width``.

    ``own`` keeps the source's config beside them; otherwise the keys of the dense family are taken
    from it, with its defaults written out.
    """

    family: str
    settings: Settings
    width: str = "intermediate_size"
    own: bool = False


@dataclass(frozen=True)
class DenseTarget:
    """The dense model that a sparse one becomes.

    ``source_names`` maps every tensor outside the feed-forwards to its name in the source.
    """

    config: dict[str, Any]
    architecture: Architecture
    source_names: dict[str, str]


def _plain(source: Architecture) -> dict[str, Any]:
    return {}


def _windows(source: Architecture) -> dict[str, Any]:
    """Qwen's way to say which layers see a window."""
    windows = [a.window for a in source.attentions if isinstance(a, Attention)]
    types = ["sliding_attention" if window else "full_attention" for window in windows]
    used = {"sliding_window": max(windows), "layer_types": types} if any(windows) else {}
    return {"use_sliding_window": bool(used), **used}


def _same_window_everywhere(source: Architecture) -> dict[str, Any]:
    first = source.attentions[0]
    return {"sliding_window": first.window or None if isinstance(first, Attention) else None}


def _stable_lm(source: Architecture) -> dict[str, Any]:
    """StableLM rotates a quarter of a head unless told otherwise."""
    return {
        "layer_norm_eps": source.final_norm.eps,
        "use_qkv_bias": any(a.qkv_bias for a in source.attentions if isinstance(a, Attention)),
        "partial_rotary_factor": 1.0,
        "use_parallel_residual": False,
        "qk_layernorm": False,
    }


def _latent(source: Architecture) -> dict[str, Any]:
    """Families differ in how they rotate unless told."""
    ropes = [a.rope for a in source.attentions if isinstance(a, LatentAttention)]
    return {"rope_interleave": any(rope.interleaved for rope in ropes)}


def _fixed_width(source: Architecture) -> dict[str, Any]:
    return {"block_auto_adjust_ff_dim": False}


def _no_experts(source: Architecture) -> dict[str, Any]:
    return {"num_local_experts": 0}


def _listed_dense(source: Architecture) -> dict[str, Any]:
    return {"mlp_only_layers": list(range(source.num_hidden_layers))}


def _dense_to_the_end(source: Architecture) -> dict[str, Any]:
    return {"first_k_dense_replace": source.num_hidden_layers}


def _dense_by_type(source: Architecture) -> dict[str, Any]:
    return {"mlp_layer_types": ["dense"] * source.num_hidden_layers}


def _number_of_dense(source: Architecture) -> dict[str, Any]:
    return {"num_dense_layers": source.num_hidden_layers}


def _sparse_from_beyond(source: Architecture) -> dict[str, Any]:
    return {"moe_layer_start_index": source.num_hidden_layers}


def _no_sparse_layers(source: Architecture) -> dict[str, Any]:
    return {"moe_layers": []}


def _own(family: str, settings: Settings, width: str = "intermediate_size") -> Candidate:
    return Candidate(family, settings, width, own=True)


_LLAMA = Candidate("llama", _plain)
_QWEN2, _QWEN3 = Candidate("qwen2", _windows), Candidate("qwen3", _windows)
_GRANITE = Candidate("granite", _plain)
_YOUTU = Candidate("youtu", _latent)

CANDIDATES: dict[str, tuple[Candidate, ...]] = {
    "mixtral": (_LLAMA, Candidate("mistral", _same_window_everywhere)),
    "qwen2_moe": (_QWEN2, _LLAMA, _own("qwen2_moe", _listed_dense)),
    "qwen3_moe": (_QWEN3, _own("qwen3_moe", _listed_dense)),
    "flex_olmo": (Candidate("olmo2", _plain),),
    "deepseek_v2": (_YOUTU, _own("deepseek_v2", _dense_to_the_end)),
    "deepseek_v3": (_YOUTU, _own("deepseek_v3", _dense_to_the_end)),
    "glm4_moe": (_own("glm4_moe", _dense_to_the_end),),
    "glm4_moe_lite": (_YOUTU, _own("glm4_moe_lite", _dense_by_type)),
    "glm_moe_dsa": (_YOUTU,),
    "dots1": (_QWEN3, _own("dots1", _dense_to_the_end)),
    "solar_open": (_LLAMA, _QWEN2),
    "exaone_moe": (_own("exaone_moe", _dense_by_type),),
    "phimoe": (Candidate("stablelm", _stable_lm),),
    "hunyuan_v1_moe": (Candidate("hunyuan_v1_dense", _plain),),
    "afmoe": (_own("afmoe", _number_of_dense),),
    "ernie4_5_moe": (Candidate("ernie4_5", _plain), _own("ernie4_5_moe", _sparse_from_beyond)),
    "granitemoe": (_GRANITE,),
    "granitemoeshared": (_GRANITE,),
    "granitemoehybrid": (
        _GRANITE, _own("granitemoehybrid", _no_experts, "shared_intermediate_size"),
    ),
    "qwen3_next": (Candidate("qwen3_5_text", _plain), _own("qwen3_next", _listed_dense)),
    "qwen3_5_moe_text": (Candidate("qwen3_5_text", _plain),),
    "llama4_text": (_own("llama4_text", _no_sparse_layers, "intermediate_size_mlp"),),
    "lfm2_moe": (Candidate("lfm2", _fixed_width), _own("lfm2_moe", _number_of_dense)),
    "aria_text": (_LLAMA,),
}  # fmt: skip

NO_SIBLING: dict[str, str] = {
    "olmoe": "no dense family normalizes queries and keys over their whole width and has its norms "
    "before attention and feed-forward",
    "minimax_m2": "no dense family normalizes queries and keys over their whole width and has its "
    "norms before attention and feed-forward",
    "dbrx": "no dense family has layer norms with weights and clips queries, keys and values",
    "gpt_oss": "no dense family has attention sinks and a clamped activation",
    "gemma4_text": "its experts stand beside a dense feed-forward, and each has a norm of its own "
    "before the two are added",
    "longcat_flash": "its experts read one layer and are added after the next, and some give their "
    "input back",
    "jetmoe": "its attention is made of experts too",
}


def dense_target(
    config: Mapping[str, Any], source: Architecture, width: int, path: str, family: str = ""
) -> DenseTarget:
    """The dense model of a sparse one, with ``width`` neurons in every layer.

    ``family`` takes that candidate instead of the first that fits; ``path`` names the source in
    errors.

    Raises:
        BadInputError: no dense architecture is the same but for the experts; the sentence says
            what stands in the way.
    """
    candidates = CANDIDATES.get(source.model_type, ())
    if not candidates:
        reason = NO_SIBLING.get(source.model_type, "no dense family is known to be the same")
        raise BadInputError(
            f"{path}: this {source.model_type} cannot become dense: {reason}; drop experts instead"
        )
    if family and family not in [candidate.family for candidate in candidates]:
        raise BadInputError(
            f"{path}: a {source.model_type} cannot become a dense {family!r}; choose one of "
            f"{', '.join(candidate.family for candidate in candidates)}"
        )
    refusals = []
    for candidate in candidates:
        if family and candidate.family != family:
            continue
        wanted = _config(candidate, config, source, width)
        found = describe(wanted)
        difference = next(differences(source, found), None)
        if difference is None:
            return DenseTarget(wanted, found, _source_names(source, found))
        refusals.append(f"as {candidate.family}, {difference}")
    raise BadInputError(
        f"{path}: this {source.model_type} cannot become dense: {'; '.join(refusals)}; "
        "drop experts instead"
    )


def differences(source: Architecture, dense: Architecture) -> Iterator[str]:
    """What a dense model has otherwise than the sparse one, beside feed-forwards and names."""
    if len(source.layers) != len(dense.layers):
        yield f"it has {len(dense.layers)} layers instead of {len(source.layers)}"
        return
    for path, mine, other in _leaves(source, dense):
        if isinstance(mine, str) and path.rpartition(".")[2] not in WORDS:
            mine, other = bool(mine), bool(other)  # names differ
        if mine != other:
            yield f"{path} is {_brief(other)} instead of {_brief(mine)}"
    for layer, target in zip(source.layers, dense.layers, strict=True):
        yield from _feed_forward_differences(layer, target)


def _feed_forward_differences(layer: Layer, target: Layer) -> Iterator[str]:
    where, dense, mixture = f"layers[{layer.index}]", target.dense, layer.mixture
    if dense is None or target.mixture or target.beside or layer.beside or layer.shortcut:
        yield f"{where} is no plain feed-forward"
        return
    whole = mixture.shared if mixture else layer.dense  # what has biases of its own
    if mixture and (mixture.output_bias or mixture.expert_bias or mixture.num_identities):
        yield f"{where} has experts that are more than three matrices"
    if whole and whole.bias and not dense.bias:
        yield f"{where} has no biases in its feed-forward"
    if not dense.gate:
        yield f"{where} has no gate in its feed-forward"
    for part in (whole, mixture):
        if part and part.activation != dense.activation:
            yield f"{where} has {dense.activation} instead of {part.activation}"


def _leaves(source: Architecture, dense: Architecture) -> Iterator[tuple[str, Any, Any]]:
    """What can differ: (path, the source's value, the dense model's)."""
    for name in WHOLE_MODEL:
        yield name, getattr(source, name), getattr(dense, name)
    yield from _walk("final_norm", source.final_norm, dense.final_norm)
    for mine, other in zip(source.layers, dense.layers, strict=True):
        for name in LAYER_PARTS:
            path = f"layers[{mine.index}].{name}"
            yield from _walk(path, getattr(mine, name), getattr(other, name))


def _walk(path: str, mine: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    if dataclasses.is_dataclass(mine) and type(mine) is type(other):
        for field in dataclasses.fields(mine):
            yield from _walk(
                f"{path}.{field.name}", getattr(mine, field.name), getattr(other, field.name)
            )
    else:
        yield path, mine, other


def _brief(value: Any) -> str:
    """A value as a refusal shows it."""
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    if value is None or isinstance(value, bool):
        return "there" if value else "absent"
    return repr(value)


def _source_names(source: Architecture, dense: Architecture) -> dict[str, str]:
    """The source's name of every tensor of the dense model outside its feed-forwards."""
    modules = {
        source.embedding: dense.embedding,
        source.head: dense.head,
        **{mine: other for _, mine, other in _leaves(source, dense) if isinstance(mine, str)},
    }
    mine_of = {other: mine for mine, other in modules.items()}
    names: dict[str, str] = {}
    for spec in dense.tensors():
        layer = dense.layers[spec.layer].dense if spec.layer >= 0 else None
        if layer is not None and module_of(spec) in (layer.gate, layer.up, layer.down):
            continue
        module, rest = spec.name, ""
        while module not in mine_of:  # a module's tensor, or one that has the name itself
            module, _, last = module.rpartition(".")
            rest = f".{last}{rest}"
        names[spec.name] = mine_of[module] + rest
    return names


def module_of(spec: TensorSpec) -> str:
    """The module whose weight or bias a tensor is."""
    return spec.name.rpartition(".")[0]


def _config(
    candidate: Candidate, config: Mapping[str, Any], source: Architecture, width: int
) -> dict[str, Any]:
    """The config of a candidate, in which every feed-forward has ``width`` neurons."""
    plain = plain_config(dict(config))
    if "dtype" in config or "torch_dtype" in config:
        plain["dtype"] = config.get("dtype", config.get("torch_dtype"))
    if not candidate.own:
        plain = _with_keys_of(candidate.family, plain, source.model_type)
        plain["max_position_embeddings"] = source.context_length
    plain["model_type"] = candidate.family
    plain["architectures"] = [FAMILIES[candidate.family].hf_class]
    return plain | candidate.settings(source) | {candidate.width: width}


def _with_keys_of(family: str, config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """The values of a config, defaults included, for the keys that another family has."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    with tempfile.TemporaryDirectory() as directory:  # from a file, infinite numbers are decoded
        write_json(Path(directory) / "config.json", dict(config))
        found = CONFIG_MAPPING[model_type].from_pretrained(directory).to_dict()
    general = set(PreTrainedConfig().to_dict()) - set(GENERAL_KEYS)
    known = (set(CONFIG_MAPPING[family]().to_dict()) | set(READ_KEYS)) - general
    return {key: value for key, value in found.items() if key in known}
