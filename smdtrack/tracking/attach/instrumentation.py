"""Puts a tracker on each optimizer of an unmodified script, at the optimizer's first step."""

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
from smdtrack.tracking.attach.resume import Before, state_before
from smdtrack.tracking.attach.step_hooks import add_listener, remove_listener
from smdtrack.tracking.attach.tracker import Tracker
from smdtrack.tracking.attach.watch import start
from smdtrack.tracking.attach.weight_selection import UnmatchedGlobError
from smdtrack.tracking.measure.sharding import is_dtensor

_MOST_MODELS = 5

#: Called when a tracker has begun, to say so.
Announce = Callable[[Tracker], None]


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
            tracker.finish(status)

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
            notify(f"{type(optimizer).__name__} is not tracked: {reason_of(error)}")
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
            tracker.finish()
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
