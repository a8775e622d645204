"""A recipe's options as timm's train.py takes them: its defaults, then its args.yaml, then the flags."""

import contextlib
import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from smdtrack.cli._variadic import key_values

# timm's own defaults (train.py), except lr and weight decay, which have to be said.
DEFAULTS: dict[str, Any] = {
    "opt": "sgd",
    "momentum": 0.9,
    "opt_eps": None,
    "opt_betas": None,
    "opt_kwargs": {},
    "sched": "cosine",
    "sched_on_updates": False,
    "epochs": 300,
    "warmup_epochs": 5,
    "warmup_lr": 1e-5,
    "warmup_prefix": False,
    "min_lr": 0.0,
    "decay_epochs": None,
    "decay_milestones": [90, 180, 270],
    "decay_rate": 0.1,
    "cooldown_epochs": 0,
    "patience_epochs": 10,
    "lr_cycle_mul": 1.0,
    "lr_cycle_decay": 0.5,
    "lr_cycle_limit": 1,
    "lr_k_decay": 1.0,
    "lr_decay_fn": None,
    "lr_stable_timescale": None,
    "lr_noise": None,
    "lr_noise_pct": 0.67,
    "lr_noise_std": 1.0,
    "seed": 42,
}
#: Further keys of timm's args.yaml that are read.
_SCALING = ("lr_base", "lr_base_size", "lr_base_scale", "batch_size", "world_size", "grad_accum_steps")
#: Keys of timm's that look like a slip of the pen for one of those above and are none.
_LOOKALIKES = ("bn_momentum", "layer_decay", "train_batch_sizes", "val_batch_size", "validation_batch_size")
_TEXTS = ("opt", "sched", "lr_decay_fn", "lr_base_scale")
_SWITCHES = ("sched_on_updates", "warmup_prefix")
_LISTS = ("opt_betas", "decay_milestones", "lr_noise")

_POSITIVE = "positive"
_NOT_NEGATIVE = "0 or more"
#: What a number must be; those that are None may be left out.
_RANGES: dict[str, str] = {
    "lr": _POSITIVE,
    "weight_decay": _NOT_NEGATIVE,
    "momentum": "in [0, 1)",
    "opt_eps": _NOT_NEGATIVE,
    "epochs": _POSITIVE,
    "warmup_epochs": _NOT_NEGATIVE,
    "warmup_lr": _NOT_NEGATIVE,
    "min_lr": _NOT_NEGATIVE,
    "decay_epochs": _POSITIVE,
    "decay_rate": _NOT_NEGATIVE,
    "cooldown_epochs": _NOT_NEGATIVE,
    "patience_epochs": _NOT_NEGATIVE,
    "lr_cycle_mul": _POSITIVE,
    "lr_cycle_decay": _POSITIVE,
    "lr_cycle_limit": _POSITIVE,
    "lr_k_decay": _POSITIVE,
    "lr_stable_timescale": _POSITIVE,
    "lr_noise_pct": _NOT_NEGATIVE,
    "lr_noise_std": _NOT_NEGATIVE,
    "lr_base": _POSITIVE,
    "lr_base_size": _POSITIVE,
    "batch_size": _POSITIVE,
    "world_size": _POSITIVE,
    "grad_accum_steps": _POSITIVE,
}
_HOLDS = {
    _POSITIVE: lambda value: value > 0,
    _NOT_NEGATIVE: lambda value: value >= 0,
    "in [0, 1)": lambda value: 0 <= value < 1,
}
_WHOLE = ("epochs", "lr_cycle_limit", "batch_size", "world_size", "grad_accum_steps")
MOST_EPOCHS = 100_000
#: Schedules that end at `min_lr`, and those in which `decay_rate` is the factor of a drop.
_ENDING_AT_MIN_LR = ("cosine", "tanh", "poly", "wsd", "rsqrt")
_DROPPING = ("step", "multistep", "plateau")


def recipe(args_file: str | None, flags: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """timm's defaults, then the file, then the flags.

    Args:
        args_file: timm's args.yaml, or None.
        flags: None, or empty, where a flag was not given.

    Returns:
        The options, and remarks for the user.

    Raises:
        click.UsageError: In one line, where something is missing, out of range or contradictory.
    """
    options, remarks = dict(DEFAULTS), []
    given = _read(args_file) if args_file else {}
    options.update({name: value for name, value in given.items() if value is not None})
    for name, value in flags.items():
        if name == "opt_kwargs":
            value = key_values(value)
        elif isinstance(value, tuple):
            value = list(value)
        if value is not None and value != [] and value != {}:
            options[name] = value
    for name in options:
        _check(name, options, where=args_file if args_file and flags.get(name) in (None, (), False) else None)
    if options.get("lr") is None and given.get("lr_base") and given.get("batch_size"):
        options["lr"] = _scaled_lr(options)
        if "world_size" not in options:
            remarks.append(
                f"lr {options['lr']:.4g} from lr_base and the batch of one process; for N of them give --lr, N times "
                "(Adam's kin and LAMB: root N times) that"
            )
    for name in ("lr", "weight_decay"):
        if options.get(name) is None:
            raise click.UsageError(f"{flag(name)} is missing: give it here or in --args.")
    _agree(options)
    if options["sched"] != "none" and options["warmup_epochs"] >= options["epochs"] and not options["warmup_prefix"]:
        remarks.append(
            f"warm-up ({options['warmup_epochs']:g} epochs) takes the whole run ({options['epochs']:g} epochs)"
        )
    return options, remarks


def arguments(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The optimizer's arguments beside lr and weight decay, as timm's train.py passes them, and remarks."""
    from timm.optim import get_optimizer_info

    name = str(options["opt"])
    info = get_optimizer_info(name.lower().removeprefix("lookahead_"))
    found, remarks = {"momentum": options["momentum"]}, []
    if options["opt_betas"]:
        if not info.has_betas:
            remarks.append(f"--opt-betas is ignored, as timm does: {name} has none")
        elif len(options["opt_betas"]) != info.num_betas:
            raise click.BadParameter(
                f"{name} takes {info.num_betas} betas, not {len(options['opt_betas'])}", param_hint="--opt-betas"
            )
        found["betas"] = tuple(options["opt_betas"])
    if options["opt_eps"] is not None:
        if not info.has_eps:
            remarks.append(f"--opt-eps is ignored, as timm does: {name} has none")
        found["eps"] = options["opt_eps"]
    for key, of in {
        "lr": "--lr",
        "weight_decay": "--weight-decay",
        "momentum": "--momentum",
        "opt": "--opt",
        "betas": "--opt-betas",
        "eps": "--opt-eps",
    }.items():
        if key in options["opt_kwargs"] and (key not in ("betas", "eps") or key in found):
            raise click.BadParameter(f"{key!r} is given by {of}", param_hint="--opt-kwargs")
    return {**found, **options["opt_kwargs"]}, remarks


def flag(name: str) -> str:
    """The flag of an option, as it is typed."""
    return "--" + name.replace("_", "-")


def _read(path: str) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}", param_hint="--args") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise click.BadParameter(f"{path}{place} is not YAML: {what}", param_hint="--args") from error
    if not isinstance(content, dict):
        raise click.BadParameter(f"{path} holds no options (timm's args.yaml is a mapping)", param_hint="--args")
    known = [*DEFAULTS, "lr", "weight_decay", *_SCALING]
    for name in content:
        if name in known or name in _LOOKALIKES:
            continue
        near = difflib.get_close_matches(str(name).replace("-", "_"), known, 1, cutoff=0.8)
        if near and near[0] not in content:
            raise click.BadParameter(
                f"{name!r} in {path} is no option of timm's; did you mean {near[0]}?", param_hint="--args"
            )
    return content


def _check(name: str, options: dict[str, Any], where: str | None) -> None:
    """Brings one option to its type, numbers in text included (YAML takes 1e-3 for text), and checks its range."""
    value, hint = options[name], flag(name) + (f" in {where}" if where else "")
    if value is None:
        return
    if name in _RANGES:
        options[name] = value = _number(value, hint)
        if not _HOLDS[_RANGES[name]](value):
            raise click.BadParameter(f"{value!r} is not {_RANGES[name]}", param_hint=hint)
        if name in _WHOLE:
            if value != int(value):
                raise click.BadParameter(f"{value!r} is not a whole number", param_hint=hint)
            options[name] = int(value)
        if name == "epochs" and value > MOST_EPOCHS:
            raise click.BadParameter(f"{value!r} is more than {MOST_EPOCHS}", param_hint=hint)
    elif name in _LISTS:
        values = value if isinstance(value, (list, tuple)) else [value]
        options[name] = values = [_number(entry, hint) for entry in values]
        if name == "opt_betas" and not all(0 <= beta < 1 for beta in values):
            raise click.BadParameter(f"betas {values!r} are not all in [0, 1)", param_hint=hint)
        if name == "decay_milestones" and (min(values, default=1) <= 0 or values != sorted(values)):
            raise click.BadParameter(f"{values!r} are not epochs in ascending order", param_hint=hint)
    elif name in _TEXTS and not isinstance(value, str):
        raise click.BadParameter(f"{value!r} is not a name", param_hint=hint)
    elif name in _SWITCHES and not isinstance(value, bool):
        raise click.BadParameter(f"{value!r} is neither true nor false", param_hint=hint)
    elif name == "opt_kwargs" and not isinstance(value, Mapping):
        raise click.BadParameter(f"{value!r} is not of the form key: value", param_hint=hint)


def _number(value: Any, hint: str) -> float:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise click.BadParameter(f"{value!r} is not a number", param_hint=hint)
    if not math.isfinite(value):
        raise click.BadParameter(f"{value!r} is not a finite number", param_hint=hint)
    return value


def _agree(options: Mapping[str, Any]) -> None:
    """Raises where two options contradict each other."""
    sched = options["sched"]
    if sched in _ENDING_AT_MIN_LR and options["min_lr"] > options["lr"]:
        raise click.BadParameter(
            f"{options['min_lr']!r} is above the learning rate of {options['lr']!r}", param_hint="--min-lr"
        )
    if sched in _DROPPING and options["decay_rate"] > 1:
        raise click.BadParameter(
            f"{options['decay_rate']!r} would raise the learning rate; a factor in [0, 1] lowers it",
            param_hint="--decay-rate",
        )


def _scaled_lr(options: Mapping[str, Any]) -> float:
    """timm's rule: lr_base times the batch over its base size, by the square root for Adam's kin and LAMB."""
    batch = options["batch_size"] * options.get("world_size", 1) * options.get("grad_accum_steps", 1)
    ratio = batch / options.get("lr_base_size", 256)
    scale = options.get("lr_base_scale") or (
        "sqrt" if any(part in str(options["opt"]).lower() for part in ("ada", "lamb")) else "linear"
    )
    return float(options["lr_base"] * (math.sqrt(ratio) if scale == "sqrt" else ratio))
