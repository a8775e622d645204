"""A comparison in the terminal: the runs, the settings that differ, a table per run, the verdict."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from smdtrack.cli._runs import console, milli, number, print_table
from smdtrack.record.summary import EQUILIBRIUM_BAND
from smdtrack.report.comparison import Comparison, RunChange, WeightChange, quantities
from smdtrack.report.comparison_verdict import sentences
from smdtrack.report.facts import RunFacts, is_settled
from smdtrack.report.script_metrics import shown_metrics
from smdtrack.report.travel import overall_travel

if TYPE_CHECKING:
    from smdtrack.report.linear_scaling import LinearScaling

_DEFAULT = ("angle_change", "error", "angle_pred_change", "angle_eq_change", "norm_change", "norm_eq_change")
#: Columns that are shown only if they differ from 1 somewhere: they explain what changed.
_IF_MOVED = ("time_constant_change", "effective_grad_change", "memory_change")
_ANGLES = ("angle", "angle_pred", "angle_eq")
_TITLES = {
    "angle_change": "angle",
    "error": "+-",
    "angle_pred_change": "predicted",
    "angle_eq_change": "at eq.",
    "agreement": "agreement",
    "excess": "excess",
    "norm_change": "norm",
    "norm_eq_change": "norm at eq.",
    "time_constant_change": "time const.",
    "effective_grad_change": "eff. grad",
    "growth_change": "growth",
    "decay_change": "decay",
    "memory_change": "memory",
    "travel_change": "turned",
}


def print_comparison(
    comparison: Comparison,
    columns: Sequence[str] | None,
    order: tuple[str, bool] | None,
    scaling: "LinearScaling | None" = None,
) -> None:
    """Prints a comparison on stdout.

    Args:
        columns: Quantities of the tables; a choice that fits if None.
        order: Quantity to sort by, and whether the largest comes first; the network's order if None.
    """
    screen = console()
    print_table(screen, _runs(comparison))
    screen.print(Text(_RUNS_CAPTION, style="dim"), soft_wrap=True)
    screen.print()
    _print_settings(comparison, screen)
    for change in comparison.changes:
        for reason in change.incomparable:
            screen.print(Text(f"{change.run.letter} is in part incomparable because {reason}"), soft_wrap=True)
        screen.print()
        screen.print(Text(_title(comparison.baseline, change.run), style="bold"), soft_wrap=True)
        print_table(screen, _table(comparison, change, columns, order))
        screen.print(Text(_CAPTION, style="dim"), soft_wrap=True)
    if scaling is not None:
        screen.print()
        _print_scaling(scaling, screen)
    for change in comparison.changes:
        screen.print()
        first, *more = sentences(comparison, change)
        screen.print(Text(first, style="bold"), soft_wrap=True)
        for sentence in more:
            screen.print(Text(sentence), soft_wrap=True)


def _runs(comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    metrics = shown_metrics([run.metrics for run in comparison.runs])
    for title in ("", "run", "status"):
        table.add_column(title, no_wrap=True)
    for title in ("steps", "samples", "in eq.", "turned", "per step", "per epoch", "per time const.", *metrics):
        table.add_column(title, justify="right", no_wrap=True)
    for run in comparison.runs:
        travel = overall_travel(run)
        settled = [is_settled(row) for row in run.rows]
        table.add_row(
            run.letter,
            Text(run.name),
            run.status,
            str(run.last_step),
            str(run.samples),
            f"{sum(value is True for value in settled)}/{len(settled)}",
            number(travel.turned),
            milli(travel.per_step),
            number(travel.per_epoch),
            number(travel.per_time_constant),
            *(f"{run.metrics[name]:.4g}" if name in run.metrics else "-" for name in metrics),
        )
    return table


_RUNS_CAPTION = (
    "turned: sum of the angles of all steps, median weight, in rad; per step in mrad; in eq.: weights within"
    f" {EQUILIBRIUM_BAND:.0%} of their equilibrium line"
)


def _print_settings(comparison: Comparison, screen: Console) -> None:
    settings = comparison.settings
    if not settings.differing:
        screen.print(f"No setting differs ({settings.equal} are the same).")
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("settings that differ", no_wrap=True)
        for run in comparison.runs:
            table.add_column(run.letter, justify="right", no_wrap=True)
        for entry in settings.differing:
            table.add_row(Text(entry.name), *(Text(str(value)) for value in entry.values))
        print_table(screen, table)
        screen.print(f"{settings.equal} other settings are the same.")
    if settings.known_for_some:
        names = ", ".join(settings.known_for_some[:8]) + (", ..." if len(settings.known_for_some) > 8 else "")
        screen.print(Text(f"Known only for some of the runs: {names}"), soft_wrap=True)


def _table(
    comparison: Comparison, change: RunChange, columns: Sequence[str] | None, order: tuple[str, bool] | None
) -> Table:
    rows = [quantities(change, weight) for weight in change.weights]
    shown = list(columns) if columns else [*_DEFAULT, *(name for name in _IF_MOVED if _moves(rows, name))]
    letter, base = change.run.letter, comparison.baseline.letter
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("weight", no_wrap=True)
    for name in shown:
        table.add_column(_TITLES.get(name, name), justify="right", no_wrap=True)
    table.add_column(f"{base} / line", justify="right", no_wrap=True)
    table.add_column(f"{letter} / line", justify="right", no_wrap=True)
    paired = list(zip(change.weights, rows, strict=True))
    if order is not None:
        paired.sort(key=lambda pair: _sort_key(pair[1], order[0]), reverse=order[1])
    for weight, row in paired:
        cells = [_cell(name, row[name], weight) for name in shown]
        table.add_row(Text(weight.key), *cells, _ratio(weight.before.angle_ratio), _ratio(weight.after.angle_ratio))
    return table


_CAPTION = (
    "predicted: by the drift-corrected lines, at eq.: by the equilibrium lines; / line: measured over equilibrium line;"
    " +-: error of sampling"
)


def _title(baseline: RunFacts, run: RunFacts) -> str:
    return f"{run.letter} over {baseline.letter}: how the angular update per step changed{_windows(baseline, run)}"


def _windows(baseline: RunFacts, run: RunFacts) -> str:
    windows = [(entry.summary.first_step, entry.summary.last_step) for entry in (baseline, run) if entry.summary]
    if len(windows) < 2:
        return ""
    said = [f"{entry.letter} {first} to {last}" for entry, (first, last) in zip((baseline, run), windows, strict=True)]
    return f", steps {windows[0][0]} to {windows[0][1]}" if windows[0] == windows[1] else f", steps {', '.join(said)}"


def _moves(rows: Sequence[dict[str, Any]], name: str) -> bool:
    return any(row[name] is not None and abs(row[name] - 1) > 0.02 for row in rows)


def _sort_key(row: dict[str, Any], name: str) -> tuple[bool, Any]:
    value = row[name]
    return (value is not None, value if value is not None else 0)


def _cell(name: str, value: Any, weight: WeightChange) -> Text:
    if value is None:
        return Text("-")
    if name in ("agreement", "excess", "angle_ratio", "pred_ratio"):
        return _ratio(value)
    if name == "error":
        return Text(f"{value:.3f}")
    if name.removesuffix("_baseline") in _ANGLES:
        return Text(milli(value))
    if name.endswith("_change"):
        return Text(f"{value:.3f}")
    return Text(str(value) if isinstance(value, bool) else number(value))


def _ratio(value: float | None) -> Text:
    if value is None:
        return Text("-")
    return Text(f"{value:.3f}", style="green" if abs(value - 1) <= EQUILIBRIUM_BAND else "yellow")


def _print_scaling(scaling: "LinearScaling", screen: Console) -> None:
    title = (
        f"Linear scaling, k = {scaling.factor}: angle over {scaling.factor} steps of {scaling.small} over that of one"
        f" step of {scaling.large}"
    )
    caption = (
        "white: sqrt(R_k) for gradients uncorrelated in time; own angles: sqrt(R_k) from the angles of"
        f" {scaling.small} over 1 and {scaling.factor} steps; bound: sqrt(k)"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("weight", no_wrap=True)
    for heading in ("measured", "own angles", "white", "bound"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in (*scaling.weights, scaling.overall):
        table.add_row(
            Text(row.key), number(row.ratio), number(row.measured), number(scaling.white), number(scaling.bound)
        )
    screen.print(Text(title, style="bold"), soft_wrap=True)
    print_table(screen, table)
    screen.print(Text(caption, style="dim"), soft_wrap=True)
    screen.print(Text(scaling.verdict, style="bold"), soft_wrap=True)
