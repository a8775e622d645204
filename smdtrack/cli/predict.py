"""`smdtrack predict`: what lr, weight decay and schedule will do to the weights, before training."""

import difflib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from smdtrack.cli._variadic import VariadicCommand, key_values

Command = TypeVar("Command", bound=Callable[..., Any])
EXAMPLE = """\b
Example:
  smdtrack predict --opt sgd --lr 0.1 --weight-decay 1e-4 --momentum 0.9 \\
      --sched cosine --epochs 100 --steps-per-epoch 5004 --warmup-epochs 5
"""
# timm's own defaults (train.py), except lr and weight decay, which have to be said.
DEFAULTS: dict[str, Any] = {
    "opt": "sgd", "momentum": 0.9, "opt_eps": None, "opt_betas": None, "opt_kwargs": {}, "sched": "cosine",
    "sched_on_updates": False, "epochs": 300, "warmup_epochs": 5, "warmup_lr": 1e-5, "warmup_prefix": False,
    "min_lr": 0.0, "decay_epochs": None, "decay_milestones": [90, 180, 270], "decay_rate": 0.1, "cooldown_epochs": 0,
    "patience_epochs": 10, "lr_cycle_mul": 1.0, "lr_cycle_decay": 0.5, "lr_cycle_limit": 1, "lr_k_decay": 1.0,
    "lr_decay_fn": None,
    "lr_stable_timescale": None, "lr_noise": None, "lr_noise_pct": 0.67, "lr_noise_std": 1.0, "seed": 42,
}


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
@click.option("--weight-shape", default="64,64,3,3", show_default=True,
              help="Shape of the weight, for optimizers that look at it (Muon).")
@click.option("--start-norm", type=float, default=1.0, show_default=True,
              help="Initial norm over the equilibrium norm at the largest lr.")
@_option("--angle", type=float, help="Wanted angular update (rad per step): says which decay gives it.")
@click.option("--list", "list_all", is_flag=True, help="List all optimizers with their kind of line.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
        args_file: str | None, list_all: bool, as_json: bool, weight_shape: str, start_norm: float, angle: float | None,
        steps_per_epoch: int | None, **flags: Any,
) -> None:
    """The equilibrium angle, its time constant, and what each stage of the schedule reaches, before training."""
    if list_all:
        _list(as_json)
        return
    options = _options(args_file, flags)
    if steps_per_epoch is None:
        raise click.UsageError("--steps-per-epoch is missing: the number of optimizer steps in an epoch.")
    _positive("--steps-per-epoch", steps_per_epoch)
    _positive("--epochs", options["epochs"])
    _positive("--start-norm", start_norm)
    if angle is not None:
        _positive("--angle", angle)
    _check_optimizer(str(options["opt"]))
    if not 0 <= options["momentum"] < 1:
        raise click.BadParameter(f"{options['momentum']!r} is not in [0, 1)", param_hint="--momentum")
    shape = _shape(weight_shape)

    from smdtrack.theory import identify
    from smdtrack.theory.plan import plan
    from smdtrack.theory.schedule import optimizer_of, pieces

    arguments = dict(options["opt_kwargs"])
    arguments["momentum"] = options["momentum"]
    if options["opt_betas"]:
        arguments["betas"] = tuple(options["opt_betas"])
    if options["opt_eps"] is not None:
        arguments["eps"] = options["opt_eps"]
    arguments.update(options["opt_kwargs"])
    optimizer = optimizer_of(options["opt"], options["lr"], options["weight_decay"], shape, arguments)
    family = identify(optimizer)
    group = dict(optimizer.param_groups[0])
    schedule, remarks = pieces(optimizer, steps_per_epoch, options)
    warmup = options["warmup_epochs"] if options["sched"] != "none" else 0
    prediction = plan(
        schedule, lambda lr: family.line({**group, "lr": lr}, shape), options["weight_decay"],
        warmup_epochs=warmup, start_norm=start_norm, wanted_angle=angle,
    )
    if as_json:
        for remark in (*remarks, *prediction.warnings):
            click.echo(f"warning: {remark}", err=True)
        click.echo(json.dumps(_document(options["opt"], prediction), indent=2, allow_nan=False))
        return
    from rich.console import Console

    from smdtrack.cli._plan_text import show

    console = Console(highlight=False, soft_wrap=True)
    # rich would cut the table off in a pipe or a narrow window; a wrapped line loses nothing
    console.width = max(console.width, 104)
    show(prediction, console)
    for remark in remarks:
        console.print(f"note: {remark}")


def _options(args_file: str | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """timm's defaults, then the file, then the flags; lr and weight decay checked."""
    options = dict(DEFAULTS)
    given = _read(args_file) if args_file else {}
    options.update({name: value for name, value in given.items() if value is not None})
    for name, value in flags.items():
        if name == "opt_kwargs":
            value = key_values(value)
        elif isinstance(value, tuple):
            value = list(value)
        if value is not None and value != [] and value != {}:
            options[name] = value
    if options.get("lr") is None and given.get("lr_base") and given.get("batch_size"):
        options["lr"] = _scaled_lr(options)
    for name, value in options.items():
        if isinstance(DEFAULTS.get(name), (int, float)) and not isinstance(value, (int, float)):
            raise click.BadParameter(f"{value!r} is not a number", param_hint="--" + name.replace("_", "-"))
    for name in ("lr", "weight_decay"):
        flag = "--" + name.replace("_", "-")
        value = options.get(name)
        if value is None:
            raise click.UsageError(f"{flag} is missing: give it here or in --args.")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise click.BadParameter(f"{value!r} is not a number", param_hint=flag)
        if not math.isfinite(value) or value < 0 or (name == "lr" and value == 0):
            raise click.BadParameter(f"{value!r} is not {'positive' if name == 'lr' else '0 or more'}", param_hint=flag)
    return options


def _read(path: str) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}", param_hint="--args") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path} is not YAML: {str(error).splitlines()[0]}", param_hint="--args") from error
    if not isinstance(content, dict):
        raise click.BadParameter(f"{path} holds no options (timm's args.yaml is a mapping)", param_hint="--args")
    return content


def _scaled_lr(options: Mapping[str, Any]) -> float:
    """timm's rule: lr_base times the batch over its base size, by the square root for Adam's kin and LAMB."""
    batch = options["batch_size"] * options.get("world_size", 1) * options.get("grad_accum_steps", 1)
    ratio = batch / options.get("lr_base_size", 256)
    scale = options.get("lr_base_scale") or (
        "sqrt" if any(part in str(options["opt"]).lower() for part in ("ada", "lamb")) else "linear")
    return float(options["lr_base"] * (math.sqrt(ratio) if scale == "sqrt" else ratio))


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

    table = Table(box=None, pad_edge=False)
    for column in ("optimizer", "line", "Delta^2, or why not", "source"):
        table.add_column(column, no_wrap=column in ("optimizer", "line"))
    for entry in found:
        table.add_row(entry.name, entry.kind, entry.reason or entry.formula, entry.source)
    console = Console(highlight=False)
    console.width = max(console.width, 130)
    console.print(table)
