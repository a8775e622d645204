"""`smdtrack demo`: train a recipe that comes with the package, for people who have no clone of the repository."""

import shutil
from pathlib import Path
from typing import Any

import click

from smdtrack.cli import run
from smdtrack.names import did_you_mean
from smdtrack.notices import SmdtrackError

#: A wheel carries the folder `recipes` of the repository under the first name; a clone has it under the second.
_PLACES = (Path(__file__).parents[1] / "_recipes", Path(__file__).parents[2] / "recipes")
_DEFAULT = "momentum"


def recipes_folder() -> Path:
    """Returns the folder with train.py and its YAML files.

    Raises:
        SmdtrackError: If this installation has none.
    """
    for folder in _PLACES:
        if (folder / "train.py").is_file():
            return folder
    raise SmdtrackError("this installation has no recipes: install smdtrack from a wheel, or clone its repository")


def recipe_names(folder: Path) -> list[str]:
    """Returns the names of the digits recipes: `momentum` for `digits_momentum.yaml`."""
    return sorted(path.stem.removeprefix("digits_") for path in folder.glob("digits_*.yaml"))


def _copy(ctx: click.Context, parameter: click.Parameter, target: Path | None) -> None:
    if target is None:
        return
    if target.exists():
        raise SmdtrackError(f"{target} exists already: name a new folder to copy the recipes to")
    source = recipes_folder()
    try:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as error:
        raise SmdtrackError(f"cannot copy the recipes to {target} ({error.strerror})") from error
    click.echo(f"copied to {target}; run: smdtrack run {target}/train.py --config {target}/digits_{_DEFAULT}.yaml")
    ctx.exit(0)


def _demo(args: tuple[str, ...], **options: Any) -> None:
    """Train a small network on handwritten digits, tracked, in the current folder.

    RECIPE is momentum (the default), sgd or another of the digits recipes; ARGS go to the training script. It trains on
    the CPU for two to three minutes, downloads nothing, and ends as `smdtrack run` does: with a table of measured
    against predicted. The options before RECIPE are those of `smdtrack run`.
    """
    folder = recipes_folder()
    names = recipe_names(folder)
    named = bool(args) and not args[0].startswith("-")
    recipe, rest = (args[0], args[1:]) if named else (_DEFAULT, args)
    if recipe not in names:
        near = did_you_mean(recipe, names)
        raise SmdtrackError(f"no recipe {recipe!r}{f' ({near})' if near else ''}; there are {', '.join(names)}")
    words = ("--config", str(folder / f"digits_{recipe}.yaml"), *rest)
    assert run.command.callback is not None
    run.command.callback(script=str(folder / "train.py"), args=words, module=False, **options)


command = click.Command(
    "demo",
    callback=_demo,
    params=[
        click.Option(
            ["--copy"],
            type=click.Path(path_type=Path),
            metavar="FOLDER",
            is_eager=True,
            expose_value=False,
            callback=_copy,
            help="Copy the recipes to a new folder, to read and change them, and train nothing.",
        ),
        *(option for option in run.command.params if option.name not in ("script", "args", "module")),
        click.Argument(["args"], nargs=-1, type=click.UNPROCESSED, metavar="[RECIPE] [ARGS]..."),
    ],
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    help=_demo.__doc__,
    epilog="Example:  smdtrack demo --sink local adamw --epochs 20",
)
