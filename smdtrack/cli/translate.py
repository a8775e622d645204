"""`smdtrack translate`: a recipe with the same angular update under another optimizer, batch size or length."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from smdtrack.cli._option_types import BELOW_ONE, COUNT, NOT_NEGATIVE, POSITIVE, WEIGHT_SHAPE, WholeNumber
from smdtrack.cli._recipe import MOST_EPOCHS, read_recipe
from smdtrack.cli._variadic import KeyValue, VariadicCommand
from smdtrack.planning.target import Match, Target

if TYPE_CHECKING:
    from smdtrack.planning.recipe import Recipe
    from smdtrack.planning.translation import Translation
    from smdtrack.theory.line import Line

EXAMPLE = """\b
Examples:
  smdtrack translate args.yaml --to adamw --opt-betas 0.9 0.99
  smdtrack translate args.yaml --batch-size 1024 --match k-steps
  smdtrack translate args.yaml --epochs 300
"""


@click.command(cls=VariadicCommand, epilog=EXAMPLE, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config", type=click.Path(dir_okay=False))
@click.option("--to", "opt", metavar="OPTIMIZER", help="Optimizer to translate to, by its timm name.")
@click.option("--lr", type=POSITIVE, help="Learning rate to use; default: the one that keeps the equilibrium norm.")
@click.option("--opt-betas", type=BELOW_ONE, multiple=True, metavar="BETA...", help="Betas of the new optimizer.")
@click.option("--opt-eps", type=NOT_NEGATIVE, help="Epsilon of the new optimizer.")
@click.option("--opt-kwargs", type=KeyValue(), multiple=True, metavar="KEY=VALUE...", help="Its other arguments.")
@click.option("--momentum", type=BELOW_ONE, help="Momentum of the new optimizer.")
@click.option("--batch-size", type=COUNT, help="New batch size; the config's batch_size is the old one.")
@click.option("--steps-per-epoch", type=COUNT, help="New number of optimizer steps per epoch, at the same batch size.")
@click.option("--from-steps-per-epoch", type=COUNT, help="Old number of optimizer steps per epoch.")
@click.option("--epochs", type=WholeNumber(min=1, max=MOST_EPOCHS), help="New number of epochs.")
@click.option(
    "--match",
    type=click.Choice(get_args(Match)),
    help="What stays if a step covers more of an epoch: the decay per epoch (default), the angle of one step, or the "
    "angle of k old steps in one new step.",
)
@click.option(
    "--from",
    "run_folder",
    type=click.Path(file_okay=False),
    help="Record of a run of CONFIG: --match k-steps by its measured angles instead of those of white gradients.",
)
@click.option("--weight-shape", **WEIGHT_SHAPE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    config: str,
    opt: str | None,
    lr: float | None,
    batch_size: int | None,
    steps_per_epoch: int | None,
    from_steps_per_epoch: int | None,
    epochs: int | None,
    match: str | None,
    run_folder: str | None,
    weight_shape: tuple[int, ...],
    as_json: bool,
    **settings: Any,
) -> None:
    """Translate a recipe to another optimizer, batch size or length at the same angular update.

    CONFIG is timm's args.yaml or a YAML for its --config. Prints the lines of it that change, a comparison, and what
    does not carry over.
    """
    if opt is None and batch_size is None and steps_per_epoch is None and epochs is None:
        raise click.UsageError("nothing to translate to: give --to, --batch-size, --steps-per-epoch or --epochs.")
    given = {name: value for name, value in settings.items() if value not in (None, ())}
    if opt is None and (given or lr is not None):
        flag = "--" + next(iter(given), "lr").replace("_", "-")
        raise click.UsageError(f"{flag} belongs to a new optimizer: give --to, too.")
    recipe, notes = read_recipe(config)
    factor = _step_factor(recipe, batch_size, steps_per_epoch, from_steps_per_epoch)
    if match is not None and factor == 1:
        raise click.UsageError("--match applies only if --batch-size or --steps-per-epoch changes.")
    if match == "k-steps" and batch_size is None:
        raise click.UsageError("--match k-steps compares steps of different batches: give --batch-size.")
    if run_folder is not None and (match != "k-steps" or factor != round(factor)):
        raise click.UsageError("--from needs --match k-steps and a whole multiple of the batch.")
    from smdtrack.planning.lr_schedule import check_optimizer, check_schedule
    from smdtrack.planning.translation import translate

    for name in (recipe.opt, opt or recipe.opt):
        check_optimizer(name)
    check_schedule(recipe.sched)
    if "opt_kwargs" in given:
        given["opt_kwargs"] = dict(given["opt_kwargs"])
    growth = None
    if run_folder is not None:
        from smdtrack.cli._measured_growth import measured_growth

        growth = measured_growth(run_folder, round(factor))
    target = Target(
        opt=opt,
        batch_factor=1.0 if batch_size is None else factor,
        step_factor=factor,
        epochs=epochs,
        match=match or "epoch",  # type: ignore[arg-type]
        growth=growth,
        lr=lr,
        settings=given,
    )
    translation = translate(recipe, target, weight_shape)
    alternatives = []
    if batch_size is not None and factor != 1:
        alternatives = [translate(recipe, replace(target, match=other), weight_shape) for other in get_args(Match)]
    changes = _changes(translation, notes)
    if as_json:
        document = _document(translation, changes, alternatives, factor)
        click.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    from smdtrack.cli._translation_text import show

    show(translation, changes, alternatives, target, Path(config).name, notes)


def _step_factor(recipe: "Recipe", batch_size: int | None, steps: int | None, old_steps: int | None) -> float:
    """Returns how many old steps cover as much of an epoch as one new step."""
    if batch_size is not None and steps is not None:
        raise click.UsageError("give --batch-size or --steps-per-epoch, not both: each follows from the other.")
    if (steps is None) != (old_steps is None):
        raise click.UsageError("--steps-per-epoch and --from-steps-per-epoch go together: the new and the old number.")
    if steps is not None and old_steps is not None:
        return old_steps / steps
    if batch_size is None:
        return 1.0
    if recipe.batch_size is None:
        raise click.UsageError("the config has no batch_size to translate from: add it there.")
    return batch_size / recipe.batch_size


def _changes(translation: "Translation", notes: list[str]) -> dict[str, Any]:
    """Returns the changed settings as YAML values, the optimizer first."""
    changes = dict(translation.changes)
    if notes and changes:
        # The learning rate came from lr_base. With `lr` in the file timm does not scale it by the new batch again.
        changes["lr"] = translation.after.lr
    order = ("opt", "lr", "weight_decay")
    names = [name for name in order if name in changes] + [name for name in changes if name not in order]
    return {name: list(value) if isinstance(value := changes[name], tuple) else value for name in names}


def _numbers(recipe: "Recipe", line: "Line") -> dict[str, Any]:
    return {
        "optimizer": recipe.opt,
        "batch_size": recipe.batch_size,
        "epochs": recipe.epochs,
        "lr": recipe.lr,
        "weight_decay": recipe.weight_decay,
        "angular_update": line.angular_update,
        "decay_rate": line.decay_rate,
        "time_constant": line.time_constant,
    }


def _document(
    translation: "Translation", changes: dict[str, Any], alternatives: "list[Translation]", factor: float
) -> dict[str, Any]:
    """Returns the translation as JSON values; angles in radian per step, times in optimizer steps."""
    return {
        "before": _numbers(translation.before, translation.line_before),
        "after": _numbers(translation.after, translation.line_after),
        "changes": changes,
        "old_steps_per_new_step": factor,
        "kept": list(translation.kept),
        "not_kept": list(translation.not_kept),
        "alternatives": {
            match: _numbers(other.after, other.line_after)
            for match, other in zip(get_args(Match), alternatives, strict=False)
        },
    }
