"""`smdtrack predict`: what learning rate, weight decay and schedule will do to the weights, before training."""

import dataclasses
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from smdtrack.cli._recipe import COUNT, POSITIVE, recipe_from, recipe_options
from smdtrack.cli._variadic import VariadicCommand

if TYPE_CHECKING:
    from smdtrack.planning.plan import Plan

EXAMPLE = """\b
Example:
  smdtrack predict --opt sgd --lr 0.1 --weight-decay 1e-4 --momentum 0.9 \\
      --sched cosine --epochs 100 --steps-per-epoch 5004 --warmup-epochs 5
"""


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


@click.command(cls=VariadicCommand, epilog=EXAMPLE, context_settings={"help_option_names": ["-h", "--help"]})
@recipe_options
@click.option("--steps-per-epoch", type=COUNT, help="Optimizer steps per epoch (required).")
@click.option(
    "--weight-shape",
    type=Shape(),
    default="64,64,3,3",
    show_default=True,
    help="Shape of the weight, for optimizers whose line depends on it (Muon).",
)
@click.option(
    "--start-norm",
    type=POSITIVE,
    default=1.0,
    show_default=True,
    help="Initial norm over the equilibrium norm at the largest learning rate.",
)
@click.option("--target-angle", type=POSITIVE, help="Angular update in rad per step: says which setting gives it.")
@click.option("--list", "list_all", is_flag=True, help="List all optimizers with their kind of line.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    list_all: bool,
    as_json: bool,
    weight_shape: tuple[int, ...],
    start_norm: float,
    target_angle: float | None,
    steps_per_epoch: int | None,
    **options: Any,
) -> None:
    """Print the equilibrium angle, its time constant, and what each stage of the schedule reaches, before training."""
    if list_all:
        _list(as_json)
        return
    recipe, assumed = recipe_from(options)
    if steps_per_epoch is None:
        raise click.UsageError("--steps-per-epoch is missing: the number of optimizer steps in an epoch.")
    from smdtrack.planning.lr_schedule import check_optimizer
    from smdtrack.planning.plan import make_plan

    check_optimizer(recipe.opt)
    plan = make_plan(recipe, steps_per_epoch, shape=weight_shape, start_norm=start_norm, wanted_angle=target_angle)
    notes = [*assumed, *plan.notes]
    if as_json:
        for problem in (*notes, *plan.problems):
            click.echo(f"warning: {problem}", err=True)
        click.echo(json.dumps(_document(recipe.opt, plan), indent=2, allow_nan=False))
        return
    from rich.console import Console

    from smdtrack.cli._plan_text import show, wrapped

    console = Console(highlight=False, soft_wrap=True)
    # rich would cut the table in a narrower terminal. A line that the terminal wraps loses nothing.
    console.width = max(console.width, 80)
    show(plan, console)
    for note in notes:
        console.print(wrapped("note: ", note, console.width), markup=False)


def _document(name: str, plan: "Plan") -> dict[str, Any]:
    """Returns the prediction as JSON values; angles in radian per step, times in optimizer steps."""
    peak = plan.peak
    return {
        "optimizer": name,
        "kind": peak.kind,
        "angular_update": peak.angular_update or None,
        "memory": peak.memory,
        "decay_rate": peak.decay_rate,
        "time_constant": peak.time_constant,
        "source": peak.source or None,
        "assumptions": list(peak.assumptions),
        "stages": [dataclasses.asdict(stage) for stage in plan.stages],
    }


def _list(as_json: bool) -> None:
    """Prints timm's optimizers with the kind and the formula of their lines."""
    from smdtrack.theory.catalogue import entries

    found = entries()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(entry) for entry in found], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.width = max(console.width, 80)
    # Formulas and reasons fit into 80 columns; the sources are shown only in a wider terminal, and by --json.
    columns = ("optimizer", "line", "Delta^2, or why not", "source")[: 4 if console.width >= 110 else 3]
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column in ("optimizer", "line"))
    for entry in found:
        formula = entry.formula if entry.kind == "from state" else entry.reason or entry.formula
        table.add_row(*(entry.name, entry.kind, formula, entry.source)[: len(columns)])
    console.print(table)
    kinds = Counter(entry.kind for entry in found)
    console.print(f"{len(found)} optimizers: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
