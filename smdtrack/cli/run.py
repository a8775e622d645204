"""`smdtrack run`: wrap an unmodified training script."""

import os
import shlex
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from smdtrack.notices import SmdtrackError


def _lags(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        lags = tuple(int(lag) for lag in value.split(",") if lag)
    except ValueError:
        lags = (0,)
    if any(lag < 2 for lag in lags):
        raise click.BadParameter(f"{value!r}: whole numbers of steps are needed, 2 or more, as in 10,100")
    return lags


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="Example:  smdtrack run --every 20 train.py --config recipe.yaml",
)
@click.option(
    "--sink",
    "sinks",
    multiple=True,
    type=click.Choice(["mlflow", "wandb", "local"]),
    help="Tracker to send to; may be given several times. Default: mlflow, and the script's own W&B run if "
    "it has one. local: the local record only, which is always written.",
)
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="A sample every N optimizer steps.",
)
@click.option(
    "--first-steps",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Sample each of the first N steps too.",
)
@click.option("--include", multiple=True, metavar="GLOB", help="Track only parameters whose names match; repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Do not track parameters whose names match; repeatable.")
@click.option("--lags", callback=_lags, default="", metavar="K,...", help="Measure the angle over K steps, too.")
@click.option(
    "--folder",
    "folder",
    type=click.Path(path_type=Path),
    default=Path("smdtrack-runs"),
    show_default=True,
    help="Where the folder of the local record is made.",
)
@click.option(
    "--resume-run",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Go on with the record of an earlier run, when the script resumes its training.",
)
@click.option("--name", help="The run's name. Default: the model's.")
@click.option("-m", "--module", is_flag=True, help="SCRIPT is a module, run as python -m would.")
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def command(
    sinks: tuple[str, ...],
    script: str,
    args: tuple[str, ...],
    module: bool,
    **options: Any,
) -> None:
    """Run SCRIPT with ARGS, unchanged, and track how far its scale-invariant weights turn at each step.

    Finds the weights by an audit at the optimizer's first step, samples, and ends with a table of measured against
    predicted. Everything of smdtrack's own goes to stderr; stdout and the exit code are the script's. Under torchrun:
    torchrun --nproc-per-node 2 -m smdtrack run SCRIPT ...
    """
    from smdtrack.launch import run_module, run_script
    from smdtrack.tracking import Options
    from smdtrack.tracking.attach.instrumentation import Instrumentation

    _check_folder(options["folder"])
    settings = Options(sinks=sinks or None, params={"command": shlex.join([script, *args])}, **options)
    instrumentation = Instrumentation(settings, _announce)
    try:
        outcome = (run_module if module else run_script)(script, args)
    except SmdtrackError:
        instrumentation.stop("failed")
        raise
    instrumentation.stop(outcome.status)
    try:
        if not outcome.forked:
            _report(instrumentation)
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError, SystemExit):  # rich exits where a pipe is broken
        # Nobody listens any more. What is still to be said goes nowhere, or Python would end with a code of its own.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if outcome.interrupted:
        # Die of the signal, as the script would have: a shell loop around it stops, too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    sys.exit(outcome.exit_code)


def _check_folder(folder: Path) -> None:
    """Said before the training starts: a folder that cannot be written would cost the record."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise SmdtrackError(
            f"cannot write the local record in {folder} ({error.strerror}): choose another folder"
        ) from error


def _announce(tracker: Any) -> None:
    chosen = tracker.selection
    click.echo(
        f"smdtrack: {len(chosen.weights)} scale-invariant weights of {chosen.model_name}"
        f" ({chosen.share_of_parameters:.0%} of its parameters), recorded in {tracker.folder}",
        err=True,
    )
    if tracker.resumed_from is not None:
        there = tracker.resumed_from
        click.echo(
            f"smdtrack: the training goes on from a checkpoint at step {there.step} of {there.folder}, in a run of its"
            f" own; --resume-run {shlex.quote(str(there.folder))} goes on in that one",
            err=True,
        )


def _report(instrumentation: Any) -> None:
    from smdtrack.cli._summary import print_summary
    from smdtrack.tracking.attach.process_rank import rank

    if rank() != 0:
        return
    if not instrumentation.optimizers:
        click.echo("smdtrack: nothing was tracked: the script made no optimizer step that could be measured", err=True)
    for tracker in instrumentation.trackers:
        summary = tracker.summary()
        if summary is None:
            click.echo(f"smdtrack: no step was sampled in {tracker.folder}: sample more often (--every)", err=True)
        else:
            print_summary(summary, tracker.folder, tracker.hints())
