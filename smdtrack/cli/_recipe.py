"""The options that describe a recipe: named as in timm's train.py, read from flags and from timm's YAML.

click does the reading. The YAML given by `--config` becomes the command's `default_map`, so that a flag wins over the
file, and the file over the defaults, which are those of `smdtrack.planning.recipe.Recipe`.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from smdtrack.cli._option_types import BELOW_ONE, COUNT, NOT_NEGATIVE, POSITIVE, Name, Switch, WholeNumber
from smdtrack.cli._variadic import KeyValue, VariadicCommand, as_pairs
from smdtrack.planning.recipe import Recipe, scaled_lr

Command = TypeVar("Command", bound=Callable[..., Any])

#: More epochs than any training has; every epoch is one evaluation of the schedule.
MOST_EPOCHS = 100_000
_RECIPE_FIELDS = {field.name: field for field in dataclasses.fields(Recipe)}
#: Options of timm's whose names resemble one of those below without being a misspelling of it.
_LOOKALIKES = ("bn_momentum", "train_batch_sizes", "val_batch_size", "validation_batch_size", "model", "sched_type")
#: Options that describe the schedule. One of them, or a config, asks for a prediction of all its stages.
_OF_THE_SCHEDULE = (
    *("sched", "sched_on_updates", "epochs", "warmup_epochs", "warmup_lr", "warmup_prefix", "min_lr"),
    *("decay_epochs", "decay_milestones", "decay_rate", "cooldown_epochs", "patience_epochs"),
    *("lr_cycle_mul", "lr_cycle_decay", "lr_cycle_limit", "lr_k_decay", "lr_decay_fn", "lr_stable_timescale"),
)
#: Where a context keeps the config's keys that are no options of its command.
_UNUSED = "smdtrack.unused_keys"


def _option(*flags: str, type: Any, **settings: Any) -> Callable[[Command], Command]:
    """An option whose default is that of the `Recipe`'s field of the same name; None for other options."""
    field = _RECIPE_FIELDS.get(flags[0].removeprefix("--").replace("-", "_"))
    default = None if field is None or field.default is dataclasses.MISSING else field.default
    if isinstance(type, Switch):
        settings["is_flag"] = True
    show = default is not None and "show_default" not in settings
    return click.option(*flags, type=type, default=default, **{"show_default": show, **settings})


def _read_config(ctx: click.Context, param: click.Parameter, path: str | None) -> str | None:
    """Puts the options of timm's YAML into the context's `default_map`."""
    if path is not None:
        ctx.default_map = {**(ctx.default_map or {}), **config_options(path, ctx)}
    return path


_OPTIONS = (
    click.option(
        "--config",
        "-c",
        type=click.Path(dir_okay=False),
        is_eager=True,
        callback=_read_config,
        help="timm's args.yaml or a YAML for its --config. Flags override it.",
    ),
    _option("--opt", type=Name(), help="Optimizer, by its timm name. sgd is Nesterov's, momentum is plain heavy-ball."),
    _option("--lr", type=POSITIVE, help="Learning rate (required here or in the config)."),
    _option("--weight-decay", type=NOT_NEGATIVE, help="Weight decay (required here or in the config)."),
    _option("--momentum", type=BELOW_ONE, help="Momentum."),
    _option("--opt-betas", type=BELOW_ONE, multiple=True, metavar="BETA...", help="Betas of the optimizer."),
    _option("--opt-eps", type=NOT_NEGATIVE, help="Epsilon of the optimizer."),
    _option("--opt-kwargs", type=KeyValue(), multiple=True, metavar="KEY=VALUE...", help="Other optimizer arguments."),
    _option("--sched", type=Name(), help="Schedule: cosine, tanh, step, multistep, poly, wsd, constant, none, ..."),
    _option("--sched-on-updates", type=Switch(), help="Change the learning rate at every update, not every epoch."),
    _option("--epochs", type=WholeNumber(min=1, max=MOST_EPOCHS), help="Epochs."),
    _option("--warmup-epochs", type=NOT_NEGATIVE, help="Epochs of warm-up."),
    _option("--warmup-lr", type=NOT_NEGATIVE, help="Learning rate at the beginning of the warm-up."),
    _option("--warmup-prefix", type=Switch(), help="Do the warm-up before the schedule instead of within it."),
    _option("--min-lr", type=NOT_NEGATIVE, help="Learning rate at which cosine, tanh, poly, wsd and rsqrt end."),
    _option(
        "--decay-epochs", type=POSITIVE, help="Epochs between drops (step; timm's default is 90); see timm for wsd."
    ),
    _option(
        "--decay-milestones", type=POSITIVE, multiple=True, metavar="EPOCH...", help="Epochs of multistep's drops."
    ),
    _option("--decay-rate", "--dr", type=NOT_NEGATIVE, help="Factor of each drop; the power of poly."),
    _option("--cooldown-epochs", type=NOT_NEGATIVE, help="Epochs at --min-lr after a cyclic schedule."),
    _option("--patience-epochs", type=WholeNumber(min=0), help="Patience of the plateau schedule."),
    _option("--lr-cycle-mul", type=POSITIVE, help="Factor of the cycle length from cycle to cycle."),
    _option("--lr-cycle-decay", type=POSITIVE, help="Factor of the learning rate from cycle to cycle."),
    _option("--lr-cycle-limit", type=COUNT, help="Number of cycles."),
    _option("--lr-k-decay", type=POSITIVE, help="k-decay of cosine and poly."),
    _option("--lr-decay-fn", type=Name(), help="Decay function of wsd and rsqrt."),
    _option("--lr-stable-timescale", type=POSITIVE, help="Timescale of rsqrt, in epochs."),
    _option("--lr-noise", type=NOT_NEGATIVE, multiple=True, metavar="SHARE...", hidden=True),
    _option("--lr-noise-pct", type=NOT_NEGATIVE, hidden=True),
    _option("--lr-noise-std", type=NOT_NEGATIVE, hidden=True),
    _option("--seed", type=WholeNumber(), hidden=True),
    _option("--lr-base", type=POSITIVE, help="Learning rate for a batch of --lr-base-size, if there is no --lr."),
    _option("--lr-base-size", type=COUNT, help="Batch that --lr-base is meant for.  [default: 256]"),
    _option("--lr-base-scale", type=Name(), help="sqrt or linear in the batch size (default: by the optimizer)."),
    _option("--batch-size", type=COUNT, help="Images per process and backward pass, for --lr-base."),
    _option("--world-size", type=COUNT, help="Number of processes, for --lr-base."),
    _option("--grad-accum-steps", type=COUNT, help="Backward passes per optimizer step, for --lr-base."),
    _option("--layer-decay", type=POSITIVE, help="Factor of the learning rate from each layer to the one before it."),
    _option("--layer-decay-min-scale", type=NOT_NEGATIVE, hidden=True),
    _option("--layer-decay-no-opt-scale", type=NOT_NEGATIVE, hidden=True),
    _option("--clip-grad", type=POSITIVE, help="Gradient clipping, off by default."),
    _option("--clip-mode", type=Name(), help="norm, value or agc."),
    _option("--model-ema", type=Switch(), help="Average the weights."),
    _option("--model-ema-decay", type=BELOW_ONE, help="Decay of the average per step."),
)
#: What `scaled_lr` takes beside the optimizer's name.
_SCALING = ("lr_base", "batch_size", "lr_base_size", "lr_base_scale", "world_size", "grad_accum_steps")


class RecipeCommand(VariadicCommand):
    """A command with a recipe's options, which `--help` lists by subject."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        titles = ("Options", "Recipe", "Schedule", "Learning rate from the batch")
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in titles}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None:
                sections[_section(str(parameter.name))].append(row)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def _section(name: str) -> str:
    """Returns the section of the help that lists an option."""
    if name in _OF_THE_SCHEDULE:
        return "Schedule"
    if name in _SCALING:
        return "Learning rate from the batch"
    return "Recipe" if name in _RECIPE_FIELDS else "Options"


def recipe_options(command: Command) -> Command:
    """Adds all options of a recipe to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


#: A command that is never run: it reads a YAML where there are no flags.
_READER = recipe_options(click.Command("recipe"))


def config_options(path: str, ctx: click.Context) -> dict[str, Any]:
    """Returns what a timm YAML says about the options of the context's command, converted to their types.

    Raises:
        click.BadParameter: The file cannot be read, is not YAML or not a mapping, has a key that resembles an option
            but is none, or a value that the option does not take. The message names the file.
    """
    options = {option.name: option for option in ctx.command.params if isinstance(option, click.Option)}
    content = _load(path)
    found: dict[str, Any] = {}
    unused: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        # The model is built only if a flag asks for it: that takes seconds, and a config may name one to be downloaded.
        if name in options and name not in ("config", "model"):
            if value is not None:
                found[name] = _converted(options[name], value, ctx, path)
            continue
        unused[str(key)] = value
        if name not in _LOOKALIKES:
            near = difflib.get_close_matches(name, [str(option) for option in options], 1, cutoff=0.8)
            if near and near[0] not in content:
                raise click.BadParameter(f"timm has no option {key!r} ({path}); did you mean {near[0]}?")
    ctx.meta[_UNUSED] = unused
    return found


def unused_keys(ctx: click.Context) -> dict[str, Any]:
    """Returns the entries of the config that the command does not use."""
    return dict(ctx.meta.get(_UNUSED, {}))


def asks_for_schedule(ctx: click.Context) -> bool:
    """Returns whether a config or an option of the schedule was given."""
    given = (click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.DEFAULT_MAP)
    return bool(ctx.params.get("config")) or any(ctx.get_parameter_source(name) in given for name in _OF_THE_SCHEDULE)


def read_recipe(path: str) -> tuple[Recipe, list[str]]:
    """Returns the recipe that a timm YAML describes, and sentences on what was assumed.

    Raises:
        click.UsageError: as `config_options` and `recipe_from`.
        SmdtrackError: Two settings contradict each other.
    """
    try:
        return recipe_from(_READER.make_context("recipe", ["--config", path]).params)
    except click.UsageError as error:
        # The reader is no command of the user's: its name and its flag would only confuse.
        raise click.UsageError(error.message, click.get_current_context(silent=True)) from error


def _converted(option: click.Option, value: Any, ctx: click.Context, path: str) -> Any:
    if option.multiple:
        value = as_pairs(value)
        value = value if isinstance(value, list) else [value]
    try:
        return option.type_cast_value(ctx, value)
    except click.BadParameter as error:
        raise click.BadParameter(f"{error.message.rstrip('.')} ({option.name} in {path})") from error


def _load(path: str) -> Mapping[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}," if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise click.BadParameter(f"{path}{place} is not YAML: {problem}") from error
    if not isinstance(content, dict):
        raise click.BadParameter(f"{path} holds no options; timm's args.yaml is a mapping of names to values")
    return content


def recipe_from(values: Mapping[str, Any]) -> tuple[Recipe, list[str]]:
    """Returns the recipe that a command's option values describe, and sentences on what was assumed.

    Args:
        values: by option name, as click passes them; names that are no setting of a recipe are left out.

    Raises:
        click.UsageError: The learning rate or the weight decay is missing.
        SmdtrackError: Two settings contradict each other.
    """
    settings = {name: value for name, value in values.items() if name in _RECIPE_FIELDS}
    notes = []
    # An option with several values is an empty tuple if it was not given. The recipe's default then holds.
    settings = {name: value for name, value in settings.items() if value != ()}
    settings["opt_kwargs"] = dict(values.get("opt_kwargs") or ())
    milestones = settings.get("decay_milestones", ())
    if list(milestones) != sorted(milestones):
        raise click.UsageError(f"the milestones {', '.join(f'{epoch:g}' for epoch in milestones)} are not in order")
    if settings.get("lr") is None and values.get("lr_base") and values.get("batch_size"):
        scaling = {name: values[name] for name in _SCALING if values.get(name) is not None}
        settings["lr"] = scaled_lr(settings["opt"], **scaling)
        if values.get("world_size") is None:
            notes.append(
                f"lr {settings['lr']:.4g} from lr_base and the batch of one process; for several, give --world-size"
            )
    for name in ("lr", "weight_decay"):
        if settings.get(name) is None:
            flag = "--" + name.replace("_", "-")
            raise click.UsageError(f"{flag} is missing: give it here or in the config.")
    return Recipe(**settings), notes
