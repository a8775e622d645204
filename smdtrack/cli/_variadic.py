"""Options that take several values after one flag, as argparse's nargs='+' does in timm's train.py."""

from typing import Any

import click


class VariadicCommand(click.Command):
    """A command whose `multiple=True` options also take their values in a row: `--opt-betas 0.9 0.999`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        several = {
            name
            for parameter in self.params
            if isinstance(parameter, click.Option) and parameter.multiple
            for name in parameter.opts
        }
        spread: list[str] = []
        current: str | None = None
        taken = 0
        for argument in args:
            if argument.startswith("-") and not _is_number(argument):
                current = argument if argument in several else None
                taken = 0
                spread.append(argument)
                continue
            if current is not None and taken > 0:
                spread.append(current)
            spread.append(argument)
            taken += 1
        return super().parse_args(ctx, spread)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def key_values(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`key=value` pairs with Python literals where they are some, as timm's ParseKwargs reads them.

    Raises:
        click.BadParameter: where there is no `=`.
    """
    import ast

    found: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"{pair!r} is not of the form key=value", param_hint="--opt-kwargs")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found
