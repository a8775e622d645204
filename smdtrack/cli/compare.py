"""`smdtrack compare`: runs side by side, measured against predicted change."""

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smdtrack.cli._runs import RUN_HELP, check_globs, open_runs, source_options
from smdtrack.cli._runs import as_json as dump
from smdtrack.names import did_you_mean
from smdtrack.notices import SmdtrackError

if TYPE_CHECKING:
    from smdtrack.record.opened_run import OpenedRun
    from smdtrack.report.comparison import Comparison
    from smdtrack.report.facts import RunFacts

EXAMPLE = """\b
Examples:
  smdtrack compare last~1 last
  smdtrack compare base lr4 --weights 'layer4.*' --sort=-excess
  smdtrack compare base lr4 --fail-on 'angle_ratio<.9' --fail-on 'median(angle_change)>2.2'
  smdtrack compare mlflow:smdtrack/base wandb/offline-run-20261125_131312-hnnsc6n1 --json"""


@click.command(epilog=f"{RUN_HELP}\n\n{EXAMPLE}", context_settings={"help_option_names": ["-h", "--help"]})
@source_options
@click.option(
    "--x",
    "axis",
    type=click.Choice(["steps", "epochs", "time-constants"]),
    help="Compare over the same stretch of this axis: the last third of what all runs have covered."
    " Default: the last third of each run.",
)
@click.option("--weights", "globs", multiple=True, metavar="GLOB", help="Compare only weights that match; repeatable.")
@click.option(
    "--sort",
    metavar="[-]QUANTITY",
    help="Sort the weights by a quantity, largest last; with - in front, largest first.",
)
@click.option("--columns", metavar="QUANTITY,...", help="Quantities of the table, or `all`.")
@click.option("--linear-scaling", is_flag=True, help="For runs whose batch and lr differ by k: k steps against one.")
@click.option("--csv", "as_csv", is_flag=True, help="All numbers as CSV on stdout.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the page of `report`."
)
@click.option(
    "--fail-on",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help="Exit code 1 if it holds for a weight of a run other than the first: 'angle_ratio<.9',"
    " 'median(angle_change)>2.2', or of the script's metrics 'eval_top1<90'; repeatable.",
)
@click.argument("runs", nargs=-1, required=True)
def command(
    runs: tuple[str, ...],
    folder: Path,
    tracking_uri: str | None,
    axis: Any,
    globs: tuple[str, ...],
    sort: str | None,
    columns: str | None,
    linear_scaling: bool,
    as_csv: bool,
    as_json: bool,
    html: Path | None,
    conditions: tuple[str, ...],
) -> None:
    """Compare RUNs with the first: did each weight's angular update change as theory says it must?"""
    if as_csv and as_json:
        raise click.UsageError("--csv and --json are both given; choose one.")
    if len(runs) < 2:
        raise SmdtrackError("one run only: a comparison takes two or more")
    from smdtrack.report.comparison import compare
    from smdtrack.report.conditions import findings, parse_condition

    judged = [parse_condition(text) for text in conditions]
    chosen = _columns(columns)
    order = _order(sort)
    keep = axis is not None or linear_scaling or html is not None
    facts, opened = _read(open_runs(runs, folder, tracking_uri), axis, globs, keep)
    comparison = compare(facts)
    scaling = None
    if linear_scaling:
        from smdtrack.report.linear_scaling import linear_scaling_of

        scaling = linear_scaling_of(opened[0], opened[1])
    found = findings(comparison, judged)
    if html is not None:
        from smdtrack.report.page import write_page

        write_page(html, [run for _, run in opened], comparison, globs, axis or "steps")
        click.echo(f"written: {html}", err=True)
    if as_json:
        click.echo(dump(_document(comparison, found, scaling)))
    elif as_csv:
        _write_csv(comparison)
    else:
        from smdtrack.cli._comparison_tables import print_comparison

        print_comparison(comparison, chosen, order, scaling)
    for line in found:
        click.echo(f"failed: {line}", err=True)
    if found:
        sys.exit(1)


def _read(
    runs: "Iterator[tuple[str, OpenedRun]]", axis: Any, globs: Sequence[str], keep: bool
) -> "tuple[list[RunFacts], list[tuple[str, OpenedRun]]]":
    """Returns the facts of all runs, and the runs if they are still needed: eight long ones take a gigabyte."""
    from smdtrack.report.facts import facts_of
    from smdtrack.report.lining_up import last_common_steps

    facts: list[RunFacts] = []
    opened: list[tuple[str, OpenedRun]] = []
    weights: list[Any] = []
    for letter, run in runs:
        weights += run.run.info.weights
        if keep:
            opened.append((letter, run))
        if axis is None:
            facts.append(facts_of(run, letter, globs))
    check_globs(globs, weights)
    if axis is not None:
        ends = last_common_steps([run for _, run in opened], axis)
        facts = [facts_of(run, letter, globs, end) for (letter, run), end in zip(opened, ends, strict=True)]
    return facts, opened


def _columns(text: str | None) -> list[str] | None:
    from smdtrack.report.comparison import COLUMNS

    if text is None or text == "all":
        return list(COLUMNS) if text else None
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        _check_quantity(name, "--columns")
    return names


def _order(text: str | None) -> tuple[str, bool] | None:
    if text is None:
        return None
    name = text.removeprefix("-")
    if name != "weight":
        _check_quantity(name, "--sort")
    return name, text.startswith("-")


def _check_quantity(name: str, flag: str) -> None:
    from smdtrack.report.comparison import COLUMNS

    if name not in COLUMNS:
        hint = did_you_mean(name, COLUMNS) or f"there are {', '.join(COLUMNS)}"
        raise click.BadParameter(f"no quantity {name!r}; {hint}", param_hint=flag)


def _document(comparison: "Comparison", found: Sequence[str], scaling: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from smdtrack.report.comparison import quantities
    from smdtrack.report.comparison_verdict import sentences

    runs = []
    for run in comparison.runs:
        document = asdict(run)
        del document["weights"]
        runs.append(document)
    return {
        "runs": runs,
        "settings_that_differ": {entry.name: list(entry.values) for entry in comparison.settings.differing},
        "settings_equal": comparison.settings.equal,
        "settings_known_for_some": list(comparison.settings.known_for_some),
        "changes": [
            {
                "run": change.run.letter,
                "verdict": sentences(comparison, change),
                "incomparable": list(change.incomparable),
                "median": {
                    name: change.median(name) for name in ("angle_change", "angle_pred_change", "angle_eq_change")
                },
                "weights": [quantities(change, weight) for weight in change.weights],
            }
            for change in comparison.changes
        ],
        "linear_scaling": None if scaling is None else asdict(scaling),
        "failed": list(found),
    }


def _write_csv(comparison: "Comparison") -> None:
    from smdtrack.report.comparison import quantities

    writer: Any = None
    for change in comparison.changes:
        for weight in change.weights:
            row = quantities(change, weight)
            if writer is None:
                writer = csv.DictWriter(sys.stdout, row, lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
