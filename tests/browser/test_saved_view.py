"""The saved view as a person sees it: a real server, a real browser."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smdtrack.sinks.mlflow import MLflowSink
from tests.browser import chart_page
from tests.sinks.mlflow_server import mlflow_server
from tests.sinks.synthetic import make_info, make_points, make_samples, make_summary

pytestmark = pytest.mark.browser


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
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("SMDTRACK_ARTIFACTS")
    folder = Path(given) if given else tmp_path_factory.mktemp("artifacts")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> MLflowSink:
    """A run of 15 weights and 300 samples in a store of its own."""
    folder = tmp_path_factory.mktemp("view")
    info = make_info(folder / "record", 15)
    samples = list(make_samples(info, 300))
    sink = MLflowSink(f"sqlite:///{folder / 'mlflow.db'}")
    sink.note_script_run()
    sink.start(info)
    sink.write(make_points(info, samples))
    sink.finish(info, make_summary(info, samples), "finished")
    return sink


@pytest.fixture(scope="module")
def address(sent: MLflowSink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address from the sink's own hint, on a server that is started as its other hint says."""
    command, address = sent.how_to_open()
    store = str(sent.destination()["tracking_uri"])
    assert command == f"mlflow server --backend-store-uri {store} --port 5000"
    with mlflow_server(store, tmp_path_factory.mktemp("server")) as server:
        yield address.replace("http://127.0.0.1:5000", server)


@pytest.fixture(scope="module")
def page(browser: str, address: str, artifacts: Path) -> Iterator[Any]:
    with chart_page.open_page(browser, height=1000) as page:
        try:
            chart_page.open_view(page, address)
            yield page
        finally:
            page.screenshot(path=artifacts / "mlflow_view.png")


def test_overview_is_open_and_layers_are_folded(page: Any) -> None:
    shown = chart_page.sections(page)
    assert shown[:5] == [
        ("smdtrack: overview", True),
        ("conv1", False),
        ("layer1", False),
        ("layer2", False),
        ("layer3", False),
    ]
    assert not any(is_open for _, is_open in shown[1:])


def test_overview_shows_the_ratio_beside_theory(page: Any) -> None:
    ratio = next(chart for chart in chart_page.charts(page) if "smd/angle_ratio_p50" in chart)
    assert ratio.pop("smd/angle_ratio_p50") == "none"
    assert set(ratio) == {"smd/theory", "smd/angle_ratio_p10", "smd/angle_ratio_p90"}
    assert all("px" in dash for dash in ratio.values())


@pytest.mark.parametrize(("stage", "layer"), [("conv1", "conv1"), ("layer2", "layer2.0.conv1")])
def test_measured_is_solid_and_its_lines_are_dashed(page: Any, stage: str, layer: str) -> None:
    chart_page.unfold(page, stage, f"angle/{layer}")
    chart_page.wait_for_chart(page, f"norm/{layer}")
    drawn = {next(iter(chart)): chart for chart in chart_page.charts(page)}
    angle, norm = drawn[f"angle/{layer}"], drawn[f"norm/{layer}"]
    assert set(angle) == {f"angle/{layer}", f"angle_eq/{layer}", f"angle_pred/{layer}"}
    assert set(norm) == {f"norm/{layer}", f"norm_eq/{layer}"}
    for chart in (angle, norm):
        measured, *lines = chart.values()
        assert measured == "none"
        assert all("px" in dash for dash in lines)
