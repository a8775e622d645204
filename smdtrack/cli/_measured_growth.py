"""How much farther weights turned in k steps than in one, from the record of a run."""

from pathlib import Path

import click
import numpy as np

from smdtrack.record import read_run


def measured_growth(folder: str, steps: int) -> float:
    """Returns the squared angle over k steps over that of one step, the median over the weights.

    It is k without memory, and `k R_k` for gradients uncorrelated in time. Read from the second half of the run's
    samples, where the norms have mostly settled. Angles over k steps add up on a sphere, whose curvature is removed:
    a walk of the squared length s keeps a cosine of exp(-s / 2).

    Args:
        folder: of the run's local record.
        steps: k.

    Raises:
        click.UsageError: The run did not measure the angle over k steps.
        SmdtrackError: The folder holds no run.
    """
    run = read_run(folder)
    family = f"angle_k{steps}"
    if family not in run.values:
        name = Path(folder).name
        raise click.UsageError(f"the run {name} has no angle over {steps} steps; record one with --lags {steps}.")
    half = len(run.steps) // 2
    once = np.square(run.values["angle"][half:])
    over_many = -2 * np.log(np.cos(run.values[family][half:]))
    ratios = np.nanmean(over_many, axis=0) / np.nanmean(once, axis=0)
    return float(np.nanmedian(ratios))
