"""Where a weight's own storage limits what can be read from it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: Below this angle (radian per step) more than a few percent of a reading is the rounding of the stored weights.
FLOORS: Mapping[torch.dtype, float] = {torch.bfloat16: 5e-3, torch.float16: 6e-4, torch.float32: 1e-6}
_LOW = (torch.bfloat16, torch.float16)


def floor_of(weight: Tensor) -> float:
    """Returns the angle under which a reading is rounding, radian per step; 0 for float64."""
    return FLOORS.get(weight.dtype, 0.0)


def measured(parameter: Tensor, state: Mapping[str, Any]) -> Tensor:
    """Returns what to measure: the fp32 master copy where the optimizer keeps one of a low-precision weight.

    Found by a name with `master` or `fp32` in it and the weight's own shape.
    """
    if parameter.dtype not in _LOW:
        return parameter
    for name, value in state.items():
        if not (isinstance(value, Tensor) and isinstance(name, str) and ("master" in name or "fp32" in name)):
            continue
        if value.shape == parameter.shape and value.dtype == torch.float32:
            return value
    return parameter
