"""Whether teacher and student write the same text with the same tokens.

Equal vocabulary sizes do not make equal tokenizers, and different sizes may be padding: models of
one family round the rows of embedding and head up to different multiples. So what is compared is
what the tokenizers do, and distributions are over the tokens that there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgekit.digests import json_digest
from edgekit.errors import BadInputError
from edgekit.text import TOKENIZER, ChatTokenizer, open_tokenizer

PROBES = (
    "The quick brown fox, 1234567 times!  Two  spaces\tand a tab.\n\nA new paragraph.",
    "def f(x: float) -> float:\n    return x ** 2 / 3  # π ≈ 3.14159",
    "Grüße aus Zürich – naïve façade; 你好，世界。 ¿Qué tal? Привет 😀 مرحبا",
)


def tokenizer_digest(directory: Path) -> str:
    """Names what a checkpoint's tokenizer does; "" where there is none."""
    if not (directory / TOKENIZER).is_file():
        return ""
    tokenizer = ChatTokenizer(directory)
    vocabulary = sorted(open_tokenizer(directory).get_vocab(with_added_tokens=True).items())
    probes = [tokenizer.encode(text) for text in PROBES]
    special = sorted(tokenizer.named_special().items())
    return json_digest([vocabulary, probes, special, tokenizer.template_source])


def real_tokens(directory: Path, vocab_size: int) -> int:
    """How many of a head's ``vocab_size`` rows are tokens; the others pad it. All, where there is
    no tokenizer to say it."""
    if not (directory / TOKENIZER).is_file():
        return vocab_size
    ids = open_tokenizer(directory).get_vocab(with_added_tokens=True).values()
    return min(vocab_size, max(ids) + 1)


def require_tokenizer(student: Path, digest: str, teacher: Path) -> None:
    """Refuse a student whose tokenizer's digest is another; the directory ``teacher`` has the files
    of the right one, or is not on this machine.

    Raises:
        BadInputError: they differ; says in what, where that can be seen.
    """
    if tokenizer_digest(student) == digest:
        return
    found = _differences(student, teacher) if teacher.is_dir() else iter(())
    difference = next(found, "its digest is another")
    raise BadInputError(
        f"{student}: the tokenizer is not the teacher's: {difference}; choose a student with the "
        "teacher's tokenizer, or copy the teacher's chat template if only that differs"
    )


def _differences(student: Path, teacher: Path) -> Iterator[str]:
    ours, theirs = (open_tokenizer(d).get_vocab(with_added_tokens=True) for d in (student, teacher))
    mine, other = ({number: token for token, number in v.items()} for v in (ours, theirs))
    for number in sorted(set(mine) | set(other)):
        if mine.get(number) != other.get(number):
            yield f"token {number} is {_name(mine.get(number))}, not {_name(other.get(number))}"
            return
    student_text, teacher_text = ChatTokenizer(student), ChatTokenizer(teacher)
    for text in PROBES:
        if student_text.encode(text) != teacher_text.encode(text):
            yield f"it splits {text[:24]!r}… into other tokens"
            return
    special, wanted = student_text.named_special(), teacher_text.named_special()
    for name in sorted(set(special) | set(wanted)):
        if special.get(name) != wanted.get(name):
            yield f"{name} is token {special.get(name)}, not {wanted.get(name)}"
    if student_text.template_source != teacher_text.template_source:
        yield "the chat templates differ"


def _name(token: str | None) -> str:
    return "missing" if token is None else repr(token)
