"""`smdtrack list`: the local runs, newest first."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smdtrack.cli._runs import as_json as dump
from smdtrack.notices import SmdtrackError

if TYPE_CHECKING:
    from smdtrack.record.local_source import RunHead


@click.command(
    epilog="Example:  smdtrack list --folder smdtrack-runs --json",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("smdtrack-runs"),
    show_default=True,
    help="Where the local records are.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(folder: Path, as_json: bool) -> None:
    """List the local runs, newest first: status, model, optimizer, lr x weight decay, samples, verdict."""
    from smdtrack.record.local_source import run_heads

    if not folder.is_dir():
        raise SmdtrackError(f"there is no folder {folder}; `smdtrack run` makes it, or give another with --folder")
    heads = _counted(run_heads(folder))
    if as_json:
        click.echo(dump([_document(head) for head in heads]))
        return
    if not heads:
        click.echo(f"no runs in {folder}")
        return
    _print(heads)


def _counted(heads: "Sequence[RunHead]") -> "list[RunHead]":
    """Fills in the number of samples of the newest runs that have no recorded end."""
    from dataclasses import replace

    from smdtrack.record.local_source import count_samples

    wanted = [head.folder for head in heads if head.samples is None and head.damage is None][:_MOST_COUNTED]
    return [replace(head, samples=count_samples(head.folder)) if head.folder in wanted else head for head in heads]


def _document(head: "RunHead") -> dict[str, Any]:
    from smdtrack.record.local_source import state_of

    params = head.params or {}
    return {
        "folder": str(head.folder),
        "name": head.folder.name,
        "id": head.id,
        "created": head.created,
        "ended": head.ended,
        "status": state_of(head),
        "model": params.get("model"),
        "optimizer": params.get("optimizer"),
        "lr": params.get("lr"),
        "weight_decay": params.get("weight_decay"),
        "weights": head.weights,
        "samples": head.samples,
        "verdict": head.verdict,
        "damage": head.damage,
    }


def _print(heads: "Sequence[RunHead]") -> None:
    from rich.table import Table
    from rich.text import Text

    from smdtrack.cli._runs import console
    from smdtrack.record.local_source import state_of

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("run", "started", "status", "model", "optimizer", "lr x wd"):
        table.add_column(title, no_wrap=True)
    table.add_column("samples", justify="right", no_wrap=True)
    table.add_column("verdict", overflow="ellipsis", no_wrap=True, min_width=20)
    for head in heads:
        params = head.params or {}
        table.add_row(
            Text(head.folder.name),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(head.created)),
            state_of(head),
            Text(str(params.get("model", "-"))),
            Text(str(params.get("optimizer", "-"))),
            f"{_short(params.get('lr'))} x {_short(params.get('weight_decay'))}",
            "-" if head.samples is None else str(head.samples),
            Text(head.damage or head.verdict or "-"),
        )
    screen = console()
    # On a narrow terminal the verdict is cut, the names are not.
    screen.width = max(screen.width, _LEAST_WIDTH + max(len(head.folder.name) for head in heads))
    screen.print(table)


#: Counting samples reads their files, which takes some 50 ms for a long run.
_MOST_COUNTED = 5
#: Of all columns but the run's name, with 20 characters of the verdict.
_LEAST_WIDTH = 115


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else "-"
