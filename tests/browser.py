"""Chromium without a network, for tests of pages: what it is started with, what it complained of, where screenshots are kept."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
         "--disable-sync --use-angle=swiftshader --enable-unsafe-swiftshader")  # fmt: skip
PATIENCE_MS = 60_000  # a machine that does other things beside


@contextmanager
def chromium() -> Iterator[Browser]:
    """The installed browser; without one the test is skipped, or fails if `STOFM_REQUIRE` names it."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        assert "chromium" not in os.environ.get("STOFM_REQUIRE", ""), "STOFM_REQUIRE names chromium, which is not installed"
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, path: Path, *, theme: str = "light", width: int = 1280, height: int = 900) -> Iterator[Page]:
    """A page opened from the file system, offline; on leaving, it must not have asked for anything or complained."""
    context = browser.new_context(color_scheme=theme, viewport={"width": width, "height": height}, offline=True, reduced_motion="reduce")
    page, asked, complaints = context.new_page(), [], []
    page.set_default_timeout(PATIENCE_MS)
    page.on("request", lambda request: asked.append(request.url[:100]))
    page.on("console", lambda message: complaints.append(message.text) if _is_complaint(message.type, message.text) else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    if page.locator("#tissue").count():
        page.wait_for_selector("#tissue[data-ready]")
    yield page
    context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("data:", "blob:", path.as_uri()))] == []


def _is_complaint(kind: str, text: str) -> bool:
    return kind in ("error", "warning") and "GPU stall due to ReadPixels" not in text  # what drawing without a graphics card says


def pixels(page: Page, selector: str) -> np.ndarray:
    """(height, width, 3) float in 0 to 1 of an element as it is seen."""
    return imread(io.BytesIO(page.locator(selector).screenshot()), format="png")[..., :3]


def share_of(picture: np.ndarray, colour: str) -> float:
    """Share of pixels that have a colour, up to rounding."""
    return float((np.abs(picture - np.array(to_rgb(colour))).max(axis=-1) < 0.02).mean())


def keep(page: Page, name: str, folder: Path) -> Path:
    """Keep a screenshot of the whole page, in the folder that `STOFM_SCREENSHOTS` names or else in `folder`."""
    path = Path(os.environ.get("STOFM_SCREENSHOTS", folder)) / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    return path
