"""The shape of a weight on the command line."""

from typing import Any

import click


class Shape(click.ParamType):  # type: ignore[type-arg]
    """The shape of a weight, such as `64,64,3,3` or `64x64x3x3`."""

    name = "shape"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            shape = tuple(int(part) for part in str(value).replace("x", ",").split(","))
        except ValueError:
            shape = ()
        if len(shape) < 2 or min(shape) < 1:
            self.fail(f"{value!r} is not a shape such as 64,64,3,3.", param, ctx)
        return shape


#: Settings of the option `--weight-shape`.
WEIGHT_SHAPE: dict[str, Any] = {
    "type": Shape(),
    "default": "64,64,3,3",
    "show_default": True,
    "help": "Shape of the weight, for optimizers whose line depends on it (Muon).",
}
