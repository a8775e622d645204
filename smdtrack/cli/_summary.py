"""Prints a run's summary as a table."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from smdtrack.record.summary import EQUILIBRIUM_BAND, Summary


def print_summary(summary: Summary, folder: Path, hints: list[str], console: Console | None = None) -> None:
    """Prints measured against predicted per weight, the verdict, the record's folder and how to open the trackers."""
    if console is None:
        console = Console(stderr=True, highlight=False)
        if not console.is_terminal:  # lines of a log file are not wrapped at 80 columns
            console = Console(stderr=True, highlight=False, width=140)
    console.print()
    console.print(summary_table(summary))
    console.print(summary.verdict, style="bold", soft_wrap=True)
    for reason in sorted({row.line_reason for row in summary.weights if row.line_reason}):
        console.print(reason, markup=False)
    console.print(f"Record: {_relative(folder)}", markup=False, soft_wrap=True)
    for hint in hints:
        console.print(hint, markup=False, soft_wrap=True)


def summary_table(summary: Summary) -> Table:
    """Returns the table of measured against predicted per weight."""
    table = Table(
        title=f"Angular update per step, RMS over steps {summary.first_step} to {summary.last_step}",
        caption="mrad per optimizer step; pred: drift-corrected line; eq: equilibrium line; +-: error of sampling",
        title_justify="left",
        caption_justify="left",
        box=None,
        header_style="bold",
    )
    table.add_column("weight", overflow="ellipsis", no_wrap=True, min_width=16)
    for title in ("angle", "pred", "eq", "pred_ratio", "angle_ratio", "+-", "norm", "norm eq", "reached at"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in summary.weights:
        table.add_row(
            row.key,
            _milli(row.angle),
            _milli(row.angle_pred),
            _milli(row.angle_eq),
            _ratio(row.pred_ratio),
            _ratio(row.angle_ratio),
            "-" if row.ratio_error is None else f"{row.ratio_error:.3f}",
            _number(row.norm),
            _number(row.norm_eq),
            "-" if row.equilibrium_step is None else f"step {row.equilibrium_step}",
        )
    return table


def _milli(angle: float | None) -> str:
    return "-" if angle is None else f"{1000 * angle:.3g}"


def _ratio(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    color = "green" if abs(ratio - 1) <= EQUILIBRIUM_BAND else "yellow"
    return f"[{color}]{ratio:.3f}[/{color}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _relative(folder: Path) -> Path:
    """Returns a folder below the working directory as a relative path."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
