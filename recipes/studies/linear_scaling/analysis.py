"""Linear scaling: one step with batch size k B and learning rate k lr against k steps with B and lr."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from recipes.studies.measures import measured_memory, rms, spread, table, uncorrelated_memory
from recipes.studies.trials import Result

PAIRS = ((8, 32), (32, 128), (8, 128))


def tables(results: Mapping[str, Result]) -> str:
    """Returns the table of angles, and the table of one large step against k small ones."""
    angles, ratios = [], []
    for name, result in results.items():
        run = result.run
        line = rms(run, "angle_eq")
        angles.append(
            [
                name,
                f"{result.trial.settings['lr']:g}",
                f"{1000 * np.median(line):.1f} mrad",
                spread(rms(run, "angle") / line),
                f"{result.accuracy:.1f} %",
            ]
        )
    for kind in ("momentum", "no momentum"):
        for small, large in pairs_of(kind, results):
            steps = large // small
            ours, theirs = results[f"{kind}, batch {small}"], results[f"{kind}, batch {large}"]
            large_step = rms(theirs.run, "angle")
            uncorrelated = uncorrelated_memory(float(ours.trial.settings["momentum"]), steps) ** 0.5
            before = measured_memory(ours.run, steps, 1 / 3, 2 / 3) ** 0.5
            found = rms(ours.run, f"angle_k{steps}") / large_step
            ratios.append(
                [
                    f"{kind}, {small} → {large}",
                    str(steps),
                    spread(large_step / rms(ours.run, "angle")),
                    f"{steps**0.5:.2f}",
                    spread(found),
                    f"{uncorrelated:.2f}",
                    spread(before),
                    spread(found / before),
                ]
            )
    return (
        table(["training", "lr", "equilibrium line", "measured / line", "accuracy"], angles)
        + "\n"
        + table(
            [
                "batch sizes",
                "k",
                "large step / small step",
                "predicted: sqrt(k)",
                "k small steps / large step",
                "predicted, uncorrelated gradients: sqrt(R_k)",
                "predicted, R_k measured in the third before",
                "measured / that prediction",
            ],
            ratios,
        )
    )


def pairs_of(kind: str, results: Mapping[str, Result]) -> list[tuple[int, int]]:
    """Returns the pairs of batch sizes that were trained."""
    return [pair for pair in PAIRS if all(f"{kind}, batch {batch}" in results for batch in pair)]


def figure(results: Mapping[str, Result]) -> Figure:
    """Draws the angle per step over the training, and k small steps over one large step."""
    drawing = Figure(figsize=(10, 4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for number, batch in enumerate((8, 32, 128)):
        run = results[f"momentum, batch {batch}"].run
        epochs = run.steps / run.steps[-1] * float(results[f"momentum, batch {batch}"].trial.settings["epochs"])
        median = np.nanmedian(run.values["angle"], axis=1)
        width = max(1, len(median) // 40)
        smooth = np.sqrt(np.convolve(median**2, np.ones(width) / width, "valid"))
        colour = f"C{number}"
        left.plot(epochs[width - 1 :], 1000 * smooth, colour, label=f"batch {batch}, measured")
        left.plot(epochs, 1000 * np.nanmedian(run.values["angle_eq"], axis=1), colour, ls="--", lw=1)
    left.set(xlabel="epoch", ylabel="angle per step (mrad), median over weights", yscale="log")
    left.set_title("momentum 0.9: measured and equilibrium line (dashed)", fontsize=10)
    left.legend(fontsize=8)
    for number, kind in enumerate(("momentum", "no momentum")):
        for small, large in pairs_of(kind, results):
            steps = large // small
            ours, theirs = results[f"{kind}, batch {small}"], results[f"{kind}, batch {large}"]
            found = rms(ours.run, f"angle_k{steps}") / rms(theirs.run, "angle")
            place = np.full(len(found), steps * (1.1 if small == 32 else 0.95))
            right.plot(place, found, f"C{number}o", ms=4, alpha=0.5, label=f"{kind}, measured" if small == 32 else None)
        lags = np.arange(1, 20)
        memory = [uncorrelated_memory(0.9 if kind == "momentum" else 0.0, int(lag)) ** 0.5 for lag in lags]
        right.plot(lags, memory, f"C{number}--", lw=1, label=f"{kind}, uncorrelated gradients")
    right.set(xlabel="k", ylabel="angle of k small steps / angle of one large step", xscale="log", ylim=(0, None))
    right.set_title("one weight per dot", fontsize=10)
    right.legend(fontsize=8)
    return drawing
