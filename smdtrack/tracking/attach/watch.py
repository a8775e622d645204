"""`watch`: tracking in one's own loop."""

import atexit
import os
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from smdtrack.record.store import DEFAULT_FOLDER
from smdtrack.sinks.protocol import Sink
from smdtrack.theory import declare_invariant
from smdtrack.tracking.attach.options import Options
from smdtrack.tracking.attach.process_rank import rank
from smdtrack.tracking.attach.resume import TrainingState
from smdtrack.tracking.attach.sampling_schedule import Schedule
from smdtrack.tracking.attach.sharded_audit import is_sharded
from smdtrack.tracking.attach.tracker import Tracker
from smdtrack.tracking.attach.weight_selection import Selection, select_weights

# Weak, so that an ended tracker, which refers to the weights, is freed when its user drops it.
_trackers: weakref.WeakSet[Tracker] = weakref.WeakSet()


def watch(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    every: int | Schedule = 5,
    first_steps: int = 0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    lags: Sequence[int] = (),
    sinks: Sequence[str | Sink] | None = None,
    folder: str | Path = DEFAULT_FOLDER,
    name: str | None = None,
    example_input: Any = None,
    params: dict[str, Any] | None = None,
    resume_run: str | Path | None = None,
) -> Tracker:
    """Tracks the angular update of a model's scale-invariant weights while an optimizer trains it.

    Finds the weights by an audit of a copy of the model. Then measures before and after every sampled
    `optimizer.step()`. The training itself is not changed by a bit. Use the tracker as a context manager, or call its
    `finish` at the end of the training. Watching the same optimizer again returns its tracker.

    In a distributed training the process of rank 0 measures. Sharded weights (FSDP2) are measured by all processes:
    call `watch` and `finish` in all of them.

    Steps are counted on after a resume: from the optimizer's own step count, which Adam and similar optimizers keep,
    or from the step at which a record in `folder` lists a checkpoint with the same weights.

    Args:
        model: The model, wrapped (DDP, compiled) or not.
        optimizer: The optimizer that trains its parameters.
        every: Optimizer steps from one sample to the next, or a callable that takes the step, counted from 1, and
            returns whether it is sampled.
        first_steps: Number of steps at the start that are all sampled, if `every` is a number.
        include: Globs of parameter names (`layer1.*`) to track. By default all scale-invariant weights.
        exclude: Globs of parameter names not to track.
        lags: Numbers of steps K, 2 or more, over which the angle is measured too (`angle_k<K>/...`).
        sinks: `mlflow`, `wandb`, `local` (only the local record, which is always written), or `Sink` objects. By
            default MLflow, and W&B if the script has a W&B run open.
        folder: Parent folder of the local record.
        name: The run's name. By default the model's.
        example_input: A batch for the audit, for a model whose input cannot be guessed.
        params: More parameters to log with the run.
        resume_run: Folder of an earlier run's record to continue. Steps that it has already are not recorded again.

    Raises:
        SmdtrackError: If an argument is wrong, a glob matches no weight, the model cannot be audited, or the folder
            cannot be written.
    """
    known = next((tracker for tracker in _open_trackers() if tracker.optimizer is optimizer), None)
    if known is not None:
        return known
    options = Options(every, first_steps, include, exclude, lags, sinks, folder, name, params or {}, resume_run)
    return start(model, optimizer, options, example_input)


def start(
    model: nn.Module,
    optimizer: Optimizer,
    options: Options,
    example_input: Any = None,
    earlier_state: TrainingState | None = None,
) -> Tracker:
    """Audits the model and makes the tracker, with options that are already checked.

    Args:
        earlier_state: The training's state before its last step, if the tracker could be made only after that step.
    """
    if rank() == 0 or is_sharded(model):
        selection = select_weights(model, optimizer, options.include, options.exclude, example_input)
    else:
        selection = Selection.empty(model)
    declare_invariant(optimizer, selection.parameters)
    tracker = Tracker(optimizer, selection, options, earlier_state)
    # Register again: atexit runs in reverse order, and MLflow's and W&B's handlers must run after this one.
    atexit.unregister(_finish_all)
    atexit.register(_finish_all)
    _trackers.add(tracker)
    return tracker


def _open_trackers() -> list[Tracker]:
    return [tracker for tracker in _trackers if not tracker.closed]


def _abandon_all() -> None:
    for tracker in _open_trackers():
        tracker.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)


def _finish_all() -> None:
    """Ends the trackers that the script did not end, when the interpreter exits."""
    failure = getattr(sys, "last_type", None)
    interrupted = failure is not None and issubclass(failure, KeyboardInterrupt)
    for tracker in _open_trackers():
        tracker.finish("interrupted" if interrupted else "failed" if failure else "finished")
