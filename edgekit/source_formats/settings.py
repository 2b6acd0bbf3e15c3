"""``quantization_config`` of ``config.json``: where it is, and which modules it leaves out."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from edgekit.config_values import ConfigReader
from edgekit.errors import BadInputError
from edgekit.source_formats.stored import Tensors

KEYS = ("quantization_config", "compression_config")  # the second one by older compressed-tensors


def quantization_settings(config: Mapping[str, Any], source: str) -> ConfigReader | None:
    """The quantization that ``config`` declares; None when the weights are plain.

    Multimodal models may declare that of their language model inside ``text_config``.
    """
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, Mapping) else {}):
        for key in KEYS:
            value = place.get(key)
            if value is None:
                continue
            if not isinstance(value, Mapping):
                raise ConfigReader(config, source).bad(key, "is not an object")
            return ConfigReader(value, f"{source}: {key}")
    return None


def unsupported(settings: ConfigReader, key: str, what: str) -> BadInputError:
    """The error for a quantization that edgekit does not read."""
    return BadInputError(
        f"{settings.source}: {key} {what}; give the original, unquantized checkpoint"
    )


def module_of(name: str) -> str:
    """The module that a stored tensor belongs to."""
    return name.rpartition(".")[0]


class Exclusions:
    """The modules that the config says are not quantized.

    ``exact`` are module paths; ``pieces`` such as "lm_head" or "mlp.gate" mean every module in
    whose path they occur between dots; ``patterns`` must match from the start of the path.
    """

    def __init__(
        self,
        key: str,
        exact: Iterable[str] = (),
        pieces: Iterable[str] = (),
        patterns: Iterable[re.Pattern[str]] = (),
    ) -> None:
        self._key = key
        self._exact = frozenset(exact)
        self._pieces = frozenset(pieces)
        self._patterns = tuple(patterns)

    def __contains__(self, module: str) -> bool:
        names = module.split(".")
        ends = range(1, len(names) + 1)
        pieces = (".".join(names[start:end]) for end in ends for start in range(end))
        return (
            module in self._exact
            or any(piece in self._pieces for piece in pieces)
            or any(pattern.match(module) for pattern in self._patterns)
        )

    def check(self, tensors: Tensors, name: str) -> None:
        """Refuse a quantized tensor of an excluded module: one of file and config is wrong."""
        if module_of(name) in self:
            raise tensors.bad(
                name,
                f"is quantized but {self._key} of config.json lists its module as unquantized; "
                "config and weights do not belong together, download the checkpoint again",
            )


def exclusions(settings: ConfigReader, key: str) -> Exclusions:
    """Entries of ``key`` as transformers reads them: paths, or expressions for paths.

    Unlike there, an entry ends where a name ends: "layers.1" says nothing about "layers.10".
    Lists of hundreds of plain paths are usual, so these are looked up and not matched. An entry
    that only looks like an expression, "*.gate", excludes nothing: the files decide.
    """
    entries = strings(settings, key)
    patterns = []
    for entry in entries:
        if re.search(r"[*+?\[(\\|^$]", entry):
            with contextlib.suppress(re.error, RecursionError, OverflowError):
                patterns.append(re.compile(rf"(.*\.)?(?:{entry})(\.|$)"))
    return Exclusions(key, pieces=entries, patterns=patterns)


def strings(settings: ConfigReader, key: str) -> list[str]:
    """A list of strings; empty when the key is missing or null."""
    value = settings.config.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise settings.bad(key, "is not a list of strings")
    return value


def compiled(settings: ConfigReader, key: str, expression: str) -> re.Pattern[str]:
    """A regular expression of the config."""
    try:
        return re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise settings.bad(key, f"has {expression!r}, not a regular expression") from error
