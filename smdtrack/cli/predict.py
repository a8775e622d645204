"""`smdtrack predict`: what learning rate, weight decay and schedule will do to the weights, before training."""

import dataclasses
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from smdtrack.cli._option_types import COUNT, POSITIVE, WEIGHT_SHAPE
from smdtrack.cli._recipe import RecipeCommand, asks_for_schedule, recipe_from, recipe_options, unused_keys

if TYPE_CHECKING:
    from torch import nn

    from smdtrack.planning.model_weights import WeightGroup
    from smdtrack.planning.plan import Plan
    from smdtrack.planning.solve import Solution

EXAMPLE = """\b
Examples:
  smdtrack predict --opt momentum --lr 0.1 --weight-decay 1e-4
  smdtrack predict --config args.yaml --steps-per-epoch 1251 --fail-on warning
  smdtrack predict --opt sgd --lr 0.1 --weight-decay 1e-4 --momentum 0.9 \\
      --sched cosine --epochs 100 --steps-per-epoch 5004 --warmup-epochs 5
"""


@click.command(cls=RecipeCommand, epilog=EXAMPLE, context_settings={"help_option_names": ["-h", "--help"]})
@recipe_options
@click.option("--steps-per-epoch", type=COUNT, help="Optimizer steps per epoch; needed for a schedule.")
@click.option("--weight-shape", **WEIGHT_SHAPE)
@click.option(
    "--model",
    metavar="NAME",
    help="timm model whose weights give groups (layer decay), shapes and initial norms. Builds the model.",
)
@click.option("--effective-grad", type=POSITIVE, help="||g|| ||w|| for the equilibrium norm under SGD, with --model.")
@click.option(
    "--start-norm",
    type=POSITIVE,
    help="Initial norm over the equilibrium norm at the largest learning rate.  [default: 1/4 to 4, or from --model]",
)
@click.option("--target-angle", type=POSITIVE, help="Angular update in rad per step: says which setting gives it.")
@click.option("--fail-on", type=click.Choice(["warning", "note"]), help="Exit with code 1 if there is one, for CI.")
@click.option("--list", "list_all", is_flag=True, help="List all optimizers with their kind of line.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    list_all: bool,
    as_json: bool,
    weight_shape: tuple[int, ...],
    model: str | None,
    effective_grad: float | None,
    start_norm: float | None,
    target_angle: float | None,
    fail_on: str | None,
    steps_per_epoch: int | None,
    **options: Any,
) -> None:
    """Print how far weights will turn per step in equilibrium, and how long they take to get there.

    With an optimizer, a learning rate and a weight decay: the angle and its time constant. With a schedule (any of its
    options, or a config): what each stage reaches. Warns of what is likely to surprise, and says what would change it.
    """
    if list_all:
        _list(as_json)
        return
    recipe, notes = recipe_from(options)
    with_schedule = asks_for_schedule(ctx)
    if with_schedule and steps_per_epoch is None:
        if not options["config"]:
            raise click.UsageError("--steps-per-epoch is missing: a schedule needs the optimizer steps in an epoch.")
        notes.append("the schedule is not shown: give --steps-per-epoch, the optimizer steps in an epoch")
    if model is not None and start_norm is not None:
        raise click.UsageError("give --model or --start-norm, not both: the model has initial norms of its own.")
    if effective_grad is not None and model is None:
        raise click.UsageError("--effective-grad needs --model: it compares the model's norms with equilibrium.")
    from smdtrack.planning.lr_schedule import check_optimizer
    from smdtrack.planning.plan import make_plan

    check_optimizer(recipe.opt)
    plan = make_plan(
        recipe,
        steps_per_epoch,
        with_schedule=with_schedule,
        shape=weight_shape,
        start_norm=start_norm,
        model=None if model is None else _built(model),
        effective_gradient=effective_grad,
        wanted_angle=target_angle,
    )
    notes += plan.notes
    unused = unused_keys(ctx)
    if model is None and "model" in unused:
        notes.append(f"give --model {unused['model']} for the groups and initial norms of the config's model")
    if as_json:
        click.echo(json.dumps(_document(plan, notes, unused), indent=2, allow_nan=False))
    else:
        _print(plan, notes, unused)
    levels = {finding.level for finding in plan.findings}
    if fail_on in levels or (fail_on == "note" and levels):
        ctx.exit(1)


def _built(name: str) -> "nn.Module":
    """Returns a timm model with its initial weights, the same at every call."""
    import torch

    from smdtrack.cli._zoo import create, model_names

    (known,) = model_names([name])[:1]
    torch.manual_seed(0)
    return create(known)


def _print(plan: "Plan", notes: list[str], unused: dict[str, Any]) -> None:
    from rich.console import Console

    from smdtrack.cli._plan_text import WIDEST, show, wrapped

    console = Console(highlight=False, soft_wrap=True)
    # rich would cut the table in a narrower terminal. A line that the terminal wraps loses nothing.
    console.width = max(console.width, 80)
    show(plan, console)
    notes = list(notes)
    # The model has a note of its own, and options that are off need none.
    given = [name for name, value in unused.items() if value not in (None, False, "", 0, [], {}) and name != "model"]
    if given:
        notes.append(f"not used by the prediction, from the config: {', '.join(given)}")
    for note in notes:
        console.print(wrapped("note: ", note, min(console.width, WIDEST)), markup=False)


def _document(plan: "Plan", notes: list[str], unused: dict[str, Any]) -> dict[str, Any]:
    """Returns the prediction as JSON values; angles in radian per step, times in optimizer steps."""
    peak = plan.peak
    timescale = 1 / peak.decay_rate if peak.decay_rate and peak.angular_update else None
    per_epoch = plan.steps_per_epoch
    in_epochs = None if per_epoch is None or peak.time_constant is None else peak.time_constant / per_epoch
    return {
        "optimizer": plan.recipe.opt,
        "lr": plan.recipe.lr,
        "weight_decay": plan.recipe.weight_decay,
        "kind": peak.kind,
        "angular_update": peak.angular_update or None,
        "memory": peak.memory,
        "decay_rate": peak.decay_rate,
        "decay_timescale": timescale,
        "decay_timescale_epochs": None if per_epoch is None or timescale is None else timescale / per_epoch,
        "time_constant": peak.time_constant,
        "time_constant_epochs": in_epochs,
        "run_time_constants": plan.time_constants,
        "formula": peak.formula or None,
        "source": peak.source or None,
        "assumptions": list(peak.assumptions),
        "reason": peak.reason,
        "groups": [_group(group) for group in plan.groups],
        "start_norms": list(plan.start_norms) if plan.curve else None,
        "stages": [dataclasses.asdict(stage) for stage in plan.stages],
        "findings": [dataclasses.asdict(finding) for finding in plan.findings],
        "target": None if plan.solution is None else _target(plan.solution),
        "notes": notes,
        "unused": sorted(unused),
    }


def _group(group: "WeightGroup") -> dict[str, Any]:
    return {
        "lr_scale": group.lr_scale,
        "weights": group.weights,
        "parameters": group.parameters,
        "angular_update": group.line.angular_update or None,
        "decay_rate": group.line.decay_rate,
        "time_constant": group.line.time_constant,
        "start_norms": list(group.start_norms),
    }


def _target(solution: "Solution") -> dict[str, Any]:
    return {
        "setting": solution.setting,
        "lr": solution.recipe.lr,
        "weight_decay": solution.recipe.weight_decay,
        "angular_update": solution.line.angular_update,
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
