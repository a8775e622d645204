"""What can be read from weights in low precision, and the fp32 copies that some optimizers keep of them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: By type, the smallest angle (radian per step) whose reading is right to a few percent. Below it, the rounding of the
#: stored weights dominates. Measured by turning random weights by known angles and storing them.
SMALLEST_ANGLES: Mapping[torch.dtype, float] = {torch.bfloat16: 5e-3, torch.float16: 6e-4, torch.float32: 1e-6}
_LOW_PRECISION = (torch.bfloat16, torch.float16)


def smallest_angle(weight: Tensor) -> float:
    """Returns the smallest angle that the weight's type lets one read, in radian per step; 0 for float64."""
    return SMALLEST_ANGLES.get(weight.dtype, 0.0)


def tensor_to_measure(parameter: Tensor, state: Mapping[str, Any]) -> Tensor:
    """Returns the fp32 master copy that the optimizer keeps of a low-precision weight, or else the weight itself.

    A master copy is recognised by a state entry with `master` or `fp32` in its name, and by the weight's own shape.

    Args:
        parameter: The weight.
        state: The optimizer's state of this weight.
    """
    if parameter.dtype not in _LOW_PRECISION:
        return parameter
    for name, value in state.items():
        if not (isinstance(value, Tensor) and isinstance(name, str) and ("master" in name or "fp32" in name)):
            continue
        if value.shape == parameter.shape and value.dtype == torch.float32:
            return value
    return parameter
