"""The page's tables: weights, changes, audit, settings, runs."""

import time

from smdtrack.record.run import TrackedWeight
from smdtrack.record.summary import EQUILIBRIUM_BAND
from smdtrack.report.comparison import Comparison, RunChange
from smdtrack.report.facts import RunFacts
from smdtrack.report.html import cell, table, text
from smdtrack.report.page_view import PageView
from smdtrack.report.script_metrics import shown_metrics
from smdtrack.report.travel import overall_travel


def weight_table(view: PageView, run: RunFacts) -> str:
    """Measured against predicted per weight, over the run's last third."""
    if run.summary is None:
        return "<p>No step was sampled.</p>"
    places = {name: index for index, name in enumerate(view.names)}
    rows = [
        [
            _button(row.key, places[row.key]),
            cell(_milli(row.angle)),
            cell(_milli(row.angle_pred)),
            cell(_milli(row.angle_eq)),
            _ratio(row.pred_ratio),
            _ratio(row.angle_ratio),
            cell("-" if row.ratio_error is None else f"{row.ratio_error:.3f}"),
            cell(_number(row.norm)),
            cell(_number(row.norm_eq)),
            cell(_number(row.time_constant)),
            cell("-" if row.equilibrium_step is None else row.equilibrium_step),
        ]
        for row in run.rows
    ]
    titles = (
        "weight",
        "angle",
        "pred",
        "eq",
        "pred_ratio",
        "angle_ratio",
        "+-",
        "norm",
        "norm eq",
        "time constant",
        "reached at step",
    )
    caption = (
        f"{run.name}: RMS over steps {run.summary.first_step} to {run.summary.last_step}; angles in mrad per step;"
        " pred: drift-corrected line; eq: equilibrium line; +-: error of sampling; time constant in steps"
    )
    return table(caption, titles, rows)


def change_table(view: PageView, comparison: Comparison, change: RunChange) -> str:
    """How each weight changed against the baseline, beside the predicted change."""
    places = {name: index for index, name in enumerate(view.names)}
    a, b = comparison.baseline.letter, change.run.letter
    rows = [
        [
            _button(weight.key, places[weight.key]),
            cell(_times(weight.angle_change)),
            cell("-" if weight.error is None else f"{weight.error:.3f}"),
            cell(_times(weight.angle_pred_change)),
            cell(_times(weight.angle_eq_change)),
            _ratio(weight.agreement),
            cell(_times(weight.norm_change)),
            cell(_times(weight.norm_eq_change)),
            cell(_times(weight.time_constant_change)),
            cell(_times(weight.effective_grad_change)),
            _ratio(weight.before.angle_ratio),
            _ratio(weight.after.angle_ratio),
        ]
        for weight in change.weights
    ]
    titles = ["weight", "angle", "+-", "predicted", "at equilibrium", "measured / predicted", "norm"]
    titles += ["norm at equilibrium", "time constant", "effective gradient", f"{a} / line", f"{b} / line"]
    caption = (
        f"{b} over {a}: each number is {b}'s value over {a}'s; predicted: by the drift-corrected lines;"
        " / line: measured over equilibrium line"
    )
    return table(caption, titles, rows)


def audit_table(run: RunFacts) -> str:
    """What is known of each weight and of its line."""
    lines = list(dict.fromkeys(_line(weight) for weight in run.weights))
    rows = [
        [
            text(weight.key),
            cell("x".join(map(str, weight.shape)) or "-", "word"),
            cell(weight.group, "word"),
            cell(weight.scope, "text"),
            cell(weight.norm or "-", "text"),
            cell(1 + lines.index(_line(weight)), "word"),
        ]
        for weight in run.weights
    ]
    titles = ("weight", "shape", "group", "invariant per", "because of", "line")
    described = [
        [text(number), cell(kind, "word"), cell(formula, "text"), cell(source, "text")]
        for number, (kind, formula, source) in enumerate(lines, 1)
    ]
    heads = ("line", "kind", "angle^2 at equilibrium, or why there is no line", "source")
    return table(f"{run.name}: the lines", heads, described, left=True) + table(
        f"{run.name}: the weights that are measured, and which line each has", titles, rows, left=True
    )


def _line(weight: TrackedWeight) -> tuple[str, str, str]:
    return (weight.line_kind, weight.line_formula or weight.line_reason or "-", weight.line_source or "-")


def settings_table(view: PageView) -> str:
    """All settings; those that differ come first."""
    names = list(dict.fromkeys(name for run in view.facts for name in run.settings))
    differing = {entry.name for entry in view.comparison.settings.differing} if view.comparison else set()
    names.sort(key=lambda name: (name not in differing, name))
    rows = [
        [
            text(name),
            *(cell(run.settings.get(name, "-"), "word off" if name in differing else "text") for run in view.facts),
        ]
        for name in names
    ]
    letters = [run.letter if len(view.facts) > 1 else "value" for run in view.facts]
    caption = (
        "Settings; those that differ come first" if view.comparison else "Settings of the optimizer and the script"
    )
    return table(caption, ["setting", *letters], rows, left=True)


def run_table(view: PageView) -> str:
    """Where the runs come from, how they ended and how far their weights turned."""
    metrics = shown_metrics([run.metrics for run in view.facts])
    rows = []
    for run in view.facts:
        travel = overall_travel(run)
        rows.append(
            [
                f"{text(run.letter)}: {text(run.name)}",
                cell(run.status, "word"),
                cell(run.samples),
                cell(run.last_step),
                cell(_number(travel.time_constants)),
                cell(_number(travel.turned)),
                cell(_milli(travel.per_step)),
                cell(_number(travel.per_epoch)),
                cell(_number(travel.per_time_constant)),
                *(cell(f"{run.metrics[name]:.4g}") for name in metrics),
            ]
        )
    titles = ["run", "status", "samples", "last step", "time constants", "turned, rad", "per step, mrad"]
    titles += ["per epoch, rad", "per time constant, rad", *metrics]
    return table("The runs; angles are sums over all steps, of the median weight", titles, rows)


def sources(view: PageView) -> str:
    """Where each run was read, and what that source lacks."""
    parts = []
    for run in view.facts:
        letter = f"{run.letter}: " if len(view.facts) > 1 else ""
        notes = "".join(f" {note[:1].upper()}{note[1:]}." for note in run.notes)
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created))
        said = f"{letter}Started {started}, read from {run.place} ({run.source}).{notes}"
        parts.append(f'<p class="soft">{text(said)}</p>')
    return "".join(parts)


def _button(name: str, place: int) -> str:
    return f'<button class="link" data-weight="{place}">{text(name)}</button>'


def _ratio(value: float | None) -> str:
    if value is None:
        return cell("-")
    return cell(f"{value:.3f}", "good" if abs(value - 1) <= EQUILIBRIUM_BAND else "off")


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _milli(value: float | None) -> str:
    return "-" if value is None else f"{1000 * value:.3g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
