"""Learning rate times weight decay: the product sets the angle, the ratio sets the norm."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from recipes.studies.measures import rms, spread, table
from recipes.studies.trials import Result


def tables(results: Mapping[str, Result]) -> str:
    """Returns the table: angle, norm and the norm that theory predicts from the first training."""
    first = next(iter(results.values()))
    rows = []
    for name, result in results.items():
        run, settings = result.run, result.trial.settings
        # ||w||^4 goes as lr C^2 / wd, C the effective gradient.
        share = settings["lr"] / first.trial.settings["lr"] * first.trial.settings["weight_decay"]
        gradient = rms(run, "effective_grad") / rms(first.run, "effective_grad")
        predicted = (share / settings["weight_decay"] * gradient**2) ** 0.25
        norm = rms(run, "norm") / rms(first.run, "norm")
        rows.append(
            [
                name,
                f"{settings['lr'] * settings['weight_decay']:.1e}",
                f"{1000 * np.median(rms(run, 'angle_eq')):.1f} mrad",
                spread(rms(run, "angle") / rms(run, "angle_eq")),
                spread(norm),
                spread(norm / predicted),
                f"{result.accuracy:.1f} %",
            ]
        )
    headings = ["training", "lr x wd", "equilibrium line", "measured / line", "norm, relative to the first"]
    return table([*headings, "that / predicted", "accuracy"], rows)


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
        left.plot(run.steps, 1000 * np.nanmedian(run.values["angle_eq"], axis=1), f"C{number}--", lw=1)
        right.plot(run.steps, np.nanmedian(run.values["norm"], axis=1), f"C{number}", label=name)
    left.set(xlabel="optimizer step", ylabel="angle per step (mrad), median over weights", ylim=(0, None))
    right.set(xlabel="optimizer step", ylabel="norm, median over weights", yscale="log")
    left.legend(fontsize=8)
    left.set_title("measured, and equilibrium line (dashed)", fontsize=10)
    return drawing
