"""Text without what a reader cannot see, and with ideographs in place of their radicals.

Characters that show nothing can hide instructions in a document or turn the order of what is
seen, so they are taken out before anything is indexed or quoted. Fonts of some PDFs name a glyph
by its radical (U+2ED3) instead of the ideograph (U+957F); NFKC repairs the Kangxi radicals
U+2F00 to U+2FD5 and leaves most of U+2E80 to U+2EFF alone, so these have a table here.
"""

from __future__ import annotations

import re
import unicodedata

# The unified ideograph of each of U+2E80 to U+2EF3, "." where there is none.
_IDEOGRAPHS = (
    ".厂乛乚乙亻冂𠘨刀刂卜㔾小小兀尣尢𡯂巳幺彑彐忄心扌攵.旡日月歺母民氵氺灬爫爫丬牛犭王𤴔目示礻𥫗糹纟罓罒㓁冗𦉫羊𦍌𦍋"
    "耂肀聿肉𦥑艹艹艹虎衤覀西见角𧢲讠贝𧾷车辶辶辶邑钅長镸长门𨸏阝雨青韦页风飞食𩙿飠饣𩠐马骨鬼鱼鸟卤麦黄黾斉齐歯齿竜龙"
    "龜亀龟"
)
_RADICALS = {0x2E80 + i: c for i, c in enumerate(_IDEOGRAPHS) if c != "."}
_COMPATIBLE = {
    code: unicodedata.normalize("NFKC", chr(code))
    for block in (range(0x2F00, 0x2FD6), range(0xF900, 0xFB07))  # Kangxi, compatibility, ligatures
    for code in block
}
_REPAIRED = {**_COMPATIBLE, **_RADICALS}
_REPAIRABLE = re.compile(r"[\u2e80-\u2fd5\uf900-\ufb06]")

# Shown as nothing, or changing the order of what is shown. Tab and line feed stay; the joiners
# U+200C and U+200D stay between letters that are not ASCII, where scripts and emoji need them.
_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    r"\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0e\ufeff\uffa0\ufff0-\ufffb"
    r"\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
    r"|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
)
_LINE_ENDS = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


def visible(text: str) -> str:
    """``text`` with line feeds for line ends and without characters that show nothing."""
    lines = _LINE_ENDS.sub("\n", _SURROGATES.sub("\ufffd", text))
    return _HIDDEN.sub("", lines)


def hidden_characters(text: str) -> int:
    """How many characters ``visible`` takes out besides line ends."""
    return len(_HIDDEN.findall(_LINE_ENDS.sub("\n", text)))


def repair_ideographs(text: str) -> str:
    """Radicals, compatibility ideographs and ligatures as the characters that people type."""
    return _REPAIRABLE.sub(lambda m: _REPAIRED.get(ord(m.group()), m.group()), text)
