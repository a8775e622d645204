"""What the commands that read runs share: how a run is named, and a console that cuts no name."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from smdtrack.names import stage_of, unmatched_globs
from smdtrack.notices import SmdtrackError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from smdtrack.record.opened_run import OpenedRun
    from smdtrack.record.run import TrackedWeight

Command = TypeVar("Command", bound=Callable[..., Any])
#: Tables in a file or a pipe are not folded below this width.
_PIPE_WIDTH = 400
_WIDEST = 10_000
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

RUN_HELP = """\b
A RUN is one of
  a local record's folder, or a part of its name that no other has
  last, last~1, ...           the newest local record, the one before it
  mlflow:RUN_ID               or mlflow:EXPERIMENT/NAME
  wandb/offline-run-...       the folder of an offline W&B run"""


def source_options(command: Command) -> Command:
    """Adds --folder and --tracking-uri."""
    command = click.option(
        "--tracking-uri", metavar="URI", help="MLflow's server or store, for mlflow: runs. Default: as MLflow's own."
    )(command)
    return click.option(
        "--folder",
        type=click.Path(path_type=Path),
        default=Path("smdtrack-runs"),
        show_default=True,
        help="Where the local records are.",
    )(command)


def open_runs(texts: Sequence[str], folder: Path, tracking_uri: str | None) -> "Iterator[tuple[str, OpenedRun]]":
    """Opens one run after another and gives each a letter. A run that the caller drops frees its memory.

    Raises:
        UsageError: If there are more runs than letters.
        SmdtrackError: If a run cannot be read.
    """
    from smdtrack.record.sources import open_run

    if len(texts) > len(_LETTERS):
        raise click.UsageError(f"{len(texts)} runs are too many; at most {len(_LETTERS)} can be shown side by side.")
    for letter, text in zip(_LETTERS, texts, strict=False):
        yield letter, open_run(text, folder=folder, tracking_uri=tracking_uri)


def check_globs(globs: Sequence[str], weights: "Iterable[TrackedWeight]") -> None:
    """Checks that each glob matches at least one weight.

    Raises:
        SmdtrackError: If one matches none.
    """
    weights = list(weights)
    wrong = unmatched_globs(globs, [name for weight in weights for name in (weight.key, weight.name)])
    if wrong:
        stages = ", ".join(dict.fromkeys(stage_of(weight.key) for weight in weights))
        raise SmdtrackError(f"no weight matches {wrong[0]!r}; the stages are {stages}")


def console() -> "Console":
    """Returns a console on stdout; in a pipe or a file it is wide, so that no text is folded."""
    from rich.console import Console

    made = Console(highlight=False)
    if not made.is_terminal:
        made.width = max(made.width, _PIPE_WIDTH)
    return made


def as_json(document: Any) -> str:
    """Returns a document as JSON. JSON has no NaN and no infinity: they become null."""
    return json.dumps(_finite(document), indent=2, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def print_table(screen: "Console", table: "Table") -> None:
    """Prints a table in its full width: a terminal that is narrower folds its lines, but no name is cut."""
    from rich.measure import Measurement

    width = screen.width
    wanted = Measurement.get(screen, screen.options.update(max_width=_WIDEST), table).maximum
    screen.width = max(width, wanted)
    screen.print(table)
    screen.width = width


def number(value: float | None, digits: int = 3) -> str:
    """Returns a number for a table, `-` for None."""
    return "-" if value is None else f"{value:.{digits}g}"


def milli(value: float | None) -> str:
    """Returns an angle in milliradian for a table, `-` for None."""
    return "-" if value is None else f"{1000 * value:.3g}"
