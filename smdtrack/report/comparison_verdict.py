"""The verdict on a comparison, in sentences that name the cause."""

import math
from collections.abc import Iterator, Mapping, Sequence

from smdtrack.record.opened_run import Setting
from smdtrack.record.summary import EQUILIBRIUM_BAND
from smdtrack.report.comparison import Comparison, RunChange, WeightChange
from smdtrack.report.facts import RunFacts
from smdtrack.report.script_metrics import shown_metrics
from smdtrack.report.settings import number, same

#: Two runs whose numbers agree to this share are the same run, read from two sources.
_EQUAL = 1e-6
#: Settings that decide where the equilibrium line is, beside learning rate and weight decay.
_LINE_SETTINGS = ("momentum", "dampening", "nesterov", "betas", "beta1", "eps")
#: Settings that decide how the learning rate moves; named as a cause only if the lines show it.
_SCHEDULE_SETTINGS = (
    "sched",
    "epochs",
    "warmup_epochs",
    "warmup_lr",
    "min_lr",
    "decay_epochs",
    "decay_rate",
    "cooldown_epochs",
)
_MOST_STAGES = 6
#: A line that changed by less than this factor did not move.
_MOVED = 1.02


def sentences(comparison: Comparison, change: RunChange) -> list[str]:
    """Returns the verdict on one run beside the baseline: what changed, as predicted or not, and why."""
    if _is_same(comparison, change):
        return [f"No difference: {change.run.letter} has the settings and the angles of {comparison.baseline.letter}."]
    if change.run.diverged_at is not None:
        # Norms and lags of a run that failed explain nothing that is still of use.
        ends = _ends(comparison.baseline, change)
        return [*ends, _headline(comparison.baseline, change), *_metrics(comparison.baseline, change.run)]
    said = [_headline(comparison.baseline, change)]
    said += _ends(comparison.baseline, change)
    said += _lags(comparison.baseline, change)
    said += _unexplained(change)
    said += _norms(change)
    said += _per_epoch(comparison.baseline, change)
    said += _metrics(comparison.baseline, change.run)
    return said


def line_causes(baseline: RunFacts, run: RunFacts) -> list[str]:
    """Returns which settings of the line differ, such as `lr x 4`."""
    one, other = baseline.settings, run.settings
    causes = []
    if "optimizer" in one and "optimizer" in other and not same(one["optimizer"], other["optimizer"]):
        causes.append(f"{one['optimizer']} to {other['optimizer']}")
    for name in ("lr", "weight_decay"):
        before, after = number(one, name), number(other, name)
        if before is None or after is None or math.isclose(before, after, rel_tol=1e-6):
            continue
        short = "wd" if name == "weight_decay" else name
        causes.append(f"{short} x {after / before:.3g}" if before and after else f"{short} {before:g} to {after:g}")
    if not causes or not causes[0].startswith(str(one.get("optimizer"))):
        causes += [
            f"{name} {one[name]} to {other[name]}"
            for name in _LINE_SETTINGS
            if name in one and name in other and not same(one[name], other[name])
        ]
    return causes


def _is_same(comparison: Comparison, change: RunChange) -> bool:
    if change.incomparable or change.run.last_step != comparison.baseline.last_step:
        return False
    one, other = comparison.baseline.settings, change.run.settings
    if any(name in other and not same(value, other[name]) for name, value in one.items()):
        return False
    ratios = [value for weight in change.weights for value in (weight.angle_change, weight.norm_change)]
    return all(value is not None and abs(value - 1) <= _EQUAL for value in ratios)


def _headline(baseline: RunFacts, change: RunChange) -> str:
    a, b, count = baseline.letter, change.run.letter, len(change.weights)
    measured, line, drift = (change.median(name) for name in ("angle_change", "angle_eq_change", "angle_pred_change"))
    if measured is None:
        return f"No angle of {b} and {a} can be compared."
    over = f"median of {count} weights" if count > 1 else change.weights[0].key
    turns = f"{b} turns {times(measured)} as far per step as {a} ({over})"
    causes = line_causes(baseline, change.run)
    if line is None:
        after = f" for {_and(causes)}" if causes else ""
        return f"{turns}; there is no line for both, so nothing is predicted{after}."
    moved = abs(math.log(line)) > math.log(_MOVED)
    if causes and not _explains(baseline.settings, change.run.settings, line):
        return (
            f"{turns}{_prediction([], measured, line, drift, named=False)} The recorded settings differ by"
            f" {_and(causes)}, which is not how the line moved: a schedule changed the rate, or the optimizer has a"
            " line of another kind."
        )
    if not causes and moved:
        causes = _schedule_cause(baseline, change.run)
    if not causes and not moved:
        if _near(measured, line):
            return f"{turns}: no setting that moves the line differs, and the line is the same."
        return f"{turns}. No setting that moves the line differs: at equilibrium it would be {times(line)}."
    return turns + _prediction(causes, measured, line, drift)


def _explains(one: Mapping[str, Setting], other: Mapping[str, Setting], line: float) -> bool:
    """Whether the line moved as sqrt(lr x wd), if nothing else of the line differs; True if that cannot be told."""
    same_otherwise = all(same(one.get(name), other.get(name)) for name in ("optimizer", *_LINE_SETTINGS))
    values = [number(settings, name) for settings in (other, one) for name in ("lr", "weight_decay")]
    if not same_otherwise or not all(values):
        return True
    lr, decay, lr_before, decay_before = (value or 1.0 for value in values)
    return _near(line, math.sqrt(lr * decay / (lr_before * decay_before)))


def _prediction(causes: Sequence[str], measured: float, line: float, drift: float | None, named: bool = True) -> str:
    """The rest of the headline: what the changed settings predict, and whether that was measured."""
    who = _and(causes) or "the line"
    verb = "predict" if len(causes) > 1 else "predicts"
    unnamed = "" if causes or not named else " No recorded setting says why the line moved."
    if _near(measured, line):
        return f", as {who} {verb} ({times(line)} at equilibrium).{unnamed}"
    if drift is not None and _near(measured, drift):
        return (
            f". {_upper(who)} {verb} {times(line)} at equilibrium; with the norms as they still move it is"
            f" {times(drift)}, as measured.{unnamed}"
        )
    extra = f" and {times(drift)} with the norms as they move" if drift is not None else ""
    return f", where {who} {verb} {times(line)} at equilibrium{extra}.{unnamed}"


def _schedule_cause(baseline: RunFacts, run: RunFacts) -> list[str]:
    names = [
        name
        for name in _SCHEDULE_SETTINGS
        if name in baseline.settings and name in run.settings and not same(baseline.settings[name], run.settings[name])
    ]
    return [f"the schedule ({', '.join(names)})"] if names else []


def _ends(baseline: RunFacts, change: RunChange) -> Iterator[str]:
    for run in (baseline, change.run):
        window = ""
        if run.summary is not None:
            window = f"; it is compared over its own steps {run.summary.first_step} to {run.summary.last_step}"
        if run.diverged_at is not None:
            yield f"{run.letter} diverged at step {run.diverged_at}: only the steps before it are compared."
        elif run.status in ("interrupted", "failed"):
            yield f"{run.letter} {_ENDED[run.status]} at step {run.last_step}{window}."
        elif run.status == "running":
            yield f"{run.letter} has no recorded end: it is running or was killed{window}."


_ENDED = {"interrupted": "was interrupted", "failed": "ended with an error"}


def _lags(baseline: RunFacts, change: RunChange) -> Iterator[str]:
    a, b = baseline.letter, change.run.letter
    groups: dict[tuple[bool, bool], list[WeightChange]] = {}
    for weight in change.weights:
        if weight.excess is None or _near(weight.excess, 1.0):
            continue
        late = (weight.settled[0] is False, weight.settled[1] is False)
        if any(late):
            groups.setdefault(late, []).append(weight)
    for (a_late, b_late), weights in sorted(groups.items()):
        reached = _span([weight.angle_change for weight in weights])
        if a_late and not b_late:
            low = sum((weight.before.angle_ratio or 1) < 1 for weight in weights) * 2 >= len(weights)
            blame = f"{a}'s lag, not {b}'s {'excess' if low else 'shortfall'}"
            yield (
                f"{_where(weights, change)} of {a} {_drifting(weights, before=True)}, so there {b}/{a} is {reached}:"
                f" {blame}."
            )
        elif b_late and not a_late:
            yield (
                f"{_where(weights, change)} of {b} {_drifting(weights, before=False)}, so there {b}/{a} is {reached}:"
                f" {b} has not reached its new line yet."
            )
        else:
            yield (
                f"{_where(weights, change)}: neither run is in equilibrium there"
                f" ({a} at {_ratios(weights, before=True)} of its line, {b} at {_ratios(weights, before=False)}),"
                f" so {b}/{a} is {reached}."
            )


def _drifting(weights: Sequence[WeightChange], before: bool) -> str:
    rows = [weight.before if before else weight.after for weight in weights]
    low = sum((row.angle_ratio or 1) < 1 for row in rows) * 2 >= len(rows)
    norms = [row.norm > row.norm_eq for row in rows if row.norm and row.norm_eq]
    verb = "was" if len(weights) == 1 else "were"
    ratios = _ratios(weights, before)
    owner = "its line" if len(weights) == 1 else "their lines"
    if norms and sum(norms) * 2 >= len(norms) and low:
        return f"{verb} still losing norm (at {ratios} of {owner})"
    if norms and sum(norms) * 2 < len(norms) and not low:
        return f"{verb} still gaining norm (at {ratios} of {owner})"
    return f"{verb} not in equilibrium (at {ratios} of {owner})"


def _unexplained(change: RunChange) -> Iterator[str]:
    """Weights that also the drift-corrected lines do not explain."""
    off = [
        weight
        for weight in change.weights
        if weight.agreement is not None
        and weight.angle_pred_change is not None
        and abs(weight.agreement - 1) > EQUILIBRIUM_BAND + 2 * (weight.error or 0)
        and not (weight.excess is not None and _near(weight.excess, 1.0))
    ]
    if off:
        yield (
            f"Not explained by the lines, drift of the norms included: {_where(off, change)}, measured"
            f" {_span([weight.angle_change for weight in off])} where"
            f" {_span([weight.angle_pred_change for weight in off])} is predicted"
            " (gradients correlated in time, or too few samples)."
        )


def _norms(change: RunChange) -> Iterator[str]:
    norm, line = change.median("norm_change"), change.median("norm_eq_change")
    if norm is None or abs(math.log(norm)) < math.log(1.05):
        return
    predicted = f" (at equilibrium {times(line)})" if line is not None and not _near(norm, line, 0.03) else ""
    yield f"Its weights are {times(norm)} as long{predicted}."


def _per_epoch(baseline: RunFacts, change: RunChange) -> Iterator[str]:
    before, after = baseline.steps_per_epoch, change.run.steps_per_epoch
    measured = change.median("angle_change")
    if not before or not after or measured is None or abs(math.log(after / before)) < math.log(1.05):
        return
    yield (
        f"An epoch of {change.run.letter} has {times(after / before)} the steps, so over an epoch the angles of all"
        f" steps add up to {times(measured * after / before)}."
    )


def _metrics(baseline: RunFacts, run: RunFacts) -> Iterator[str]:
    names = shown_metrics([baseline.metrics, run.metrics], 3)
    shown = [f"{name} {baseline.metrics[name]:.4g} to {run.metrics[name]:.4g}" for name in names]
    if shown:
        yield f"The script's own metrics, {baseline.letter} to {run.letter}: {', '.join(shown)}."


def _where(weights: Sequence[WeightChange], change: RunChange) -> str:
    """The weights: by stage where whole stages are meant, else by name or number."""
    if len(weights) == len(change.weights) and len(weights) > 1:
        return f"All {len(weights)} weights"
    stages = list(dict.fromkeys(weight.stage for weight in weights))
    complete = len(weights) == sum(weight.stage in stages for weight in change.weights)
    if len(weights) <= 2:
        return _and([weight.key for weight in weights])
    if len(stages) > _MOST_STAGES:
        return f"{len(weights)} weights of {len(stages)} stages"
    return _and(stages) if complete else f"{len(weights)} weights in {_and(stages)}"


def _ratios(weights: Sequence[WeightChange], before: bool) -> str:
    values = [(weight.before if before else weight.after).angle_ratio for weight in weights]
    return _span(values, "")


def _span(values: Sequence[float | None], unit: str = "x") -> str:
    known = sorted(value for value in values if value is not None)
    if not known:
        return "unknown"
    low, high = f"{known[0]:.2f}", f"{known[-1]:.2f}"
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def times(ratio: float) -> str:
    """Returns a ratio as people say it: `2.00x`, `0.13x`, `0.0031x`."""
    return f"{ratio:.2f}x" if 0.095 <= ratio < 1000 else f"{ratio:.2g}x"


def _near(one: float, other: float, band: float = EQUILIBRIUM_BAND) -> bool:
    return other > 0 and abs(one / other - 1) <= band


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:] if text.startswith("the ") else text
