"""Prediction against simulation for every timm optimizer, as a table.

    python -m tests.benchmarks.theory_table [NAME ...] [--markdown]
    python -m tests.benchmarks.theory_table --conditions [--markdown]

The first form compares each optimizer of timm at its usual settings. The second goes beyond the usual: other settings,
and gradients that are correlated in time, bursty, heavy-tailed, of low rank or of unequal rows.

Each row runs the real optimizer on scale-invariant noise with one seed. Closed forms must agree within 1 %, all others
within 2 %. The last lines list the largest deviation of each kind, the exceptions by name, and the rows that missed
their tolerance, in which case the exit code is 1.

With `--conditions`, a row is "within 2 %" if the line for white gradients is. Otherwise it is "by memory" if the line
with the memory measured over earlier steps is within 2 %; the column `memory` then says by how much it differs from
that of white gradients. All other rows missed.
"""

import sys

import timm.optim
import torch

from tests.theory.cases import CASES
from tests.theory.compare import compare
from tests.theory.conditions import CONDITIONS, outcome

#: Largest |measured / predicted - 1| of the second table.
BOUND = 0.02


def main(arguments: list[str]) -> int:
    """Prints the table; returns 1 if a row misses its tolerance."""
    torch.set_num_threads(1)
    markdown = "--markdown" in arguments
    if "--conditions" in arguments:
        return conditions(markdown)
    names = [name for name in arguments if not name.startswith("--")] or [
        *timm.optim.list_optimizers(),
        *(name for name in CASES if name.startswith("lookahead")),
    ]
    missed: list[str] = []
    deviations: dict[str, list[float]] = {}
    exceptions = []
    print(
        "| optimizer | kind | R | gamma | predicted | measured | measured / predicted | drift-corrected | within |"
        if markdown
        else f"{'optimizer':18s} {'kind':12s} {'R':>7s} {'gamma':>9s} {'line':>9s} {'measured':>9s} {'ratio':>7s} "
        f"{'drift-c.':>8s} {'within':>6s} {'s':>5s}"
    )
    if markdown:
        print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        case = CASES.get(name)
        if case is None:
            print(f"| {name} | {why_not(name)} | | | | | | | |" if markdown else f"{name:18s} {why_not(name)}")
            continue
        row = compare(case)
        line = row.line
        good = row.deviation <= case.tolerance
        if not good:
            missed.append(name)
        if case.remark:
            exceptions.append(f"{name} {row.ratio:.3f} ({case.remark})")
        deviations.setdefault(line.kind, []).append(row.deviation)
        shown = (
            line.kind,
            f"{line.memory or 0:.2f}",
            f"{line.decay_rate or 0:.2e}",
            f"{line.angular_update or 0:.6f}",
            f"{row.measured:.6f}",
            f"{row.ratio:.4f}",
            f"{row.corrected:.4f}",
            f"{case.tolerance:.0%}" if good else f"MISSED {case.tolerance:.0%}",
        )
        if markdown:
            print(f"| {name} | " + " | ".join(shown) + " |")
        else:
            widths = zip(shown, (-12, 7, 9, 9, 9, 7, 8, 6), strict=True)
            columns = [f"{text:<{-width}s}" if width < 0 else f"{text:>{width}s}" for text, width in widths]
            print(f"{name:18s}", *columns, f"{row.seconds:5.1f}", flush=True)
    print()
    for kind, found in deviations.items():
        print(f"{kind}: {len(found)} optimizers, largest deviation {max(found):.2%}")
    print(f"exceptions: {'; '.join(exceptions) or 'none'}")
    print(f"missed: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


def conditions(markdown: bool) -> int:
    """Prints the table of unusual settings and gradients; returns 1 if a row missed."""
    columns = ("what", "optimizer", "kind", "angle / line", "memory", "angle / line with memory", "")
    print("| " + " | ".join(columns) + " |" if markdown else "  ".join(columns))
    if markdown:
        print("|---" * len(columns) + "|")
    missed = []
    for condition in CONDITIONS:
        found = outcome(condition)
        verdict = "within 2 %" if abs(found.ratio - 1) <= BOUND else "by memory"
        if abs(found.ratio - 1) > BOUND and not abs(found.with_memory - 1) <= BOUND:
            verdict = "MISSED"
            missed.append(f"{condition.optimizer} ({condition.label})")
        cells = (condition.label, condition.optimizer, found.kind)
        numbers = tuple(f"{value:.3f}" for value in (found.ratio, found.memory, found.with_memory))
        if markdown:
            print("| " + " | ".join((*cells, *numbers, verdict)) + " |", flush=True)
        else:
            print(f"{cells[0]:18s} {cells[1]:10s} {cells[2]:12s}", *numbers, verdict, flush=True)
    print(f"\nmissed: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


def why_not(name: str) -> str:
    """Returns the reason why an optimizer is not simulated."""
    from smdtrack.theory.catalogue import entry

    found = entry(name)
    return f"{found.kind}: {found.reason}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
