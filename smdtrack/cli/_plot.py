"""A plot of two curves in characters, for the terminal."""

import math
from collections.abc import Sequence

from rich.text import Text

#: Rows of the plot.
HEIGHT = 12
#: Columns to the left of the plot, for the labels of its axis.
MARGIN = 11
#: Decades that the plot shows at most. A schedule that ends at 0 would otherwise flatten everything else.
_DECADES = 2.0


def coloured(drawn: str) -> Text:
    """Returns the plot with its two curves in colours."""
    text = Text(drawn)
    text.highlight_regex(r"(?m)(?<=[|])[ o-]+$", "cyan")
    text.highlight_regex(r"(?<=[|o -])o(?=[o -]|$)", "bold green")
    return text


def plot(curve: Sequence[tuple[int, float, float]], epochs: float, width: int = 64, height: int = HEIGHT) -> str:
    """Returns a plot of the line (-) and the predicted angle (o) over the run. The angle's axis is logarithmic.

    Args:
        curve: (step, line, predicted angle) in order of steps.
        epochs: number of epochs at the last step.
        width: of the plot, in characters.
        height: of the plot, in rows.
    """
    steps = curve[-1][0]
    values = [value for _, line, angle in curve for value in (line, angle) if value > 0 and math.isfinite(value)]
    if not values:
        return ""
    high = max(values)
    low = max(min(values), high / 10**_DECADES)
    if high < 1.2 * low:
        low = high / 1.2
    span = math.log(high / low)
    rows = [[" "] * width for _ in range(height)]
    index = 0
    for column in range(width):
        step = (column + 0.5) / width * steps
        while index < len(curve) - 1 and curve[index][0] < step:
            index += 1
        for mark, value in (("-", curve[index][1]), ("o", curve[index][2])):
            if value >= low * 0.999:
                rows[min(max(round((height - 1) * math.log(high / value) / span), 0), height - 1)][column] = mark
    labels = [""] * height
    for row in (0, (height - 1) // 2, height - 1):
        labels[row] = f"{high * math.exp(-span * row / (height - 1)):.2g}"
    body = [f"{label:>{MARGIN - 2}s} |" + "".join(row).rstrip() for label, row in zip(labels, rows, strict=True)]
    return "\n".join([*body, *_axis(epochs, width)])


def _axis(epochs: float, width: int) -> list[str]:
    """Returns the horizontal axis and its labels, in epochs, at every quarter."""
    ticks, names = ["-"] * width, [" "] * (width + 1)
    for quarter in range(5):
        name = f"{epochs * quarter / 4:g}"
        column = round(quarter * width / 4)
        if 0 < quarter < 4:
            ticks[column] = "+"
        first = column if quarter < 4 else width + 1 - len(name)
        names[first : first + len(name)] = name
    return [" " * (MARGIN - 1) + "+" + "".join(ticks), " " * MARGIN + "".join(names)]
