"""`smdtrack run`: run an unmodified training script and track it."""

import os
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from smdtrack.cli._signals import finishing_despite_ctrl_c, noting_the_end
from smdtrack.notices import InterruptedRunError, SmdtrackError, WrongOptionError, given_since, show

#: Seconds that SIGTERM waits for the record and the trackers. Schedulers send SIGKILL some ten seconds later.
_SECONDS_AT_A_SIGNAL = 5.0
_SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)


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
    metavar="NAME",
    help="Tracker to send the samples to: mlflow, wandb, or one that an installed package registers; may be given "
    "several times. Default: mlflow, and the script's own W&B run if it has one. local: only the local record, which "
    "is always written.",
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
    from smdtrack.record import read_run
    from smdtrack.tracking import Options
    from smdtrack.tracking.attach.instrumentation import Instrumentation
    from smdtrack.tracking.attach.spawned_processes import tracking_spawned_processes

    _check_folder(options["folder"])
    if options["resume_run"] is not None:
        read_run(options["resume_run"])
    settings = Options(sinks=sinks or None, params={"command": shlex.join(without_secrets([script, *args]))}, **options)
    instrumentation = Instrumentation(settings, announce)
    try:
        with (
            noting_the_end(lambda: instrumentation.stop("interrupted", _SECONDS_AT_A_SIGNAL)),
            tracking_spawned_processes(settings, announce, report) as spawned,
        ):
            outcome = (run_module if module else run_script)(script, args)
            interrupted = _finish(instrumentation, outcome, spawned)
    except SmdtrackError:
        instrumentation.stop("failed")
        raise
    if outcome.interrupted or interrupted:
        raise InterruptedRunError
    sys.exit(outcome.exit_code)


def _finish(instrumentation: Any, outcome: Any, spawned: list[int]) -> bool:
    """Ends the trackers and prints the summaries; returns whether a second Ctrl-C stopped that."""
    try:
        with finishing_despite_ctrl_c():
            instrumentation.stop(outcome.status)
            try:
                if not outcome.forked and instrumentation.wrong_option is None:
                    report(instrumentation, spawned)
                sys.stderr.flush()
            except (OSError, ValueError, AttributeError, SystemExit):  # rich exits where a pipe is broken
                # Nobody reads stderr any more. Send the rest to the null device; else Python fails to flush stderr and
                # exits with code 120 instead of the script's.
                with suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    except KeyboardInterrupt:
        return True
    if instrumentation.wrong_option is not None:
        raise WrongOptionError(instrumentation.wrong_option)
    return False


def without_secrets(command: Sequence[str]) -> list[str]:
    """Returns a command line with the values of options that look like secrets replaced by `***`."""
    shown: list[str] = []
    secret_follows = False
    for word in command:
        name, equals, _ = word.partition("=")
        is_secret = bool(_SECRET.search(name)) and name.startswith("-")
        if secret_follows and not word.startswith("-"):
            shown.append("***")
        else:
            shown.append(f"{name}=***" if is_secret and equals else word)
        secret_follows = is_secret and not equals
    return shown


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


def announce(tracker: Any) -> None:
    """Prints which weights are tracked, and where they are recorded."""
    chosen = tracker.selection
    count = len(chosen.weights)
    weights = f"{count} scale-invariant weight{'' if count == 1 else 's'}"
    show(f"{weights} of {chosen.model_name} ({chosen.share_of_parameters:.0%} of its parameters), in {tracker.folder}")
    if tracker.resumed_from is not None:
        checkpoint = tracker.resumed_from
        show(
            f"the training continues from a checkpoint at step {checkpoint.step} of {checkpoint.folder}; it is recorded"
            f" as a new run (to continue that record: --resume-run {shlex.quote(str(checkpoint.folder))})"
        )


def report(instrumentation: Any, spawned: Sequence[int] = ()) -> None:
    """Prints the closing block: what was measured of each training, or why nothing was, and the notices once more."""
    from smdtrack.cli._summary import print_summary

    if not instrumentation.is_recording_process:
        return
    for tracker in instrumentation.trackers:
        summary = tracker.summary()
        if summary.reason is not None:
            show(f"{tracker.folder}: {summary.verdict}")
        else:
            print_summary(summary, tracker.folder, tracker.hints())
    if not instrumentation.trackers:
        if instrumentation.failures:
            reasons = "; ".join(instrumentation.failures)
            show(f"nothing was tracked: {reasons}")
        elif not instrumentation.optimizers and not spawned:
            show("nothing was tracked: the script made no optimizer step that could be measured")
        elif instrumentation.optimizers:
            show("nothing was tracked: the training ended before its model could be examined")
    earlier = [message for message in given_since(0) if message not in instrumentation.failures]
    if earlier:
        show("what it could not do, once more:")
        for message in dict.fromkeys(earlier):
            show(f"  {message}")
