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
from smdtrack.tracking.attach.resume import Before
from smdtrack.tracking.attach.sampling_schedule import Schedule
from smdtrack.tracking.attach.sharded_audit import is_sharded
from smdtrack.tracking.attach.tracker import Tracker
from smdtrack.tracking.attach.weight_selection import Selection, select_weights

#: The hooks hold those that are open; one that has ended holds weights no longer than its user does.
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

    Finds the weights (on a copy), then measures around every sampled `optimizer.step()`. Training is not changed by a
    bit. Use as a context manager, or call `.finish()` at the end; `.summary()` returns the table. Watching the same
    optimizer again returns the tracker that is there.

    In a distributed run rank 0 measures. Sharded weights (FSDP2) are measured by all ranks: call it, and detach, on
    all.

    Steps are counted from the optimizer's own count (Adam and its kin) or, after a resume, from the checkpoint's step
    in a record in `folder` (SGD, which keeps no count): a resumed run's curves go on where the first one's ended.

    Args:
        model: The model, wrapped (DDP, compiled) or not.
        optimizer: The optimizer that steps its parameters.
        every: A sample every so many optimizer steps, or a callable from the step (from 1) to whether it is sampled.
        first_steps: So many first steps are all sampled, where `every` is a number.
        include: Globs of parameter names (`layer1.*`); none: all scale-invariant weights.
        exclude: Globs of parameter names to leave out.
        lags: Further numbers of steps K over which the angle is measured (`angle_k<K>/...`).
        sinks: `mlflow`, `wandb`, `local` (the local record only), or objects with the methods of a sink; by default
            MLflow, and W&B where the script has a run open.
        folder: Where the folder of the local record is made.
        name: The run's name; by default the model's.
        example_input: A batch for a model whose input cannot be guessed.
        params: More parameters to log with the run.
        resume_run: Folder of a run to go on with; its steps are not recorded twice.

    Raises:
        SmdtrackError: If an argument is out of range, a glob matches no weight, the model cannot be audited, or the
            folder cannot be written.
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
    late: Before | None = None,
) -> Tracker:
    """Makes the tracker of `watch` from its options.

    Args:
        late: The training's state before the last step, where that one ran before the tracker could be made.
    """
    if rank() == 0 or is_sharded(model):
        selection = select_weights(model, optimizer, options.include, options.exclude, example_input)
    else:
        selection = Selection.empty(model)
    declare_invariant(optimizer, selection.parameters)
    tracker = Tracker(optimizer, selection, options, late)
    # Anew each time: what the trackers' clients registered since then must end after us.
    atexit.unregister(_detach_all)
    atexit.register(_detach_all)
    _trackers.add(tracker)
    return tracker


def _open_trackers() -> list[Tracker]:
    return [tracker for tracker in _trackers if not tracker.closed]


def _abandon_all() -> None:
    for tracker in _open_trackers():
        tracker.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)


def _detach_all() -> None:
    """A loop that never detached: what is left is written when the interpreter ends."""
    failure = getattr(sys, "last_type", None)
    interrupted = failure is not None and issubclass(failure, KeyboardInterrupt)
    for tracker in _open_trackers():
        tracker.finish("interrupted" if interrupted else "failed" if failure else "finished")
