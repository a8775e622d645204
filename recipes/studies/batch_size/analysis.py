"""Batch size alone: the angle stays, the effective gradient and the norm change."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from recipes.studies.measures import rms, spread, table
from recipes.studies.trials import Result


def tables(results: Mapping[str, Result]) -> str:
    """Returns the table: angle, norm and effective gradient of each batch size."""
    first = next(iter(results.values())).run
    rows = []
    for name, result in results.items():
        run = result.run
        rows.append(
            [
                name,
                str(run.steps[-1]),
                f"{1000 * np.median(rms(run, 'angle_eq')):.1f} mrad",
                spread(rms(run, "angle") / rms(run, "angle_eq")),
                spread(rms(run, "norm") / rms(first, "norm")),
                spread(rms(run, "effective_grad") / rms(first, "effective_grad")),
                f"{result.accuracy:.1f} %",
            ]
        )
    headings = ["training", "steps", "equilibrium line", "measured / line", "norm, relative to the first"]
    return table([*headings, "effective gradient, relative to the first", "accuracy"], rows)


def figure(results: Mapping[str, Result]) -> Figure:
    """Draws the median angle and the median norm over the steps."""
    drawing = Figure(figsize=(10, 4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for number, (name, result) in enumerate(results.items()):
        run = result.run
        squares = np.nanmedian(run.values["angle"], axis=1) ** 2
        left.plot(
            run.steps[9:], 1000 * np.sqrt(np.convolve(squares, np.ones(10) / 10, "valid")), f"C{number}", label=name
        )
        right.plot(run.steps, np.nanmedian(run.values["norm"], axis=1), f"C{number}", label=name)
    left.plot(run.steps, 1000 * np.nanmedian(run.values["angle_eq"], axis=1), "k--", lw=1, label="equilibrium line")
    left.set(xlabel="optimizer step", ylabel="angle per step (mrad), median over weights", ylim=(0, None))
    right.set(xlabel="optimizer step", ylabel="norm, median over weights", ylim=(0, None))
    left.legend(fontsize=8)
    return drawing
