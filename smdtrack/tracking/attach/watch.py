"""`watch`: tracking in one's own loop."""

import atexit
import builtins
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from smdtrack.notices import SmdtrackError
from smdtrack.optimizers import parameters_of
from smdtrack.record.store import DEFAULT_FOLDER
from smdtrack.sinks.protocol import Sink
from smdtrack.theory import declare_invariant
from smdtrack.tracking.attach.audit_progress import progress_of_audit
from smdtrack.tracking.attach.options import Options
from smdtrack.tracking.attach.process_rank import rank
from smdtrack.tracking.attach.resume import TrainingState
from smdtrack.tracking.attach.sampling_schedule import Schedule
from smdtrack.tracking.attach.sharded_audit import is_sharded
from smdtrack.tracking.attach.tracker import Tracker, status_after
from smdtrack.tracking.attach.weight_selection import Selection, select_weights

# The trackers that have not been finished. They refer to weights and optimizers weakly.
_trackers: list[Tracker] = []


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
    _check_pair(model, optimizer)
    known = next((tracker for tracker in _open_trackers() if tracker.measures(optimizer)), None)
    if known is not None:
        return known
    options = Options(every, first_steps, include, exclude, lags, sinks, folder, name, params or {}, resume_run)
    return start(optimizer, select(model, optimizer, options, example_input), options)


def select(
    model: nn.Module, optimizer: Optimizer, options: Options, example_input: Any = None, *, leave_to_others: bool = True
) -> Selection:
    """Audits the model and selects the weights to track; selects none in a process that does not measure.

    Raises:
        SmdtrackError: If the model cannot be audited, or a glob matches no weight.
    """
    if rank() != 0 and not is_sharded(model):
        return Selection.empty(model)
    with progress_of_audit(type(model).__name__):
        return select_weights(
            model, optimizer, options.include, options.exclude, example_input, leave_to_others=leave_to_others
        )


def start(
    optimizer: Optimizer,
    selection: Selection,
    options: Options,
    earlier_state: TrainingState | None = None,
    *,
    others: Sequence[Optimizer] = (),
    steps_before: int | None = None,
) -> Tracker:
    """Makes a tracker.

    Args:
        optimizer: That trains the weights.
        selection: The weights.
        options: Of the tracker.
        earlier_state: The training's state before its last step, if the tracker could be made only after that step.
        others: Other optimizers that may train weights of the selection.
        steps_before: Steps that the training took before, if that is known.
    """
    declare_invariant(optimizer, list(selection.parameters))
    tracker = Tracker(
        optimizer, selection, options, others=others, earlier_state=earlier_state, steps_before=steps_before
    )
    # Register again: atexit runs in reverse order, and MLflow's and W&B's handlers must run after this one.
    atexit.unregister(_finish_all)
    atexit.register(_finish_all)
    _trackers[:] = [*_open_trackers(), tracker]
    return tracker


def _check_pair(model: Any, optimizer: Any) -> None:
    if not isinstance(model, nn.Module):
        swapped = ": model and optimizer are swapped" if isinstance(model, Optimizer) else ""
        raise SmdtrackError(f"model={_shown(model)} is not a torch.nn.Module{swapped}")
    if not isinstance(optimizer, Optimizer):
        raise SmdtrackError(f"optimizer={_shown(optimizer)} is not a torch.optim.Optimizer{_inner_hint(optimizer)}")
    held = {id(parameter) for parameter in parameters_of(optimizer)}
    if not any(id(parameter) in held for parameter in model.parameters()):
        raise SmdtrackError(f"the optimizer holds no parameter of {type(model).__name__}: is it another model's?")


def _shown(value: object) -> str:
    return repr(value) if value is None or isinstance(value, (str, int, float)) else f"<{type(value).__name__}>"


def _inner_hint(wrapper: object) -> str:
    """Returns what to pass instead of a wrapper that is no optimizer itself but holds one."""
    for name in ("optimizer", "base_optimizer", "_optimizer"):
        if isinstance(getattr(wrapper, name, None), Optimizer):
            return f": pass the optimizer inside it, its attribute {name!r}"
    return ""


def _open_trackers() -> list[Tracker]:
    return [tracker for tracker in _trackers if not tracker.closed]


def _abandon_all() -> None:
    for tracker in _trackers:
        tracker.abandon()
    _trackers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)


def _finish_all() -> None:
    """Ends the trackers that the script did not end, when the interpreter exits."""
    for tracker in _trackers:
        tracker.finish(_status_at_exit())
    _trackers.clear()


def _status_at_exit() -> str:
    """Returns the status of a run whose script did not end it.

    An exception that ends a script is in `sys.last_value`. In a notebook or an interactive session the exception of an
    earlier cell is there too, and says nothing about the training.
    """
    interactive = hasattr(sys, "ps1") or "get_ipython" in vars(builtins)
    return status_after(None if interactive else getattr(sys, "last_value", None))
