"""The manual's pictures: ``python tests/browser/screenshots.py [FOLDER]`` (docs/images by default).

The page is the real one in the system's Chromium, the documents are really indexed and searched;
only the model is scripted, so that the pictures say the same every time.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "assistant")]

from harness import Running, fake_pack, running, wait  # noqa: E402
from visits import Visit, launch  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser

IMAGES = HERE.parents[1] / "docs" / "images"
LARGEST = 150_000  # bytes of a picture
COLOURS = 128
WIDE = {"viewport": {"width": 1180, "height": 740}, "device_scale_factor": 1.5}
NARROW = {"viewport": {"width": 360, "height": 720}, "device_scale_factor": 2}

MANUAL = {
    "Installation manual.pdf": (
        "<h1>Outdoor unit</h1><p>Before the work begins, read all of this chapter.</p>"
        "<h1 style='break-before: page'>Clearances</h1><p>The outdoor unit draws air in at the "
        "back and blows it out at the front. Leave at least 30 cm between its back and the wall, "
        "60 cm on the side where the pipes leave, so that the service panel opens, and 100 cm in "
        "front of the air outlet. Never put the unit into a niche.</p>"
    ),
    "Noise.pdf": (
        "<h1>Noise of the outdoor unit</h1><p>In night mode the fan turns slower and the unit "
        "stays below 35 dB at three metres. Night mode begins at 22:00 unless you change it. "
        "Installed by Lin, lin@example.com.</p>"
    ),
    "热泵安装手册.pdf": (
        "<h1>室外机</h1><p>施工前请通读本章。</p><h1 style='break-before: page'>安装间距</h1>"
        "<p>室外机从背面吸风、正面出风。背面离墙至少 30 厘米；接管一侧留 60 厘米，以便打开维修盖；"
        "出风口前方留 100 厘米。夜间模式下风扇转速降低，三米处的噪声低于 35 分贝。</p>"
    ),
}
REPLIES = (
    {
        "when": "outdoor unit",
        "thinking": "The manual gives a distance for every side.",
        "text": "The outdoor unit needs **30 cm** to the wall behind it [2]. At night it stays "
        "below 35 dB at three metres, because its fan turns slower from 22:00 on [1].\n\n"
        "| Side | Distance | Why |\n|---|---|---|\n| Back | 30 cm | air intake |\n"
        "| Pipes | 60 cm | service panel |\n| Front | 100 cm | air outlet |\n\n"
        "Do not put it into a niche: the air would go round in circles.",
    },
    {
        "when": "室外机",
        "text": "室外机背面离墙至少要留 **30 厘米** [1]。各个方向的间距如下：\n\n"
        "| 方向 | 间距 | 原因 |\n|---|---|---|\n| 背面 | 30 厘米 | 进风 |\n"
        "| 接管一侧 | 60 厘米 | 打开维修盖 |\n| 正面 | 100 厘米 | 出风 |\n\n"
        "夜间模式下风扇转速会降低，三米处的噪声低于 35 分贝 [1]。",
    },
    {
        "when": "median",
        "text": "Sort the values once and take the middle one; with an even count, take the mean "
        "of the two in the middle:\n\n```python\ndef median(values: list[float]) -> float:\n"
        "    ordered = sorted(values)\n    middle = len(ordered) // 2\n"
        "    if len(ordered) % 2:\n        return ordered[middle]\n"
        "    return (ordered[middle - 1] + ordered[middle]) / 2\n```\n\n"
        "It raises `IndexError` for an empty list. Python's own `statistics.median` does the same.",
    },
)  # fmt: skip
EARLIER = (
    "Letter to the landlord",
    "Packing list for Yunnan",
    "给奶奶的生日祝福",
    "Names for a cat",
)
ENGLISH = "How far is the outdoor unit from the wall, and how much noise at night?"
CHINESE = "室外机离墙的间距是多少？夜间模式噪声大吗？"


def prepare(assistant: Running, browser: Browser, folder: Path) -> None:
    """A history and documents as a person has them after some weeks."""
    assistant.wait_ready()
    wait(lambda: assistant.state()["engine"]["reasons"])
    assistant.script({"text": "Certainly."})
    for title in EARLIER:
        assistant.ask(assistant.conversation(), title)
    http = assistant.http
    made = {c["title"]: c["id"] for c in http.get("/api/conversations").json()}
    house = http.post("/api/folders", json={"name": "House"}).json()["id"]
    http.patch(f"/api/conversations/{made[EARLIER[0]]}", json={"folder_id": house})
    http.patch(f"/api/conversations/{made[EARLIER[1]]}", json={"pinned": True})
    documents = folder / "Heat pump"
    documents.mkdir()
    page = browser.new_page()
    for name, html in MANUAL.items():
        page.set_content(html)
        page.pdf(path=documents / name)
    page.close()
    http.post("/api/documents", json={"path": str(documents)})
    wait(lambda: all(s["state"] == "ready" for s in http.get("/api/documents").json()["sources"]))
    cloud = {"name": "Teacher", "base_url": "https://api.example.com/v1", "model": "large-1"}
    http.put("/api/cloud", json={**cloud, "key": "-"})
    assistant.script(*REPLIES)


def save(visit: Visit, out: Path, name: str) -> None:
    """The page as a small PNG."""
    from PIL import Image

    visit.page.wait_for_timeout(200)  # fonts and the last frame
    whole = Image.open(io.BytesIO(visit.page.screenshot())).convert("RGB")
    path = out / f"assistant-{name}.png"
    whole.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path.name} {size / 1000:.0f} kB")
    assert size < LARGEST, f"{path.name} is too large for the manual"
    assert visit.problems == []


def top(visit: Visit) -> None:
    """Show the conversation from its beginning."""
    visit.page.locator(".conversation").evaluate("e => { e.scrollTop = 0; }")


def english(visit: Visit, shot: Callable[[str], None]) -> None:
    visit.finished(visit.ask(ENGLISH))
    top(visit)
    shot("english")
    visit.page.locator(".citation").first.click()
    visit.page.get_by_role("dialog").wait_for()
    shot("sources")
    visit.page.keyboard.press("Escape")
    visit.page.locator(".device-why").click()
    visit.page.get_by_role("dialog").wait_for()
    shot("devices")
    visit.page.keyboard.press("Escape")
    visit.composer.fill(ENGLISH)
    visit.page.get_by_role("button", name="Ask the cloud teacher").click()
    visit.page.locator(".exact pre").wait_for()
    shot("cloud")


def chinese(visit: Visit, shot: Callable[[str], None]) -> None:
    visit.finished(visit.ask(CHINESE))
    top(visit)
    shot("chinese")


def dark(visit: Visit, shot: Callable[[str], None]) -> None:
    visit.page.locator("[aria-pressed=true]").click()  # no documents for this one
    visit.page.mouse.move(0, 0)
    visit.finished(visit.ask("A function for the median, without a library"))
    top(visit)
    shot("dark")


def narrow(visit: Visit, shot: Callable[[str], None]) -> None:
    visit.finished(visit.ask(ENGLISH))
    top(visit)
    shot("narrow")


def documents(visit: Visit, shot: Callable[[str], None]) -> None:
    visit.go("documents")
    path = visit.page.locator(".card .path")
    path.evaluate("e => { e.textContent = '/home/lin/Documents/Heat pump'; }")  # not this machine's
    shot("documents")


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    scenes = (
        (english, {**WIDE}),
        (chinese, {**WIDE, "locale": "zh-CN"}),
        (dark, {**WIDE, "color_scheme": "dark"}),
        (narrow, {**NARROW}),
        (documents, {**WIDE}),
    )
    with tempfile.TemporaryDirectory() as folder, launch() as browser:
        home = Path(folder)
        with running(home / "first", pack=None) as assistant:
            visit = Visit(browser, assistant, **WIDE)
            visit.page.locator(".way").first.wait_for()
            save(visit, out, "first-start")
            visit.close()
        pack = fake_pack(home / "later" / "data" / "packs" / "model", "small-model")
        manifest = pack / "pack.json"
        manifest.write_text(
            manifest.read_text().replace('parameters": 1000', 'parameters": 1.35e8')
        )
        with running(home / "later", pack=pack) as assistant:
            prepare(assistant, browser, home / "later")
            for scene, options in scenes:
                visit = Visit(browser, assistant, **options)
                scene(visit, lambda name, v=visit: save(v, out, name))  # type: ignore[misc]
                visit.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
