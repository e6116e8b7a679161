"""A real browser without a window: pictures of pages, and where their texts are after layout."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Goes into a page under test, never into a report: it tells the page around it what the layout came to.
_PROBE = """<script>
const boxes = selector => [...document.querySelectorAll(selector)].map(one => {
  const box = one.getBoundingClientRect();
  return { text: one.textContent, left: box.left, top: box.top, right: box.right, bottom: box.bottom }; });
parent.document.documentElement.setAttribute('data-found-' + window.name, JSON.stringify({
  texts: boxes('.names text:not(.quiet), .times > text, figure > svg > text'), signs: boxes('.sign circle'),
  width: document.documentElement.scrollWidth, asked: performance.getEntriesByType('resource').length }));
</script></body></html>"""


@dataclass(frozen=True, slots=True)
class Box:
    """Where a text or a sign is, in pixels."""

    text: str
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return across > 0.5 and down > 0.5


@dataclass(frozen=True, slots=True)
class Layout:
    """A page as laid out. width: of all of it, which is more than the window's where it overflows.

    asked: resources that it asked for.
    """

    texts: tuple[Box, ...]
    signs: tuple[Box, ...]
    width: float
    asked: int


def find_browser() -> str:
    """The command of a browser; skips where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("chromium is not installed")
    return found


def screenshot(page: Path, picture: Path, width: int, height: int, *options: str) -> NDArray[np.uint8]:
    """The pixels of a page, as (height, width, 3)."""
    _run(page, picture.parent, f"--screenshot={picture}", f"--window-size={width},{height}", *options)
    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))


def laid_out(pages: Mapping[str, str], folder: Path, width: int) -> dict[str, Layout]:
    """Pages in frames of this width, all at once; frames, for a window cannot be as narrow as a phone."""
    frames = "".join(
        f'<iframe name="{name}" style="border:0;width:{width}px;height:4000px"'
        f' srcdoc="{escape(text.replace("</body></html>", _PROBE))}"></iframe>'
        for name, text in pages.items()
    )
    outer = folder / f"frames-{width}.html"
    outer.write_text(f'<!DOCTYPE html><meta charset="utf-8"/><body style="margin:0">{frames}', encoding="utf-8")
    dump = _run(outer, folder, "--dump-dom", "--window-size=1280,4000", "--virtual-time-budget=5000")
    found = {name: json.loads(unescape(said)) for name, said in re.findall(r'data-found-(\w+)="([^"]*)"', dump)}
    assert found.keys() == pages.keys(), dump[:500]
    return {name: _layout(said) for name, said in found.items()}


def _layout(said: Any) -> Layout:
    texts, signs = (tuple(Box(**box) for box in said[key]) for key in ("texts", "signs"))
    return Layout(texts, signs, said["width"], said["asked"])


def _run(page: Path, folder: Path, *options: str) -> str:
    words = [find_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    words += ["--disable-background-networking", "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run([*words, *options, page.as_uri()], capture_output=True, timeout=90)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    return done.stdout.decode()
