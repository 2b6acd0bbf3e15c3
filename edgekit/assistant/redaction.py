"""Placeholders in the place of what is sensitive, and back again in the answer that is shown.

``write to li@example.cn`` leaves as ``write to [EMAIL_1]``. The same value has the same
placeholder in every message of one preview, so that the answer can speak of it; the table from
placeholders to values stays on this machine, and :class:`Restorer` puts the values back into the
answer while it streams.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgekit.assistant.sensitive import DETECTORS, find_sensitive

_KINDS = "|".join(kind for kind, _ in DETECTORS)
PLACEHOLDER = re.compile(rf"\[(?:{_KINDS})_\d{{1,4}}\]")
_BEGUN = re.compile(r"\[[A-Z]{0,8}(?:_\d{0,4})?$")  # what may still become a placeholder


@dataclass(frozen=True)
class Redaction:
    """How many places of a kind were found."""

    kind: str
    count: int


class Redactor:
    """Replaces sensitive values in the texts of one preview.

    ``texts`` are all of them; a placeholder that somebody wrote there is not used for a value.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._written = {name for text in texts for name in PLACEHOLDER.findall(text)}
        self._placeholders: dict[str, str] = {}
        self._used: Counter[str] = Counter()
        self._numbers: Counter[str] = Counter()

    def redact(self, text: str) -> str:
        """The text with a placeholder for each sensitive value."""
        parts, position = [], 0
        for finding in find_sensitive(text):
            value = text[finding.start : finding.end]
            parts += [text[position : finding.start], self._placeholder(finding.kind, value)]
            self._used[finding.kind] += 1
            position = finding.end
        return "".join([*parts, text[position:]])

    def counts(self) -> tuple[Redaction, ...]:
        """How many places were replaced so far, by kind, in a fixed order."""
        return tuple(Redaction(kind, self._used[kind]) for kind, _ in DETECTORS if self._used[kind])

    def originals(self) -> dict[str, str]:
        """The values by their placeholders. They must not leave this machine."""
        return {placeholder: value for value, placeholder in self._placeholders.items()}

    def _placeholder(self, kind: str, value: str) -> str:
        if value not in self._placeholders:
            name = ""
            while not name or name in self._written:
                self._numbers[kind] += 1
                name = f"[{kind}_{self._numbers[kind]}]"
            self._placeholders[value] = name
        return self._placeholders[value]


class Restorer:
    """Puts the values back into text that comes in pieces, which may cut a placeholder."""

    def __init__(self, originals: Mapping[str, str]) -> None:
        self._originals = originals
        self._held = ""

    def push(self, piece: str) -> str:
        """What can be shown after this piece."""
        text = self._held + piece
        begun = _BEGUN.search(text) if self._originals else None
        cut = begun.start() if begun else len(text)
        self._held = text[cut:]
        return restore(text[:cut], self._originals)

    def finish(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return held


def restore(text: str, originals: Mapping[str, str]) -> str:
    """The text with the values of the placeholders that it holds."""
    return PLACEHOLDER.sub(lambda match: originals.get(match.group(), match.group()), text)
