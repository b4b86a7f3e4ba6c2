"""report.html in a browser, at two widths, light and dark: nothing on the console, nothing blank, nothing wider than the window."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--log-level=0", "--virtual-time-budget=3000",
)  # fmt: skip
VIEWS = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]
# what is seen of a page in a frame: its own origin, so that this script may look into it
LOOK = """
function colour(element, what) { return frame.contentWindow.getComputedStyle(element)[what]; }
window.onload = () => {
  const found = [];
  for (const each of document.querySelectorAll("iframe")) {
    window.frame = each;
    const page = each.contentDocument, root = page.scrollingElement;
    found.push({
      width: each.clientWidth, needed: root.scrollWidth, height: root.scrollHeight,
      paper: colour(page.body, "backgroundColor"), ink: colour(page.body, "color"),
      soft: colour(page.querySelector(".quiet"), "color"), panel: colour(page.querySelector("header"), "backgroundColor"),
      charts: [...page.querySelectorAll("svg")].map((svg) => ({
        says: svg.getAttribute("aria-label"), width: svg.getBoundingClientRect().width,
        marks: [...svg.querySelectorAll("path:not(.grid):not(.axis)")].map((path) => {
          const box = path.getBBox(), fill = colour(path, "fill"), stroke = colour(path, "stroke");
          return {size: box.width + box.height, inside: box.x >= 0 && box.x + box.width <= 360, seen: fill !== "none" || stroke !== "none"};
        }),
        text: Math.min(...[...svg.querySelectorAll("text")].map((text) => text.getBoundingClientRect().height)),
        outside: [...svg.querySelectorAll("text")].filter((text) => {
          const box = text.getBoundingClientRect(), edge = svg.getBoundingClientRect();
          return box.left < edge.left - 1 || box.right > edge.right + 1 || box.bottom > edge.bottom + 1;
        }).map((text) => text.textContent),
      })),
    });
  }
  const out = document.createElement("pre"); out.id = "found"; out.textContent = JSON.stringify(found); document.body.append(out);
};
"""


def seen(page: str, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """(what LOOK found in each of VIEWS, lines on the console)."""
    frames = "".join(
        f'<iframe style="width:{width}px;height:900px;border:0;color-scheme:{scheme}" srcdoc="{html.escape(page)}"></iframe>'
        for width, scheme in VIEWS
    )
    file = folder / "frames.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><body><script>{LOOK}</script>{frames}", encoding="utf-8")
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=180,
    )
    said = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert said, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(said[1])), console


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG 2 defines it: 1 to 21."""

    def luminance(colour: str) -> float:
        channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_page_is_whole_and_quiet_at_two_widths_light_and_dark(pico_fp16: Path, tmp_path: Path) -> None:
    page = (pico_fp16 / "report.html").read_text(encoding="utf-8")
    views, console = seen(page, tmp_path)
    assert console == []
    assert len(views) == len(VIEWS)
    for (width, scheme), found in zip(VIEWS, views, strict=True):
        where = f"{width} px, {scheme}"
        assert found["width"] == width
        assert found["needed"] <= width, f"{where}: {found['needed']} px wide"
        assert found["height"] > 3000, where
        assert contrast(found["ink"], found["paper"]) >= 7, where
        assert contrast(found["soft"], found["paper"]) >= 4.5, where
        assert contrast(found["ink"], found["panel"]) >= 7, where
        assert len(found["charts"]) == 7, where
        for chart in found["charts"]:
            assert chart["marks"], (where, chart)
            assert all(mark["inside"] and mark["seen"] for mark in chart["marks"]), (where, chart)
            assert sum(mark["size"] for mark in chart["marks"]) > 40, f"{where}: blank: {chart['says']}"
            assert chart["outside"] == [], (where, chart["says"])
            assert chart["text"] >= 9, (where, chart)
    light, dark = views[0], views[1]
    assert contrast(light["paper"], dark["paper"]) > 10, "dark is not dark"


def test_the_check_sees_what_a_page_must_not_do(pico_fp16: Path, tmp_path: Path) -> None:
    page = (pico_fp16 / "report.html").read_text(encoding="utf-8")
    asking = page.replace(
        "<main>", '<main><img src="https://example.invalid/x.png"><script>alert(1)</script><p style="width:2000px">wide</p>'
    )
    assert asking != page
    views, console = seen(asking, tmp_path)
    assert any("example.invalid" in line for line in console), console
    assert any("script" in line for line in console), console
    assert views[0]["needed"] > 390
