"""`smdtrack report`: one self-contained page."""

from pathlib import Path

import click

from smdtrack.cli._runs import RUN_HELP, check_globs, open_runs, source_options

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
@click.argument("runs", nargs=-1, required=True)
def command(
    runs: tuple[str, ...], folder: Path, tracking_uri: str | None, output: Path, globs: tuple[str, ...], axis: str
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
