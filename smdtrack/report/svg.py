"""Small line charts as SVG text, coloured by the page's style sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from smdtrack.record.run import Floats


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        x, y: (P,); NaN in y is a gap.
        style: Class of the style sheet: a colour `c0`, `c1`, ... and `solid`, `dashed` or `dotted`.
        label: For the legend; no entry if empty.
    """

    x: Floats
    y: Floats
    style: str
    label: str = ""


@dataclass(frozen=True)
class Frame:
    """Size and axes of a chart, in user units of the SVG.

    Attributes:
        caption: What the chart shows, for screen readers.
        unit: Factor by which y is shown multiplied: 1000 for milliradian.
        logarithmic: Whether the y axis is; values that are not positive are gaps.
        reference: A y at which a thin line is drawn; None for no line.
    """

    caption: str
    width: int = 340
    height: int = 150
    unit: float = 1.0
    logarithmic: bool = False
    reference: float | None = None
    left: int = 44


_RIGHT, _TOP, _BOTTOM = 8, 8, 20
#: Decades that a logarithmic axis shows below and above the median value; the start of a run is often far outside.
DECADES_BELOW, DECADES_ABOVE = 2.5, 1.0
#: A curve is drawn across gaps of at most this many times its usual distance of points: some values exist at every
#: other sample only.
_LONGEST_GAP = 3


def chart(curves: Sequence[Curve], frame: Frame) -> str:
    """Returns a chart as an `<svg>` element; an empty frame that says so if there is nothing to draw."""
    drawn = [(curve, _scaled(curve.y * frame.unit, frame)) for curve in curves]
    finite = [y[np.isfinite(y)] for _, y in drawn]
    values = np.concatenate(finite) if finite else np.empty(0)
    inner_w, inner_h = frame.width - frame.left - _RIGHT, frame.height - _TOP - _BOTTOM
    opening = (
        f'<svg class="chart" viewBox="0 0 {frame.width} {frame.height}" role="img"'
        f' aria-label="{escape(frame.caption, quote=True)}">'
    )
    if not len(values):
        return f'{opening}<text x="{frame.left}" y="{frame.height / 2:.0f}">no values</text></svg>'
    low, high = _range(values, frame)
    x_low = min(float(curve.x[0]) for curve, _ in drawn if len(curve.x))
    x_high = max(float(curve.x[-1]) for curve, _ in drawn if len(curve.x))
    x_scale = inner_w / ((x_high - x_low) or 1.0)
    y_scale = inner_h / ((high - low) or 1.0)
    parts = [opening]
    for value in _ticks(low, high, frame.logarithmic):
        height = _TOP + (high - value) * y_scale
        shown = 10**value if frame.logarithmic else value
        parts.append(f'<path class="grid" d="M{frame.left} {height:.1f}H{frame.width - _RIGHT}"/>')
        parts.append(f'<text class="tick end" x="{frame.left - 4}" y="{height + 3.5:.1f}">{_short(shown)}</text>')
    for value in _ticks(x_low, x_high, False):
        x = frame.left + (value - x_low) * x_scale
        anchor = "end" if x > frame.width - 2 * _RIGHT else "middle"
        parts.append(f'<text class="tick {anchor}" x="{x:.1f}" y="{frame.height - 5}">{_short(value)}</text>')
    if frame.reference is not None:
        level = math.log10(frame.reference) if frame.logarithmic else frame.reference
        if low <= level <= high:
            height = _TOP + (high - level) * y_scale
            parts.append(f'<path class="reference" d="M{frame.left} {height:.1f}H{frame.width - _RIGHT}"/>')
    for curve, y in drawn:
        path = _path(
            frame.left + (curve.x - x_low) * x_scale, np.clip(_TOP + (high - y) * y_scale, 0, frame.height - _BOTTOM)
        )
        if path:
            parts.append(f'<path class="{curve.style}" d="{path}"/>')
    return "".join([*parts, "</svg>"])


def legend(curves: Sequence[Curve]) -> str:
    """Returns the legend of a chart as HTML."""
    entries = {(curve.label, curve.style) for curve in curves if curve.label}
    ordered = [entry for entry in dict.fromkeys((curve.label, curve.style) for curve in curves) if entry in entries]
    return "".join(
        f'<span class="key"><svg viewBox="0 0 28 8" aria-hidden="true"><path class="{style}" d="M1 4H27"/></svg>'
        f"{escape(label)}</span>"
        for label, style in ordered
    )


def _scaled(y: Floats, frame: Frame) -> Floats:
    if not frame.logarithmic:
        return y
    with np.errstate(invalid="ignore", divide="ignore"):
        logs: Floats = np.where(y > 0, np.log10(np.where(y > 0, y, 1)), np.nan)
    return logs


def _range(values: Floats, frame: Frame) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if frame.reference is not None:
        level = math.log10(frame.reference) if frame.logarithmic else frame.reference
        low, high = min(low, level), max(high, level)
    if frame.logarithmic:
        middle = float(np.median(values))
        low, high = max(low, middle - DECADES_BELOW), min(high, middle + DECADES_ABOVE)
    margin = (high - low) * 0.06 or (0.05 if frame.logarithmic else abs(high) * 0.05 or 1.0)
    return low - margin, high + margin


def _path(x: Floats, y: Floats) -> str:
    """Relative lines in tenths of a unit: half the characters of absolute ones."""
    parts: list[str] = []
    at: tuple[int, int] | None = None
    absent = 0
    longest = _longest_gap(y)
    for px, py in zip(np.rint(np.nan_to_num(x) * 10).astype(int).tolist(), (y * 10).tolist(), strict=True):
        if not math.isfinite(py):
            absent += 1
            at = None if absent > longest else at
            continue
        absent = 0
        place = (px, round(py))
        if at is None:
            parts.append(f"M{_tenth(place[0])} {_tenth(place[1])}")
        elif place != at:
            parts.append(f"l{_tenth(place[0] - at[0])} {_tenth(place[1] - at[1])}")
        at = place
    return "".join(parts)


def _longest_gap(y: Floats) -> float:
    there = np.flatnonzero(np.isfinite(y))
    return _LONGEST_GAP * float(np.median(np.diff(there))) if len(there) > 1 else 0.0


def _tenth(value: int) -> str:
    text = f"{value / 10:.1f}"
    return text.removesuffix(".0").replace("-0.", "-.").removeprefix("0") if text not in ("0.0", "-0.0") else "0"


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """At most five round numbers; on a logarithmic axis of less than two decades 1, 2, 5 and the like."""
    if high <= low:
        return [low]
    if logarithmic:
        marks = [
            exponent + math.log10(digit)
            for exponent in range(math.floor(low), math.ceil(high) + 1)
            for digit in (1, 2, 5)
            if low <= exponent + math.log10(digit) <= high
        ]
        decades = [mark for mark in marks if abs(mark - round(mark)) < 1e-9]
        if len(decades) >= 3:
            return decades[:: max(1, math.ceil(len(decades) / 5))]
        if len(marks) >= 2:
            return marks[:: max(1, math.ceil(len(marks) / 5))]
        return [math.log10(value) for value in _ticks(10**low, 10**high, False) if value > 0]
    rough = (high - low) / 4
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * digit for digit in (1, 2, 2.5, 5, 10) if size * digit >= rough)
    first = math.ceil(low / step)
    return [count * step for count in range(first, math.floor(high / step) + 1)]


def _short(value: float) -> str:
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    return f"{float(f'{value:.4g}'):g}"
