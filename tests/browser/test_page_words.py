"""Two languages, no string left out: read from the files, and looked for on the page."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

from harness import Running
from visits import VIEWS, Open

WEB = Path(str(resources.files("edgekit.assistant.web")))
LOCALES = {path.stem: json.loads(path.read_text("utf-8")) for path in WEB.glob("locales/*.json")}
SCRIPTS = {path.relative_to(WEB).as_posix(): path.read_text("utf-8") for path in WEB.rglob("*.js")}
COMMENT = re.compile(r"/\*.*?\*/|(?<![:\"'`])//[^\n]*", re.DOTALL)
STRING = re.compile(r'"((?:[^"\\\n]|\\.)*)"|\'((?:[^\'\\\n]|\\.)*)\'|`((?:[^`\\]|\\.)*)`')
KEY = re.compile(r"^[a-z_]+(\.[A-Za-z_-]+)+$")
# words that are the same in both languages: names of things, units, keys
SAME = re.compile(
    r"^(edgekit [\d.]+|edgekit|English|OpenVINO|ONNX Runtime|DirectML|CPU|GPU|NPU|SHA-256|Python"
    r"|curl|Enter|Ctrl\+Enter|Top-p|Top-k|[AWTPL]|[\d./,%×·–\s:]+|[\d.,]+ [kMG]?B"
    r"|Apache-2\.0|fake.*|/.*|https?:.*|[0-9a-f]{64})$"
)
VISIBLE = """() => {
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const e = walker.currentNode.parentElement;
        if (e.closest("script, pre, .verbatim, .path, [lang]:not(html)")) continue;
        found.push(walker.currentNode.data.trim());
    }
    for (const e of document.querySelectorAll("[aria-label], [title], [placeholder]"))
        for (const name of ["aria-label", "title", "placeholder"])
            found.push((e.getAttribute(name) ?? "").trim());
    return found.filter(Boolean);
}"""


def strings(text: str) -> list[tuple[str, str]]:
    """The string literals of a script without its comments, and what stands before each."""
    bare = COMMENT.sub("", text)
    return [
        (bare[max(0, m.start() - 40) : m.start()], next(g for g in m.groups() if g is not None))
        for m in STRING.finditer(bare)
    ]


def test_both_languages_have_the_same_keys_and_the_same_places() -> None:
    english, chinese = LOCALES["en"], LOCALES["zh-CN"]
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        places = set(re.findall(r"\{\w+\}", text))
        assert places == set(re.findall(r"\{\w+\}", chinese[key])), key
        assert text.strip() and chinese[key].strip(), key


def test_chinese_uses_full_width_marks_and_a_space_beside_latin_words() -> None:
    for key, text in LOCALES["zh-CN"].items():
        assert not re.search(r"[\u4e00-\u9fff][,;:?!()]|[,;?!()][\u4e00-\u9fff]", text), key
        assert not re.search(r"[\u4e00-\u9fff][A-Za-z0-9]|[A-Za-z0-9][\u4e00-\u9fff]", text), key


def test_every_key_that_the_page_uses_has_words_and_every_word_is_used() -> None:
    known = set(LOCALES["en"])
    plain = {re.sub(r"\.(one|other)$", "", key) for key in known}
    used: set[str] = set()
    for name, text in SCRIPTS.items():
        for _, literal in strings(text):
            if KEY.match(literal) and literal.split(".")[0] in {k.split(".")[0] for k in plain}:
                assert literal in plain or any(k.startswith(f"{literal}_") for k in plain), (
                    f"{name}: {literal}"
                )
                used |= {literal, f"{literal}_hint", f"{literal}_title", f"{literal}_text"}
    markup = (WEB / "index.html").read_text("utf-8")
    used |= set(re.findall(r'data-t(?:-\w+)?="([^"]+)"', markup))
    made = [  # `prefix.${value}` in the scripts
        prefix for text in SCRIPTS.values() for prefix in re.findall(r"`([a-z_.]+\.)\$\{", text)
    ]
    unused = [k for k in plain - used if not any(k.startswith(p) for p in made)]
    assert unused == []


def test_no_sentence_stands_in_a_script_or_in_the_markup() -> None:
    markup = re.sub(r"<!--.*?-->|<title>.*?</title>", "", (WEB / "index.html").read_text("utf-8"))
    assert re.findall(r">[^<>{}]*[A-Za-z\u4e00-\u9fff][^<>{}]*<", markup) == []
    assert not re.search(r'(?:aria-label|title|placeholder|alt)="[^"]', markup)
    for name, text in SCRIPTS.items():
        for before, literal in strings(text):
            where = f"{name}: {literal}"
            if re.search(r"[\u4e00-\u9fff]", literal):
                assert literal == "简体中文", where
            if re.search(
                r"(?:tagName|class|className|Selector(?:All)?|matches|closest)[(:] *$", before
            ):
                continue
            words = re.sub(r"\$\{[^}]*\}", "", literal)
            sentence = re.search(r"[A-Z][a-z]+ [a-z]+ [a-z]+|^[A-Z][a-z]+[.!?]$", words)
            assert not sentence, where
            assert not re.search(r"(?:aria-label|title|placeholder|alt)\"?: *$", before) or (
                literal in ("https://", "title", "placeholder")
            ), where


def test_no_module_is_longer_than_400_lines() -> None:
    for path in [*WEB.rglob("*.js"), *WEB.rglob("*.css"), WEB / "index.html"]:
        assert len(path.read_text("utf-8").splitlines()) < 400, path.name


def test_the_page_shows_no_english_when_it_is_chinese(
    assistant: Running, visit: Open, tmp_path: Path
) -> None:
    document = tmp_path / "文件.md"
    document.write_text("一些内容。")
    assistant.script({"text": "好的。", "thinking": "想一想。"})
    assistant.http.post("/api/documents", json={"path": str(document)})
    here = visit(assistant, locale="zh-CN")
    here.finished(here.ask("你好，请回答。"))
    seen: list[str] = here.page.evaluate(VISIBLE)
    for view in VIEWS:
        here.go(view)
        seen += here.page.evaluate(VISIBLE)
    here.go("")
    here.page.locator(".device-why").click()
    here.page.get_by_role("dialog").wait_for()
    seen += here.page.evaluate(VISIBLE)
    here.page.keyboard.press("Escape")
    here.page.keyboard.press("Control+k")
    here.page.get_by_role("dialog").wait_for()
    seen += here.page.evaluate(VISIBLE)
    english = {text for text in seen if text.isascii() and not SAME.match(text)}
    names = {d["detail"] for d in assistant.http.get("/api/devices").json()}
    parts = {part for text in english for part in text.split(" · ")}
    assert {p for p in parts if not SAME.match(p)} - names == set()


def test_the_language_changes_at_once_and_what_one_wrote_stays(
    assistant: Running, visit: Open, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    assistant.script({"text": "First second third.", "hold": str(gate)})
    here = visit(assistant)
    here.ask("count").locator(".rich", has_text="First").wait_for()
    here.composer.fill("half a thought")
    assistant.http.put("/api/settings", json={"language": "zh-CN"})
    here.page.locator("html[lang=zh-CN]").wait_for()
    assert here.page.get_by_role("button", name="停止").is_visible()
    assert here.composer.input_value() == "half a thought"
    gate.touch()
    answer = here.finished(here.page.locator(".answer", has_text="First second third."))
    assert answer.get_by_role("button", name="重新回答", exact=True).is_visible()
