"""A plan as text: the table of stages and a small plot."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from smdtrack.theory.plan import Plan

WIDTH, HEIGHT = 64, 10


def show(plan: Plan, console: Console) -> None:
    """Prints the line, the stages, the plot, warnings and advice."""
    peak = plan.peak
    console.print(Text(f"{peak.optimizer}: {peak.kind}", style="bold"))
    if peak.formula:
        console.print(Text(f"  line              Delta^2 = {peak.formula}" if not peak.formula.startswith("Delta")
                           else f"  line              {peak.formula}"))
        console.print(Text(f"  source            {peak.source}"))
        console.print(Text(f"  assumes           {'; '.join(peak.assumptions)}"))
    if peak.angular_update:
        console.print(Text(f"  angular update    {peak.angular_update:.4g} rad per step at the largest lr"))
    if peak.memory is not None and peak.decay_rate is not None:
        console.print(Text(f"  memory R          {peak.memory:.4g}     decay rate gamma  {peak.decay_rate:.3g}"))
    if peak.time_constant is not None:
        console.print(Text(f"  time constant     {peak.time_constant:,.0f} steps at the largest lr"))
    if plan.time_constants is not None:
        console.print(Text(f"  whole run         {plan.time_constants:.2g} time constants"))
    console.print(_table(plan))
    if plan.curve:
        console.print(Text(plot(plan.curve)))
        console.print(Text("  - line at equilibrium   o predicted   (gradients of constant effective size assumed)"))
    for warning in plan.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))
    for advice in plan.advice:
        console.print(Text(f"to change it: {advice}"))


def _table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("stage", "epochs", "lr", "line", "time const.", "predicted", "pred./line"):
        table.add_column(name, justify="left" if name in ("stage", "epochs", "lr") else "right", no_wrap=True)
    table.add_column("equilibrium")
    for stage in plan.stages:
        lr = f"{stage.lr_start:.3g}" if stage.lr_start == stage.lr_end else f"{stage.lr_start:.3g} > {stage.lr_end:.3g}"
        reached = "-" if stage.reached is None else "reached" if stage.reached else (
            "lags below" if (stage.lag or 0) < 1 else "lags above")
        table.add_row(
            stage.name, f"{stage.first_epoch:g}-{stage.last_epoch:g}", lr, _number(stage.angular_update),
            _number(stage.time_constants, 2), _number(stage.predicted_angle), _number(stage.lag, 3), reached,
        )
    return table


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def plot(curve: Sequence[tuple[int, float, float]], width: int = WIDTH, height: int = HEIGHT) -> str:
    """Line and predicted angle over steps, logarithmic in the angle.

    Args:
        curve: (step, line, predicted) in order of steps.
        width: of the plot, in characters.
        height: in rows.
    """
    steps = curve[-1][0]
    values = [value for _, line, angle in curve for value in (line, angle) if value > 0]
    if not values:
        return ""
    low, high = min(values), max(values)
    # a schedule that ends at 0 would otherwise flatten everything else
    low = max(low, high / 1e3)
    span = math.log(high / low) or 1.0
    rows = [[" "] * width for _ in range(height)]
    at = 0
    for column in range(width):
        step = (column + 0.5) / width * steps
        while at < len(curve) - 1 and curve[at][0] < step:
            at += 1
        for mark, value in (("-", curve[at][1]), ("o", curve[at][2])):
            if value >= low:
                row = round((height - 1) * math.log(high / value) / span)
                rows[min(max(row, 0), height - 1)][column] = mark
    labels = [f"{high:9.2g} |" if row == 0 else f"{low:9.2g} |" if row == height - 1 else " " * 9 + " |"
              for row in range(height)]
    axis = " " * 10 + "+" + "-" * width + f"\n{'0':>11s}{f'{steps:,} steps':>{width}s}"
    return "\n".join(label + "".join(row).rstrip() for label, row in zip(labels, rows, strict=True)) + "\n" + axis
