"""Markdown of a model is shown well, shown safely, and the same while it streams."""

from __future__ import annotations

import random
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from edgekit.assistant import markdown
from edgekit.assistant.markdown import StreamRenderer, render

ATTRIBUTES = {
    "a": {"href", "rel", "data-external"}, "code": {"class"}, "ol": {"start"},
    "div": {"class", "tabindex", "role", "aria-label"}, "figure": {"class"}, "p": {"class"},
    "pre": {"tabindex"}, "span": {"class"}, "td": {"class"}, "th": {"class"},
}  # fmt: skip
TAGS = {
    "p", "br", "hr", "em", "strong", "s", "ul", "li", "blockquote", "code", "thead", "tbody", "tr",
    "table", "figcaption", "h3", "h4", "h5", "h6", *ATTRIBUTES,
}  # fmt: skip
VOID = {"br", "hr"}
TURNING = re.compile(r"[\u202a-\u202e\u2066-\u2069\x00]")


class Reader(HTMLParser):
    """Reads HTML as a browser does and refuses what must not be there."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.links: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []
        assert not TURNING.search(source)
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        given = dict(attrs)
        assert len(given) == len(attrs) and set(given) <= ATTRIBUTES.get(tag, set()), attrs
        if tag == "a" and "href" in given:
            link = given["href"] or ""
            assert re.match(r"(https?://[^/\s]|mailto:)", link, re.IGNORECASE), link
            assert not re.search(r"[\x00-\x20]", link)
            assert given["rel"] == "noopener noreferrer" and given["data-external"] == ""
            self.links.append(link)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment


def streamed(text: str, pieces: list[str]) -> str:
    """What is in place after the pieces were pushed; checks that what is final stays."""
    assert "".join(pieces) == text
    renderer, blocks, least = StreamRenderer(), {}, 0
    for piece in [*pieces, None]:
        changes = renderer.finish() if piece is None else renderer.push(piece)
        indexes = [i for i, _ in changes]
        assert indexes == sorted(set(indexes)) and all(i >= least for i in indexes)
        blocks.update(changes)
        least = max(least, renderer._final)
    assert renderer.finish() == []
    assert sorted(blocks) == list(range(len(blocks)))
    return "".join(blocks[i] for i in sorted(blocks))


def split(text: str, chance: random.Random, most: int = 12) -> list[str]:
    pieces = []
    while text:
        size = chance.randint(1, most)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


EXAMPLE = """# Title

**重点：**内容, *soft* ~~gone~~ `code` and\u2003[a link](https://example.org/a?b=1&c=2 "t").
second line

1. one

   para in one
2. two
   - [ ] open
   - [x] done

| a | b |
|:--|--:|
| 1 | `|` |

```python title
if a < b:

    pass
```

    indented <b>

> quote
continued

text
x | y
- | -
1 | 2

***
last paragraph
===
"""

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<math><mi xlink:href='javascript:alert(1)'>x</mi></math>",
    "<math><mtext><table><mglyph><style><!--</style>"
    "<img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>", "<iframe srcdoc='<script>'>",
    "<a href='javascript:alert(1)'>x</a>", "<style>*{width:expression(alert(1))}</style>",
    "<div style='width: expression(alert(1)); background:url(javascript:alert(1))'>",
    "<base href='//evil'>", "<meta http-equiv=refresh content='0;url=//evil'>",
    "<form action=//evil><input autofocus onfocus=alert(1)>", "<details open ontoggle=alert(1)>",
    "<!--[if IE]><script>alert(1)</script><![endif]-->", "<![CDATA[<script>]]>", "<?php x ?>",
    "[x](javascript:alert(1))", "[x](JaVaScRiPt:alert(1))", "[x](javascript&colon;alert(1))",
    "[x](javascript&#58;alert(1))", "[x](&#106;avascript:alert(1))", "[x](java\tscript:alert(1))",
    "[x](java&Tab;script:alert(1))", "[x](java&NewLine;script:alert(1))",
    "[x](\x01javascript:alert(1))", "[x](&#1;javascript:alert(1))",
    "[x](&#x20;javascript:alert(1))", "[x](\u00a0javascript:alert(1))",
    "[x](<javascript:alert(1)>)", "[x](vbscript:msgbox(1))", "[x](data:text/html;base64,PHN2Zz4=)",
    "[x](data:image/svg+xml,<svg onload=alert(1)>)", "[x](file:///etc/passwd)",
    "[x](//evil.example)", "[x](/api/quit)", "[x](#fragment)", "[x](relative.html)",
    "[x](blob:https://x)", "[x](https:evil)", "[x](https:///evil)", "[x](http://)",
    "[x](about:blank)", "[x](ftp://host)", "[x](\\\\evil\\share)",
    "[x](javascript://example.com/%0aalert(1))", "[x](https://e.org\"onmouseover=alert(1))",
    "[x](https://e.org 'a\" onmouseover=\"alert(1)')", "[x](https://e.org/\u202egnp.exe)",
    "[x](https://e.org/&#x202e;gnp)", "[\u202ex](https://e.org)", "[x](<https://e.org/a b>)",
    "<javascript:alert(1)>", "<data:text/html,x>", "<https://e.org/?\"onclick=alert(1)>",
    "<a@b.c>", "<mailto:a@b.c>", "![x](javascript:alert(1))",
    "![x](data:image/svg+xml;base64,PHN2Zz4=)", "![\"onerror=alert(1)](https://e.org/x.png)",
    "![x](https://e.org/x.png \"'onload=alert(1)\")",
    "![![![x](https://a)](https://b)](https://c)", "[![x](https://a/i.png)](javascript:alert(1))",
    "[![x](javascript:alert(1))](https://a)", "![<script>](https://e.org/<script>)",
    "[a]: javascript:alert(1)\n\n[a]", "[a]: https://e.org 'x'\n\n[a][a] [a]",
    "[[a]: x](https://e.org)", "[x]: <javascript:alert(1)>\n[x]",
    "[[[[[[x](https://e.org)](https://e.org)](https://e.org)]",
    "```\"><script>alert(1)</script>\nx\n```", "```js onload=alert(1)\n</code></pre><script>\n```",
    "~~~<img src=x onerror=alert(1)>\n~~~", "`<img src=x onerror=alert(1)>`", "    <script>\n",
    "|<script>|\n|-|\n|<img src=x onerror=alert(1)>|", "| a |\n|:-:\"onclick=alert(1)|\n| b |",
    "a\x00b <scr\x00ipt>",
    "&lt;script&gt; &#60;script&#62; &#0; &#xD800; &#x110000; &amp;lt;b&gt;",
    "\u202etxt.exe \u2066x\u2069 &#8238;y &#x2067;", "\ufeff<script>", "<scr\u200bipt>",
    "<ſcript>", "<\u0131mg src=x>", "</p></div></body><script>", "--><script>alert(1)</script>",
    "]]><script>", "*<b onclick=alert(1)>*", "**[x](javascript:alert(1)**)", "~~<s onclick=x>~~",
    "- <li onclick=x>", "# <h1 onclick=x>", "> <blockquote cite=javascript:alert(1)>",
    "3. <script>\n4. x", "\\<script\\>", "999999999. x", "[ ](https://e.org)", "[](https://e.org)",
    "[x](https://xn--e1afmkfd/)", "[good.com](https://good.com@evil.com)",
    "[x](https://пример.рф/путь?q=ю)", "[x](HTTPS://E.ORG)", "[x](mailto:a@b?body=<script>)",
    "[x](mailto:javascript:alert(1))", "[x](https://[::1]/)", "[x](https://[::1)",
    "[x](https://e.org/%)", "[x](https://e.org/%00%0d%0a)", "[x](https://\ud800/)",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_hostile_becomes_more_than_text(text: str) -> None:
    for source in (
        text,
        f"a {text} b",
        f"> - {text}",
        f"| {text} |\n|-|\n| {text} |",
        f"**{text}**",
    ):
        html = render(source)
        Reader(html)
        assert streamed(source, list(source)) == html


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([*HOSTILE, "\n", "\n\n", "> ", "- ", "`", "**", "|", " "]), max_size=8)
)
def test_no_mixture_of_hostile_pieces_does_either(pieces: list[str]) -> None:
    Reader(render("".join(pieces)))


def test_the_second_wall_stands_by_itself() -> None:
    for text in HOSTILE:
        Reader(markdown._safe(markdown._normal(text)))  # as if the first let HTML through
    kept = markdown._safe(
        '<p class="evil" style="x" id="y">a<a href="data:x" onclick="y">b</a></p>'
    )
    assert kept == '<p>a<a data-external="" rel="noopener noreferrer">b</a></p>'


def test_links_are_marked_and_lead_where_they_say() -> None:
    reader = Reader(
        render("[a](https://e.org/x?a=1&b=2#c) <http://f.org> [m](mailto:a@b.c) <a@b.c>")
    )
    assert reader.links == [
        "https://e.org/x?a=1&b=2#c", "http://f.org", "mailto:a@b.c", "mailto:a@b.c"
    ]  # fmt: skip
    for text in ("[x](javascript:alert(1))", "[x](/api/quit)", "![y](data:image/png;base64,AA)"):
        reader = Reader(render(text))
        assert reader.text == text + "\n" and not reader.links
    assert not Reader(render("https://bare.example")).links


def test_images_are_named_and_never_loaded() -> None:
    html = render("see ![a *cat*](https://e.org/c.png 'title')")
    assert html == '<p>see <span class="image-blocked">a cat (https://e.org/c.png)</span></p>\n'
    reader = Reader(render("![](https://e.org/" + "x" * 999 + ")"))
    assert len(reader.text) < 300 and reader.text.rstrip().endswith("…)")


def test_code_carries_its_language_and_every_character() -> None:
    html = render('```c++ x\na < b && "c"\n\n\tx\n```\n\n```<b>\ny\n```\n\n    z\n')
    assert '<figcaption>c++</figcaption><pre tabindex="0"><code class="language-c++">' in html
    assert html.count('<figure class="code">') == 3 and html.count("figcaption") == 2
    assert Reader(html).text.split("\n") == ['c++a < b && "c"', "", "\tx", "", "y", "", "z", "", ""]


def test_tables_have_a_frame_and_sides_without_styles() -> None:
    html = render("|a|b|c|\n|:-|:-:|-:|\n|1|2|3|")
    assert html.startswith('<div class="table" tabindex="0" role="region" aria-label=')
    assert (
        re.findall(r'class="(align-\w+)"', html)
        == ["align-left", "align-center", "align-right"] * 2
    )
    assert "style" not in html


def test_headings_stay_below_those_of_the_page() -> None:
    html = render("".join(f"{'#' * i} {i}\n" for i in range(1, 7)) + "setext\n===\n")
    assert re.findall(r"<h(\d)>", html) == ["3", "4", "5", "6", "6", "6", "3"]


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("**重点：**内容", "<strong>重点：</strong>内容"),
        ("这是**“引用”**吗", "这是<strong>“引用”</strong>吗"),
        ("见*《书》*的", "见<em>《书》</em>的"), ("**中文**中文", "<strong>中文</strong>中文"),
        ("3 * 4 * 5", "3 * 4 * 5"), ("** 空 **", "** 空 **"), ("中 ** 文 **", "中 ** 文 **"),
        ("snake_case_中_文", "snake_case_中_文"), ("第一行\n第二行", "第一行<br>\n第二行"),
        ("- [ ] 买\n- [x] 卖\n- [y] z", "<li>☐ 买</li>\n<li>☑ 卖</li>\n<li>[y] z</li>"),
        ("a [1] b [2][3]", "a [1] b [2][3]"), ("[ ] no task", "[ ] no task"),
        ("[a]: https://e.org", "[a]: https://e.org"),
    ],
)  # fmt: skip
def test_what_models_write_reads_well(text: str, html: str) -> None:
    assert html in render(text)


@settings(max_examples=200, deadline=None)
@given(st.text("ab *_.,(`~\n", max_size=40))
def test_western_emphasis_is_commonmarks(text: str) -> None:
    reference = MarkdownIt("commonmark", {"breaks": True, "xhtmlOut": False}).enable(
        "strikethrough"
    )
    expected = reference.render(text)
    for tag in ("strong", "em", "s", "li"):
        assert re.findall(f"<{tag}>[^<]*", render(text)) == re.findall(f"<{tag}>[^<]*", expected)


PIECES = [
    "\n", "\n\n", "\n ", "\n  ", "\n    ", "1. ", "2) ", "- ", "* ", "+ ", "> ", "# ", "```", "~~~",
    "---", "===", "***", "|", "| - |", "a | b\n- | -\n", ":-:", "[ ] ", "[a]: http://b", "[x](http://y)",
    "text", "中文：", "**", "`", "_", "\t", "\r", "\r\n", "\0", "\u202e", "<b>", "&amp;", "\\", "![i](http://z)",
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=25).map("".join), st.randoms(use_true_random=False)
)
def test_a_stream_gives_what_the_whole_gives(text: str, chance: random.Random) -> None:
    whole = render(text)
    Reader(whole)
    assert streamed(text, split(text, chance)) == whole
    assert streamed(text, list(text)) == whole


def test_a_long_stream_gives_what_the_whole_gives() -> None:
    chance = random.Random(3)
    text = "\n\n".join(chance.choice([EXAMPLE, EXAMPLE[:200], EXAMPLE[150:]]) for _ in range(20))
    for most in (3, 40, 2000):
        assert streamed(text, split(text, chance, most)) == render(text)
    assert streamed(
        text.replace("\n", "\r\n"), split(text.replace("\n", "\r\n"), chance)
    ) == render(text)


def test_what_is_shown_grows_with_every_word_and_settles_block_by_block() -> None:
    renderer = StreamRenderer()
    assert renderer.push("Hello") == [(0, "<p>Hello</p>\n")]
    assert renderer.push(" **wor") == [(0, "<p>Hello **wor</p>\n")]
    assert renderer.push("ld**\n\n") == [(0, "<p>Hello <strong>world</strong></p>\n")]
    assert renderer.push("") == []
    assert renderer.push("1. a\n\n2") == [(1, "<ol>\n<li>a</li>\n</ol>\n"), (2, "<p>2</p>\n")]
    changes = renderer.push(". b")
    assert [i for i, _ in changes] == [1, 2] and changes[1] == (2, "")
    assert renderer.push("\n\nend\n") == [(2, "<p>end</p>\n")]
    assert renderer.finish() == []


@pytest.mark.parametrize("settles", [True, False])
def test_the_cost_of_a_stream_grows_with_its_length_alone(monkeypatch, settles: bool) -> None:
    def parsed(length: int) -> int:
        """Characters handed to the parser for a text that arrives word by word."""
        count = 0
        original = markdown._split

        def counting(text: str) -> list[markdown._Block]:
            nonlocal count
            count += len(text)
            return original(text) if settles else [markdown._Block(0, text, ())]

        with monkeypatch.context() as patch:
            patch.setattr(markdown, "_split", counting)
            patch.setattr(markdown, "_rendered", lambda block: "")
            renderer = StreamRenderer()
            for _ in range(length // 7):
                renderer.push("words\n\n" if settles else "- item\n")
            renderer.finish()
        return count

    small, large = parsed(20_000), parsed(80_000)
    assert large < 4 * small * 1.5  # a quadratic cost would be 16 times as much
    assert large < 80_000 * (5 if settles else 2 * markdown.FRESH)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, "![" * 50_000, "*a _" * 25_000, "`a``" * 25_000, "<" * 100_000,
        "&" * 100_000, "\\" * 100_000, "(" * 100_000, "x" * 1_000_000, ">" * 100_000,
        "> " * 50_000, "- " * 50_000, "1. " * 50_000, "- a\n" * 8000,
        "\n".join(" " * 2 * i + "- a" for i in range(300)), "|" * 100_000,
        "|a" * 9000 + "|\n" + "|-" * 9000 + "|\n", "#" * 100_000, "```\n" * 8000, "*" * 100_000,
        "~" * 100_000, "_a" * 50_000, "\t" * 100_000, "\n" * 1_000_000, "[a](b" * 20_000,
        "\u0300" * 100_000, "[a](<b" * 15_000,
    ],
    ids=lambda text: repr(text[:8]),
)  # fmt: skip
def test_huge_and_deep_input_is_shown_and_costs_a_moment(text: str) -> None:
    shown = Reader(render(text)).text
    wanted = text.count("a") + text.count("x") + text.count("[")
    assert shown.count("a") + shown.count("x") + shown.count("[") >= min(wanted, wanted // 1.01)


def test_beyond_the_limit_text_is_plain_and_complete(monkeypatch) -> None:
    monkeypatch.setattr(markdown, "LONGEST", 300)
    monkeypatch.setattr(markdown, "PLAIN_BLOCK", 50)
    lines = [f"**line {i}** " + "x" * (i % 7) for i in range(60)]
    for text in ("\n\n".join(lines), "\n".join(lines), "".join(lines), "\n\n\n\n".join(lines)):
        html = render(text)
        shown = Reader(html).text
        assert [f"line {i}" in shown for i in range(60)] == [True] * 60
        assert html.startswith("<p><strong>line 0")
        assert ("**line 59**" in shown) == ("\n" in text)
        for most in (1, 9, 77):
            assert streamed(text, split(text, random.Random(most), most)) == html


def test_what_is_nested_too_deeply_is_plain_and_loses_nothing() -> None:
    text = "".join("  " * i + f"- item{i}\n" for i in range(30)) + "\nafter **it**"
    html = render(text)
    assert all(f"item{i}" in html for i in range(30)) and '<p class="plain">' in html
    assert html.endswith("<p>after <strong>it</strong></p>\n")


def test_a_defect_of_the_parser_hides_no_answer(monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise RecursionError

    with monkeypatch.context() as patch:
        patch.setattr(markdown._INLINE.inline, "parse", broken)
        assert render("a *b* <i>") == '<p class="plain">a *b* &lt;i&gt;</p>\n'
    monkeypatch.setattr(markdown._BLOCKS.block, "parse", broken)
    assert render("a\n\nb") == '<p class="plain">a<br><br>b</p>\n'
