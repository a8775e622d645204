"""What was measured of one step, as numpy arrays on the host."""

from dataclasses import dataclass

import numpy as np
import torch

from smdtrack.geometry import angle_from_moments
from smdtrack.record.run import Floats
from smdtrack.tracking.measure.table import MOMENTS, Reading


@dataclass(frozen=True)
class StepValues:
    """One float64 array (W,) per row of the table, for W tracked weights; NaN for weights that were not measured.

    `w` is the weight before the step, `g` its gradient, `d` its change. A field is None where its row was not measured.
    The names of the fields are those of `Row`, which says what each row is.
    """

    weight_squared: Floats
    weight_gradient: Floats
    gradient_squared: Floats
    weight_change: Floats
    change_squared: Floats
    change_momentum: Floats | None = None
    decay_pull: Floats | None = None
    eps_radial: Floats | None = None
    tied_elements: Floats | None = None
    tied_filters: Floats | None = None

    def angles(self) -> Floats:
        """Returns the angle between each weight before and after the step, in radian."""
        rows = (self.weight_squared, self.weight_change, self.change_squared)
        result: Floats = angle_from_moments(*(torch.from_numpy(row.copy()) for row in rows)).numpy()
        return result

    def norms_after(self) -> Floats:
        """Returns the norm of each weight after the step."""
        result: Floats = np.sqrt(self.weight_squared + 2 * self.weight_change + self.change_squared)
        return result

    def effective_gradients(self) -> Floats:
        """Returns `||g|| ||w||` of each weight, NaN where the gradient is zero."""
        product = np.sqrt(self.gradient_squared) * np.sqrt(self.weight_squared)
        return np.where(self.gradient_squared > 0, product, np.nan)


def step_values(reading: Reading) -> StepValues:
    """Returns a reading on the host. Waits until it has arrived there: do not call this on the training's thread."""
    measured = {row for part in reading.parts for row in part.rows}
    arrays = {row: np.full(reading.width, np.nan) for row in {*MOMENTS, *measured}}
    for part in reading.parts:
        if part.arrived is not None:
            part.arrived.synchronize()
        table = part.table.numpy()
        for row, values in zip(part.rows, table, strict=True):
            arrays[row][list(part.columns)] = values
    return StepValues(**{row.name.lower(): array for row, array in arrays.items()})
