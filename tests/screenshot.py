"""Makes the README's picture: the saved MLflow view of a run, in a real browser.

    python -m tests.screenshot mlflow.db picture.png
    python -m tests.screenshot runs/20261122-120000 picture.png --section layer2

Starts `mlflow server` on a copy of the store, on a free port of 127.0.0.1, opens the experiment's saved view in a
headless Chromium (SMDTRACK_CHROMIUM, or one on the PATH), opens one section of layers under the overview, and writes
what is to be seen. The store itself is left as it is.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from smdtrack.sinks.mlflow_view import TAG_PREFIX, VIEW_KEY, decode
from tests.browser import chart_page
from tests.sinks.mlflow_server import mlflow_server

_SETTLE = 3 * chart_page.SECONDS
# MLflow picks a run's colour by its id, now and then one that is hard to see on white.
_COLOUR = "#1b6ca8"
_REMOVE_WHAT_FLOATS = """([width, height]) => {
    let element = document.elementFromPoint(width - 40, height - 40);
    while (element && getComputedStyle(element).position !== 'fixed') element = element.parentElement;
    if (element) element.remove();
}"""


def main() -> None:
    options = _options()
    executable = chart_page.chromium()
    if executable is None:
        sys.exit("no Chromium: set SMDTRACK_CHROMIUM or put one on the PATH")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copy(_database(options.source), folder / "mlflow.db")
        store = f"sqlite:///{folder / 'mlflow.db'}"
        experiment_id, section, key = _view(store, options.experiment, options.section)
        query = f"viewStateShareKey={VIEW_KEY}&compareRunsMode=CHART&workflowType=machine_learning"
        with (
            mlflow_server(store, folder) as server,
            chart_page.open_page(executable, options.width, options.height, options.scale) as page,
        ):
            chart_page.open_view(page, f"{server}/#/experiments/{experiment_id}/runs?{query}")
            chart_page.unfold(page, section, key)
            chart_page.header(page, "smdtrack: overview").evaluate("e => e.scrollIntoView({block: 'center'})")
            # The assistant's button floats over the charts; the pointer would leave a tooltip or a marked header.
            page.evaluate(_REMOVE_WHAT_FLOATS, [options.width, options.height])
            page.mouse.move(2, options.height - 2)
            page.wait_for_timeout(_SETTLE)
            page.screenshot(path=options.picture)
    print(options.picture)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="an mlflow.db, or the folder of a local record that went into one")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("--experiment", default="smdtrack", help="name of the experiment (default: %(default)s)")
    parser.add_argument("--section", help="the section of layers to open (default: the first)")
    parser.add_argument("--width", type=int, default=1400, help="of the window (default: %(default)s)")
    parser.add_argument("--height", type=int, default=985, help="of the window (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=2, help="pixels of the picture per pixel (default: %(default)s)")
    return parser.parse_args()


def _database(source: Path) -> Path:
    """Returns the sqlite file: the source itself, or the one that a local record says it was sent to."""
    if source.is_file():
        return source
    for document in sorted(source.glob("*.json")):
        uri = _tracking_uri(json.loads(document.read_text()))
        if uri is not None and uri.startswith("sqlite:///"):
            return Path(uri.removeprefix("sqlite:///"))
    sys.exit(f"{source} is neither an sqlite file nor the folder of a record that was sent to one")


def _tracking_uri(document: object) -> str | None:
    """Returns the first `tracking_uri` anywhere in a JSON document."""
    if isinstance(document, dict):
        found = document.get("tracking_uri")
        if isinstance(found, str):
            return found
        document = list(document.values())
    if isinstance(document, list):
        return next(filter(None, map(_tracking_uri, document)), None)
    return None


def _view(store: str, experiment_name: str, section: str | None) -> tuple[str, str, str]:
    """Returns the experiment's id, the section to open, and a metric of its first chart; colours the runs."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name(experiment_name)
    if experiment is None or TAG_PREFIX + VIEW_KEY not in experiment.tags:
        sys.exit(f"no experiment {experiment_name!r} with a saved view of smdtrack in this store")
    for run in client.search_runs([experiment.experiment_id]):
        if "mlflow.runColor" not in run.data.tags:
            client.set_tag(run.info.run_id, "mlflow.runColor", _COLOUR)
    state = decode(experiment.tags[TAG_PREFIX + VIEW_KEY])
    first_metric = {card["metricSectionId"]: card["metricKey"] for card in reversed(state["compareRunCharts"])}
    of_layers = {
        item["name"]: first_metric[item["uuid"]]
        for item in state["compareRunSections"][1:]
        if item["uuid"] in first_metric
    }
    if section is not None and section not in of_layers:
        sys.exit(f"no section {section!r}; there are {', '.join(of_layers)}")
    section = section or next(iter(of_layers))
    return str(experiment.experiment_id), section, of_layers[section]


if __name__ == "__main__":
    main()
