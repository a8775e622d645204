"""Runs side by side: how each weight's angular update changed, and how theory says that it must."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smdtrack.names import stage_of
from smdtrack.notices import SmdtrackError
from smdtrack.record.summary import WeightSummary
from smdtrack.report.facts import RunFacts, is_settled
from smdtrack.report.settings import SettingsCompared, compare_settings

_MOST_NAMES = 3


@dataclass(frozen=True)
class WeightChange:
    """One weight of one run beside the same weight of the baseline.

    Every `_change` is the run's value over the baseline's; None where one of them has no such value. Angles and norms
    are RMS over each run's window.

    Attributes:
        angle_change: Of the measured angular update.
        angle_pred_change: Of the drift-corrected line: what theory predicts with the norms as they moved.
        angle_eq_change: Of the equilibrium line: what theory predicts once both runs are in equilibrium.
        agreement: `angle_change / angle_pred_change`; with the equilibrium line where there is no other.
        excess: `angle_change / angle_eq_change`.
        growth_change, decay_change: Of the two forces on the squared norm: growth by the updates, shrinking by decay.
        memory_change: Of the measured memory of the updates.
        error: Relative standard error of `angle_change`, from sampling only some of the steps.
        settled: Whether the weight is in equilibrium: in the baseline, in the run.
    """

    key: str
    before: WeightSummary
    after: WeightSummary
    angle_change: float | None
    angle_pred_change: float | None
    angle_eq_change: float | None
    agreement: float | None
    excess: float | None
    error: float | None
    time_constant_change: float | None
    norm_change: float | None
    norm_eq_change: float | None
    effective_grad_change: float | None
    growth_change: float | None
    decay_change: float | None
    memory_change: float | None
    travel_change: float | None
    settled: tuple[bool | None, bool | None]

    @property
    def stage(self) -> str:
        """The stage of the network that the weight belongs to."""
        return stage_of(self.key)


@dataclass(frozen=True)
class RunChange:
    """A run beside the baseline.

    Attributes:
        weights: Those that both have, in the baseline's order.
        incomparable: Why some weights are not compared, one reason each.
    """

    run: RunFacts
    weights: tuple[WeightChange, ...]
    incomparable: tuple[str, ...]

    def median(self, quantity: str) -> float | None:
        """Returns the median of a quantity over the weights that have it."""
        values = [value for change in self.weights if (value := getattr(change, quantity)) is not None]
        return float(np.median(values)) if values else None


@dataclass(frozen=True)
class Comparison:
    """Several runs; the first is the baseline."""

    runs: tuple[RunFacts, ...]
    changes: tuple[RunChange, ...]
    settings: SettingsCompared

    @property
    def baseline(self) -> RunFacts:
        """The run that the others are compared with."""
        return self.runs[0]


def compare(runs: Sequence[RunFacts]) -> Comparison:
    """Compares runs with the first of them.

    Raises:
        SmdtrackError: If there are fewer than two runs, or one has no weight in common with the first.
    """
    if len(runs) < 2:
        raise SmdtrackError("one run only: a comparison takes two or more")
    runs = _with_rates_of_one_kind(runs)
    return Comparison(
        tuple(runs),
        tuple(_change(runs[0], run) for run in runs[1:]),
        compare_settings([run.settings for run in runs]),
    )


def _with_rates_of_one_kind(runs: Sequence[RunFacts]) -> list[RunFacts]:
    """Takes the noted learning rate of all runs if one of them does not have the script's."""
    if all(run.seen_lr is None for run in runs) or all(run.seen_lr is not None for run in runs):
        return list(runs)
    return [run if run.seen_lr is None else replace(run, settings={**run.settings, "lr": run.seen_lr}) for run in runs]


def _change(baseline: RunFacts, run: RunFacts) -> RunChange:
    for one in (baseline, run):
        if not one.rows:
            why = f"it diverged at step {one.diverged_at}" if one.diverged_at is not None else "no step was sampled"
            raise SmdtrackError(f"run {one.name} has nothing to compare: {why}")
    rows = {row.key: row for row in run.rows}
    shapes = {weight.key: weight.shape for weight in run.weights}
    pairs, reshaped = [], []
    for row in baseline.rows:
        if row.key not in rows:
            continue
        ours = next((weight.shape for weight in baseline.weights if weight.key == row.key), ())
        theirs = shapes.get(row.key, ())
        if ours and theirs and ours != theirs:
            reshaped.append(row.key)
        else:
            pairs.append((row, rows[row.key]))
    if not pairs:
        raise SmdtrackError(
            f"runs {baseline.name} and {run.name} have no weight in common:"
            f" {_some([row.key for row in baseline.rows])} of {baseline.settings.get('model', 'one model')} against"
            f" {_some([row.key for row in run.rows])} of {run.settings.get('model', 'another')}"
        )
    return RunChange(
        run,
        tuple(_weight_change(baseline, run, before, after) for before, after in pairs),
        tuple(_incomparable(baseline, run, reshaped)),
    )


def _incomparable(baseline: RunFacts, run: RunFacts, reshaped: Sequence[str]) -> list[str]:
    here, there = {row.key for row in baseline.rows}, {row.key for row in run.rows}
    reasons = []
    for names, owner in ((here - there, baseline), (there - here, run)):
        if names:
            ordered = [row.key for row in owner.rows if row.key in names]
            reasons.append(f"{len(names)} weights are only in {owner.letter} ({_some(ordered)})")
    if reshaped:
        reasons.append(f"{len(reshaped)} weights have other shapes ({_some(reshaped)})")
    return reasons


def _weight_change(baseline: RunFacts, run: RunFacts, before: WeightSummary, after: WeightSummary) -> WeightChange:
    angle = _over(after.angle, before.angle)
    pred = _over(after.angle_pred, before.angle_pred)
    line = _over(after.angle_eq, before.angle_eq)

    def changed(family: str) -> float | None:
        values = (facts.window.get(family, {}).get(before.key) for facts in (run, baseline))
        return _over(*values)

    travels = (baseline.travel.get(before.key), run.travel.get(after.key))
    return WeightChange(
        key=before.key,
        before=before,
        after=after,
        angle_change=angle,
        angle_pred_change=pred,
        angle_eq_change=line,
        agreement=_over(angle, pred if pred is not None else line),
        excess=_over(angle, line),
        error=_added(before.ratio_error, after.ratio_error),
        time_constant_change=_over(after.time_constant, before.time_constant),
        norm_change=_over(after.norm, before.norm),
        norm_eq_change=_over(after.norm_eq, before.norm_eq),
        effective_grad_change=changed("effective_grad"),
        growth_change=changed("growth"),
        decay_change=changed("decay"),
        memory_change=changed("memory"),
        travel_change=_over(*(travel.turned if travel else None for travel in reversed(travels))),
        settled=(is_settled(before), is_settled(after)),
    )


def _over(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _added(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else float(np.hypot(one, other))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")


#: Quantities of a weight's change, in the order in which tables show them.
QUANTITIES = (
    "angle_change",
    "error",
    "angle_pred_change",
    "angle_eq_change",
    "agreement",
    "excess",
    "norm_change",
    "norm_eq_change",
    "time_constant_change",
    "effective_grad_change",
    "growth_change",
    "decay_change",
    "memory_change",
    "travel_change",
)


def quantities(run: RunChange, change: WeightChange) -> dict[str, Any]:
    """Returns all numbers of one weight in one run: its own, the baseline's with `_baseline`, and the changes."""
    own = {name: getattr(change.after, name) for name in _OWN}
    base = {f"{name}_baseline": getattr(change.before, name) for name in _OWN}
    changes = {name: getattr(change, name) for name in QUANTITIES}
    flags = {"settled_baseline": change.settled[0], "settled": change.settled[1]}
    return {"run": run.run.letter, "weight": change.key, **changes, **flags, **own, **base}


_OWN = ("angle", "angle_pred", "angle_eq", "pred_ratio", "angle_ratio", "norm", "norm_eq", "time_constant")

#: All quantities of a weight by name, for tables, sorting and conditions.
COLUMNS = (*QUANTITIES, "settled_baseline", "settled", *_OWN, *(f"{name}_baseline" for name in _OWN))
