"""The self-contained page of one run or several: static HTML and SVG, and a small script for picking and zooming.

Why static SVG made here and no chart library: for 53 weights x 3 curves x 2000 samples such a page weighs .8 MB and is
drawn in .2 s; Bokeh's is 3.6 MB and 1.5 s, Plotly's 6.5 MB and 3 s, Vega-Lite's 2.5 MB and 3.6 s.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from smdtrack.notices import SmdtrackError
from smdtrack.record.opened_run import OpenedRun
from smdtrack.report.comparison import Comparison
from smdtrack.report.comparison_verdict import sentences
from smdtrack.report.diagnosis import diagnose
from smdtrack.report.facts import RunFacts, is_settled
from smdtrack.report.heat_map import heat_map
from smdtrack.report.html import details, section, text, tiles
from smdtrack.report.page_data import (
    PageData,
    as_script,
    chart_plans,
    curves_of,
    encoded_map,
    points_per_curve,
    run_columns,
)
from smdtrack.report.page_figures import (
    NO_LINE,
    equilibrium_figure,
    map_figure,
    multiples,
    overview_figure,
    schedule_figures,
)
from smdtrack.report.page_tables import audit_table, change_table, run_table, settings_table, sources, weight_table
from smdtrack.report.page_view import PageView, view_of
from smdtrack.report.script_metrics import shown_metrics
from smdtrack.report.svg import DECADES_ABOVE, DECADES_BELOW
from smdtrack.report.travel import overall_travel

_NO_NETWORK = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_page(
    path: Path,
    opened: Sequence[OpenedRun],
    comparison: Comparison | None = None,
    globs: Sequence[str] = (),
    axis: str = "steps",
) -> None:
    """Writes the page of one run, or of several with their comparison.

    Args:
        globs: Weights to show; all if there are none.
        axis: What the curves are drawn over at first: steps, epochs or time-constants.

    Raises:
        SmdtrackError: If the file cannot be written.
    """
    document = page(view_of(opened, comparison, globs, axis))
    try:
        path.write_text(document, encoding="utf-8")
    except OSError as error:
        raise SmdtrackError(f"cannot write {path}: {error.strerror}") from error


def page(view: PageView) -> str:
    """Returns the page as HTML."""
    title = " and ".join(run.name for run in view.facts) if len(view.facts) < 4 else f"{len(view.facts)} runs"
    maps = [heat_map(run) for run in view.runs]
    figures = "".join(map_figure(view, index, found) for index, found in enumerate(maps) if found is not None)
    sections = [
        ("overview", "Overview", _overview(view)),
        (
            "map",
            "Where and when: measured / line",
            _map_intro() + figures if figures else NO_LINE,
        ),
        ("weight", "One weight", _picker(view)),
        ("stages", "All weights, by stage", multiples(view)),
        ("schedule", "Schedule and time constants", schedule_figures(view)),
        *([("changes", "Change of each weight", _changes(view))] if view.comparison else []),
        ("table", "Weights at the end", "".join(_folded(view, run, weight_table(view, run)) for run in view.facts)),
        ("audit", "Which weights, and where their lines come from", _audit(view)),
        ("settings", "Settings", settings_table(view)),
        ("reading", "How to read this", _asset("guide.html")),
    ]
    links = "".join(f'<a href="#{name}">{text(_LINKS.get(name, heading))}</a>' for name, heading, _ in sections)
    body = "".join(section(name, heading, content) for name, heading, content in sections)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_NO_NETWORK}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>smdtrack: {text(title)}</title><style>{_asset('page.css')}</style></head><body>"
        f'<nav aria-label="Sections"><div>{links}</div></nav>'
        f'<header><h1>{text(title)}</h1><p class="soft">{text(_subtitle(view))}</p></header><main>{body}</main>'
        "<footer>Made by smdtrack. The page needs no network; its numbers are those of the records named above."
        '</footer><div id="tip" hidden></div>'
        f'<script type="application/json" id="data">{as_script(_data(view, maps))}</script>'
        f"<script>{_asset('page.js')}</script></body></html>\n"
    )


_LINKS = {
    "map": "Heat map",
    "weight": "One weight",
    "stages": "By stage",
    "schedule": "Schedule",
    "changes": "Changes",
    "table": "Table",
    "audit": "Audit",
    "reading": "How to read",
}


def _asset(name: str) -> str:
    return files("smdtrack.report").joinpath("assets").joinpath(name).read_text(encoding="utf-8")


def _subtitle(view: PageView) -> str:
    run = view.facts[0]
    if len(view.facts) > 1:
        return f"{len(view.facts)} runs; {run.letter} is the baseline"
    said = [str(run.settings[name]) for name in ("model", "optimizer") if name in run.settings]
    said += [f"{name} {run.settings[name]}" for name in ("lr", "weight_decay", "momentum") if name in run.settings]
    return ", ".join([*said, f"{run.samples} samples, steps {run.first_step} to {run.last_step}", run.status])


def _overview(view: PageView) -> str:
    parts = []
    if view.comparison is not None:
        for change in view.comparison.changes:
            first, *more = sentences(view.comparison, change)
            parts.append(f'<p class="verdict">{text(first)}</p>')
            parts.append(_list([(sentence, "") for sentence in (*change.incomparable, *more)]))
        parts.append(run_table(view))
    else:
        run = view.facts[0]
        diagnosis = diagnose(run)
        parts.append(f'<p class="verdict">{text(diagnosis.verdict)}</p>')
        parts.append(_list([(cause.why, cause.action) for cause in diagnosis.causes]))
        parts.append(tiles(_numbers(run)))
    parts.append(f'<div class="pair">{overview_figure(view)}{equilibrium_figure(view)}</div>')
    parts.append(sources(view))
    return "".join(parts)


def _list(entries: Sequence[tuple[str, str]]) -> str:
    if not entries:
        return ""
    items = (
        f"<li>{text(said)}" + (f'<span class="do">What to do: {text(action)}</span>' if action else "") + "</li>"
        for said, action in entries
    )
    return f'<ul class="causes">{"".join(items)}</ul>'


def _numbers(run: RunFacts) -> list[tuple[str, str]]:
    travel = overall_travel(run)
    settled = [is_settled(row) for row in run.rows]
    numbers = [("weights measured", str(len(run.rows)))]
    if any(value is not None for value in settled):
        numbers.append(("in equilibrium", f"{sum(value is True for value in settled)} of {len(settled)}"))
    if travel.time_constants is not None:
        numbers.append(("time constants", f"{travel.time_constants:.3g}"))
    if travel.per_step is not None:
        numbers.append(("mean angle per step", f"{1000 * travel.per_step:.3g} mrad"))
    if travel.turned is not None:
        numbers.append(("turned in all", f"{travel.turned:.3g} rad"))
    if travel.per_epoch is not None:
        numbers.append(("turned per epoch", f"{travel.per_epoch:.3g} rad"))
    return numbers + [(name, f"{run.metrics[name]:.4g}") for name in shown_metrics([run.metrics], 3)]


def _map_intro() -> str:
    return (
        "<p>Each row is a weight, each column a stretch of time. No colour is on the equilibrium line."
        " Blue turns less per step than the line, orange more."
        ' <span class="only-screen js">Point at a cell for its value; click it for the curves of the weight.</span></p>'
        '<p class="soft">0.5 or less <span class="scale"></span> 2 or more <span class="absent"></span> no line</p>'
    )


def _picker(view: PageView) -> str:
    axes = [("steps", "steps")]
    if all(run.steps_per_epoch for run in view.facts):
        axes.append(("epochs", "epochs"))
    if all(view.passed(index) for index in range(len(view.runs))):
        axes.append(("time-constants", "time constants"))
    options = "".join(f'<option value="{value}">over {shown}</option>' for value, shown in axes)
    return (
        "<noscript><p>Choosing a weight and zooming takes JavaScript."
        " The curves of all weights are in the next part.</p></noscript>"
        '<div class="pick js"><div class="side">'
        '<label class="soft" for="search">Find a weight (key /)</label>'
        '<input id="search" type="search" autocomplete="off" spellcheck="false" placeholder="part of a name">'
        '<select id="weights" size="14" aria-label="Weights"></select>'
        '<div class="soft" id="found" aria-live="polite"></div>'
        f'<select id="axis" aria-label="Axis">{options}</select><button id="reset" disabled>Whole run (Esc)</button>'
        '<p class="soft">Left and right arrow keys go to the previous and next weight.'
        " Drag over a chart to zoom in.</p>"
        '</div><div><h3 id="picked" aria-live="polite"></h3><div class="charts" id="charts"></div></div></div>'
    )


def _changes(view: PageView) -> str:
    assert view.comparison is not None
    return "".join(change_table(view, view.comparison, change) for change in view.comparison.changes)


def _audit(view: PageView) -> str:
    return "".join(_folded(view, run, audit_table(run)) for run in view.facts)


def _folded(view: PageView, run: RunFacts, body: str) -> str:
    return body if len(view.facts) == 1 else details(f"{run.letter}: {run.name}", body, is_open=run is view.facts[0])


def _data(view: PageView, maps: Sequence[object]) -> dict[str, object]:
    plans = chart_plans(view.runs)
    points = points_per_curve(view.runs, plans)
    data = PageData()
    places = {name: index for index, name in enumerate(view.names)}
    runs, curves, heat = [], [], []
    for index, run in enumerate(view.runs):
        by = run_columns(run, points)
        passed = view.passed(index)
        runs.append(
            {
                "letter": view.facts[index].letter,
                "steps": run.steps[by.places].tolist(),
                "passed": [float(f"{passed[place] or 0:.6g}") for place in by.places.tolist()] if passed else None,
                "epoch": view.facts[index].steps_per_epoch,
            }
        )
        curves.append(curves_of(run, view.names, plans, by, data))
        found = heat_map(run)
        rows = [places[weight.key] for weight in run.info.weights]
        heat.append({"rows": rows, **encoded_map(found)} if found is not None else None)
    return {
        "axis": view.axis,
        "start": view.start,
        "weights": list(view.names),
        "labels": [_label(view, name) for name in view.names],
        "runs": runs,
        "charts": [
            {
                "title": plan.title,
                "unit": plan.unit,
                "unit_name": plan.unit_name,
                "curves": plan.curves,
                "logarithmic": plan.logarithmic,
            }
            for plan in plans
        ],
        "curves": curves,
        "pool": data.pool,
        "maps": heat,
        "below": DECADES_BELOW,
        "above": DECADES_ABOVE,
    }


def _label(view: PageView, name: str) -> str:
    if len(view.facts) > 1:
        return ""
    ratios = [row.angle_ratio for run in view.facts for row in run.rows if row.key == name]
    return " / ".join(f"{ratio:.2f}" for ratio in ratios if ratio is not None)
