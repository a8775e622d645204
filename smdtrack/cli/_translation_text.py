"""A translation of a recipe as text for the terminal."""

from collections.abc import Sequence
from typing import Any, get_args

import yaml
from rich.console import Console
from rich.table import Table

from smdtrack.cli._plan_text import wrapped
from smdtrack.planning.target import Match, Target
from smdtrack.planning.translation import Translation


def show(
    translation: Translation,
    changes: dict[str, Any],
    alternatives: list[Translation],
    target: Target,
    name: str,
    notes: list[str],
) -> None:
    """Prints a translation: the comparison, the lines of the config that change, and what is kept.

    Args:
        translation: to print.
        changes: the changed settings as YAML values.
        alternatives: translations under each choice of what to match; empty without a new batch.
        target: what was asked for.
        name: of the config's file.
        notes: further sentences.
    """
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, 80)
    console.print(_table(translation, target.step_factor))
    console.print()
    if changes:
        console.print(f"Lines of {name} that change:", markup=False, style="bold")
        console.print()
        console.print(yaml.safe_dump(changes, sort_keys=False).rstrip(), markup=False)
    else:
        console.print(f"Nothing in {name} changes.", markup=False, style="bold")
    console.print()
    for sentence in translation.kept:
        console.print(wrapped("kept: ", sentence, console.width), markup=False)
    for sentence in translation.not_kept:
        console.print(wrapped("not kept: ", sentence, console.width), markup=False)
    for sentence in notes:
        console.print(wrapped("note: ", sentence, console.width), markup=False)
    if alternatives:
        console.print()
        console.print(_alternatives(alternatives, target))


def _table(translation: Translation, factor: float) -> Table:
    """Returns the comparison of the recipe before and after."""
    before, after = translation.line_before, translation.line_after
    rows: list[tuple[str, str, str]] = [("optimizer", translation.before.opt, translation.after.opt)]
    for label, attribute in (("batch size", "batch_size"), ("epochs", "epochs")):
        values = [getattr(recipe, attribute) for recipe in (translation.before, translation.after)]
        if values[0] != values[1]:
            rows.append((label, f"{values[0]}", f"{values[1]}"))
    rows += [
        ("learning rate", f"{translation.before.lr:.4g}", f"{translation.after.lr:.4g}"),
        ("weight decay", f"{translation.before.weight_decay:.4g}", f"{translation.after.weight_decay:.4g}"),
        ("angle per step (rad)", f"{before.angular_update:.4g}", f"{after.angular_update:.4g}"),
        ("decay per step", f"{before.decay_rate:.3g}", f"{after.decay_rate:.3g}"),
    ]
    if factor != 1 and before.decay_rate and after.decay_rate:
        rows.append(("decay per epoch (relative)", "1", f"{after.decay_rate / before.decay_rate / factor:.3g}"))
    if before.time_constant and after.time_constant:
        rows.append(("time constant (steps)", f"{before.time_constant:.4g}", f"{after.time_constant:.4g}"))
        if factor != 1:
            relative = after.time_constant * factor / before.time_constant
            rows.append(("time constant in epochs (relative)", "1", f"{relative:.3g}"))
    return _plain_table(("at the largest learning rate", "before", "after"), rows)


def _alternatives(alternatives: list[Translation], target: Target) -> Table:
    """Returns the settings under each choice of `--match`."""
    rows = []
    for match, other in zip(get_args(Match), alternatives, strict=True):
        line = other.line_after
        chosen = "  (chosen)" if match == target.match else ""
        rows.append(
            (
                f"--match {match}{chosen}",
                f"{other.after.lr:.4g}",
                f"{other.after.weight_decay:.4g}",
                f"{line.angular_update:.4g}",
            )
        )
    return _plain_table(("choice", "lr", "weight decay", "angle per step"), rows)


def _plain_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
