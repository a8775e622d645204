"""Prediction against simulation, as three tables.

    python -m tests.benchmarks.theory_table optimizers [NAME ...] [--markdown]
    python -m tests.benchmarks.theory_table conditions [--markdown]
    python -m tests.benchmarks.theory_table schedules [--markdown]
    python -m tests.benchmarks.theory_table            all three

Each row runs the real optimizer on scale-invariant noise with one seed. The last lines of a table name the rows that
missed their tolerance, in which case the exit code is 1.

* optimizers: each optimizer of timm at its usual settings. Closed forms must agree within 1 %, all others within 2 %.
* conditions: other settings, and gradients that are correlated in time, bursty, heavy-tailed, of low rank or of unequal
  rows. A row is "within 2 %" if the line of white gradients is. Otherwise it is "by memory" if the line with the memory
  that was measured over earlier steps is within 2 %; the column `memory` says by how much that differs from the memory
  under white gradients.
* schedules: windows of 100 steps under a changing learning rate, momentum, weight decay or batch size. The mean over
  the windows must agree within 2 %, and nine windows of ten within 5 %.
"""

import sys
from collections.abc import Callable, Iterator, Sequence

import timm.optim
import torch

from smdtrack.theory.catalogue import entry
from tests.theory.cases import CASES, Case
from tests.theory.compare import compare
from tests.theory.conditions import CONDITIONS, outcome
from tests.theory.schedule_cases import OPTIMIZERS, SCHEDULES, windows_of

#: Largest |measured / predicted - 1| of the second table, and of the mean in the third.
BOUND = 0.02
#: Least share of windows within 5 % in the third table.
LEAST_WITHIN = 0.9
MISSED = "MISSED"
Rows = Iterator[Sequence[str]]


def main(arguments: list[str]) -> int:
    """Prints the tables that are named, or all; returns 1 if a row misses its tolerance."""
    torch.set_num_threads(1)
    markdown = "--markdown" in arguments
    words = [word for word in arguments if not word.startswith("--")]
    chosen = [words[0]] if words else list(TABLES)
    if chosen[0] not in TABLES:
        print(f"{chosen[0]!r} is not a table; there are {', '.join(TABLES)}", file=sys.stderr)
        return 2
    missed = False
    for name in chosen:
        header, rows = TABLES[name]
        missed |= show(header, rows(words[1:]), markdown)
    return 1 if missed else 0


def show(header: Sequence[str], rows: Rows, markdown: bool) -> bool:
    """Prints a table row by row as they come; returns whether a row missed."""
    missed = []
    print(_line(header, markdown))
    if markdown:
        print("|---" * len(header) + "|")
    for row in rows:
        print(_line(row, markdown), flush=True)
        if row[-1].startswith(MISSED):
            missed.append(" ".join(row[:2]))
    print(f"\nmissed: {', '.join(missed) or 'none'}\n")
    return bool(missed)


def _line(cells: Sequence[str], markdown: bool) -> str:
    if markdown:
        return "| " + " | ".join(cells) + " |"
    first, second, *others = cells
    return f"{first:18s} {second:13s} " + " ".join(f"{cell:>11s}" for cell in others)


def optimizers(names: Sequence[str]) -> Rows:
    """Yields a row per optimizer of timm, and those of Lookahead that are simulated."""
    every = [*map(str, timm.optim.list_optimizers()), *(name for name in CASES if name.startswith("lookahead"))]
    for name in names or every:
        case = CASES.get(name)
        if case is None:
            found = entry(name)
            yield [name, found.kind, "", "", "", "", "", "", found.reason or ""]
        else:
            yield _optimizer(case)


def _optimizer(case: Case) -> Sequence[str]:
    row = compare(case)
    line = row.line
    within = f"within {case.tolerance:.0%}"
    return [
        case.name,
        line.kind,
        f"{line.memory or 0:.2f}",
        f"{line.decay_rate or 0:.2e}",
        f"{line.angular_update or 0:.6f}",
        f"{row.measured:.6f}",
        f"{row.ratio:.4f}",
        f"{row.corrected:.4f}",
        within if row.deviation <= case.tolerance else f"{MISSED} {case.tolerance:.0%}",
    ]


def conditions(_: Sequence[str]) -> Rows:
    """Yields a row per unusual setting or gradient."""
    for condition in CONDITIONS:
        found = outcome(condition)
        verdict = MISSED
        if abs(found.ratio - 1) <= BOUND:
            verdict = "within 2 %"
        elif abs(found.with_memory - 1) <= BOUND:
            verdict = "by memory"
        numbers = [f"{value:.3f}" for value in (found.ratio, found.memory, found.with_memory)]
        yield [condition.label, condition.optimizer, found.kind, *numbers, verdict]


def schedules(_: Sequence[str]) -> Rows:
    """Yields a row per schedule and optimizer."""
    for name, schedule in SCHEDULES.items():
        for optimizer in OPTIMIZERS:
            found = windows_of(optimizer, schedule)
            good = abs(found.mean - 1) <= BOUND and found.within >= LEAST_WITHIN
            numbers = [f"{value:.3f}" for value in (found.mean, min(found.ratios), max(found.ratios))]
            yield [name, optimizer, *numbers, f"{found.within:.0%}", "within" if good else MISSED]


TABLES: dict[str, tuple[Sequence[str], Callable[[Sequence[str]], Rows]]] = {
    "optimizers": (
        ("optimizer", "kind", "R", "gamma", "line", "measured", "ratio", "drift-corr.", ""),
        optimizers,
    ),
    "conditions": (("what", "optimizer", "kind", "ratio", "memory", "with memory", ""), conditions),
    "schedules": (("schedule", "optimizer", "mean ratio", "least", "largest", "within 5 %", ""), schedules),
}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
