"""The page of a run in Chromium: what runs, what is shown, and how it looks by screen and by key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from browser import Browser, chromium
from report_case import EVIL_FILE, NAMES, make_run
from vpl.pages import report


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("page"))


ENTER, TAB = "\ue007", "\ue004"


@pytest.fixture(scope="module")
def browser():
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def opened(browser, run_folder):
    path = report.report(run_folder)

    def again(width: int = 1280, dark: bool = False) -> Browser:
        browser.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        features = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        browser.devtools(
            "Emulation.setEmulatedMedia", features=[{"name": name, "value": one} for name, one in features.items()]
        )
        browser.open(path)
        return browser

    return again


def shown(browser: Browser) -> list[str]:
    return browser.run("return [...document.querySelectorAll('.card:not([hidden]) h3')].map(one => one.textContent)")


@pytest.mark.slow
def test_chromium_has_nothing_to_complain_about(opened):
    browser = opened()
    assert browser.run("return document.title") == "run & co – vpl report"
    assert browser.console() == []
    assert browser.run("return window.broken") is None
    assert browser.run("return document.querySelectorAll('script').length") == 1
    assert (
        browser.run("return performance.getEntriesByType('resource').filter(one => /^http/.test(one.name)).length") == 0
    )
    broken = "return [...document.images].filter(one => !one.complete || !one.naturalWidth || !one.alt).length"
    assert browser.run(broken) == 0


def test_worst_first_on_a_click(opened):
    browser = opened()
    assert shown(browser) == [EVIL_FILE, "a1", "a9", "a10", "v0", "v1"]
    browser.click("[data-order=worst]")
    worst = shown(browser)
    assert worst[0] == "a1" and set(worst[-2:]) == {"v0", "v1"}
    assert browser.run("return document.querySelector('[data-order=worst]').ariaPressed") == "true"
    assert "worst iou first" in browser.run("return document.getElementById('said').textContent")
    browser.click("button[data-split=train]")
    assert shown(browser) == worst[:-2]
    browser.click("[data-order=best]")
    assert shown(browser) == worst[:-2][::-1]
    assert browser.console() == []


def test_a_class_alone_and_pictures_that_enlarge(opened):
    browser = opened()
    browser.run(
        "const one = document.getElementById('class'); one.value = 'dog'; one.dispatchEvent(new Event('change'))"
    )
    assert shown(browser) == [EVIL_FILE]
    browser.run("const one = document.getElementById('class'); one.value = ''; one.dispatchEvent(new Event('change'))")
    browser.click(".card [data-large]")
    assert browser.run("return document.getElementById('large').open") is True
    panes = "return document.querySelectorAll('#large-panes figure img').length"
    assert (
        browser.run(panes) == 7 and browser.run("return document.getElementById('large-name').textContent") == EVIL_FILE
    )
    wide = "return document.querySelector('#large-panes img').getBoundingClientRect().width"
    assert browser.run(wide) > 300
    browser.click("#shut")
    assert browser.run("return window.broken") is None and browser.console() == []


def test_everything_works_by_keyboard(opened):
    browser = opened()
    browser.run("document.querySelector('#classes table.sortable button').focus()")
    outline = "const s = getComputedStyle(document.activeElement); return [s.outlineStyle, parseFloat(s.outlineWidth)]"
    browser.press(ENTER)
    assert browser.run("return document.querySelector('#classes table.sortable th').ariaSort") == "ascending"
    style, width = browser.run(outline)
    assert style == "solid" and width >= 2
    table = "document.querySelector('#classes table.sortable')"
    rows = f"return [...{table}.tBodies[0].rows].map(one => one.cells[0].textContent)"
    up = browser.run(rows)
    browser.press(ENTER)
    assert browser.run(rows) == up[::-1] and sorted(up) == sorted(["background", *NAMES])
    browser.run(
        "window.reached = []; document.activeElement.blur(); window.scrollTo(0, 0);"
        "document.addEventListener('focusin', ({target}) =>"
        " reached.push(target.id || target.dataset.order || target.textContent))"
    )
    browser.press(TAB, 80)
    reached = set(browser.run("return window.reached"))
    assert {"worst", "strength", "Gallery", "Skip to the gallery"} <= reached
    assert browser.run("return [...document.querySelectorAll('[onclick], div[tabindex]:not([role])')].length") == 0


def test_one_class_of_the_projection_can_be_picked(opened):
    browser = opened()
    browser.click("[data-pick='0']")
    on = "return [...document.querySelectorAll('#scatter .on')].map(one => one.dataset.c)"
    marks = browser.run(on)
    assert set(marks) == {"0"} and len(marks) == 4 + 3  # regions, link, text and vision prototype
    browser.click("[data-pick='0']")
    assert browser.run(on) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_the_screen_and_can_be_read(opened, width, dark):
    browser = opened(width, dark)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    contrast = """
    const light = text => {
      const parts = text.match(/[\\d.]+/g).slice(0, 3).map(one => one / 255);
      const line = parts.map(one => one <= .04045 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4);
      return .2126 * line[0] + .7152 * line[1] + .0722 * line[2];
    };
    const paper = light(getComputedStyle(document.body).backgroundColor);
    return [...document.querySelectorAll('p, th, td, h1, h2, h3, dt, dd, a, figcaption')].map(one => {
      const ink = light(getComputedStyle(one).color);
      return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
    });
    """
    assert min(browser.run(contrast)) >= 4.5
    assert (browser.run("return getComputedStyle(document.body).backgroundColor") < "rgb(1") is False
    paper = [int(n) for n in re.findall(r"\d+", browser.run("return getComputedStyle(document.body).backgroundColor"))]
    assert (max(paper) < 60) if dark else (min(paper) > 230)


def test_motion_is_left_out_when_it_is_unwelcome(opened):
    browser = opened()
    smooth = "return getComputedStyle(document.documentElement).scrollBehavior"
    assert browser.run(smooth) == "auto"
    browser.devtools("Emulation.setEmulatedMedia", features=[])
    assert browser.run(smooth) == "smooth"


def test_a_smuggled_script_does_not_run(opened, run_folder):
    path = run_folder.parent / "smuggled.html"
    page = (run_folder / "report.html").read_text(encoding="utf-8")
    path.write_text(page.replace("<footer>", "<script>window.broken = 3</script><footer>"), encoding="utf-8")
    browser = opened()
    browser.open(path)
    assert browser.run("return window.broken") is None
    assert any("Content Security Policy" in message for message in browser.console())
