"""`smdtrack report`: one self-contained page."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from smdtrack.cli._runs import RUN_HELP, check_globs, open_runs, source_options
from smdtrack.notices import SmdtrackError

if TYPE_CHECKING:
    from smdtrack.record.opened_run import OpenedRun

#: Where sinks put the summary table, too.
_ARTIFACT_FOLDER = "smdtrack"
EXAMPLE = """\b
Examples:
  smdtrack report last
  smdtrack report base lr4 -o lr4.html"""


@click.command(epilog=f"{RUN_HELP}\n\n{EXAMPLE}", context_settings={"help_option_names": ["-h", "--help"]})
@source_options
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("smdtrack-report.html"),
    show_default=True,
    help="The file to write.",
)
@click.option("--weights", "globs", multiple=True, metavar="GLOB", help="Show only weights that match; repeatable.")
@click.option(
    "--x",
    "axis",
    type=click.Choice(["steps", "epochs", "time-constants"]),
    default="steps",
    show_default=True,
    help="What the curves are drawn over when the page opens.",
)
@click.option("--log", is_flag=True, help="Also log the page as an artifact of each run's MLflow run.")
@click.argument("runs", nargs=-1, required=True)
def command(
    runs: tuple[str, ...],
    folder: Path,
    tracking_uri: str | None,
    output: Path,
    globs: tuple[str, ...],
    axis: str,
    log: bool,
) -> None:
    """Write one self-contained page about RUNS: verdict, heat map, curves of every weight, tables.

    The page needs no network and opens from the file. Of several runs the first is the baseline.
    """
    from smdtrack.report.comparison import compare
    from smdtrack.report.facts import facts_of
    from smdtrack.report.page import write_page

    opened = list(open_runs(runs, folder, tracking_uri))
    check_globs(globs, [weight for _, run in opened for weight in run.run.info.weights])
    comparison = None
    if len(opened) > 1:
        comparison = compare([facts_of(run, letter, globs) for letter, run in opened])
    write_page(output, [run for _, run in opened], comparison, globs, axis)
    click.echo(str(output))
    if log:
        for place in [_mlflow_run(run, tracking_uri) for _, run in opened]:
            _log(output, *place)


def _mlflow_run(opened: "OpenedRun", tracking_uri: str | None) -> tuple[str, str]:
    """Returns the store's address and the id of a run in MLflow.

    Raises:
        SmdtrackError: If the run has none.
    """
    from smdtrack.record.reader import read_sinks

    if opened.source == "MLflow":
        import mlflow

        return tracking_uri or mlflow.get_tracking_uri(), opened.run.info.id
    noted = read_sinks(Path(opened.place)).get("mlflow", {}) if opened.source == "local record" else {}
    uri = tracking_uri or noted.get("tracking_uri")
    if not uri or not noted.get("run_id"):
        raise SmdtrackError(f"run {opened.run.info.name} has no MLflow run to log the page to")
    return str(uri), str(noted["run_id"])


def _log(page: Path, uri: str, run_id: str) -> None:
    from smdtrack.sinks.mlflow_address import check_reachable
    from smdtrack.sinks.mlflow_client import limit_waiting, one_line_errors, open_client

    limit_waiting()
    try:
        with one_line_errors(uri):
            check_reachable(uri)
            open_client(uri).log_artifact(run_id, str(page), _ARTIFACT_FOLDER)
    except (RuntimeError, ConnectionError) as error:
        raise SmdtrackError(str(error)) from error
    click.echo(f"logged to MLflow run {run_id}", err=True)
