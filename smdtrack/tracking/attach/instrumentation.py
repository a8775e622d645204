"""Makes a tracker for each optimizer of an unmodified script, at the optimizer's first step."""

import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress

from torch import nn
from torch.optim import Optimizer

from smdtrack.notices import SmdtrackError, notify, reason_of
from smdtrack.optimizers import parameters_of
from smdtrack.tracking.attach.input_capture import InputCapture
from smdtrack.tracking.attach.model_discovery import models_of
from smdtrack.tracking.attach.options import Options
from smdtrack.tracking.attach.process_rank import rank
from smdtrack.tracking.attach.resume import TrainingState, training_state
from smdtrack.tracking.attach.step_hooks import add_listener, remove_listener
from smdtrack.tracking.attach.tracker import Tracker
from smdtrack.tracking.attach.watch import start
from smdtrack.tracking.attach.weight_selection import UnmatchedGlobError
from smdtrack.tracking.measure.sharding import is_dtensor

_MOST_MODELS = 5

#: Called when a tracker has begun, to tell the user.
Announce = Callable[[Tracker], None]


class Instrumentation:
    """Makes a tracker for each optimizer at its first step. If that fails, the training goes on without one.

    A new optimizer for weights that are tracked already, as scripts make one for each phase, continues their tracker.
    If the input of a model cannot be guessed, it is taken from the model's next forward pass, and the tracker starts
    one step later.

    Attributes:
        trackers: All trackers that were made.
        optimizers: Number of optimizers that made a step.
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
        """Removes the hooks and ends all trackers."""
        remove_listener(self)
        for capture in self._waiting.values():
            capture.remove()
        for tracker in self.trackers:
            tracker.finish(status)

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Makes a tracker at an optimizer's first step."""
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
                tracker.measure_step_under_way(optimizer, has_closure)
                if self._announce is not None and rank() == 0:
                    with suppress(OSError, ValueError):  # stderr is closed
                        self._announce(tracker)
        except Exception as error:
            notify(f"{type(optimizer).__name__} is not tracked: {reason_of(error)}")
            self._known[optimizer] = None

    def after_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Does nothing: each tracker listens to its own steps."""

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
                state = self._state_before(optimizer)
                self._waiting[optimizer] = InputCapture(models[:_MOST_MODELS], str(error), state)
                return None
        else:
            capture.remove()
            if capture.model is None:
                raise SmdtrackError(capture.reason)
            tracker = start(capture.model, optimizer, self._options, capture.example, capture.state_before)
        self._known[optimizer] = tracker
        return self._begun(tracker, optimizer)

    def _state_before(self, optimizer: Optimizer) -> TrainingState:
        parameters = parameters_of(optimizer)
        whole = rank() == 0 and not any(is_dtensor(parameter) for parameter in parameters)
        return training_state(optimizer, parameters, whole, self._options.resume_run is not None, steps_since=1)

    def _begun(self, tracker: Tracker, optimizer: Optimizer) -> Tracker | None:
        if not tracker.selection.weights:
            if tracker.selection.candidates:
                reason = "the globs select no scale-invariant weight that it trains"
            else:
                reason = f"{tracker.selection.model_name} has no scale-invariant weight to track"
            notify(f"{type(optimizer).__name__} is not tracked: {reason}")
            tracker.finish()
            self._known[optimizer] = None
            return None
        self.trackers.append(tracker)
        return tracker

    def _start_on_first_workable(self, models: Sequence[nn.Module], optimizer: Optimizer) -> Tracker:
        """Tries the smallest module first. If it cannot be run by itself, tries the next larger one."""
        try:
            return start(models[0], optimizer, self._options)
        except UnmatchedGlobError:
            raise
        except SmdtrackError:
            if len(models) == 1:
                raise
            return self._start_on_first_workable(models[1:], optimizer)
