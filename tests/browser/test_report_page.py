"""The report's page in a real browser: drawn without an error, used by keyboard and pointer."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smdtrack.record.sources import open_run
from smdtrack.report.comparison import compare
from smdtrack.report.facts import facts_of
from smdtrack.report.page import write_page
from tests.browser import chart_page
from tests.report.large_runs import large_run
from tests.report.synthetic_runs import NAMES, make_record
from tests.report.test_page import HOSTILE

pytestmark = pytest.mark.browser
DRAWN = "html[data-drawn=yes]"


@pytest.fixture(scope="module")
def browser() -> str:
    executable = chart_page.chromium()
    if executable is None:
        message = "no Chromium: set SMDTRACK_CHROMIUM or put one on the PATH"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(message)
        pytest.skip(message)
    return executable


@pytest.fixture(scope="module")
def tab(browser: str) -> Iterator[Any]:
    """A tab that fails the test for any error or message on its console, and for any request but the page's file."""
    with chart_page.open_page(browser) as page:
        page.said = []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or page.said.append(request.url))
        yield page
        assert page.said == []


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    run = open_run(str(make_record(folder / "run", start=[1, 1, 1, 1, 200], lags=(4,))))
    write_page(folder / "page.html", [run])
    return folder / "page.html"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    runs = [open_run(str(make_record(folder / name, lr=lr))) for name, lr in (("a", 0.1), ("b", 0.4))]
    comparison = compare([facts_of(run, letter) for run, letter in zip(runs, "AB", strict=True)])
    write_page(folder / "page.html", runs, comparison)
    return folder / "page.html"


def open_page(tab: Any, path: Path, scheme: str = "light") -> None:
    tab.emulate_media(color_scheme=scheme)
    tab.goto("about:blank")  # the same file with another # is not loaded anew
    tab.goto(path.as_uri())
    tab.wait_for_selector(DRAWN)


def picked(tab: Any) -> str:
    return str(tab.inner_text("#picked"))


def drawn(tab: Any) -> list[int]:
    """Number of curves in each chart of the picked weight."""
    script = "[...document.querySelectorAll('svg.live')].map(svg => svg.querySelectorAll('g path').length)"
    return list(tab.evaluate(script))


def test_the_weight_furthest_from_its_line_is_shown_first(tab: Any, one: Path) -> None:
    open_page(tab, one)
    assert picked(tab) == NAMES[-1]
    assert drawn(tab) == [3, 2, 2, 1, 1, 1]


def test_keyboard(tab: Any, one: Path) -> None:
    open_page(tab, one)
    tab.keyboard.press("ArrowLeft")
    assert picked(tab) == NAMES[-2]
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert picked(tab) == NAMES[-1]
    tab.keyboard.press("/")
    tab.keyboard.type("layer1")
    assert tab.locator("#weights option").count() == 2
    assert picked(tab) == "layer1.0.conv1"
    tab.keyboard.press("ArrowDown")
    assert picked(tab) == "layer1.0.conv2"
    assert tab.inner_text("#found") == "2 of 5 weights"


def test_picker_table_and_map_lead_to_a_weight(tab: Any, one: Path) -> None:
    open_page(tab, one)
    tab.select_option("#weights", "1")
    assert picked(tab) == NAMES[1]
    tab.locator("#table button.link", has_text=NAMES[2]).first.click()
    assert picked(tab) == NAMES[2]
    box = tab.locator("svg.map .hit").bounding_box()
    tab.locator("svg.map .hit").click(position={"x": box["width"] / 2, "y": box["height"] * 0.1})
    assert picked(tab) == NAMES[0]


def test_the_map_tells_weight_step_and_value(tab: Any, one: Path) -> None:
    open_page(tab, one)
    hit = tab.locator("svg.map .hit")
    hit.scroll_into_view_if_needed()
    box = hit.bounding_box()
    hit.hover(position={"x": box["width"] - 2, "y": box["height"] * 0.3})
    weight, steps, value = tab.inner_text("#tip").splitlines()
    assert weight == NAMES[1]
    assert steps.endswith("900")
    assert 0.7 < float(value.removeprefix("measured / line ")) < 1.3


def test_zoom_and_back(tab: Any, one: Path) -> None:
    open_page(tab, one)
    svg = tab.locator("svg.live").first
    svg.scroll_into_view_if_needed()
    ticks = svg.locator("text.middle").all_text_contents()
    box = svg.bounding_box()
    tab.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 50)
    assert "step" in tab.locator("output").first.inner_text()
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 50)
    tab.mouse.up()
    assert svg.locator("text.middle").all_text_contents() != ticks
    assert tab.is_enabled("#reset")
    tab.keyboard.press("Escape")
    assert svg.locator("text.middle").all_text_contents() == ticks
    assert tab.is_disabled("#reset")


def test_other_axes(tab: Any, two: Path) -> None:
    open_page(tab, two)
    assert drawn(tab)[0] == 6
    assert tab.locator("#axis option").all_text_contents() == ["over steps", "over time constants"]
    tab.select_option("#axis", "time-constants")
    ticks = [float(text) for text in tab.locator("svg.live").first.locator("text.middle").all_text_contents()]
    assert 60 <= max(ticks) <= 72, "B lasts 72 time constants"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(tab: Any, two: Path, scheme: str) -> None:
    open_page(tab, two, scheme)
    script = """() => ['body', '.soft', 'a'].map(name => {
        const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(v => { v /= 255;
            return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
            return .2126 * r + .7152 * g + .0722 * b; };
        const one = light(getComputedStyle(document.querySelector(name)).color);
        const two = light(getComputedStyle(document.body).backgroundColor);
        return (Math.max(one, two) + .05) / (Math.min(one, two) + .05);
    })"""
    assert min(tab.evaluate(script)) >= 4.5, "contrast of WCAG AA"
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_hostile_names_do_nothing(tab: Any, tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", [open_run(str(make_record(tmp_path / "run", names=HOSTILE)))])
    open_page(tab, tmp_path / "page.html")
    for index, name in enumerate(HOSTILE):
        tab.select_option("#weights", str(index))
        assert tab.text_content("#picked") == name
    tab.locator("svg.map .hit").hover()
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the window"


def test_a_narrow_window(tab: Any, two: Path) -> None:
    tab.set_viewport_size({"width": 400, "height": 800})
    try:
        open_page(tab, two)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    finally:
        tab.set_viewport_size({"width": 1400, "height": 900})


def test_print_opens_every_stage(tab: Any, one: Path, tmp_path: Path) -> None:
    open_page(tab, one)
    tab.pdf(path=tmp_path / "page.pdf")
    tab.emulate_media(media="print")
    try:
        assert tab.is_hidden("nav")
        assert tab.locator(".multiples figure").last.is_visible() or tab.evaluate(
            "document.querySelectorAll('details:not([open])').length > 0"
        )
    finally:
        tab.emulate_media(media="screen")


def test_what_matters_is_there_without_javascript(tab: Any, one: Path) -> None:
    context = tab.context.browser.new_context(java_script_enabled=False)
    try:
        plain = context.new_page()
        plain.goto(one.as_uri())
        assert plain.locator(".verdict").is_visible()
        assert plain.locator("svg.map image").is_visible()
        assert plain.locator(".multiples figure svg.chart").first.is_visible()
        assert plain.locator("#search").is_hidden()
        assert "takes JavaScript" in plain.inner_text("noscript")
    finally:
        context.close()


def test_many_weights_react_to_a_pick(tab: Any, tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", [large_run(300, 2000)])
    open_page(tab, tmp_path / "page.html")
    assert tab.locator("#weights option").count() == 300
    tab.keyboard.press("ArrowRight")
    assert drawn(tab)[0] == 3
