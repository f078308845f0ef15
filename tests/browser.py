"""Chromium without a window, for tests of what the edge shows in a browser."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

# It runs as root in containers, and is to ask nobody for anything.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
FINISH_MS = 60_000


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium; skips the test where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium on the PATH (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def opened(context: BrowserContext, url: str, complaints: list[str]) -> Page:
    """A page at `url`; what it complains of at the console goes to `complaints`."""

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    page = context.new_page()
    page.on("console", heard)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(url)
    return page


def finished(page: Page) -> None:
    """Waits until nothing runs on the playground's page."""
    expect(page.locator("#run")).to_have_attribute("aria-disabled", "false", timeout=FINISH_MS)
    expect(page.locator("#answers")).to_have_attribute("aria-busy", "false", timeout=FINISH_MS)
