"""A plan as text for the terminal: the line, a table of the stages, a small plot, problems and suggested changes."""

import re
import textwrap

from rich.console import Console
from rich.table import Table
from rich.text import Text

from smdtrack.cli._plot import MARGIN, coloured, plot
from smdtrack.planning.advice import ema_window
from smdtrack.planning.plan import Plan
from smdtrack.planning.solve import Solution
from smdtrack.planning.stages import Stage

#: Columns of text and plot at most.
WIDEST = 110
#: Columns of the label in front of each value.
_LABEL = 18


def show(plan: Plan, console: Console) -> None:
    """Prints a plan, at most 110 columns wide."""
    width = min(console.width, WIDEST)
    _show_line(plan, console, width)
    if plan.groups:
        console.print()
        console.print(_group_table(plan))
    if plan.stages:
        console.print()
        console.print(_stage_table(plan, tight=width < 90))
        if plan.curve and plan.peak.trust is None:
            console.print(Text(wrapped("", _start_sentence(plan), width), style="dim"))
    if plan.curve:
        console.print()
        epochs, steps = plan.stages[-1].last_epoch, plan.curve[-1][0]
        console.print(Text(f"angular update in rad per step, over {epochs:g} epochs ({steps:,} steps)"))
        console.print(coloured(plot(plan.curve, epochs, width - MARGIN - 1)))
        console.print(Text(" " * MARGIN + "- equilibrium line   o predicted (drawn over the line)"))
    if plan.findings or plan.solution:
        console.print()
    for finding in plan.findings:
        style = "yellow" if finding.level == "warning" else ""
        console.print(Text(wrapped(f"{finding.level}: ", finding.message, width), style=style))
        if finding.change:
            console.print(Text(wrapped("  to change it: ", finding.change, width)))
    if plan.solution is not None:
        console.print(Text(wrapped("for the wanted angle: ", _solution_sentence(plan.solution), width)))


def _show_line(plan: Plan, console: Console, width: int) -> None:
    """Prints the line at the largest learning rate, its time constant and what follows from them."""
    peak = plan.peak
    console.print(Text(f"{peak.optimizer}: {peak.kind}", style="bold"))
    recipe = plan.recipe
    _entry(console, "recipe", f"{recipe.opt}, lr {recipe.lr:g}, weight decay {recipe.weight_decay:g}", width)
    if peak.formula:
        formula = peak.formula if peak.formula.startswith("Delta") else f"Delta^2 = {peak.formula}"
        _entry(console, "line", formula, width)
        _entry(console, "source", peak.source, width)
        _entry(console, "assumes", "; ".join(peak.assumptions), width)
    where = " at the largest learning rate" if plan.stages else ""
    if peak.angular_update:
        _entry(console, "angular update", f"{peak.angular_update:.4g} rad per step{where}", width)
    if peak.decay_rate and peak.angular_update:
        _entry(console, "decay per step", f"{peak.decay_rate:.3g}", width)
        _entry(console, "decay timescale", f"{_duration(1 / peak.decay_rate, plan)}: 1 / decay per step", width)
    if peak.memory is not None and peak.angular_update:
        _entry(console, "memory R", f"{peak.memory:.4g}", width)
    if peak.time_constant is not None:
        _entry(console, "time constant", f"{_duration(peak.time_constant, plan)}", width)
    if plan.recipe.model_ema and peak.time_constant is not None:
        window = ema_window(plan.recipe.model_ema_decay)
        ratio = window / peak.time_constant
        _entry(console, "average (EMA)", f"{_duration(window, plan)}: {ratio:.2g} time constants", width)
    if plan.time_constants is not None:
        _entry(console, "whole run", f"{plan.time_constants:.2g} time constants", width)


def _duration(steps: float, plan: Plan) -> str:
    """Returns a number of steps, and of epochs if the length of an epoch is known."""
    text = f"{steps:,.0f} steps" if steps >= 100 else f"{steps:.3g} steps"
    return text if plan.steps_per_epoch is None else f"{text} ({steps / plan.steps_per_epoch:.3g} epochs)"


def _start_sentence(plan: Plan) -> str:
    """Says from which initial norms the predicted angles were computed."""
    shown = [f"{norm:.3g}" for norm in plan.start_norms]
    if not plan.start_known:
        return (
            f"predicted from initial norms between {shown[0]} and {shown[-1]} times the equilibrium norm, because the "
            "initial norm is not known (by start: it decides whether the line is reached); gradients of constant "
            "effective size"
        )
    start = shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}"
    return f"predicted from initial norms of {start} times the equilibrium norm; gradients of constant effective size"


def _solution_sentence(solution: Solution) -> str:
    angle = f"{solution.line.angular_update:.4g} rad per step"
    if solution.setting == "lr":
        return (
            f"learning rate {solution.recipe.lr:g} predicts {angle}; the trust ratio sets the angle by the learning "
            "rate, whatever the weight decay"
        )
    return f"weight decay {solution.recipe.weight_decay:g} predicts {angle} at learning rate {solution.recipe.lr:g}"


def _group_table(plan: Plan) -> Table:
    """Returns a table of the model's decayed weights, a row per learning rate."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    known = any(group.start_norms for group in plan.groups)
    columns = ["lr scale", "weights", "elements", "angle", "time const."] + ["initial norm / eq."] * known
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for group in plan.groups:
        constant = group.line.time_constant
        row = [
            f"{group.lr_scale:.3g}",
            f"{group.weights}",
            f"{group.parameters:,}",
            _number(group.line.angular_update),
            "-" if constant is None else f"{constant:,.0f}",
        ]
        norms = sorted(group.start_norms)
        if known:
            row.append(f"{norms[0]:.2g} to {norms[-1]:.2g}" if norms else "-")
        table.add_row(*row)
    return table


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


def _stage_table(plan: Plan, *, tight: bool) -> Table:
    """Returns the table of stages."""
    table = Table(box=None, pad_edge=False, padding=(0, 1 if tight else 2, 0, 0))
    columns = (
        "\nstage",
        "\nepochs",
        "\nlr",
        "line\nat end",
        "time\nconst.",
        "\npredicted",
        "pred./\nline",
        "equi-\nlibrium",
    )
    rows = [_row(stage, digits=2 if tight else 3) for stage in plan.stages]
    # A column without any value is left out. Without a line only the schedule remains.
    filled = [column for column in range(len(columns)) if any(row[column] != "-" for row in rows)]
    for column in filled:
        left = column < 3 or column == len(columns) - 1
        title = columns[column] if len(filled) > 3 else columns[column].strip()
        table.add_column(title, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[column] for column in filled))
    return table


def _row(stage: Stage, digits: int) -> tuple[str, ...]:
    lr = _number(stage.lr_start, digits)
    if stage.lr_end != stage.lr_start:
        lr += f" > {_number(stage.lr_end, digits)}"
    return (
        stage.name,
        stage.epochs,
        lr,
        _number(stage.angular_update),
        _number(stage.time_constants, 2),
        _predicted(stage),
        _number(stage.lag, 3),
        _verdict(stage),
    )


def _predicted(stage: Stage) -> str:
    """Returns the predicted angle, or its range if it depends on the initial norm."""
    if stage.predicted_range is None:
        return "-"
    low, high = stage.predicted_range
    return _number(stage.predicted_angle) if high <= 1.02 * low else f"{_number(low, 2)}..{_number(high, 2)}"


def _verdict(stage: Stage) -> str:
    if stage.lag is None or stage.predicted_range is None or not stage.angular_update:
        return "-"
    if stage.reached is not None and stage.reached:
        return "reached"
    low, high = (angle / stage.angular_update for angle in stage.predicted_range)
    if stage.reached is None or low < 1 < high:
        return "by start"
    return "below" if high < 1 else "above"


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
