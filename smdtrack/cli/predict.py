"""`smdtrack predict`: what lr, weight decay and schedule will do to the weights, before training."""

import difflib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from smdtrack.cli._recipe import arguments, recipe
from smdtrack.cli._variadic import VariadicCommand

if TYPE_CHECKING:
    from smdtrack.planning.plan import Plan

Command = TypeVar("Command", bound=Callable[..., Any])
EXAMPLE = """\b
Example:
  smdtrack predict --opt sgd --lr 0.1 --weight-decay 1e-4 --momentum 0.9 \\
      --sched cosine --epochs 100 --steps-per-epoch 5004 --warmup-epochs 5
"""
#: Any weight decay will do to see how the angle goes with it.
_UNIT_DECAY = 1e-4


def _option(*flags: str, **settings: Any) -> Callable[[Command], Command]:
    """An option that is None unless given, so that the file and timm's defaults come after it."""
    return click.option(*flags, default=None, **settings)


@click.command(cls=VariadicCommand, epilog=EXAMPLE, context_settings={"help_option_names": ["-h", "--help"]})
@_option("--args", "args_file", type=click.Path(dir_okay=False), help="timm's args.yaml; flags given here override it.")
@_option("--opt", help="Optimizer, by its timm name (default: sgd, which is Nesterov).")
@_option("--lr", type=float, help="Learning rate (required here or in --args).")
@_option("--weight-decay", type=float, help="Weight decay (required here or in --args).")
@_option("--momentum", type=float, help="Momentum (default: 0.9).")
@click.option("--opt-betas", type=float, multiple=True, metavar="BETA...", help="Betas of the optimizer.")
@_option("--opt-eps", type=float, help="Epsilon of the optimizer.")
@click.option("--opt-kwargs", multiple=True, metavar="KEY=VALUE...", help="Further arguments of the optimizer.")
@_option("--sched", help="Schedule, one of timm's: cosine, step, multistep, poly, wsd, ... (default: cosine).")
@click.option("--sched-on-updates", is_flag=True, default=None, help="Step the schedule on updates, not on epochs.")
@_option("--epochs", type=int, help="Epochs (default: 300).")
@_option("--steps-per-epoch", type=int, help="Optimizer steps per epoch (required).")
@_option("--warmup-epochs", type=int, help="Epochs of warm-up (default: 5).")
@_option("--warmup-lr", type=float, help="Learning rate that warm-up begins with (default: 1e-5).")
@click.option("--warmup-prefix", is_flag=True, default=None, help="Warm-up comes before the schedule, not out of it.")
@_option("--min-lr", type=float, help="Lower bound of cyclic schedules (default: 0).")
@_option("--decay-epochs", type=float, help="Epochs between drops (step; default: 90), length of the decay (wsd).")
@click.option("--decay-milestones", type=int, multiple=True, metavar="EPOCH...", help="Drops of multistep.")
@_option("--decay-rate", "--dr", type=float, help="Factor of each drop (default: 0.1).")
@_option("--cooldown-epochs", type=int, help="Epochs at min-lr after a cyclic schedule (default: 0).")
@_option("--patience-epochs", type=int, help="Patience of the plateau schedule (default: 10).")
@_option("--lr-cycle-mul", type=float, help="Cycle length multiplier (default: 1).")
@_option("--lr-cycle-decay", type=float, help="Factor from cycle to cycle (default: 0.5).")
@_option("--lr-cycle-limit", type=int, help="Number of cycles (default: 1).")
@_option("--lr-decay-fn", help="Decay function of wsd and rsqrt.")
@_option("--lr-stable-timescale", type=float, help="Timescale of rsqrt, in epochs.")
@_option("--lr-k-decay", type=float, help="k-decay of cosine and poly (default: 1).")
@click.option(
    "--weight-shape",
    default="64,64,3,3",
    show_default=True,
    help="Shape of the weight, for optimizers that look at it (Muon).",
)
@click.option(
    "--start-norm",
    type=float,
    default=1.0,
    show_default=True,
    help="Initial norm over the equilibrium norm at the largest lr.",
)
@_option("--angle", type=float, help="Wanted angular update (rad per step): says which decay gives it.")
@click.option("--list", "list_all", is_flag=True, help="List all optimizers with their kind of line.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    args_file: str | None,
    list_all: bool,
    as_json: bool,
    weight_shape: str,
    start_norm: float,
    angle: float | None,
    steps_per_epoch: int | None,
    **flags: Any,
) -> None:
    """The equilibrium angle, its time constant, and what each stage of the schedule reaches, before training."""
    if list_all:
        _list(as_json)
        return
    options, remarks = recipe(args_file, flags)
    if steps_per_epoch is None:
        raise click.UsageError("--steps-per-epoch is missing: the number of optimizer steps in an epoch.")
    _positive("--steps-per-epoch", steps_per_epoch)
    _positive("--start-norm", start_norm)
    if angle is not None:
        _positive("--angle", angle)
    _check_optimizer(str(options["opt"]))
    shape = _shape(weight_shape)
    of_the_optimizer, more = arguments(options)
    prediction, further = _predict(options, of_the_optimizer, shape, steps_per_epoch, start_norm, angle)
    remarks += more + further
    if as_json:
        for remark in (*remarks, *prediction.warnings):
            click.echo(f"warning: {remark}", err=True)
        click.echo(json.dumps(_document(options["opt"], prediction), indent=2, allow_nan=False))
        return
    from rich.console import Console

    from smdtrack.cli._plan_text import show, wrapped

    console = Console(highlight=False, soft_wrap=True)
    # narrower than this rich would cut the table off; a line that wraps loses nothing
    console.width = max(console.width, 80)
    show(prediction, console)
    for remark in remarks:
        console.print(wrapped("note: ", remark, console.width), markup=False)


def _predict(
    options: Mapping[str, Any],
    of_the_optimizer: Mapping[str, Any],
    shape: tuple[int, ...],
    steps_per_epoch: int,
    start_norm: float,
    angle: float | None,
) -> "tuple[Plan, list[str]]":
    from smdtrack.planning.lr_schedule import optimizer_of, pieces
    from smdtrack.planning.plan import plan
    from smdtrack.theory import identify

    decay = options["weight_decay"]
    optimizer = optimizer_of(options["opt"], options["lr"], decay, shape, of_the_optimizer)
    family = identify(optimizer)
    group = dict(optimizer.param_groups[0])
    schedule, remarks = pieces(optimizer, steps_per_epoch, options)
    unit = None
    if angle is not None and decay == 0:
        unit = (
            _UNIT_DECAY,
            family.line({**group, "lr": max(piece.lr for piece in schedule), "weight_decay": _UNIT_DECAY}, shape),
        )
    return plan(
        schedule,
        lambda lr: family.line({**group, "lr": lr}, shape),
        decay,
        warmup_epochs=options["warmup_epochs"] if options["sched"] != "none" else 0,
        start_norm=start_norm,
        wanted_angle=angle,
        unit_decay=unit,
    ), remarks


def _positive(flag: str, value: float) -> None:
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise click.BadParameter(f"{value!r} is not positive", param_hint=flag)


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if len(shape) < 2 or min(shape) < 1:
        raise click.BadParameter(f"{text!r} is not a shape such as 64,64,3,3", param_hint="--weight-shape")
    return shape


def _check_optimizer(name: str) -> None:
    """Raises with near names where timm does not know the optimizer, or with the package that is absent."""
    from timm.optim import list_optimizers

    known = [str(entry) for entry in list_optimizers()]
    bare = name.lower().removeprefix("lookahead_")
    if bare not in known:
        near = difflib.get_close_matches(bare, known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "`smdtrack predict --list` shows all."
        raise click.BadParameter(f"{name!r} is not an optimizer of timm's; {hint}", param_hint="--opt")
    from smdtrack.theory.catalogue import absent

    missing = absent(bare)
    if missing:
        raise click.BadParameter(f"{name!r} {missing}", param_hint="--opt")


def _document(name: str, prediction: Any) -> dict[str, Any]:
    from dataclasses import asdict

    peak = prediction.peak
    return {
        "optimizer": name,
        "kind": peak.kind,
        "angular_update": peak.angular_update or None,
        "memory": peak.memory,
        "decay_rate": peak.decay_rate,
        "time_constant": peak.time_constant,
        "source": peak.source or None,
        "assumptions": list(peak.assumptions),
        "stages": [asdict(stage) for stage in prediction.stages],
    }


def _list(as_json: bool) -> None:
    from smdtrack.theory.catalogue import entries

    found = entries()
    if as_json:
        from dataclasses import asdict

        click.echo(json.dumps([asdict(entry) for entry in found], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.width = max(console.width, 80)
    # the formulas and reasons are what one looks for; their sources need a wide terminal, or --json
    columns = ("optimizer", "line", "Delta^2, or why not", "source")[: 4 if console.width >= 110 else 3]
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column in ("optimizer", "line"))
    for entry in found:
        said = entry.formula if entry.kind == "from state" else entry.reason or entry.formula
        table.add_row(*(entry.name, entry.kind, said, entry.source)[: len(columns)])
    console.print(table)
    kinds = Counter(entry.kind for entry in found)
    console.print(f"{len(found)} optimizers: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
