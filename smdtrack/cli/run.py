"""`smdtrack run`: run an unmodified training script and track it."""

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
    help="Tracker to send the samples to; may be given several times. Default: mlflow, and the script's own W&B run "
    "if it has one. local: only the local record, which is always written.",
)
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="Optimizer steps from one sample to the next.",
)
@click.option(
    "--first-steps",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Also sample each of the first N steps.",
)
@click.option("--include", multiple=True, metavar="GLOB", help="Track only parameters whose names match. Repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Do not track parameters whose names match. Repeatable.")
@click.option("--lags", callback=_lags, default="", metavar="K,...", help="Also measure the angle over K steps.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("smdtrack-runs"),
    show_default=True,
    help="Parent folder of the local record.",
)
@click.option(
    "--resume-run",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Continue the record of an earlier run, if the script resumes that run's training.",
)
@click.option("--name", help="The run's name. Default: the model's.")
@click.option("-m", "--module", is_flag=True, help="SCRIPT is the name of a module, which is run as python -m does.")
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

    The weights are found by an audit of the model at the optimizer's first step. At the end a table compares the
    measured with the predicted angular update. smdtrack prints to stderr only; stdout and the exit code are the
    script's. With torchrun: torchrun --nproc-per-node 2 -m smdtrack run SCRIPT ...
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
        # Nobody reads stderr any more. Send the rest to the null device; else Python fails to flush stderr and exits
        # with code 120 instead of the script's.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if outcome.interrupted:
        # End by the signal, as the script would have: a shell loop around it then stops too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    sys.exit(outcome.exit_code)


def _check_folder(folder: Path) -> None:
    """Checks before the training starts that the local record can be written.

    Raises:
        SmdtrackError: If it cannot.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
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
        checkpoint = tracker.resumed_from
        click.echo(
            f"smdtrack: the training continues from a checkpoint at step {checkpoint.step} of {checkpoint.folder}; it"
            f" is recorded as a new run (to continue that record: --resume-run {shlex.quote(str(checkpoint.folder))})",
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
        if summary.reason is not None:
            click.echo(f"smdtrack: {tracker.folder}: {summary.verdict}", err=True)
        else:
            print_summary(summary, tracker.folder, tracker.hints())
