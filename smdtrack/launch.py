"""Runs an unmodified training script or module under instrumentation, as `python SCRIPT` would run it."""

import inspect
import os
import runpy
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from smdtrack.notices import SmdtrackError, notify
from smdtrack.tracking.discovery import models_of, parameters_of
from smdtrack.tracking.hooks import add_listener, remove_listener
from smdtrack.tracking.options import Options
from smdtrack.tracking.resume import Before, state_before
from smdtrack.tracking.selection import UnmatchedGlobError
from smdtrack.tracking.sharding import is_dtensor
from smdtrack.tracking.tracker import Tracker, rank
from smdtrack.tracking.watching import start

_MOST_MODELS = 5

#: Called when a tracker has begun, to say so.
Announce = Callable[[Tracker], None]


@dataclass
class Outcome:
    """How a launched script ended.

    Attributes:
        exit_code: What the script's process would have ended with.
        trackers: One for each set of weights that was stepped and has scale-invariant ones.
        optimizers: So many optimizers stepped.
        interrupted: Whether Ctrl-C ended the script.
        forked: Whether this is a child that the script forked and that came back here: the parent reports.
    """

    exit_code: int = 0
    trackers: tuple[Tracker, ...] = ()
    optimizers: int = 0
    interrupted: bool = False
    forked: bool = False


class Instrumentation:
    """Puts a tracker on each optimizer at its first step; a fault there costs the tracker, never the training.

    An optimizer that is made anew for the same weights, as scripts do for each phase, goes on in the tracker that is
    there. Where nothing says what input a model takes, its next forward pass does, and the tracker starts a step later.
    """

    def __init__(self, options: Options, announce: Announce | None = None) -> None:
        self.trackers: list[Tracker] = []
        self.optimizers = 0
        self._options = options
        self._announce = announce
        self._known: weakref.WeakKeyDictionary[Optimizer, Tracker | None] = weakref.WeakKeyDictionary()
        self._waiting: weakref.WeakKeyDictionary[Optimizer, InputCapture] = weakref.WeakKeyDictionary()
        add_listener(self)

    def stop(self, status: str) -> None:
        """Takes the hooks out and ends all trackers."""
        remove_listener(self)
        for capture in self._waiting.values():
            capture.remove()
        for tracker in self.trackers:
            tracker.detach(status)

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """At an optimizer's first step puts a tracker on it."""
        try:
            if optimizer in self._known:
                tracker = self._known[optimizer]
                if tracker is not None:
                    tracker.follow(optimizer)
                return
            if optimizer not in self._waiting:
                self.optimizers += 1
            if rank() != 0 and not any(is_dtensor(parameter) for parameter in parameters_of(optimizer)):
                self._known[optimizer] = None
                return
            earlier = self._tracker_of_the_same_weights(optimizer)
            if earlier is not None:
                self._known[optimizer] = earlier
                earlier.follow(optimizer)
                return
            tracker = self._track(optimizer)
            if tracker is not None:
                tracker.before_step(optimizer, has_closure)
                if self._announce is not None and rank() == 0:
                    with suppress(OSError, ValueError):  # nobody listens any more
                        self._announce(tracker)
        except Exception as error:
            reason = str(error) if isinstance(error, SmdtrackError) else f"{type(error).__name__}: {error}"
            notify(f"{type(optimizer).__name__} is not tracked: {reason}")
            self._known[optimizer] = None

    def after_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Nothing: the trackers listen for themselves."""

    def _tracker_of_the_same_weights(self, optimizer: Optimizer) -> Tracker | None:
        held = {id(parameter) for parameter in parameters_of(optimizer)}
        for tracker in self.trackers:
            if any(id(parameter) in held for parameter in tracker.selection.parameters):
                return tracker
        return None

    def _track(self, optimizer: Optimizer) -> Tracker | None:
        capture = self._waiting.pop(optimizer, None)
        if capture is None:
            models = models_of(optimizer)
            if not models:
                raise SmdtrackError("no module holds its parameters; call smdtrack.watch(model, optimizer)")
            try:
                tracker = self._start_on_first_workable(models[:_MOST_MODELS], optimizer)
            except UnmatchedGlobError:
                raise
            except SmdtrackError as error:
                before = self._state_before(optimizer)
                self._waiting[optimizer] = InputCapture(models[:_MOST_MODELS], str(error), before)
                return None
        else:
            capture.remove()
            if capture.model is None:
                raise SmdtrackError(capture.reason)
            tracker = start(capture.model, optimizer, self._options, capture.example, capture.before)
        self._known[optimizer] = tracker
        return self._begun(tracker, optimizer)

    def _state_before(self, optimizer: Optimizer) -> Before:
        parameters = parameters_of(optimizer)
        whole = not any(is_dtensor(parameter) for parameter in parameters)
        return state_before(optimizer, parameters, whole and rank() == 0, self._options.resume_run is not None)

    def _begun(self, tracker: Tracker, optimizer: Optimizer) -> Tracker | None:
        if not tracker.selection.weights:
            what = "no globs leave a" if tracker.selection.candidates else f"{tracker.selection.model_name} has no"
            notify(f"{type(optimizer).__name__} is not tracked: {what} scale-invariant weight to track")
            tracker.detach()
            self._known[optimizer] = None
            return None
        self.trackers.append(tracker)
        return tracker

    def _start_on_first_workable(self, models: Sequence[nn.Module], optimizer: Optimizer) -> Tracker:
        """The smallest module may be a part that cannot be run by itself: then the next larger one is tried."""
        try:
            return start(models[0], optimizer, self._options)
        except UnmatchedGlobError:
            raise
        except SmdtrackError:
            if len(models) == 1:
                raise
            return self._start_on_first_workable(models[1:], optimizer)


class InputCapture:
    """Takes the input of the next forward pass of whichever of some modules runs first, by a hook that goes at once.

    A module inside a compiled one gets no hook, which would be compiled anew: its wrapper gets it.

    Attributes:
        model: The module whose input was seen, once it has been.
        example: The input, as `audit` takes it.
        reason: Why the input is needed.
        before: The training's state before the step at which the hooks were set.
    """

    def __init__(self, models: Sequence[nn.Module], reason: str, before: Before) -> None:
        self.model: nn.Module | None = None
        self.example: Any = None
        self.reason = reason
        self.before = before
        inside = [model._modules["_orig_mod"] for model in models if "_orig_mod" in model._modules]
        compiled = {id(part) for model in inside if model is not None for part in model.modules()}
        outside = [model for model in models if id(model) not in compiled]
        self._handles = [model.register_forward_pre_hook(self._see, with_kwargs=True) for model in outside]

    def remove(self) -> None:
        """Takes the hooks out."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.remove()
        if self.model is not None:
            return
        self.model, self.example = module, args
        if kwargs:
            try:
                self.example = dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
            except TypeError:
                self.example = kwargs


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
    status, process = "failed", os.getpid()
    try:
        body()
        status = "finished"
    except SystemExit as stop:
        outcome.exit_code = _exit_code(stop)
        # 130 is what a script that has caught Ctrl-C itself ends with.
        status = {0: "finished", 130: "interrupted"}.get(outcome.exit_code, "failed")
    except KeyboardInterrupt:
        outcome.exit_code, outcome.interrupted, status = 130, True, "interrupted"
        _print_as_python_would(*sys.exc_info())
    except BaseException:
        outcome.exit_code = 1
        _print_as_python_would(*sys.exc_info())
    finally:
        _flush_stdout()
        instrumentation.stop(status)
        outcome.forked = os.getpid() != process
        outcome.trackers = () if outcome.forked else tuple(instrumentation.trackers)
        outcome.optimizers = instrumentation.optimizers
    return outcome


def _flush_stdout() -> None:
    """The script's words come before ours; where nobody listens any more, Python says so when it ends."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()


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
    """Hands the exception to the excepthook, the script's own where it set one, from the script's first frame on."""
    launcher = {__file__, runpy.__file__, "<frozen runpy>"}
    while trace is not None and trace.tb_frame.f_code.co_filename in launcher:
        trace = trace.tb_next
    if kind is not None and error is not None:
        sys.excepthook(kind, error.with_traceback(trace), trace)


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
