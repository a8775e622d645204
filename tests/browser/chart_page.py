"""MLflow's chart page in a headless Chromium: opened, rid of what is in the way, and read."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

SECONDS = 1000
_PATIENCE = 120 * SECONDS
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# The assistant's panel, the note that a view is shared, the side bar: none of them belongs to the charts.
_IN_THE_WAY = (
    "mlflow.assistant.chat_panel.close",
    "mlflow.experiment_page.shared_view.dismiss",
    "mlflow_header.toggle_sidebar_button",
)
_HEADER = '[data-testid="experiment-view-compare-runs-section-header"]'

# MLflow draws every metric twice, smoothed and raw; the pattern of the first is the one that people see.
_READ_CHARTS = """() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => {
    const lines = [...plot.querySelectorAll('.scatterlayer .trace path.js-line')];
    const dashes = {};
    plot.data.forEach((trace, index) => {
        if (trace.metricKey && lines[index] && !(trace.metricKey in dashes) && lines[index].getAttribute('d'))
            dashes[trace.metricKey] = getComputedStyle(lines[index]).strokeDasharray;
    });
    return dashes;
})"""
_READ_SECTIONS = f"""() => [...document.querySelectorAll('{_HEADER}')].map(header => [
    header.firstElementChild.textContent,
    header.closest('[aria-expanded]').getAttribute('aria-expanded') === 'true',
])"""
_IS_DRAWN = """key => [...document.querySelectorAll('.js-plotly-plot')].some(plot =>
    plot.data.some(trace => trace.metricKey === key) && plot.querySelector('.scatterlayer .trace path.js-line'))"""


def chromium() -> str | None:
    """Returns the browser that SMDTRACK_CHROMIUM names, or the first on the PATH."""
    return os.environ.get("SMDTRACK_CHROMIUM") or next(filter(None, map(shutil.which, _BROWSERS)), None)


@contextmanager
def open_page(executable: str, width: int = 1400, height: int = 900, scale: float = 1) -> Iterator[Any]:
    """Yields a page of a browser of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_FLAGS)
        try:
            page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale)
            page.set_default_timeout(_PATIENCE)
            yield page
        finally:
            browser.close()


def open_view(page: Any, address: str) -> None:
    """Opens the address of a saved view, waits until its overview is drawn, and clears the page of the rest."""
    page.goto(address)
    header(page, "smdtrack: overview").wait_for()
    wait_for_chart(page, "smd/angle_ratio_p50")
    for component in _IN_THE_WAY:
        button = page.locator(f'[data-component-id="{component}"]').first
        # Not every version of MLflow has each of them, and none is what the page is for.
        with suppress(Exception):
            button.wait_for(timeout=3 * SECONDS)
            button.click(timeout=20 * SECONDS)


def header(page: Any, name: str) -> Any:
    """Returns the header of a section; behind its name MLflow puts the number of its charts."""
    return page.locator(_HEADER, has_text=name).first


def sections(page: Any) -> list[tuple[str, bool]]:
    """Returns the page's sections in their order: name, and whether it is open."""
    return [(name.rpartition("(")[0].strip() or name, is_open) for name, is_open in page.evaluate(_READ_SECTIONS)]


def unfold(page: Any, name: str, key: str) -> None:
    """Opens a folded section and brings it into sight, which is when its charts are drawn; waits for one of them.

    Args:
        key: A metric in the section's first chart.
    """
    header(page, name).click()
    header(page, name).evaluate("element => element.scrollIntoView({block: 'start'})")
    wait_for_chart(page, key)


def wait_for_chart(page: Any, key: str) -> None:
    """Waits until the chart of a metric has drawn lines."""
    page.wait_for_function(_IS_DRAWN, arg=key)


def charts(page: Any) -> list[dict[str, str]]:
    """Returns, per chart with drawn lines, each metric's dash pattern; `none` is solid."""
    return [dashes for dashes in page.evaluate(_READ_CHARTS) if dashes]
