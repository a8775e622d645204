"""Types of command-line options, for flags and for the values of a YAML alike."""

import math
from typing import Any

import click


class FiniteFloat(click.FloatRange):
    """A number within bounds. Neither nan nor infinite, and not a YAML truth value."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            self.fail(f"{value!r} is not a number.", param, ctx)
        try:
            value = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number.", param, ctx)
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class WholeNumber(FiniteFloat):
    """A whole number within bounds, also if YAML or a user writes it as `90.0`."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if number != int(number):
            self.fail(f"{value!r} is not a whole number.", param, ctx)
        return int(number)


class Name(click.ParamType):  # type: ignore[type-arg]
    """Text. A number from YAML is not one."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if isinstance(value, str) else self.fail(f"{value!r} is not a name.", param, ctx)


class Switch(click.types.BoolParamType):
    """true or false. A number from YAML is neither."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, (bool, str)):
            self.fail(f"{value!r} is neither true nor false.", param, ctx)
        return super().convert(value, param, ctx)


POSITIVE = FiniteFloat(min=0, min_open=True)
NOT_NEGATIVE = FiniteFloat(min=0)
BELOW_ONE = FiniteFloat(min=0, max=1, max_open=True)
COUNT = WholeNumber(min=1)


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
