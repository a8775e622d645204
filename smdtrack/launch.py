"""Runs an unmodified training script or module under instrumentation, as `python SCRIPT` would run it."""

import os
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, TracebackType

from torch import nn
from torch.optim import Optimizer

from smdtrack.notices import SmdtrackError, notify
from smdtrack.tracking.discovery import models_of
from smdtrack.tracking.hooks import add_listener, remove_listener
from smdtrack.tracking.tracker import Options, Tracker, rank, start

#: Called when a tracker has begun, to say so.
Announce = Callable[[Tracker], None]


@dataclass
class Outcome:
    """How a launched script ended.

    Attributes:
        exit_code: What the script's process would have ended with.
        trackers: One for each optimizer that stepped a model with scale-invariant weights.
        optimizers: So many optimizers stepped.
        interrupted: Whether Ctrl-C ended the script.
    """

    exit_code: int = 0
    trackers: tuple[Tracker, ...] = ()
    optimizers: int = 0
    interrupted: bool = False


class Instrumentation:
    """Puts a tracker on each optimizer at its first step; a fault there costs the tracker, never the training."""

    def __init__(self, options: Options, announce: Announce | None = None) -> None:
        self.trackers: list[Tracker] = []
        self.optimizers: list[Optimizer] = []
        self._options = options
        self._announce = announce
        add_listener(self)

    def stop(self, status: str) -> None:
        """Takes the hooks out and ends all trackers."""
        remove_listener(self)
        for tracker in self.trackers:
            tracker.detach(status)

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """At an optimizer's first step puts a tracker on it."""
        if any(known is optimizer for known in self.optimizers):
            return
        self.optimizers.append(optimizer)
        if rank() != 0:
            return
        try:
            tracker = self._track(optimizer)
        except Exception as error:
            reason = str(error) if isinstance(error, SmdtrackError) else f"{type(error).__name__}: {error}"
            notify(f"{type(optimizer).__name__} is not tracked: {reason}")
            return
        if tracker is not None:
            self.trackers.append(tracker)
            tracker.before_step(optimizer, has_closure)

    def after_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Nothing: the trackers listen for themselves."""

    def _track(self, optimizer: Optimizer) -> Tracker | None:
        models = models_of(optimizer)
        if not models:
            raise SmdtrackError("no one module holds all of its parameters; call smdtrack.watch(model, optimizer)")
        tracker = self._start_on_first_workable(models, optimizer)
        if not tracker.selection.weights:
            what = "no globs leave a" if tracker.selection.candidates else f"{tracker.selection.model_name} has no"
            notify(f"{type(optimizer).__name__} is not tracked: {what} scale-invariant weight to track")
            tracker.detach()
            return None
        if self._announce is not None:
            self._announce(tracker)
        return tracker

    def _start_on_first_workable(self, models: Sequence[nn.Module], optimizer: Optimizer) -> Tracker:
        """The smallest module may be a part that cannot be run by itself: then the next larger one is tried."""
        try:
            return start(models[0], optimizer, self._options)
        except SmdtrackError:
            if len(models) == 1:
                raise
            return self._start_on_first_workable(models[1:], optimizer)


def run_script(script: str, args: Sequence[str], options: Options, announce: Announce | None = None) -> Outcome:
    """Runs a Python file as `python SCRIPT ARGS...` would, with its optimizers tracked.

    Raises:
        SmdtrackError: If there is no such file.
    """
    path = Path(script)
    if not path.is_file():
        raise SmdtrackError(f"no script {script!r}{' (a folder)' if path.is_dir() else ''}")
    with _process_state(script, args, str(path.resolve().parent)):
        return _run(lambda: runpy.run_path(script, run_name="__main__"), options, announce)


def run_module(module: str, args: Sequence[str], options: Options, announce: Announce | None = None) -> Outcome:
    """Runs a module as `python -m MODULE ARGS...` would, with its optimizers tracked.

    Raises:
        SmdtrackError: If there is no such module.
    """
    import importlib.util

    with _process_state(module, args, os.getcwd()):
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            found = None
        if found is None:
            raise SmdtrackError(f"no module {module!r} to run")
        return _run(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True), options, announce)


def _run(body: Callable[[], object], options: Options, announce: Announce | None) -> Outcome:
    instrumentation = Instrumentation(options, announce)
    outcome = Outcome()
    status = "failed"
    try:
        body()
        status = "finished"
    except SystemExit as stop:
        outcome.exit_code = _exit_code(stop)
        status = "failed" if outcome.exit_code else "finished"
    except KeyboardInterrupt:
        outcome.exit_code, outcome.interrupted, status = 130, True, "interrupted"
        _print_as_python_would(*sys.exc_info())
    except BaseException:
        outcome.exit_code = 1
        _print_as_python_would(*sys.exc_info())
    finally:
        sys.stdout.flush()
        instrumentation.stop(status)
        outcome.trackers = tuple(instrumentation.trackers)
        outcome.optimizers = len(instrumentation.optimizers)
    return outcome


def _exit_code(stop: SystemExit) -> int:
    """What Python makes of SystemExit: None is 0, a number itself, anything else is printed and 1."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code
    print(stop.code, file=sys.stderr)
    return 1


def _print_as_python_would(
        kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
) -> None:
    """Prints the traceback from the script's own first frame on, without the frames that launched it."""
    launcher = {__file__, runpy.__file__, "<frozen runpy>"}
    while trace is not None and _code(trace).co_filename in launcher:
        trace = trace.tb_next
    traceback.print_exception(kind, error, trace)


def _code(trace: TracebackType) -> CodeType:
    return trace.tb_frame.f_code


@contextmanager
def _process_state(script: str, args: Sequence[str], first_path: str) -> Iterator[None]:
    """`sys.argv` and `sys.path[0]` as Python sets them for a script, and as they were afterwards."""
    argv, path = sys.argv, sys.path[:]
    sys.argv = [script, *args]
    if path:
        sys.path[0] = first_path
    else:
        sys.path.insert(0, first_path)
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
