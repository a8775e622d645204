"""What the parts of the page share: the runs with their facts, the weights, the colours."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smdtrack.names import stage_of
from smdtrack.notices import SmdtrackError
from smdtrack.record.opened_run import OpenedRun
from smdtrack.record.run import Run
from smdtrack.report.comparison import Comparison
from smdtrack.report.facts import RunFacts, facts_of, only
from smdtrack.report.lining_up import AXES, positions, time_constants_passed

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class PageView:
    """The runs of a page.

    Attributes:
        names: Keys of all weights, in the order of the network.
        start: Index of the weight that is shown first: the one furthest from its line.
    """

    opened: tuple[OpenedRun, ...]
    runs: tuple[Run, ...]
    facts: tuple[RunFacts, ...]
    comparison: Comparison | None
    names: tuple[str, ...]
    start: int
    axis: str

    @property
    def stages(self) -> dict[str, list[int]]:
        """Indices of the weights of each stage, in the order of the network."""
        found: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            found.setdefault(stage_of(name), []).append(index)
        return found

    def colour(self, run: int, style: str) -> str:
        """Classes of a curve: a colour per run, or per kind of curve where there is one run."""
        if len(self.runs) > 1:
            return f"{style} c{run % 8}"
        return f"{style} c{('solid', 'dashed', 'dotted').index(style)}"

    def passed(self, run: int) -> list[float | None]:
        """Time constants passed at each sample; empty where theory has none."""
        found = time_constants_passed(self.runs[run])
        return [] if found is None else found.tolist()


def view_of(
    opened: Sequence[OpenedRun], comparison: Comparison | None, globs: Sequence[str] = (), axis: str = "steps"
) -> PageView:
    """Returns the view of one run or several.

    Raises:
        SmdtrackError: If a run cannot be drawn over the axis, or the axis is unknown.
    """
    if axis not in AXES:
        raise SmdtrackError(f"no axis {axis!r}; there are {', '.join(AXES)}")
    for entry in opened:
        positions(entry, axis)
    runs = tuple(only(entry.run, globs) for entry in opened)
    facts = (
        comparison.runs
        if comparison
        else tuple(facts_of(entry, letter, globs) for letter, entry in zip(_LETTERS, opened, strict=False))
    )
    names = tuple(dict.fromkeys(weight.key for run in runs for weight in run.info.weights))
    return PageView(tuple(opened), runs, facts, comparison, names, _furthest(facts, names), axis)


def _furthest(facts: Sequence[RunFacts], names: Sequence[str]) -> int:
    distances = dict.fromkeys(names, 0.0)
    for run in facts:
        for row in run.rows:
            if row.angle_ratio:
                distances[row.key] = max(distances[row.key], abs(float(np.log(row.angle_ratio))))
    return max(range(len(names)), key=lambda index: distances[names[index]], default=0)
