"""Three initial norms: all come to the same norm and the same angle."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from recipes.studies.measures import rms, spread, table
from recipes.studies.trials import Result


def tables(results: Mapping[str, Result]) -> str:
    """Returns the table: start and end of the norms, and the angle at the end."""
    rows = []
    for name, result in results.items():
        run = result.run
        same = results[f"{name.split(',')[0]}, norm x 0.2"].run
        rows.append(
            [
                name,
                spread(run.values["norm"][0] / same.values["norm"][0]),
                spread(rms(run, "norm") / rms(same, "norm")),
                f"{1000 * np.median(rms(run, 'angle_eq')):.1f} mrad",
                spread(rms(run, "angle") / rms(run, "angle_eq")),
                f"{result.accuracy:.1f} %",
            ]
        )
    headings = ["training", "norm at the start / with x 0.2", "norm at the end / with x 0.2", "equilibrium line"]
    return table([*headings, "measured / line", "accuracy"], rows)


def figure(results: Mapping[str, Result]) -> Figure:
    """Draws the median norm and the median angle over the steps, a column per optimizer."""
    optimizers = list(dict.fromkeys(name.split(",")[0] for name in results))
    drawing = Figure(figsize=(12, 6), layout="constrained")
    panels = drawing.subplots(2, len(optimizers), squeeze=False)
    for column, optimizer in enumerate(optimizers):
        above, below = panels[:, column]
        of_it = {name: result for name, result in results.items() if name.startswith(f"{optimizer},")}
        for number, (name, result) in enumerate(of_it.items()):
            run = result.run
            above.plot(run.steps, np.nanmedian(run.values["norm"], axis=1), f"C{number}", label=name.split(", ")[1])
            squares = np.nanmedian(run.values["angle"], axis=1) ** 2
            smooth = 1000 * np.sqrt(np.convolve(squares, np.ones(10) / 10, "valid"))
            below.plot(run.steps[9:], smooth, f"C{number}", label=name.split(", ")[1])
        below.plot(
            run.steps, 1000 * np.nanmedian(run.values["angle_eq"], axis=1), "k--", lw=1, label="equilibrium line"
        )
        above.set(title=optimizer, ylabel="norm, median over weights", yscale="log")
        below.set(xlabel="optimizer step", ylabel="angle per step (mrad)", yscale="log")
        above.legend(fontsize=8)
    return drawing
