"""The page's static figures: overview, schedule, heat maps, small multiples."""

import base64
from collections.abc import Sequence

import numpy as np

from smdtrack.record.run import Floats, Run
from smdtrack.report.heat_map import HeatMap, png
from smdtrack.report.html import details, text
from smdtrack.report.lining_up import time_constants_passed
from smdtrack.report.minmax import columns, thin
from smdtrack.report.page_view import PageView
from smdtrack.report.svg import Curve, Frame, chart, legend

NO_LINE = "<p>No weight has a line.</p>"
#: Points of a curve in a large chart and in a small multiple.
_POINTS, _SMALL_POINTS = 700, 160
_ROW_HEIGHTS = (5.0, 15.0)
_MAP_HEIGHT = 760.0
#: A row of this height has room for its name.
_LEAST_LABELLED = 9.5
_CHARACTER = 7.0
_LONGEST_LABEL = 44


def overview_figure(view: PageView) -> str:
    """Measured over equilibrium line, over the whole network and time."""
    curves = []
    for index, run in enumerate(view.runs):
        letter = f"{view.facts[index].letter} " if len(view.runs) > 1 else ""
        for key, style, label in (
            ("smd/angle_ratio_p50", "solid", "median weight"),
            ("smd/angle_ratio_p10", "dotted", "10th percentile"),
            ("smd/angle_ratio_p90", "dotted", "90th percentile"),
        ):
            if key in run.overview and (style == "solid" or len(view.runs) == 1):
                colour = "c0" if len(view.runs) == 1 else f"c{index % 8}"
                curves.append(_curve(run, run.overview[key], f"{style} {colour}", f"{letter}{label}", _POINTS))
    frame = Frame("Measured angle over equilibrium line, by step", 560, 230, logarithmic=True, reference=1.0)
    return _figure("Measured angle / equilibrium line, over all weights; 1 is theory", curves, frame)


def equilibrium_figure(view: PageView) -> str:
    """Share of weights in equilibrium over time."""
    key = "smd/in_equilibrium"
    curves = [
        _curve(
            run, 100 * run.overview["smd/in_equilibrium"], view.colour(index, "solid"), _letter(view, index), _POINTS
        )
        for index, run in enumerate(view.runs)
        if key in run.overview
    ]
    if not curves:
        return ""
    return _figure("Weights in equilibrium, %", curves, Frame("Share of weights in equilibrium, by step", 560, 230))


def schedule_figures(view: PageView) -> str:
    """The equilibrium line of the median weight, which follows the schedule, and the time constants passed."""
    lines, passed = [], []
    for index, run in enumerate(view.runs):
        style = view.colour(index, "solid")
        if "angle_eq" in run.values:
            with np.errstate(invalid="ignore"):
                lines.append(_curve(run, _median(run.values["angle_eq"]), style, _letter(view, index), _POINTS))
        found = time_constants_passed(run)
        if found is not None:
            passed.append(_curve(run, found, style, _letter(view, index), _POINTS))
    parts = []
    if lines:
        frame = Frame("Equilibrium line of the median weight in milliradian, by step", 560, 210, unit=1000)
        parts.append(_figure("Equilibrium line of the median weight, mrad: it follows lr x weight decay", lines, frame))
    if passed:
        frame = Frame("Time constants passed, by step", 560, 210)
        parts.append(_figure("Time constants passed; a weight needs about 3 to reach a new line", passed, frame))
    for key in sorted({key for run in view.runs for key in run.overview if key.startswith("smd/lr")}):
        curves = [
            _curve(run, run.overview[key], view.colour(index, "solid"), _letter(view, index), _POINTS)
            for index, run in enumerate(view.runs)
            if key in run.overview
        ]
        parts.append(_figure(f"Learning rate ({key})", curves, Frame("Learning rate, by step", 560, 210)))
    return f'<div class="pair">{"".join(parts)}</div>' if parts else NO_LINE


def map_figure(view: PageView, index: int, found: HeatMap) -> str:
    """The heat map of one run."""
    run = view.runs[index]
    count = len(run.info.weights)
    row = min(max(_MAP_HEIGHT / max(count, 1), _ROW_HEIGHTS[0]), _ROW_HEIGHTS[1])
    labels = _labels(run, row)
    left = min(max((len(label) for label, _, _ in labels), default=4), _LONGEST_LABEL) * _CHARACTER + 10
    width, height = 1100.0, row * count
    inner = width - left - 4
    image = base64.b64encode(png(found.ratios)).decode()
    places = {name: place for place, name in enumerate(view.names)}
    parts = [
        f'<svg class="map" data-run="{index}" viewBox="0 0 {width:.0f} {height + 22:.0f}" role="group"'
        f' aria-label="Heat map of run {text(view.facts[index].letter)}; the table of weights has its numbers">'
    ]
    for label, y, key in labels:
        shown = label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"
        attribute = f' data-weight="{places[key]}"' if key in places else ""
        parts.append(f'<text class="end" x="{left - 6:.1f}" y="{y:.1f}"{attribute}>{text(shown)}</text>')
    parts.append(
        f'<image x="{left:.1f}" y="0" width="{inner:.1f}" height="{height:.1f}" preserveAspectRatio="none"'
        f' href="data:image/png;base64,{image}"/>'
        f'<rect class="frame" x="{left:.1f}" y="0" width="{inner:.1f}" height="{height:.1f}"/>'
    )
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        place = min(round(share * (len(found.first_steps) - 1)), len(found.first_steps) - 1)
        step = found.last_steps[place] if share == 1.0 else found.first_steps[place]
        anchor = "end" if share == 1.0 else "middle" if share else ""
        parts.append(f'<text class="{anchor}" x="{left + share * inner:.1f}" y="{height + 16:.1f}">step {step}</text>')
    parts.append(
        f'<rect class="hit" x="{left:.1f}" y="0" width="{inner:.1f}" height="{height:.1f}" tabindex="0"'
        ' role="application" aria-label="Weights by time: arrow keys choose a weight, Enter goes to its curves"/></svg>'
    )
    title = f"<h3>{text(view.facts[index].letter)}: {text(view.facts[index].name)}</h3>" if len(view.runs) > 1 else ""
    return f"<figure>{title}{''.join(parts)}</figure>"


def multiples(view: PageView) -> str:
    """Measured angle and lines of every weight, in a part a stage."""
    parts = []
    for place, (stage, indices) in enumerate(view.stages.items()):
        figures = "".join(_multiple(view, index) for index in indices)
        count = f"{len(indices)} weight{'s' if len(indices) > 1 else ''}"
        parts.append(details(stage, f'<div class="multiples">{figures}</div>', is_open=place == 0, rest=f": {count}"))
    kinds = (("solid", "measured"), ("dotted", "drift-corrected line"), ("dashed", "equilibrium line"))
    if len(view.runs) == 1:
        keys = [Curve(np.empty(0), np.empty(0), view.colour(0, style), label) for style, label in kinds]
    else:
        keys = [
            Curve(np.empty(0), np.empty(0), view.colour(index, "solid"), f"{run.letter} measured")
            for index, run in enumerate(view.facts)
        ]
        keys.append(Curve(np.empty(0), np.empty(0), view.colour(0, "dashed"), "dashed: equilibrium line"))
    return f"<p>{legend(keys)}</p>{''.join(parts)}"


def _multiple(view: PageView, index: int) -> str:
    name, curves = view.names[index], []
    points = max(40, _SMALL_POINTS // len(view.runs))
    families = (("angle_eq", "dashed"), ("angle_pred", "dotted"), ("angle", "solid"))
    for run_index, run in enumerate(view.runs):
        places = [place for place, weight in enumerate(run.info.weights) if weight.key == name]
        for family, style in families:
            if family in run.values and places and not (family == "angle_pred" and len(view.runs) > 1):
                column = run.values[family][:, places[0]]
                curves.append(_curve(run, column, view.colour(run_index, style), "", points))
    button = f'<button class="link" data-weight="{index}">{text(name)}</button>'
    ratios = [
        f"{run.letter + ' ' if len(view.runs) > 1 else ''}{row.angle_ratio:.2f}"
        for run in view.facts
        for row in run.rows
        if row.key == name and row.angle_ratio is not None
    ]
    beside = f" <span>{text(' / '.join(ratios))} of the line</span>" if ratios else ""
    frame = Frame(f"Angular update of {name} in milliradian, by step", unit=1000, logarithmic=True)
    return f"<figure><figcaption>{button}{beside}</figcaption>{chart(curves, frame)}</figure>"


def _figure(caption: str, curves: Sequence[Curve], frame: Frame) -> str:
    keys = legend(curves) if len(curves) > 1 else ""
    return f"<figure><figcaption>{text(caption)}</figcaption>{chart(curves, frame)}{keys}</figure>"


def _curve(run: Run, values: Floats, style: str, label: str, points: int) -> Curve:
    by = columns(len(run.steps), points)
    return Curve(run.steps[by.places].astype(np.float64), thin(values, by), style, label)


def _median(table: Floats) -> Floats:
    known = np.isfinite(table).any(axis=1)
    result = np.full(len(table), np.nan)
    if known.any():
        result[known] = np.nanmedian(table[known], axis=1)
    return result


def _letter(view: PageView, index: int) -> str:
    return view.facts[index].letter if len(view.runs) > 1 else ""


def _labels(run: Run, row: float) -> list[tuple[str, float, str]]:
    """Names beside the rows: every weight's where there is room, else every so many."""
    names = [weight.key for weight in run.info.weights]
    every = max(1, int(np.ceil(_LEAST_LABELLED / row)))
    return [(names[index], row * (index + 0.5) + 3.6, names[index]) for index in range(0, len(names), every)]
