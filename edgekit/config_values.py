"""Typed, bounded reading of ``config.json`` values.

Absurd numbers are refused here, before anything is allocated from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as brief  # an absurd value must not fill the screen
from typing import Any

from edgekit.errors import BadInputError

MAX_COUNT = 1 << 31


class ConfigReader:
    """Reads values of one config; ``source`` is the file named in errors."""

    def __init__(self, config: Mapping[str, Any], source: str) -> None:
        self.config = config
        self.source = source

    def bad(self, key: str, what: str) -> BadInputError:
        """The error for ``key``: "<file>: <key> <what>"."""
        return BadInputError(f"{self.source}: {key} {what}; check the config of the checkpoint")

    def count(self, key: str, default: int | None = None, maximum: int = MAX_COUNT) -> int:
        """A positive integer of at most ``maximum``; a missing or null key takes ``default``."""
        value = self.config.get(key)
        if value is None:
            if default is None:
                raise self.bad(key, "is missing")
            return default
        if type(value) is not int or not 0 < value <= maximum:
            raise self.bad(key, f"is {brief(value)}, expected an integer from 1 to {maximum}")
        return value

    def whole(self, key: str, default: int, maximum: int = MAX_COUNT) -> int:
        """An integer from 0 to ``maximum``; a missing or null key takes ``default``."""
        value = self.config.get(key)
        return 0 if value == 0 and type(value) is int else self.count(key, default, maximum)

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A finite number with ``low < value < high``."""
        value = self.config.get(key)
        if value is None:
            return default
        # the comparison is false for NaN and, unlike a conversion, holds for any size of integer
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
            raise self.bad(key, f"is {brief(value)}, expected a number between {low} and {high}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.bad(key, f"is {brief(value)}, expected true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.bad(key, f"is {brief(value)}, expected a string")
        return value
