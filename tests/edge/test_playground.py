"""The playground's page: what it may load, and what it shows in Chromium of a made-up answer."""

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from browser import chromium, finished, opened
from playwright.sync_api import Browser, Page, ViewportSize, expect
from recorded_gateway import chunks, pieces, recorded_gateway

from ecd.edge.playground import page as playground
from ecd.wire.messages import Origin

LABELS = [origin.label for origin in Origin]
TELEPHONE = ViewportSize(width=360, height=780)
DESK = ViewportSize(width=1200, height=900)
ACTIVE_ROLES = {
    "button",
    "textbox",
    "checkbox",
    "switch",
    "spinbutton",
    "combobox",
    "slider",
    "image",
    "region",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def gateway() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    with recorded_gateway() as serving:
        yield serving


@pytest.fixture
def complaints() -> list[str]:
    return []


@pytest.fixture
def page(
    browser: Browser, gateway: tuple[str, list[dict[str, Any]]], complaints: list[str]
) -> Iterator[Page]:
    context = browser.new_context(viewport=DESK, permissions=["clipboard-read", "clipboard-write"])
    yield opened(context, gateway[0], complaints)
    context.close()
    assert complaints == []


def tokens(page: Page, answer: int = 0) -> list[tuple[str, str]]:
    """What an answer shows: each token's origin and text."""
    found: list[tuple[str, str]] = (
        page.locator(".answer .text")
        .nth(answer)
        .locator("span")
        .evaluate_all("all => all.map(each => [each.dataset.origin, each.textContent])")
    )
    return [(origin, text) for origin, text in found]


def expected(*, draft: bool) -> list[tuple[str, str]]:
    told = [ecd for _, ecd in chunks(draft)]
    return [pair for ecd in told for pair in zip(ecd["origins"], ecd["pieces"], strict=True)]


# -- the file


def test_the_page_needs_nothing_from_elsewhere_and_its_policy_says_so() -> None:
    html, policy = playground()
    text = html.decode()
    assert re.findall(r"\b(?:src|href|action)=\"(?!data:)[^\"]*\"|@import|\burl\(", text) == []
    assert re.findall(r"<[^>]*\s(?:style|on\w+)=", text) == []
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src 'self'" in policy


# -- in the browser


@pytest.mark.browser
def test_an_answer_shows_each_token_with_its_origin(page: Page) -> None:
    page.get_by_role("button", name="Run").click()
    finished(page)
    assert tokens(page) == expected(draft=True)
    assert page.locator(".text").inner_text() == "".join(pieces())
    assert {origin for origin, _ in tokens(page)} == set(LABELS)
    expect(page.locator('[data-gauge="rtt"]')).to_have_text("40")
    for gauge in ("speed", "acceptance", "forward", "ahead", "bytes"):
        expect(page.locator(f'[data-gauge="{gauge}"]')).to_have_text(re.compile(r"^[1-9][\d.]*$"))


def style_of(page: Page, label: str) -> dict[str, str]:
    style: dict[str, str] = page.locator(f".text .{label}").first.evaluate(
        """each => {
            const { color, textDecorationLine, textDecorationStyle } = getComputedStyle(each);
            const { backgroundColor } = getComputedStyle(each.parentElement);
            return { color, backgroundColor, cue: `${textDecorationLine} ${textDecorationStyle}` };
        }"""
    )
    return style


def contrast(first: str, second: str) -> float:
    """WCAG 2.2's contrast ratio of two computed opaque colours."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.browser
def test_origins_differ_by_colour_and_by_another_cue_in_light_and_dark(page: Page) -> None:
    page.keyboard.press("Control+Enter")
    finished(page)
    for theme in ("light", "dark"):
        page.get_by_role("button", name="Theme").click()
        expect(page.get_by_role("button", name=f"Theme: {theme}")).to_be_visible()
        styles = [style_of(page, label) for label in LABELS]
        assert len({style["color"] for style in styles}) == len(LABELS)
        assert len({style["cue"] for style in styles}) == len(LABELS)
        assert min(contrast(style["color"], style["backgroundColor"]) for style in styles) >= 4.5


@pytest.mark.browser
def test_the_system_theme_is_followed_until_one_is_chosen(page: Page) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme="light" if scheme == "light" else "dark")
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1]
    page.get_by_role("button", name="Theme: auto").click()
    page.reload()
    expect(page.get_by_role("button", name="Theme: light")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == grounds[0]


@pytest.mark.browser
def test_compare_asks_twice_and_judges(page: Page, gateway: tuple[str, list[dict[str, Any]]]) -> None:
    page.get_by_role("switch", name="Compare with drafting off").check()
    page.get_by_label("Prompt").fill("compare me")
    page.get_by_role("button", name="Run").click()
    finished(page)
    ours, alone = gateway[1][-2:]
    assert (ours["ecd"].pop("draft"), alone["ecd"].pop("draft")) == (True, False)
    assert alone["ecd"].pop("mode") == "cloud-only", "an edge in mode confident is not without drafts"
    assert ours == alone
    assert ours["messages"] == [{"role": "user", "content": "compare me"}]
    assert tokens(page, 0) == expected(draft=True)
    assert tokens(page, 1) == expected(draft=False)
    boxes = [page.locator(".answer").nth(index).bounding_box() for index in (0, 1)]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[0]["y"] == boxes[1]["y"]
    verdict = page.locator("#verdict")
    expect(verdict).to_have_text(
        re.compile(r"times as fast as without\. The text is the same, token for token\.")
    )
    page.get_by_role("button", name="Play both again").click()
    expect(page.locator("#again")).to_have_attribute("aria-disabled", "false", timeout=30_000)
    assert tokens(page, 1) == expected(draft=False)


@pytest.mark.browser
def test_the_keyboard_is_enough(page: Page) -> None:
    page.get_by_label("Prompt").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("never end")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".text span").first).to_be_visible()
    page.keyboard.press("Escape")
    finished(page)
    expect(page.locator(".note").first).to_have_text(re.compile(r"^Stopped\. \d+ tokens"))
    assert 0 < len(tokens(page)) < len(pieces())
    seen = []
    page.get_by_label("Prompt").focus()
    for _ in range(6):
        page.keyboard.press("Tab")
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        seen.append((page.evaluate("document.activeElement.id"), ring))
    assert [name for name, _ in seen][:4] == ["run", "stop", "compare", "curl"]
    assert {ring for _, ring in seen} == {"solid"}


@pytest.mark.browser
def test_nothing_is_wider_than_a_telephone(page: Page) -> None:
    page.set_viewport_size(TELEPHONE)
    page.get_by_text("Settings").click()
    page.get_by_role("switch").check()
    page.get_by_role("button", name="Run").click()
    finished(page)
    page.get_by_text("As a table").click()
    widths = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert widths == [360, 360]
    cut_off = page.evaluate(
        """() => [...document.querySelectorAll("button, label, dt, dd, dd small, h1, h2, input, select")]
            .filter((each) => each.offsetParent && each.getBoundingClientRect().right > innerWidth)
            .map((each) => each.outerHTML)"""
    )
    assert cut_off == []


@pytest.mark.browser
def test_everything_that_can_be_used_has_a_name(page: Page) -> None:
    page.get_by_text("Settings").click()
    page.get_by_role("button", name="Run").click()
    finished(page)
    page.get_by_text("As a table").click()
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", "").strip())
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in ACTIVE_ROLES
    ]
    assert {role for role, _ in named} >= ACTIVE_ROLES - {"checkbox"}
    assert [role for role, name in named if not name] == []


@pytest.mark.browser
def test_a_screen_reader_hears_whole_sentences_and_the_outcome(page: Page) -> None:
    page.get_by_role("button", name="Run").click()
    finished(page)
    spoken = page.locator("#spoken")
    expect(spoken).to_have_attribute("aria-live", "polite")
    said: list[str] = spoken.locator("p").all_text_contents()
    assert "".join(said) == "".join(pieces())
    assert 1 < len(said) < 10
    expect(page.get_by_role("status")).to_have_text(re.compile("Complete"))


@pytest.mark.browser
def test_the_picture_has_what_happened_and_says_it_in_words_too(page: Page) -> None:
    page.get_by_role("button", name="Run").click()
    finished(page)
    events = [event for _, ecd in chunks(True) for event in ecd["timeline"]]
    kinds = [event["kind"] for event in events]
    for shape, kind in (
        ("s-draft", "drafted"),
        ("s-hint", "hints-sent"),
        ("s-forward", "tokens-arrived"),
        ("s-tokens", "tokens-arrived"),
        ("s-void", "rolled-back"),
    ):
        assert page.locator(f".plot .{shape}").count() == kinds.count(kind) > 0
    assert page.locator(".plot .s-bar").count() == len(pieces())
    label = page.get_by_role("img").get_attribute("aria-label") or ""
    assert f"took {kinds.count('tokens-arrived')} forwards" in label
    assert f"given up {kinds.count('rolled-back')} times" in label
    page.get_by_text("As a table").click()
    expect(page.locator("#table tbody tr")).to_have_count(len(events))


@pytest.mark.browser
def test_the_picture_can_be_moved_along_time(page: Page) -> None:
    page.get_by_role("button", name="Run").click()
    finished(page)
    plot, pan = page.locator(".plot"), page.get_by_role("slider")
    whole = plot.get_attribute("transform")
    page.get_by_role("button", name="Show less time").click()
    assert plot.get_attribute("transform") != whole
    pan.focus()
    before = pan.get_attribute("aria-valuetext")
    page.keyboard.press("End")
    assert pan.get_attribute("aria-valuetext") != before
    page.get_by_role("button", name="Fit").click()
    assert plot.get_attribute("transform") == whole


@pytest.mark.browser
def test_settings_are_asked_for_and_the_curl_command_asks_the_same(
    page: Page, gateway: tuple[str, list[dict[str, Any]]]
) -> None:
    page.get_by_text("Settings").click()
    page.get_by_label("Prompt").fill('it\'s\n"quoted" $HOME')
    page.get_by_label("Temperature").fill("0.7")
    page.get_by_label("Seed").fill("99")
    page.get_by_label("Max tokens").fill("33")
    page.get_by_label("Objective").select_option("cost")
    page.get_by_label("Mode").select_option("confident")
    page.get_by_role("button", name="Run").click()
    finished(page)
    body = gateway[1][-1]
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0.7, 99, 33)
    assert body["ecd"] == {"draft": True, "timeline": True, "objective": "cost", "mode": "confident"}
    page.get_by_role("button", name="Copy as curl").click()
    command = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    assert command[:2] == ["curl", "-N"]
    assert command[2] == f"{gateway[0]}/v1/chat/completions"
    del body["ecd"]["timeline"]
    assert json.loads(command[command.index("-d") + 1]) == body
    page.get_by_role("button", name="Copy text").click()
    assert page.evaluate("navigator.clipboard.readText()") == "".join(pieces())


@pytest.mark.browser
def test_the_mode_is_chosen_by_keyboard_and_compared_with_the_target_alone(
    page: Page, gateway: tuple[str, list[dict[str, Any]]]
) -> None:
    mode, switch = page.get_by_label("Mode"), page.get_by_role("switch")
    page.get_by_text("Settings").click()
    switch.check()
    page.get_by_label("Max tokens").focus()
    page.keyboard.press("Tab")
    expect(mode).to_be_focused()
    asked = []
    for _ in range(5):
        asked.append(page.evaluate("request().ecd.mode"))
        page.keyboard.press("ArrowDown")
    assert asked == [None, "exact", "confident", "edge-only", "cloud-only"]
    expect(switch).to_be_disabled()
    page.keyboard.press("ArrowUp")
    expect(switch).to_be_enabled()
    expect(switch).to_be_checked()
    page.keyboard.press("Control+Enter")
    finished(page)
    assert [body["ecd"]["mode"] for body in gateway[1][-2:]] == ["edge-only", "cloud-only"]
    expect(page.locator("#verdict")).to_have_text(
        re.compile(r"^The draft alone is [\d.]+ times as fast as the target alone\.")
    )


@pytest.mark.browser
def test_a_setting_that_cannot_be_is_not_sent(page: Page, gateway: tuple[str, list[dict[str, Any]]]) -> None:
    page.get_by_text("Settings").click()
    page.get_by_label("Max tokens").fill("0")
    page.get_by_text("Settings").click()
    sent = len(gateway[1])
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_label("Max tokens")).to_be_focused()
    assert len(gateway[1]) == sent


@pytest.mark.browser
def test_a_refusal_is_told(page: Page, complaints: list[str]) -> None:
    page.get_by_label("Prompt").fill("refuse")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("alert")).to_have_text("the cloud refuses this edge")
    finished(page)
    # The browser's own line on the status code.
    assert [text for text in complaints if "503" not in text] == []
    complaints.clear()


@pytest.mark.browser
def test_an_api_key_is_shown_to_the_server_and_not_put_into_the_command(page: Page) -> None:
    page.get_by_text("Settings").click()
    page.get_by_label("API key").fill("secret-1")
    with page.expect_request("**/v1/chat/completions") as asked:
        page.get_by_role("button", name="Run").click()
    finished(page)
    assert asked.value.headers["authorization"] == "Bearer secret-1"
    page.get_by_role("button", name="Copy as curl").click()
    command = page.evaluate("navigator.clipboard.readText()")
    assert '"Authorization: Bearer $ECD_API_KEY"' in command
    assert "secret-1" not in command


@pytest.mark.browser
def test_both_answers_are_asked_for_what_stood_there_at_the_start(
    page: Page, gateway: tuple[str, list[dict[str, Any]]]
) -> None:
    page.get_by_role("switch").check()
    page.get_by_label("Prompt").fill("the first")
    page.get_by_role("button", name="Run").click()
    page.get_by_label("Prompt").fill("another")
    finished(page)
    assert [body["messages"][0]["content"] for body in gateway[1][-2:]] == ["the first"] * 2
