"""The saved MLflow view: measured values and theory in one chart, an open overview, a folded section per stage.

MLflow keeps the state of its chart page in an experiment tag, and shows it to everyone who opens the address of the
tag. In a line chart of several metrics, MLflow draws the first one solid and the others dashed: theory is logged under
keys of its own and drawn beside the measured values. The format is not documented. It was read from MLflow 3.17; named
views exist since 3.15.
"""

import base64
import json
import re
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from smdtrack.names import stage_of
from smdtrack.record.run import TrackedWeight

#: Part of every tag and address. It gets a new number when the cards change, so that older views stay as they are.
VIEW_KEY = "smdtrack-v1"
VIEW_NAME = "smdtrack: measured vs theory"
OVERVIEW_SECTION = "smdtrack: overview"
TAG_PREFIX = "mlflow.sharedViewState."
#: Longest tag in characters. MLflow accepts 20000; the rest is room for what people change in a view.
MAX_CHARACTERS = 15_000

# MLflow draws the first of each solid, the others dashed. It has four styles: a fifth line would look like the first.
OVERVIEW_CARDS = (
    ("smd/angle_ratio_p50", "smd/theory", "smd/angle_ratio_p10", "smd/angle_ratio_p90"),
    ("smd/pred_ratio_p50", "smd/theory"),
    ("smd/in_equilibrium",),
)
_CARD_FAMILIES = (("angle", "angle_eq", "angle_pred"), ("norm", "norm_eq"))
_LINE_FAMILIES = frozenset({"angle_pred", "angle_eq", "norm_eq"})
# Fixed ranges: otherwise noise of one percent fills the chart of a ratio that stays at 1.
_RANGES = {"smd/pred_ratio_p50": {"yMin": 0.5, "yMax": 1.5}, "smd/in_equilibrium": {"yMin": 0, "yMax": 1.05}}
_CARD_HEIGHT = 290
# MLflow adds a chart for every key that is not the first of a card, in an open section with the name of the key's
# family. If the view has a section of that name already, the charts go there and it stays folded.
_LEFT_OVER_FAMILIES = ("smd", "angle_eq", "angle_pred", "norm_eq", "effective_grad")

Layers = Mapping[str, frozenset[str]]


class View(NamedTuple):
    """One saved view: its key in tag and address, the name that people see, and what it shows."""

    key: str
    name: str
    state: dict[str, Any]


def layers_of(weights: Iterable[TrackedWeight]) -> dict[str, frozenset[str]]:
    """Returns the families that are drawn for each weight; without a line, only the measured ones."""
    families = {family for card in _CARD_FAMILIES for family in card}
    return {
        weight.key: frozenset(families if weight.line_kind != "none" else families - _LINE_FAMILIES)
        for weight in weights
    }


def layers_in(state: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Returns the weights and families that a view's state draws: what `layers_of` gave to make it."""
    layers: dict[str, frozenset[str]] = {}
    for card in state["compareRunCharts"]:
        for metric in card["selectedMetricKeys"]:
            family, _, weight = metric.partition("/")
            if family != "smd" and weight:
                layers[weight] = layers.get(weight, frozenset()) | {family}
    return layers


def merged(existing: Layers, new: Layers) -> dict[str, frozenset[str]]:
    """Returns the union of two views' weights, the existing ones first and in their order."""
    names = dict.fromkeys([*existing, *new])
    return {name: existing.get(name, frozenset()) | new.get(name, frozenset()) for name in names}


def views(layers: Layers, limit: int = MAX_CHARACTERS) -> list[View]:
    """Returns the views that show the layers: one, or as many as keep each under `limit` characters.

    The first holds the overview and as many layers as fit; the others hold the remaining layers.
    """
    made: list[View] = []
    rest = dict(layers)
    while rest or not made:
        number = len(made) + 1
        count = _fitting(rest, limit, overview=number == 1)
        taken = dict(list(rest.items())[:count])
        rest = dict(list(rest.items())[count:])
        key, name = (VIEW_KEY, VIEW_NAME) if number == 1 else (f"{VIEW_KEY}-{number}", f"{VIEW_NAME} ({number})")
        made.append(View(key, name, view_state(taken, overview=number == 1)))
    return made


def _fitting(layers: Layers, limit: int, overview: bool) -> int:
    """Returns how many layers, at least one, fit into a view. Found by bisection: the text grows with every layer."""
    items = list(layers.items())
    low, high = min(1, len(items)), len(items)
    while low < high:
        middle = (low + high + 1) // 2
        if len(encode(view_state(dict(items[:middle]), overview=overview))) <= limit:
            low = middle
        else:
            high = middle - 1
    return low


def view_state(layers: Layers, overview: bool = True) -> dict[str, Any]:
    """Returns the state of MLflow's chart page that shows these layers; the same layers give the same state."""
    sections: list[dict[str, Any]] = []
    cards: list[dict[str, Any]] = []
    if overview:
        sections.append(_section("s0", OVERVIEW_SECTION, display=True, columns=3))
        cards += [_card(f"c0.{index}", "s0", keys) for index, keys in enumerate(OVERVIEW_CARDS)]
    stages: dict[str, list[str]] = {}
    for name in layers:
        stages.setdefault(stage_of(name), []).append(name)
    for number, (stage, names) in enumerate(stages.items(), start=1):
        section = f"s{number}"
        sections.append(_section(section, stage, display=not overview and number == 1, columns=2))
        for index, name in enumerate(names):
            for column, families in enumerate(_CARD_FAMILIES):
                keys = [f"{family}/{name}" for family in families if family in layers[name]]
                if keys:
                    cards.append(_card(f"c{number}.{index}.{column}", section, keys))
    sections += [_section(f"f.{family}", family, display=False, columns=3) for family in _LEFT_OVER_FAMILIES]
    return {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [],
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "FIRST_20_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "compareRunSections": sections,
        "compareRunCharts": cards,
    }


def _section(uuid: str, name: str, display: bool, columns: int) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "name": name,
        "display": display,
        "isReordered": False,
        "columns": columns,
        "cardHeight": _CARD_HEIGHT,
    }


def _card(uuid: str, section: str, keys: Sequence[str]) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "type": "LINE",
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        "metricKey": keys[0],
        "selectedMetricKeys": list(keys),
        "displayPoints": False,
        "xAxisKey": "step",
        "range": _RANGES.get(keys[0], {}),
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "lineSmoothness": 0,
        "selectedXAxisMetricKey": "",
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def encode(state: Mapping[str, Any]) -> str:
    """Returns the state in the form that MLflow's page reads."""
    text = json.dumps(state, separators=(",", ":"))
    return "deflate;" + base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def decode(tag: str) -> dict[str, Any]:
    """Returns the state in a tag, with or without the envelope of a named view.

    Raises:
        ValueError: If the tag holds no such state.
    """
    text = tag
    if tag.startswith("{"):
        text = json.loads(tag)["state"]
    if not text.startswith("deflate;"):
        raise ValueError("not a deflated view state")
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text.removeprefix("deflate;"))))
    return state


def tag_value(view: View, named: bool, now: float | None = None) -> str:
    """Returns the tag of a view: as a named view, or only its state for servers without named views."""
    if not named:
        return encode(view.state)
    milliseconds = int((time.time() if now is None else now) * 1000)
    return json.dumps(
        {"name": view.name, "createdAt": milliseconds, "updatedAt": milliseconds, "state": encode(view.state)}
    )


def knows_named_views(version: str) -> bool:
    """Returns whether this version of MLflow has named views: 3.15 and newer."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return match is not None and (int(match[1]), int(match[2])) >= (3, 15)


def write_views(client: Any, experiment_id: str, layers: Layers, version: str) -> list[str]:
    """Writes the views into the experiment's tags if they lack a layer, and returns their keys.

    Layers of earlier runs of the experiment stay in the view. A view that has all layers is left as it is, with
    whatever people have changed in it.
    """
    tags = client.get_experiment(experiment_id).tags
    existing: dict[str, frozenset[str]] = {}
    shown: list[str] = []
    for number in range(1, 100):
        key = VIEW_KEY if number == 1 else f"{VIEW_KEY}-{number}"
        tag = tags.get(TAG_PREFIX + key)
        if tag is None:
            break
        shown.append(key)
        existing = merged(existing, layers_in(decode(tag)))
    wanted = merged(existing, layers)
    if shown and wanted == existing:
        return shown
    named = knows_named_views(version)
    made = views(wanted)
    for view in made:
        client.set_experiment_tag(experiment_id, TAG_PREFIX + view.key, tag_value(view, named))
    return [view.key for view in made]
