"""The page of a run in a real browser: at a desk, on a phone, in the dark, on paper, from the keyboard."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from browser import Opened
from noisescape.experiments.toy_2d import TOY_2D, Toy2DConfig
from noisescape.report.single import write_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Toy2DConfig(replicas=8, control_replicas=4, steps=60)
    return write_report(TOY_2D.run(config, tmp_path_factory.mktemp("toy") / "run", jobs=1, progress=False))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_fetches_nothing_and_has_no_faults(browser: Any, page: Path, width: int, scheme: str) -> None:
    opened = Opened(browser, page, width=width, scheme=scheme)
    opened.tab.wait_for_selector(".main-svg")
    assert opened.overflow() == 0
    assert opened.complaints == []
    assert [address for address in opened.fetched if not address.startswith("blob:")] == [page.as_uri()]
    for picture in opened.tab.locator("img").all():
        assert picture.evaluate("image => image.complete && image.naturalWidth") > 100
        assert len(picture.get_attribute("alt")) > 20


def test_the_story_is_on_the_first_screen(browser: Any, page: Path) -> None:
    tab = Opened(browser, page).tab
    assert tab.locator(".question").inner_text() == TOY_2D.question
    for part in (".question", ".how-sure .badge", ".story img"):
        box = tab.locator(part).bounding_box()
        assert box["y"] + box["height"] <= 900, part


def test_words_stand_out_from_their_paper(browser: Any, page: Path) -> None:
    """Contrast of at least 4.5, as the guidelines on accessibility have it, in either scheme."""
    for scheme in ("light", "dark"):
        tab = Opened(browser, page, scheme=scheme).tab
        for part in (".lead p", ".how-sure", ".badge", "figcaption", "nav a", ".details", "td"):
            ink, paper = (
                tab.evaluate(f"getComputedStyle(document.querySelector({element!r})).{what}")
                for element, what in ((part, "color"), ("body", "backgroundColor"))
            )
            assert contrast(ink, paper) >= 4.5, (scheme, part)


def contrast(one: str, other: str) -> float:
    """Of two colours as a browser says them: the ratio of relative luminances."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_the_moving_picture_is_played_from_the_keyboard(browser: Any, page: Path) -> None:
    opened = Opened(browser, page)
    tab = opened.tab
    tab.wait_for_selector(".main-svg")
    button, slider, step = (tab.locator(f".playing {name}") for name in ("button", "input", "output"))
    slider.focus()
    tab.keyboard.press("End")
    tab.wait_for_function("document.querySelector('.playing output').textContent === '60'")
    assert slider.get_attribute("aria-valuetext") == "step 60"
    button.focus()
    tab.keyboard.press("Enter")  # from the end it begins anew
    assert button.inner_text() == "❚❚ pause"
    tab.wait_for_function("document.querySelector('.playing output').textContent !== '60'")
    tab.keyboard.press("Enter")
    assert button.inner_text() == "▶ play"
    halted = step.inner_text()
    tab.wait_for_timeout(300)
    assert step.inner_text() == halted
    tab.keyboard.press("Enter")
    tab.wait_for_function("document.querySelector('.playing output').textContent === '60'")
    tab.wait_for_function("document.querySelector('.playing button').textContent === '▶ play'")
    assert opened.complaints == []


def test_everything_to_set_or_to_scroll_is_reached_with_the_tab_key(browser: Any, page: Path) -> None:
    tab = Opened(browser, page, width=390).tab
    tab.wait_for_selector(".main-svg")
    wanted = tab.evaluate(
        "[...document.querySelectorAll('a, button, input, summary, [tabindex=\\'0\\']')]"
        ".filter(element => element.checkVisibility()).length"
    )
    reached = set()
    for _ in range(wanted + 5):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
    scrolled = tab.evaluate(
        "[...document.querySelectorAll('*')].map((element, place) => [element, place])"
        ".filter(([element]) => element.scrollWidth > element.clientWidth + 1 && element.clientWidth > 0"
        " && ['auto', 'scroll'].includes(getComputedStyle(element).overflowX)).map(([, place]) => place)"
    )
    assert scrolled, "on a phone pictures and tables are wider than the screen"
    assert set(scrolled) <= reached
    assert len(reached) >= wanted


def test_on_paper_the_page_is_light_and_hides_nothing(browser: Any, page: Path) -> None:
    tab = Opened(browser, page, scheme="dark").tab
    tab.emulate_media(media="print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.locator("nav").is_hidden()
    assert tab.locator(".playing").is_hidden()
    assert len(tab.pdf()) > 10_000
