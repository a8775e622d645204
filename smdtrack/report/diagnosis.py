"""One run in words: what was measured, why it is so, and what to do."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from smdtrack.names import stage_of
from smdtrack.record.summary import EQUILIBRIUM_BAND, WeightSummary
from smdtrack.report.facts import RunFacts, is_settled

#: Time constants after which a start far from equilibrium has come within a few per cent of it.
ENOUGH_TIME_CONSTANTS = 3.0
_MOST_NAMES = 3


@dataclass(frozen=True)
class Cause:
    """One reason for what was measured, and what to do about it; nothing where `action` is empty."""

    why: str
    action: str = ""


_DIVERGED = Cause(
    "the weights stopped being finite",
    "lower the learning rate or lengthen the warm-up; what was measured before that step is right",
)


@dataclass(frozen=True)
class Diagnosis:
    """A run's verdict and the reasons behind it, the most important first."""

    verdict: str
    causes: tuple[Cause, ...]


def diagnose(run: RunFacts) -> Diagnosis:
    """Returns the verdict on one run with its reasons."""
    if run.summary is None and run.diverged_at is not None:
        return Diagnosis(f"the training diverged at step {run.diverged_at}, before a step was measured", (_DIVERGED,))
    if run.summary is None:
        return Diagnosis(
            "nothing was measured",
            (Cause("no step was sampled", "sample more often, or track weights that the optimizer holds"),),
        )
    return Diagnosis(run.summary.verdict or "no verdict was stored", tuple(_causes(run)))


def _causes(run: RunFacts) -> Iterator[Cause]:
    if run.diverged_at is not None:
        yield Cause(f"{_DIVERGED.why} at step {run.diverged_at}: the training diverged", _DIVERGED.action)
        return  # why the weights were not in equilibrium before that is of no use any more
    if run.status == "interrupted":
        yield Cause(f"the training was interrupted: the last sample is step {run.last_step}")
    if run.status == "failed":
        yield Cause(f"the script ended with an error: the last sample is step {run.last_step}")
    yield from _outside_influences(run)
    yield from _not_in_equilibrium(run)
    yield from _off_the_line(run)
    for reason in sorted({row.line_reason for row in run.rows if row.line_reason}):
        count = sum(row.line_reason == reason for row in run.rows)
        yield Cause(f"{_weights(count, len(run.rows))} have no line to compare with: {reason}")


def _outside_influences(run: RunFacts) -> Iterator[Cause]:
    if run.overview.get("smd/not_invariant", 0) > 0:
        yield Cause(
            f"{run.overview['smd/not_invariant']:.0%} of the weights stopped being scale-invariant"
            " (frozen batch norm, or a penalty on the weights)",
            "do not compare these with their lines",
        )
    if run.overview.get("smd/below_floor", 0) > 0:
        yield Cause(
            f"{run.overview['smd/below_floor']:.0%} of the weights turn less per step than their storage can resolve",
            "keep the weights in float32 (automatic mixed precision does) to measure them",
        )
    clipped = run.overview.get("smd/clipped", 0)
    if clipped:
        kind = "by value" if clipped == 1 else "adaptively (AGC)"
        yield Cause(f"gradients are clipped {kind}: the lines are approximate", "read them as a guide, not as a bound")


def _not_in_equilibrium(run: RunFacts) -> Iterator[Cause]:
    waiting = [row for row in run.rows if is_settled(row) is False]
    if not waiting:
        return
    early = False
    passed = [
        travel.time_constants
        for row in waiting
        if (travel := run.travel.get(row.key)) is not None and travel.time_constants is not None
    ]
    if passed and float(np.median(passed)) < ENOUGH_TIME_CONSTANTS:
        yield Cause(
            f"the run has lasted {float(np.median(passed)):.2g} time constants; equilibrium takes about"
            f" {ENOUGH_TIME_CONSTANTS:.0f}",
            _wait(waiting) or "train longer, or raise learning rate x weight decay",
        )
        early = True
    for below, words in ((True, ("less", "above", "falling")), (False, ("more", "below", "growing"))):
        rows = [row for row in waiting if ((row.angle_ratio or 1) < 1) == below]
        if not rows:
            continue
        ratios = sorted(row.angle_ratio for row in rows if row.angle_ratio is not None)
        known_norms = [row for row in rows if row.norm and row.norm_eq]
        agree = [row for row in known_norms if ((row.norm or 0) > (row.norm_eq or 0)) == below]
        norms = (
            f": {'its norm is' if len(rows) == 1 else 'their norms are'} {words[1]} equilibrium and still {words[2]}"
            if agree
            else ""
        )
        yield Cause(
            f"{_named(rows)} {'turns' if len(rows) == 1 else 'turn'} {words[0]} than the equilibrium line"
            f" ({_span(ratios)} of it){norms}",
            _wait(rows) if agree and not early else "",
        )


def _wait(rows: Sequence[WeightSummary]) -> str:
    """How many steps more until the slowest weight is within the band, from its ratio and time constant.

    Derived here: for SGD `r = ||w||^2` has the angle `x = angle / line = r_eq / r` and `(r/r_eq)^2 - 1` falls as
    exp(-t / T); for AdamW `x^2 = r_eq / r` and `r/r_eq - 1` does. Both times it is `1/x^2 - 1` that falls.
    """
    needed = []
    for row in rows:
        if row.angle_ratio and row.time_constant:
            edge = 1 - EQUILIBRIUM_BAND if row.angle_ratio < 1 else 1 + EQUILIBRIUM_BAND
            distance = (row.angle_ratio**-2 - 1) / (edge**-2 - 1)
            needed.append(row.time_constant * math.log(distance) if distance > 1 else 0.0)
    if not needed:
        return ""
    return (
        f"about {_rounded(max(needed))} more steps at the present settings bring the slowest of them into equilibrium;"
        " smdtrack.rescale_weight_norms does it at once"
    )


def _off_the_line(run: RunFacts) -> Iterator[Cause]:
    off = [row for row in run.rows if row.pred_ratio is not None and abs(row.pred_ratio - 1) > EQUILIBRIUM_BAND]
    if not off:
        return
    early = run.samples < 30
    ratios = sorted(row.pred_ratio for row in off if row.pred_ratio is not None)
    if early:
        why = f"{_named(off)}: {_span(ratios)} of the drift-corrected line, over few samples"
        yield Cause(why, "let it run on, or sample more often")
        return
    yield Cause(
        f"{_named(off)}: {_span(ratios)} of the drift-corrected line, which takes gradients as uncorrelated in time",
        "nothing: gradients that keep their direction for many steps turn a weight less, alternating ones more",
    )


def _named(rows: Sequence[WeightSummary]) -> str:
    """The weights by stage where there are many: `9 weights (layer2, layer3)`."""
    if len(rows) <= _MOST_NAMES:
        return ", ".join(row.key for row in rows)
    stages = list(dict.fromkeys(stage_of(row.key) for row in rows))
    shown = ", ".join(stages[:6]) + (", ..." if len(stages) > 6 else "")
    return f"{len(rows)} weights ({shown})"


def _weights(count: int, total: int) -> str:
    return f"all {total} weights" if count == total and total > 1 else f"{count} of {total} weights"


def _span(values: Sequence[float]) -> str:
    low, high = f"{values[0]:.2f}", f"{values[-1]:.2f}"
    return low if low == high else f"{low} to {high}"


def _rounded(steps: float) -> str:
    digits = max(0, int(math.log10(max(steps, 1))) - 1)
    return f"{round(steps / 10**digits) * 10**digits:,}"
