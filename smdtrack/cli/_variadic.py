"""Options that take several values after one flag, as argparse's `nargs="+"` does in timm's train.py."""

import ast
from collections.abc import Mapping
from typing import Any

import click


class VariadicCommand(click.Command):
    """A command whose `multiple=True` options also take their values in a row: `--opt-betas 0.9 0.999`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        variadic = {
            flag
            for parameter in self.params
            if isinstance(parameter, click.Option) and parameter.multiple
            for flag in parameter.opts
        }
        spread: list[str] = []
        flag: str | None = None
        values = 0
        for argument in args:
            if argument.startswith("-") and not _is_number(argument):
                flag = argument if argument in variadic else None
                values = 0
            else:
                if flag is not None and values > 0:
                    spread.append(flag)
                values += 1
            spread.append(argument)
        return super().parse_args(ctx, spread)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class KeyValue(click.ParamType):  # type: ignore[type-arg]
    """`key=value`, the value read as a Python literal if it is one, as timm's `ParseKwargs` reads it."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        key, separator, text = str(value).partition("=")
        if not separator or not key:
            self.fail(f"{value!r} is not of the form key=value", param, ctx)
        try:
            return key, ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return key, text


def as_pairs(value: Any) -> Any:
    """Returns a mapping as the list of pairs that a `multiple=True` option of `KeyValue` takes; others unchanged."""
    return list(value.items()) if isinstance(value, Mapping) else value
