"""PDF with PDFium: the text of each page, bookmarks as headings.

PDFium gives lines, not paragraphs. Lines are joined again: without a space between ideographs,
with one between words, and without the hyphen where a word was divided. A paragraph ends at a line
that ends a sentence short of the right margin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgekit.assistant.documents.clean import repair_ideographs
from edgekit.assistant.documents.limits import Limits
from edgekit.assistant.documents.records import Block, Parsed, UnreadableError
from edgekit.errors import missing_extra

_PASSWORD = 4  # FPDF_ERR_PASSWORD
_BOOKMARKS = 5_000
_DIVIDED = re.compile(r"[\u0002\ufffe\u00ad]\s*\n?")  # PDFium's mark for a hyphen at a line's end
_WIDE = r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uff60\U00020000-\U0003ffff]"
_BETWEEN_WIDE = re.compile(f"(?<={_WIDE})\n(?={_WIDE})")
_SENTENCE_END = re.compile(r"[.!?:;。！？：；][\"'”’）)]*$")


def parse_pdf(data: bytes, limits: Limits) -> Parsed:
    """Blocks of every page with its number; pages without text are reported.

    Raises:
        UnreadableError: encrypted or damaged, or no page has text.
        MissingRuntimeError: pypdfium2 is not installed.
    """
    try:
        import pypdfium2 as pdfium
    except ModuleNotFoundError as error:
        raise missing_extra("pypdfium2", "assistant") from error

    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        if error.err_code == _PASSWORD:
            raise UnreadableError("it is protected by a password") from error
        raise UnreadableError("it is not a whole PDF") from error
    with document:
        return _read_pages(document, limits)


def _read_pages(document: object, limits: Limits) -> Parsed:
    from pypdfium2 import PdfiumError

    headings = dict(_bookmarks(document))
    total = len(document)  # type: ignore[arg-type]
    blocks: list[Block] = []
    empty, broken = [], []
    characters = 0
    for number in range(1, min(total, limits.pages) + 1):
        try:
            text = _page_text(document, number - 1)
        except PdfiumError:
            broken.append(number)
            continue
        blocks += [Block(t, level, page=number) for level, t in headings.get(number, ())]
        paragraphs = list(_paragraphs(text))
        blocks += [Block(p, page=number) for p in paragraphs]
        if not paragraphs:
            empty.append(number)
        characters += len(text)
        if characters > limits.text_characters:
            break
    if not any(b.level == 0 for b in blocks):
        what = "its pages are damaged" if broken else "its pages are pictures without text"
        raise UnreadableError(f"{what} (nothing to search)")
    problems = []
    if empty:
        problems.append(f"no text on {_pages(empty)}; pictures of text are not read")
    if broken:
        problems.append(f"{_pages(broken)} could not be read")
    if total > limits.pages:
        problems.append(f"only the first {limits.pages} of {total} pages were read")
    return Parsed(blocks, problems)


def _page_text(document: object, index: int) -> str:
    page = document[index]  # type: ignore[index]
    try:
        text_page = page.get_textpage()
        try:
            return str(text_page.get_text_bounded())
        finally:
            text_page.close()
    finally:
        page.close()


def _bookmarks(document: object) -> Iterator[tuple[int, list[tuple[int, str]]]]:
    """Page number and the bookmarks that lead there, as (level, title)."""
    found: dict[int, list[tuple[int, str]]] = {}
    for count, mark in enumerate(document.get_toc(max_depth=6)):  # type: ignore[attr-defined]
        if count >= _BOOKMARKS:
            break
        place = mark.get_dest()
        index = place.get_index() if place else None
        title = " ".join(mark.get_title().split())
        if index is not None and title:
            found.setdefault(index + 1, []).append((mark.level + 1, repair_ideographs(title)))
    yield from found.items()


def _paragraphs(text: str) -> Iterator[str]:
    whole = _DIVIDED.sub("", repair_ideographs(text).replace("\r\n", "\n").replace("\r", "\n"))
    lines = [line.strip() for line in whole.split("\n")]
    margin = max(map(len, lines), default=0)
    paragraph: list[str] = []
    for line in lines:
        if line:
            paragraph.append(line)
        ends = len(line) < 0.75 * margin and _SENTENCE_END.search(line)
        if paragraph and (ends or not line):
            yield _joined(paragraph)
            paragraph = []
    if paragraph:
        yield _joined(paragraph)


def _joined(lines: list[str]) -> str:
    return _BETWEEN_WIDE.sub("", "\n".join(lines)).replace("\n", " ")


def _pages(numbers: list[int]) -> str:
    """ "page 4", "pages 2-5, 9"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    words = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    shown = ", ".join(words[:10]) + (" and others" if len(words) > 10 else "")
    return f"page{'s' if len(numbers) > 1 else ''} {shown}"
