"""A plan as text for the terminal: the line, a table of the stages, a small plot, problems and suggested changes."""

import math
import re
import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from smdtrack.planning.plan import Plan
from smdtrack.planning.stages import Stage

#: Rows of the plot.
HEIGHT = 12
#: Columns of text and plot at most.
WIDEST = 110
#: Columns to the left of the plot, for the labels of its axis.
_MARGIN = 11
#: Decades that the plot shows at most. A schedule that ends at 0 would otherwise flatten everything else.
_DECADES = 2.0
#: Columns of the label in front of each value.
_LABEL = 18


def show(plan: Plan, console: Console) -> None:
    """Prints a plan, at most 110 columns wide."""
    width = min(console.width, WIDEST)
    peak = plan.peak
    console.print(Text(f"{peak.optimizer}: {peak.kind}", style="bold"))
    if peak.formula:
        _entry(
            console, "line", peak.formula if peak.formula.startswith("Delta") else f"Delta^2 = {peak.formula}", width
        )
        _entry(console, "source", peak.source, width)
        _entry(console, "assumes", "; ".join(peak.assumptions), width)
    if peak.angular_update:
        _entry(console, "angular update", f"{peak.angular_update:.4g} rad per step at the largest lr", width)
    if peak.memory is not None and peak.decay_rate is not None:
        _entry(console, "memory R", f"{peak.memory:.4g}     decay rate gamma  {peak.decay_rate:.3g}", width)
    if peak.time_constant is not None:
        _entry(console, "time constant", f"{peak.time_constant:,.0f} steps at the largest lr", width)
    if plan.time_constants is not None:
        _entry(console, "whole run", f"{plan.time_constants:.2g} time constants", width)
    console.print()
    console.print(_table(plan, tight=width < 90))
    if plan.curve:
        console.print()
        epochs, steps = plan.stages[-1].last_epoch, plan.curve[-1][0]
        console.print(Text(f"angular update in rad per step, over {epochs:g} epochs ({steps:,} steps)"))
        console.print(_coloured(plot(plan.curve, epochs, width - _MARGIN - 1)))
        console.print(Text(" " * _MARGIN + "- equilibrium line   o predicted (drawn over the line)"))
        console.print(
            Text(" " * _MARGIN + "(assumes gradients of constant effective size, from --start-norm on)", style="dim")
        )
    if plan.problems or plan.changes:
        console.print()
    for problem in plan.problems:
        console.print(Text(wrapped("warning: ", problem, width), style="yellow"))
    for change in plan.changes:
        console.print(Text(wrapped("to change it: ", change, width)))


def wrapped(label: str, text: str, width: int) -> str:
    """Returns a label and a paragraph, further lines indented. Code in backticks stays on one line, to be copied."""
    unbroken = re.sub(r"`([^`]*)`", lambda code: code[1].replace(" ", "\0"), text)
    lines = textwrap.wrap(
        label + unbroken,
        width,
        subsequent_indent=" " * min(len(label), 18),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines).replace("\0", " ")


def _entry(console: Console, label: str, text: str, width: int) -> None:
    lines = (
        textwrap.wrap(text, max(20, width - 2 - _LABEL), break_on_hyphens=False)
        if len(text) > (width - 2 - _LABEL)
        else [text]
    )
    console.print(Text(f"  {label:<{_LABEL}}" + ("\n" + " " * (2 + _LABEL)).join(lines)))


def _table(plan: Plan, *, tight: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1 if tight else 2, 0, 0))
    columns = (
        "\nstage",
        "\nepochs",
        "\nlr",
        "line\nat end",
        "time\nconst.",
        "pre-\ndicted",
        "pred./\nline",
        "equi-\nlibrium",
    )
    rows = [_row(stage) for stage in plan.stages]
    # A column without any value is left out. Without a line only the schedule remains.
    filled = [column for column in range(len(columns)) if any(row[column] != "-" for row in rows)]
    for column in filled:
        left = column < 3 or column == len(columns) - 1
        title = columns[column] if len(filled) > 3 else columns[column].strip()
        table.add_column(title, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[column] for column in filled))
    return table


def _row(stage: Stage) -> tuple[str, ...]:
    lr = _number(stage.lr_start)
    if stage.lr_end != stage.lr_start:
        lr += f" > {_number(stage.lr_end)}"
    return (
        stage.name,
        stage.epochs,
        lr,
        _number(stage.angular_update),
        _number(stage.time_constants, 2),
        _number(stage.predicted_angle),
        _number(stage.lag, 3),
        _verdict(stage),
    )


def _verdict(stage: Stage) -> str:
    if stage.reached is None:
        return "-"
    return "reached" if stage.reached else "lags below" if (stage.lag or 0) < 1 else "lags above"


def _number(value: float | None, digits: int = 3) -> str:
    """Returns a number in few characters: 0.0123, 1.23e-4, and ~0 for the last step of a cosine."""
    if value is None:
        return "-"
    if 0 < value < 1e-8:
        return "~0"
    if value == 0 or value >= 1e-3:
        return f"{value:.{digits}g}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def _coloured(drawn: str) -> Text:
    text = Text(drawn)
    text.highlight_regex(r"(?m)(?<=[|])[ o-]+$", "cyan")
    text.highlight_regex(r"(?<=[|o -])o(?=[o -]|$)", "bold green")
    return text


def plot(curve: Sequence[tuple[int, float, float]], epochs: float, width: int = 64, height: int = HEIGHT) -> str:
    """Returns a plot of the line (-) and the predicted angle (o) over the run. The angle's axis is logarithmic.

    Args:
        curve: (step, line, predicted angle) in order of steps.
        epochs: number of epochs at the last step.
        width: of the plot, in characters.
        height: of the plot, in rows.
    """
    steps = curve[-1][0]
    values = [value for _, line, angle in curve for value in (line, angle) if value > 0 and math.isfinite(value)]
    if not values:
        return ""
    high = max(values)
    low = max(min(values), high / 10**_DECADES)
    if high < 1.2 * low:
        low = high / 1.2
    span = math.log(high / low)
    rows = [[" "] * width for _ in range(height)]
    index = 0
    for column in range(width):
        step = (column + 0.5) / width * steps
        while index < len(curve) - 1 and curve[index][0] < step:
            index += 1
        for mark, value in (("-", curve[index][1]), ("o", curve[index][2])):
            if value >= low * 0.999:
                rows[min(max(round((height - 1) * math.log(high / value) / span), 0), height - 1)][column] = mark
    labels = [""] * height
    for row in (0, (height - 1) // 2, height - 1):
        labels[row] = f"{high * math.exp(-span * row / (height - 1)):.2g}"
    body = [f"{label:>{_MARGIN - 2}s} |" + "".join(row).rstrip() for label, row in zip(labels, rows, strict=True)]
    return "\n".join([*body, *_axis(epochs, width)])


def _axis(epochs: float, width: int) -> list[str]:
    """Returns the horizontal axis and its labels, in epochs, at every quarter."""
    ticks, names = ["-"] * width, [" "] * (width + 1)
    for quarter in range(5):
        name = f"{epochs * quarter / 4:g}"
        column = round(quarter * width / 4)
        if 0 < quarter < 4:
            ticks[column] = "+"
        first = column if quarter < 4 else width + 1 - len(name)
        names[first : first + len(name)] = name
    return [" " * (_MARGIN - 1) + "+" + "".join(ticks), " " * _MARGIN + "".join(names)]
