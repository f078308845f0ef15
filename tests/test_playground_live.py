"""The playground in Chromium against both daemons, with the small pair and with a recorded one.

With ECD_SCREENSHOTS=FOLDER it writes the pictures of docs/PLAYGROUND.md there.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from browser import chromium, finished, opened
from playwright.sync_api import Browser, Page, ViewportSize, expect

from ecd.lab.rig import Daemons, running_rig
from ecd.lab.runs import Campaign
from ecd.lab.shipped import find_file
from ecd.lab.system import REPLAY, DaemonProcess, url_of
from ecd.lab.trace import load_trace

RTT_MS = 40.0
MAX_TOKENS = 64
HTTP = ("--http", "127.0.0.1:0")
TARGET, DRAFT = "smollm2-135m", "smollm2-135m-draft"
SMALL = Daemons(TARGET, DRAFT, edge_flags=HTTP)
# At the pace of a target on an accelerator and a draft beside it, so that drafting pays.
TRACE = f"{REPLAY}qwen-coder-greedy"
RECORDED = Daemons(TRACE, TRACE, ("--step-ms", "30"), ("--draft-ms", "5", *HTTP))
PROMPT = "Count from one to forty in words."
RECORDED_PROMPT = next(
    recording.prompt
    for recording in load_trace(find_file("traces", "qwen-coder-greedy")).recordings
    if recording.prompt.startswith("A tomato vendor")
)

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def small(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """The edge of the small pair. After the browser: without one no daemon is started."""
    with running_rig(tmp_path_factory.mktemp("small"), SMALL, Campaign((RTT_MS,))) as rig:
        yield rig.edges[RTT_MS]


@pytest.fixture(scope="module")
def recorded(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """The edge of the recorded pair, which has learned what drafting gives."""
    with running_rig(tmp_path_factory.mktemp("recorded"), RECORDED, Campaign((RTT_MS,))) as rig:
        edge = rig.edges[RTT_MS]
        for _ in range(3):
            edge.call("run", prompt=RECORDED_PROMPT, max_tokens=MAX_TOKENS)
        yield edge


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    told: list[str] = []
    yield told
    assert told == []


def playground(
    browser: Browser,
    edge: DaemonProcess,
    prompt: str,
    complaints: list[str],
    *,
    width: int = 1200,
    **looks: Any,
) -> Page:
    """The page of this edge, filled in. `looks`: settings of the browser's context."""
    context = browser.new_context(viewport=ViewportSize(width=width, height=900), **looks)
    page = opened(context, url_of(edge), complaints)
    page.get_by_text("Settings").click()
    page.get_by_label("Max tokens").fill(str(MAX_TOKENS))
    page.get_by_label("Prompt").fill(prompt)
    return page


def text_of(page: Page, answer: int = 0) -> str:
    return page.locator(".answer .text").nth(answer).text_content() or ""


def keep(page: Page, name: str) -> None:
    """A screenshot of the whole page, if screenshots are wanted."""
    folder = os.environ.get("ECD_SCREENSHOTS")
    if folder:
        page.evaluate("document.activeElement.blur(), scrollTo(0, 0)")
        page.screenshot(path=Path(folder, f"playground-{name}.png"), full_page=True)


def test_the_page_shows_what_the_edge_says(
    browser: Browser, small: DaemonProcess, complaints: list[str]
) -> None:
    page = playground(browser, small, PROMPT, complaints)
    # The small draft is no faster than its target; only who saves forwards has use for it.
    page.get_by_label("Objective").select_option("cost")
    result = small.call("run", prompt=PROMPT, max_tokens=MAX_TOKENS, objective="cost")
    page.keyboard.press("Control+Enter")
    finished(page)
    assert text_of(page) == result["text"]
    accepted = page.locator(".text .draft-accepted").count()
    assert accepted > 0
    assert accepted + page.locator(".text .target").count() == len(result["token_ids"])
    assert float(page.locator('[data-gauge="rtt"]').text_content() or 0) >= RTT_MS
    for shape in ("s-draft", "s-hint", "s-forward", "s-tokens"):
        assert page.locator(f".plot .{shape}").count() > 0
    assert page.locator(".plot .s-bar").count() == len(result["token_ids"])
    expect(page.locator("#link")).to_have_attribute("data-state", "connected")


def test_stop_ends_the_session(browser: Browser, small: DaemonProcess, complaints: list[str]) -> None:
    page = playground(browser, small, PROMPT, complaints)
    before = small.call("stats")["cancelled"]
    page.get_by_label("Max tokens").fill("1000")
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".text span").first).to_be_visible()
    page.keyboard.press("Escape")
    finished(page)
    small.wait(lambda status: status["sessions"] == 0)
    assert small.call("stats")["cancelled"] == before + 1
    expect(page.locator(".note").first).to_have_text(re.compile(r"^Stopped\."))


def test_compare_gets_the_same_text_without_drafting(
    browser: Browser, recorded: DaemonProcess, complaints: list[str]
) -> None:
    page = playground(browser, recorded, RECORDED_PROMPT, complaints)
    page.get_by_text("Settings").click()
    page.get_by_role("switch").check()
    page.get_by_role("button", name="Run").click()
    finished(page)
    assert text_of(page, 0) == text_of(page, 1) != ""
    assert page.locator(".answer").nth(0).locator(".draft-accepted").count() > 0
    assert page.locator(".answer").nth(1).locator(".draft-accepted").count() == 0
    expect(page.locator("#verdict")).to_have_text(re.compile("The text is the same, token for token"))
    keep(page, "light")


@pytest.mark.parametrize(
    ("name", "scheme", "width", "scale"), [("dark", "dark", 1200, 1), ("phone", "light", 360, 2)]
)
def test_an_answer_in_the_dark_and_on_a_telephone(
    browser: Browser,
    recorded: DaemonProcess,
    complaints: list[str],
    name: str,
    scheme: Literal["light", "dark"],
    width: int,
    scale: int,
) -> None:
    page = playground(
        browser,
        recorded,
        RECORDED_PROMPT,
        complaints,
        width=width,
        color_scheme=scheme,
        device_scale_factor=scale,
    )
    page.get_by_role("button", name="Run").click()
    finished(page)
    assert page.locator(".text .draft-accepted").count() > 0
    assert page.evaluate("document.documentElement.scrollWidth") == width
    keep(page, name)
