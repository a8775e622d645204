"""`smdtrack sync`: send to trackers what they have not got of local records."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smdtrack.notices import SmdtrackError

if TYPE_CHECKING:
    from smdtrack.sinks.record_delivery import Delivered
    from smdtrack.sinks.restorable import RestorableSink


@click.command(
    epilog="Example:  smdtrack sync last",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.option("--all", "all_runs", is_flag=True, help="All runs of the folder.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("smdtrack-runs"),
    show_default=True,
    help="Where the local records are.",
)
@click.option(
    "--sink",
    "sinks",
    multiple=True,
    metavar="NAME",
    help="Tracker to send to; may be given several times. Default: those that the record names.",
)
@click.option("--dry-run", is_flag=True, help="Only count what is missing; send and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    runs: tuple[str, ...], all_runs: bool, folder: Path, sinks: tuple[str, ...], dry_run: bool, as_json: bool
) -> None:
    """Send to each tracker what it has not got of the RUNs, and end runs that a killed training left open.

    A RUN is a local record's folder, a part of its name that no other has, or last, last~1 and so on. Every point is
    sent once: run the command again whenever you like. The exit code is 1 if a tracker did not get everything.
    """
    from smdtrack.sinks import check_sink_names
    from smdtrack.sinks.mlflow_client import limit_waiting
    from smdtrack.sinks.record_delivery import deliver_record

    check_sink_names(sinks)
    folders = _folders(runs, all_runs, folder)
    limit_waiting()
    documents: list[dict[str, Any]] = []
    complete = True
    for path in folders:
        problem = None
        delivered: list[Delivered] = []
        try:
            delivered = deliver_record(path, _restorable, [name for name in sinks if name != "local"], dry_run)
        except SmdtrackError as error:
            if len(folders) == 1:
                raise
            problem = str(error)
        complete = complete and problem is None and not any(entry.problem for entry in delivered)
        documents.append({"run": str(path), "problem": problem, "trackers": [asdict(entry) for entry in delivered]})
        if not as_json:
            _print(path, problem, delivered, dry_run)
    if as_json:
        click.echo(json.dumps(documents, indent=2))
    sys.exit(0 if complete else 1)


def _folders(runs: Sequence[str], all_runs: bool, folder: Path) -> list[Path]:
    from smdtrack.record.local_source import find_run, run_heads

    if bool(runs) == all_runs:
        raise click.UsageError("Give either one or more runs, or --all.")
    if not all_runs:
        return [find_run(run, folder) for run in runs]
    if not folder.is_dir():
        raise SmdtrackError(f"there is no folder {folder}; give another with --folder")
    return [head.folder for head in reversed(run_heads(folder)) if head.damage is None]


def _restorable(name: str) -> "RestorableSink | None":
    from smdtrack.sinks import make_sink
    from smdtrack.sinks.restorable import RestorableSink

    sink = make_sink(name)
    return sink if isinstance(sink, RestorableSink) else None


def _print(path: Path, problem: str | None, delivered: "Sequence[Delivered]", dry_run: bool) -> None:
    if problem is not None:
        click.echo(problem, err=True)
    elif not delivered:
        click.echo(f"{path.name}: the record names no tracker; name one with --sink")
    for entry in delivered:
        what = "are missing" if dry_run else "sent"
        points = f"{entry.sent} point{'' if entry.sent == 1 else 's'} {what}"
        if entry.problem is not None:
            click.echo(f"{path.name}: {entry.sink}: {entry.problem} ({points})", err=True)
            continue
        click.echo(f"{path.name}: {entry.sink}: {'nothing is missing' if not entry.sent else points}")
        for line in entry.how_to_open:
            click.echo(f"  {line}")
