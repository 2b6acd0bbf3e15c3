"""Small documents made by hand, good and bad ones."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
STYLES = (
    f'<w:styles xmlns:w="{WORD}">'
    '<w:style w:styleId="1"><w:name w:val="heading 1"/></w:style>'
    '<w:style w:styleId="2"><w:name w:val="heading 2"/></w:style></w:styles>'
)


def pdf(pages: Sequence[str], unicode_of: dict[str, str] | None = None, extra: str = "") -> bytes:
    """A PDF with one line of text per line of each page.

    With ``unicode_of`` the text is set in a font of its own encoding, and the file says that each
    character is the given one: how Chinese reaches a PDF. ``extra`` goes into the trailer.
    """
    used = sorted({c for page in pages for c in page} - {"\n"})
    codes = {c: i + 1 for i, c in enumerate(used)}
    if unicode_of is None:
        font = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    else:
        font = (
            "<< /Type /Font /Subtype /Type0 /BaseFont /Song /Encoding /Identity-H "
            "/ToUnicode 4 0 R /DescendantFonts [5 0 R] >>"
        )
    named = {c: (unicode_of or {}).get(c, c).encode("utf-16-be").hex() for c in used}
    lines = "\n".join(f"<{codes[c]:04x}> <{named[c]}>" for c in used)
    cmap = (
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def "
        "1 begincodespacerange <0000> <ffff> endcodespacerange "
        f"{len(used)} beginbfchar\n{lines}\nendbfchar endcmap end end"
    )
    descendant = (
        "<< /Type /Font /Subtype /CIDFontType2 /BaseFont /Song /DW 1000 /CIDSystemInfo "
        "<< /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> /FontDescriptor << /Type "
        "/FontDescriptor /FontName /Song /Flags 4 /FontBBox [0 0 1000 1000] /ItalicAngle 0 "
        "/Ascent 800 /Descent -200 /CapHeight 700 /StemV 80 >> >>"
    )
    count = len(pages)
    kids = " ".join(f"{6 + 2 * i} 0 R" for i in range(count))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>",
        font,
        _stream(cmap),
        descendant,
    ]
    for i, page in enumerate(pages):
        shown = []
        for line in page.split("\n"):
            if unicode_of is None:
                text = (
                    "(" + line.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)") + ")"
                )
            else:
                text = "<" + "".join(f"{codes[c]:04x}" for c in line) + ">"
            shown.append(f"{text} Tj 0 -14 Td")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {7 + 2 * i} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(_stream("BT /F1 12 Tf 50 740 Td " + " ".join(shown) + " ET"))
    return _assembled(objects, extra)


def encrypted_pdf() -> bytes:
    """A PDF whose password nobody knows."""
    entry = "<" + "5a" * 32 + ">"
    return pdf(
        ["secret"],
        extra=f"/Encrypt << /Filter /Standard /V 1 /R 2 /O {entry} /U {entry} /P -44 >> "
        "/ID [<00112233445566778899aabbccddeeff> <00112233445566778899aabbccddeeff>]",
    )


def _stream(content: str) -> str:
    return f"<< /Length {len(content)} >>\nstream\n{content}\nendstream"


def _assembled(objects: Sequence[str], extra: str) -> bytes:
    out = b"%PDF-1.7\n"
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(f"{offset:010d} 00000 n \n".encode() for offset in offsets)
    out += f"trailer << /Size {len(objects) + 1} /Root 1 0 R {extra} >>\n".encode()
    return out + f"startxref\n{start}\n%%EOF\n".encode()


def paragraph(text: str, style: str = "", run: str = "") -> str:
    """A Word paragraph; ``run`` goes into the run's properties."""
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{properties}<w:r><w:rPr>{run}</w:rPr><w:t>{text}</w:t></w:r></w:p>"


def docx(body: str, prologue: str = "", others: dict[str, bytes] | None = None) -> bytes:
    """A Word document with the given paragraphs; ``prologue`` stands before its root element."""
    document = f'{prologue}<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>'
    parts = {"word/document.xml": document.encode(), "word/styles.xml": STYLES.encode()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (parts | (others or {})).items():
            archive.writestr(name, data)
    return file.getvalue()
