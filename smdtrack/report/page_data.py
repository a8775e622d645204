"""The numbers that the page's script draws: thinned, 16 bits a value, equal series once."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smdtrack.record.run import Floats, Run
from smdtrack.report.forces import growth_and_decay, measured_memory
from smdtrack.report.heat_map import HeatMap
from smdtrack.report.minmax import Columns, columns, thin

#: Characters that all curves of a page may take; pages stay below 4 MB.
_CURVE_CHARACTERS = 2_200_000
#: A curve is drawn on about 700 pixels; more points serve the zoom.
_MOST_POINTS, _FEWEST_POINTS = 4000, 160
#: Two bytes a point, four characters for three bytes.
_CHARACTERS_A_POINT = 2 * 4 / 3
_LEVELS = 65534
#: `memory` is the line's in older records, so the measured one is drawn under this name.
_MEMORY = "measured_memory"


@dataclass(frozen=True)
class ChartPlan:
    """One chart of a picked weight.

    Attributes:
        unit: Factor by which values are shown multiplied.
        curves: Family, line style, label.
    """

    title: str
    unit: float
    unit_name: str
    curves: tuple[tuple[str, str, str], ...]
    logarithmic: bool = True


def chart_plans(runs: Sequence[Run]) -> list[ChartPlan]:
    """Returns the charts for which at least one run has values."""
    families = {family for run in runs for family in families_of(run)}
    lags = sorted(int(family[7:]) for family in families if family.startswith("angle_k") and family[7:].isdigit())
    plans = [
        ChartPlan(
            "Angular update per step",
            1000,
            "mrad",
            (
                ("angle", "solid", "measured"),
                ("angle_pred", "dotted", "drift-corrected line"),
                ("angle_eq", "dashed", "equilibrium line"),
            ),
        ),
        ChartPlan("Norm", 1, "", (("norm", "solid", "measured"), ("norm_eq", "dashed", "equilibrium norm"))),
        ChartPlan(
            "The two forces on the squared norm, per step",
            1,
            "",
            (("growth", "solid", "growth by the updates"), ("decay", "dashed", "shrinking by weight decay")),
        ),
        ChartPlan("Effective gradient: norms of gradient x weight", 1, "", (("effective_grad", "solid", "measured"),)),
    ]
    if _MEMORY in families:
        plans.append(ChartPlan("Memory of the updates", 1, "", ((_MEMORY, "solid", "measured / white"),)))
    plans += [
        ChartPlan(
            f"Angle over {lag} steps",
            1000,
            "mrad",
            ((f"angle_k{lag}", "solid", "measured"), (f"angle_k{lag}_pred", "dashed", "predicted")),
        )
        for lag in lags
    ]
    plans += [
        ChartPlan(
            f"Turning efficiency over {lag} steps",
            1,
            "",
            ((f"efficiency_k{lag}", "solid", "angle over that of uncorrelated steps"),),
            logarithmic=False,
        )
        for lag in lags
    ]
    return [plan for plan in plans if any(family in families for family, _, _ in plan.curves)]


def families_of(run: Run) -> dict[str, Floats]:
    """Returns the run's families with the two forces on the norm, and the measured memory under a name of its own."""
    families = dict(run.values)
    forces, memory = growth_and_decay(run), measured_memory(run)
    if forces is not None:
        families["growth"], families["decay"] = forces
    if memory is not None:
        families[_MEMORY] = memory
    return families


@dataclass
class PageData:
    """Collects the series of a page.

    Attributes:
        pool: Encoded series; each different one is kept once.
    """

    pool: list[str] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)

    def curve(self, values: Floats) -> list[Any] | None:
        """Encodes one curve as [place in the pool, lowest, highest, whether logarithmic]; None if it has no value."""
        finite = values[np.isfinite(values)]
        if not len(finite):
            return None
        logarithmic = bool(finite.min() > 0)
        scaled = np.log(np.where(values > 0, values, np.nan)) if logarithmic else values
        low, high = float(np.nanmin(scaled)), float(np.nanmax(scaled))
        span = (high - low) or 1.0
        there = np.isfinite(scaled)
        levels = np.zeros(len(values), dtype="<u2")
        levels[there] = 1 + np.rint((scaled[there] - low) / span * _LEVELS).astype(np.int64)
        text = base64.b64encode(levels.tobytes()).decode()
        if text not in self._places:
            self._places[text] = len(self.pool)
            self.pool.append(text)
        return [self._places[text], _rounded(low), _rounded(high), int(logarithmic)]


def points_per_curve(runs: Sequence[Run], plans: Sequence[ChartPlan]) -> int:
    """Returns how many points each curve may have for the page to keep its weight."""
    curves = sum(len(run.info.weights) for run in runs) * sum(len(plan.curves) for plan in plans)
    points = int(_CURVE_CHARACTERS / _CHARACTERS_A_POINT / max(curves, 1))
    return max(_FEWEST_POINTS, min(_MOST_POINTS, points))


def curves_of(
    run: Run, names: Sequence[str], plans: Sequence[ChartPlan], by: Columns, data: PageData
) -> dict[str, Any]:
    """Returns, by family, an encoded curve for each name; None where the run has no such weight or value."""
    places = {weight.key: index for index, weight in enumerate(run.info.weights)}
    encoded: dict[str, Any] = {}
    families = families_of(run)
    for family in dict.fromkeys(family for plan in plans for family, _, _ in plan.curves):
        if family not in families:
            continue
        table = thin(families[family], by)
        encoded[family] = [data.curve(table[:, places[name]]) if name in places else None for name in names]
    return encoded


def run_columns(run: Run, points: int) -> Columns:
    """Returns the columns of a run's curves."""
    return columns(len(run.steps), points)


def encoded_map(found: HeatMap) -> dict[str, Any]:
    """Returns a heat map's values for the pointer's label: ratio x 1000, 0 where there is none."""
    levels = np.nan_to_num(np.clip(np.rint(found.ratios * 1000), 1, 65535), nan=0).astype("<u2")
    return {
        "first": found.first_steps.tolist(),
        "last": found.last_steps.tolist(),
        "values": base64.b64encode(levels.tobytes()).decode(),
    }


def as_script(document: Any) -> str:
    """Returns JSON that is safe inside a `<script>` element, whatever names it holds."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def short_floats(values: Floats, digits: int = 6) -> list[float | None]:
    """Returns values as short JSON numbers; None for what is not finite."""
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values.tolist()]


def _rounded(value: float) -> float:
    return float(f"{value:.8g}")
