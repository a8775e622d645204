"""Conditions such as `angle_ratio<.9` that let a program judge a comparison."""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from smdtrack.names import did_you_mean
from smdtrack.notices import SmdtrackError
from smdtrack.report.comparison import Comparison, RunChange, quantities

_FORM = re.compile(r"\s*(?:(median)\s*\(\s*([\w./-]+)\s*\)|([\w./-]+?))\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*")
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_MOST_NAMES = 3


@dataclass(frozen=True)
class Condition:
    """A comparison of a quantity with a number; true of a run if one weight fulfils it, or if the median does."""

    text: str
    quantity: str
    sign: str
    bound: float
    of_median: bool


def parse_condition(text: str) -> Condition:
    """Reads a condition.

    Args:
        text: `QUANTITY SIGN NUMBER` or `median(QUANTITY) SIGN NUMBER`, with one of < <= > >= == !=.

    Raises:
        SmdtrackError: If the text is no condition.
    """
    match = _FORM.fullmatch(text)
    try:
        bound = float(match[5]) if match else float("nan")
    except ValueError:
        bound = float("nan")
    if match is None or not np.isfinite(bound):
        raise SmdtrackError(f"{text!r} is no condition: write one such as angle_ratio<.9 or median(angle_change)>2.1")
    return Condition(text, match[2] or match[3], match[4], bound, match[1] is not None)


def findings(comparison: Comparison, conditions: Sequence[Condition]) -> list[str]:
    """Returns a line for each condition that a run fulfils. The baseline itself is not judged.

    Raises:
        SmdtrackError: If a condition names a quantity that no run has.
    """
    return [
        line
        for condition in conditions
        for change in comparison.changes
        for line in _found(condition, change, comparison)
    ]


def _found(condition: Condition, change: RunChange, comparison: Comparison) -> list[str]:
    holds, letter = _OPERATORS[condition.sign], change.run.letter
    if condition.quantity in change.run.metrics:
        value = change.run.metrics[condition.quantity]
        return [f"{condition.text}: {letter} has {value:.4g}"] if holds(value, condition.bound) else []
    rows = [quantities(change, weight) for weight in change.weights]
    known = [name for name, value in rows[0].items() if name not in ("run", "weight") and not isinstance(value, bool)]
    if condition.quantity not in known:
        choices = [*known, *change.run.metrics]
        hint = did_you_mean(condition.quantity, choices) or f"there are {', '.join(choices)}"
        raise SmdtrackError(f"no quantity {condition.quantity!r} in {condition.text!r}; {hint}")
    values = {row["weight"]: row[condition.quantity] for row in rows if row[condition.quantity] is not None}
    if condition.of_median:
        if not values:
            return []
        median = float(np.median(list(values.values())))
        return [f"{condition.text}: {letter} has {median:.4g}"] if holds(median, condition.bound) else []
    found = {name: value for name, value in values.items() if holds(value, condition.bound)}
    if not found:
        return []
    shown = ", ".join(f"{name} {value:.4g}" for name, value in list(found.items())[:_MOST_NAMES])
    more = ", ..." if len(found) > _MOST_NAMES else ""
    return [f"{condition.text}: {len(found)} of {len(rows)} weights of {letter} ({shown}{more})"]
