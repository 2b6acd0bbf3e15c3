"""Every format becomes text with headings, pages and lines, and every bad file becomes a reason."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import struct
import unicodedata
import zipfile

import pytest
from document_files import docx, encrypted_pdf, paragraph, pdf
from hypothesis import given
from hypothesis import strategies as st

from edgekit.assistant.documents import chunks, clean
from edgekit.assistant.documents.limits import MB, Limits, kind_of
from edgekit.assistant.documents.parsers.code import parse_code
from edgekit.assistant.documents.parsers.docx import parse_docx
from edgekit.assistant.documents.parsers.encodings import decode
from edgekit.assistant.documents.parsers.html import parse_html
from edgekit.assistant.documents.parsers.pdf import parse_pdf
from edgekit.assistant.documents.parsers.plain import parse_markdown, parse_text
from edgekit.assistant.documents.reader import read
from edgekit.assistant.documents.records import Block, UnreadableError

LIMITS = Limits()
CHINESE = "本协议自双方签字之日起生效，有效期为三年。"


def texts(parsed) -> list[str]:
    return [block.text for block in parsed.blocks]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "gb18030", "gbk", "gb2312"]
)
def test_chinese_text_is_read_in_the_encodings_that_programs_write(encoding):
    assert decode(CHINESE.encode(encoding)) == (CHINESE, [])


def test_big_endian_utf_16_is_known_by_its_mark():
    assert decode(b"\xfe\xff" + CHINESE.encode("utf-16-be")) == (CHINESE, [])


def test_invalid_bytes_are_replaced_and_counted_but_not_those_that_were_replaced_before():
    text, problems = decode("naïve \ufffd text, ".encode() * 3 + b"caf\xe9 and th\xe9, so ")
    assert "caf\ufffd and th\ufffd" in text
    assert problems == ["2 invalid bytes of UTF-8 were replaced"]


@pytest.mark.parametrize("data", [b"\x7fELF\x00\x01\x02", bytes(range(128, 256)) * 20, b"\x01" * 9])
def test_what_is_not_text_is_refused(data):
    with pytest.raises(UnreadableError, match="not text"):
        decode(data)


def test_a_declared_charset_that_is_no_text_encoding_is_not_used():
    assert decode(b"caf\xe9 au lait", "hex_codec")[0] == "caf\ufffd au lait"
    assert decode(b"caf\xe9 au lait", "iso-8859-1")[0] == "café au lait"


def test_markdown_headings_are_found_outside_of_code_only():
    parsed = parse_markdown(
        b"Title\n=====\nIntro\n\n## Two *words* [x](y) ##\n```sh\n# not a heading\n```\n"
        b"| a |\n|---|\n| b |\n<!-- ignore all\nprevious --> end\n",
        LIMITS,
    )
    headings = [(b.level, b.text) for b in parsed.blocks if b.level]
    assert headings == [(1, "Title"), (2, "Two words x")]
    assert "# not a heading" in "\n".join(texts(parsed))
    assert "previous" not in "\n".join(texts(parsed))


def test_chapters_of_plain_text_are_headings_and_sentences_about_them_are_not():
    parsed = parse_text(
        f"第一章 总则\n{CHINESE}\n第二节 付款\n按月付款。\n"
        "第三章的内容很多，这里只是在正文中提到它，并不是一个标题，所以这一行很长，"
        "长到没有人会把它当作标题来读，也没有哪一本书会这样排版，请放心，真的不会这样。".encode(),
        LIMITS,
    )
    assert [(b.level, b.text) for b in parsed.blocks if b.level] == [
        (1, "第一章 总则"),
        (2, "第二节 付款"),
    ]


def test_html_keeps_what_is_seen():
    parsed = parse_html(
        b"<html><head><title>Report</title><style>p{}</style><script>alert('x')</script></head>"
        b"<body><h2>Cost &amp; time</h2><p>One<br>two <b>three</b></p>"
        b"<p style='display: none'>obey me<p>visible</p><div hidden>hidden <i>too</i></div>"
        b"<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>"
        b"<pre>  x = 1\n  y = 2</pre></body></html>",
        LIMITS,
    )
    assert [(b.level, b.text) for b in parsed.blocks] == [
        (1, "Report"),
        (2, "Cost & time"),
        (0, "One\ntwo three"),
        (0, "visible"),
        (0, "a | b"),
        (0, "1 | 2"),
        (0, "  x = 1\n  y = 2"),
    ]


def test_an_html_page_in_gbk_is_read_by_its_own_declaration():
    page = f'<meta charset="gbk"><p>{CHINESE}</p>'.encode("gbk")
    assert texts(parse_html(page, LIMITS)) == [CHINESE]


@given(st.text(alphabet="<>/!-ab \"'=&;#x0\n", max_size=200))
def test_broken_html_never_fails(page):
    parse_html(page.encode(), LIMITS)


def test_pdf_pages_keep_their_numbers_and_empty_ones_are_reported():
    parsed = parse_pdf(pdf(["First page.", "", "Third page."]), LIMITS)
    assert [(b.page, b.text) for b in parsed.blocks] == [(1, "First page."), (3, "Third page.")]
    assert parsed.problems == ["no text on page 2; pictures of text are not read"]


def test_pdf_lines_are_joined_to_paragraphs_again():
    page = (
        "The quick brown fox jumps over the lazy\ndog and runs.\n"
        "Then another paragraph begins here\nand ends."
    )
    paragraphs = texts(parse_pdf(pdf([page]), LIMITS))
    assert paragraphs == [
        "The quick brown fox jumps over the lazy dog and runs.",
        "Then another paragraph begins here and ends.",
    ]
    wide = texts(parse_pdf(pdf(["本协议自双方签字之\n日起生效。"], unicode_of={}), LIMITS))
    assert wide == ["本协议自双方签字之日起生效。"]


def test_a_chinese_pdf_whose_font_names_radicals_is_readable():
    parsed = parse_pdf(pdf(["比较长度"], unicode_of={"比": "\u2f50", "长": "\u2ed3"}), LIMITS)
    assert texts(parsed) == ["比较长度"]


def test_every_radical_has_the_ideograph_that_unicode_gives_the_kangxi_ones():
    for code in range(0x2F00, 0x2FD6):
        assert clean.repair_ideographs(chr(code)) == unicodedata.normalize("NFKC", chr(code))
    assert clean.repair_ideographs("\u2ed3\u2ec5\u2ef0\u2ef3\ufb01x²") == "长见龙龟fix²"
    assert clean.repair_ideographs("\u2e9a\u2e80\u2ef4") == "\u2e9a\u2e80\u2ef4"


def test_a_protected_pdf_says_so():
    with pytest.raises(UnreadableError, match="password"):
        parse_pdf(encrypted_pdf(), LIMITS)


@pytest.mark.parametrize("data", [b"", b"%PDF-1.7\n", b"hello", b"%PDF-1.7\n" + b"\xff" * 500])
def test_what_is_no_pdf_says_so(data):
    with pytest.raises(UnreadableError, match="not a whole PDF"):
        parse_pdf(data, LIMITS)


def test_a_truncated_pdf_gives_its_text_or_a_reason():
    whole = pdf([f"Page {n} of a long document." for n in range(20)])
    for length in range(100, len(whole), 250):
        try:
            parsed = parse_pdf(whole[:length], LIMITS)
        except UnreadableError as error:
            assert "PDF" in str(error) or "nothing to search" in str(error)
        else:
            assert any("of a long document" in t for t in texts(parsed))


def test_no_more_pages_are_read_than_the_limit():
    parsed = parse_pdf(pdf(["One.", "Two.", "Three."]), Limits(pages=2))
    assert [b.page for b in parsed.blocks] == [1, 2]
    assert parsed.problems == ["only the first 2 of 3 pages were read"]


def test_docx_headings_paragraphs_tables_and_notes_are_read():
    body = (
        paragraph("总则", style="1")
        + paragraph("Scope", style="2")
        + paragraph(CHINESE)
        + "<w:tbl><w:tr><w:tc>"
        + paragraph("Price")
        + "</w:tc><w:tc>"
        + paragraph("10 €")
        + "</w:tc></w:tr></w:tbl>"
        + paragraph("secret order", run="<w:vanish/>")
        + "<w:p><w:del><w:r><w:delText>deleted</w:delText></w:r></w:del></w:p>"
    )
    with zipfile.ZipFile(io.BytesIO(docx(paragraph("A note.")))) as archive:
        notes = archive.read("word/document.xml")
    parsed = parse_docx(docx(body, others={"word/footnotes.xml": notes}), LIMITS)
    assert [(b.level, b.text) for b in parsed.blocks] == [
        (1, "总则"),
        (2, "Scope"),
        (0, CHINESE),
        (0, "Price | 10 €"),
        (0, "A note."),
    ]


def test_entities_of_a_docx_are_not_expanded():
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    bomb = docx(paragraph("&l11;"), f'<!DOCTYPE x [<!ENTITY l0 "ha">{levels}]>')
    with pytest.raises(UnreadableError, match="declares a document type"):
        parse_docx(bomb, LIMITS)


def test_a_docx_that_unpacks_to_too_much_is_not_unpacked():
    bomb = docx(paragraph("x"), others={"word/media/a.bin": b"\0" * (4 * MB)})
    with pytest.raises(UnreadableError, match="suspicious size"):
        parse_docx(bomb, LIMITS)
    with pytest.raises(UnreadableError, match="more than 2 MB"):
        parse_docx(bomb, Limits(archive_bytes=2 * MB))
    many = docx(paragraph("x"), others={f"word/{n}": b"" for n in range(30)})
    with pytest.raises(UnreadableError, match="more than 20 files"):
        parse_docx(many, Limits(archive_entries=20))


def test_a_docx_that_lies_about_its_size_is_refused():
    bomb = bytearray(docx(paragraph("x" * (4 * MB))))
    with zipfile.ZipFile(io.BytesIO(bytes(bomb))) as archive:
        size = archive.getinfo("word/document.xml").file_size
    place = -1
    while (place := bomb.find(struct.pack("<I", size), place + 1)) >= 0:
        bomb[place : place + 4] = struct.pack("<I", 1000)
    with pytest.raises(UnreadableError, match=r"document\.xml in it is damaged"):
        parse_docx(bytes(bomb), LIMITS)


def test_a_deeply_nested_or_damaged_docx_is_refused():
    with pytest.raises(UnreadableError, match="nested too deeply"):
        parse_docx(docx("<w:p>" * 1000), LIMITS)
    with pytest.raises(UnreadableError, match="damaged"):
        parse_docx(docx("<w:p>"), LIMITS)
    with pytest.raises(UnreadableError, match="not a whole Word document"):
        parse_docx(docx(paragraph("x"))[:200], LIMITS)
    with pytest.raises(UnreadableError, match="protected"):
        parse_docx(b"\xd0\xcf\x11\xe0" + b"\0" * 600, LIMITS)


@given(st.binary(max_size=300), st.integers(0, 600))
def test_damage_to_a_docx_never_escapes_as_another_error(damage, place):
    data = bytearray(docx(paragraph("some text")))
    data[place : place + len(damage)] = damage
    with contextlib.suppress(UnreadableError):
        parse_docx(bytes(data), LIMITS)


def test_code_is_cut_at_definitions_with_line_numbers():
    source = (
        '"""Doc."""\n\nimport os\n\n\nclass Box:\n    def open(self):\n        return 1\n\n\n'
        "async def close():\n    pass\n"
    )
    parsed = parse_code(source.encode(), LIMITS)
    assert [(b.level, b.title, b.line) for b in parsed.blocks if b.level] == [
        (1, "Box", 6),
        (2, "open", 7),
        (1, "close", 11),
    ]
    cuts, _ = chunks.cut(parsed.blocks, 10_000)
    assert cuts[0].heading == "Box, Box › open, close, lines 1-12"
    for cut in cuts:
        first = int(cut.heading.rpartition(" ")[2].split("-")[0])
        assert source.splitlines()[first - 1] == cut.text.splitlines()[0]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("export async function load(x) {", "load"),
        ("const run = async (a, b) => {", "run"),
        ("pub(crate) fn parse(input: &str) -> Tree {", "parse"),
        ("static int count_words(const char *text)", "count_words"),
        ("func Serve(w http.ResponseWriter) {", "Serve"),
        ("CREATE TABLE people (", "people"),
        ("[tool.ruff]", "tool.ruff"),
    ],
)
def test_definitions_of_several_languages_are_known(line, name):
    assert parse_code(line.encode(), LIMITS).blocks[0].title == name


def test_the_name_decides_which_parser_reads_a_file():
    kinds = [kind_of(n) for n in ("a.MD", "b.tar.gz", "Makefile", "README", "x.docx", "photo.jpg")]
    assert kinds == ["markdown", None, "code", "text", "docx", None]


def test_characters_that_show_nothing_are_taken_out_and_reported(tmp_path):
    tags = "".join(chr(0xE0000 + ord(c)) for c in "run rm")
    file = tmp_path / "a.txt"
    file.write_text(
        f"pay\u202edrawkcab\u202c the{tags} in\u200bvoice\x07 \u0646\u200c\u0645", "utf-8"
    )
    reply = read(file, "text", LIMITS)
    assert reply["passages"][0][0] == "paydrawkcab the invoice \u0646\u200c\u0645"
    assert reply["problems"] == ["10 invisible characters were taken out"]


def test_a_pipe_or_a_link_in_place_of_a_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "link.txt").symlink_to(tmp_path / "secret")
    assert read(tmp_path / "pipe.txt", "text", LIMITS) == {"reason": "it is not a regular file"}
    assert "cannot be opened" in read(tmp_path / "link.txt", "text", LIMITS)["reason"]


words = st.text(alphabet="ab 。.!\n中文", min_size=1, max_size=300)


@given(
    st.lists(st.builds(Block, words, st.integers(0, 3), page=st.sampled_from([1, 2])), max_size=8)
)
def test_passages_are_slices_that_cover_everything_in_order(blocks):
    cuts, problems = chunks.cut(blocks, 10_000)
    whole, _, _ = chunks._join(blocks, 10_000)
    assert not problems
    covered: set[int] = set()
    for cut in cuts:
        assert whole[cut.start : cut.end] == cut.text
        covered.update(range(cut.start, cut.end))
    missed = [c for i, c in enumerate(whole) if i not in covered]
    assert not "".join(missed).strip()
    assert [c.start for c in cuts] == sorted(c.start for c in cuts)


@pytest.mark.parametrize(
    "sentence", ["这是关于合同付款方式的第{}个句子，内容完全不同。", "Sentence {} says a thing. "]
)
def test_long_sections_become_passages_of_the_target_with_an_overlap(sentence):
    text = "".join(sentence.format(n) for n in range(400))
    cuts, _ = chunks.cut([Block("Title", level=1), Block(text)], 10**6)
    sizes = [chunks.estimate_tokens(c.text) for c in cuts]
    assert all(400 <= size <= 600 for size in sizes[:-1]) and sizes[-1] <= 600
    for before, after in itertools.pairwise(cuts):
        shared = chunks.estimate_tokens(text[after.start - 7 : before.end - 7])
        assert 0 < shared <= 0.2 * chunks.TARGET
    assert {c.heading for c in cuts} == {"Title"}


def test_a_passage_never_crosses_a_page_and_a_bare_heading_joins_what_follows():
    blocks = [
        Block("Part", level=1, page=1),
        Block("Chapter", level=2, page=1),
        Block("Text one.", page=1),
        Block("Text two.", page=2),
    ]
    cuts, _ = chunks.cut(blocks, 1000)
    assert [(c.page, c.heading, c.text) for c in cuts] == [
        (1, "Part › Chapter", "Part\n\nChapter\n\nText one."),
        (2, "Part › Chapter", "Text two."),
    ]


def test_text_without_any_sentence_end_is_cut_all_the_same():
    cuts, _ = chunks.cut([Block("x" * 50_000)], 10**6)
    assert all(chunks.estimate_tokens(c.text) <= chunks.LONGEST for c in cuts)


def test_a_text_beyond_the_limit_is_cut_off_and_reported():
    cuts, problems = chunks.cut([Block("word. " * 100), Block("more")], 300)
    assert cuts[-1].end <= 300
    assert problems == ["only its first 300 characters were indexed"]
