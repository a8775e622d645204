"""Makes a tracker for each training of an unmodified script, at its optimizer's first step."""

import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from smdtrack.notices import SmdtrackError, WrongOptionError, notify, reason_of
from smdtrack.optimizers import parameters_of
from smdtrack.tracking.attach.input_capture import InputCapture
from smdtrack.tracking.attach.model_discovery import Discovery, models_of, other_optimizers
from smdtrack.tracking.attach.options import Options
from smdtrack.tracking.attach.process_rank import rank
from smdtrack.tracking.attach.resume import TrainingState, training_state
from smdtrack.tracking.attach.step_hooks import add_listener, remove_listener
from smdtrack.tracking.attach.tracker import Tracker
from smdtrack.tracking.attach.watch import select, start
from smdtrack.tracking.attach.weight_selection import Selection, joined
from smdtrack.tracking.measure.sharding import is_dtensor

#: Called when a tracker has begun, to tell the user.
Announce = Callable[[Tracker], None]


@dataclass
class _Waiting:
    """An optimizer whose models are judged after their next forward pass.

    Attributes:
        parts: The selection of each model that could be judged at once, and the capture of each other one's input.
        state: The training's state before its first step, which is not measured.
    """

    parts: list[Selection | InputCapture]
    state: TrainingState


class Instrumentation:
    """Makes a tracker for each training at its optimizer's first step. If that fails, the training goes on without one.

    Optimizers that train the same model share its tracker. A training that begins anew, with weights drawn anew or
    after the script's own tracker run has ended, gets a tracker of its own. If the input of a model cannot be guessed,
    or if several modules may be the model, its next forward pass decides, and the tracker starts one step later.

    Attributes:
        trackers: All trackers that were made.
        optimizers: Number of optimizers that made a step.
        failures: Why optimizers are not tracked.
        wrong_option: Why the options cannot be met; the script was ended before its first step.
        is_recording_process: False in a process of a distributed training that is not of rank 0.
    """

    def __init__(self, options: Options, announce: Announce | None = None) -> None:
        self.trackers: list[Tracker] = []
        self.optimizers = 0
        self.failures: list[str] = []
        self.wrong_option: str | None = None
        self.is_recording_process = True
        self.ended = False
        self._options = options
        self._announce = announce
        self._known: weakref.WeakKeyDictionary[Optimizer, Tracker | None] = weakref.WeakKeyDictionary()
        self._waiting: weakref.WeakKeyDictionary[Optimizer, _Waiting] = weakref.WeakKeyDictionary()
        self._models: list[tuple[weakref.ref[nn.Module], weakref.ref[Tracker]]] = []
        add_listener(self)

    def stop(self, status: str, timeout: float | None = None) -> None:
        """Removes the hooks and ends all trackers."""
        self.ended = True
        remove_listener(self)
        for waiting in self._waiting.values():
            _remove_captures(waiting)
        for tracker in self.trackers:
            tracker.finish(status, *(() if timeout is None else (timeout,)))

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Makes a tracker at an optimizer's first step."""
        try:
            known = self._known.get(optimizer)
            if known is not None and not known.closed:
                if not known.belongs_to_an_earlier_training(optimizer):
                    if not known.measures(optimizer) and known.holds_weights_of(optimizer):
                        self._join(known, optimizer, has_closure)
                    return
                self._end(known)
                known = None
            elif optimizer in self._known and known is None:
                return
            if optimizer not in self._waiting and optimizer not in self._known:
                self.optimizers += 1
            if rank() != 0 and not any(is_dtensor(parameter) for parameter in parameters_of(optimizer)):
                self._known[optimizer] = None
                self.is_recording_process = False
                return
            self.is_recording_process = rank() == 0
            if not self._joins(optimizer, has_closure):
                self._begin(optimizer, known, has_closure)
        except WrongOptionError as error:
            if self.trackers or self.failures:
                self._fail(optimizer, reason_of(error))
            else:
                # Nothing has been trained yet: the user can correct the option now instead of after the training.
                self.wrong_option = str(error)
                self._known[optimizer] = None
                raise SystemExit(2) from None
        except Exception as error:
            self._fail(optimizer, reason_of(error))

    def after_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Does nothing: each tracker listens to its own steps."""

    def _fail(self, optimizer: Optimizer, reason: str) -> None:
        message = f"{type(optimizer).__name__} is not tracked: {reason}"
        if message not in self.failures:
            notify(message)
            self.failures.append(message)
        self._known[optimizer] = None

    def _end(self, tracker: Tracker) -> None:
        """Ends a tracker whose training is over; its optimizers may begin another training."""
        tracker.finish()
        for optimizer in [optimizer for optimizer, known in self._known.items() if known is tracker]:
            del self._known[optimizer]

    def _joins(self, optimizer: Optimizer, has_closure: bool) -> bool:
        """Lets an optimizer that trains a tracked model join its tracker; returns whether it does."""
        held = {id(parameter) for parameter in parameters_of(optimizer)}
        for model_reference, tracker_reference in self._models:
            model, tracker = model_reference(), tracker_reference()
            if model is None or tracker is None or tracker.closed:
                continue
            if not any(id(parameter) in held for parameter in model.parameters()):
                continue
            if tracker.belongs_to_an_earlier_training(optimizer):
                self._end(tracker)
                continue
            if waiting := self._waiting.pop(optimizer, None):
                _remove_captures(waiting)
            self._known[optimizer] = tracker
            if tracker.holds_weights_of(optimizer):
                self._join(tracker, optimizer, has_closure)
            return True
        return False

    def _join(self, tracker: Tracker, optimizer: Optimizer, has_closure: bool) -> None:
        if tracker.join(optimizer):
            tracker.measure_step_under_way(optimizer, has_closure)

    def _begin(self, optimizer: Optimizer, ended: Tracker | None, has_closure: bool) -> None:
        """Makes a tracker, or waits for the next forward pass of the models."""
        waiting = self._waiting.pop(optimizer, None)
        if waiting is None:
            models = models_of(optimizer)
            if not models:
                raise SmdtrackError("no module holds its parameters; call smdtrack.watch(model, optimizer)")
            waiting = _Waiting([self._judge(model, optimizer) for model in models], self._state_before(optimizer))
            if any(isinstance(part, InputCapture) for part in waiting.parts):
                self._waiting[optimizer] = waiting
                return
            state = None
        else:
            state = waiting.state
        selections = [self._selection(part, optimizer) for part in waiting.parts]
        options, steps_before = self._options, None
        if ended is not None and ended.folder is not None and ended.continues(selections):
            # The optimizer was freed and a new one goes on with the same weights: so does their record.
            options, steps_before = replace(options, resume_run=ended.folder), ended.step
        selection = joined(selections)
        if not selection.weights:
            if selection.candidates:
                raise SmdtrackError("the globs select no scale-invariant weight that it trains")
            raise SmdtrackError(f"{selection.model_name} has no scale-invariant weight to track")
        tracker = start(
            optimizer, selection, options, state, others=other_optimizers(optimizer), steps_before=steps_before
        )
        self.trackers.append(tracker)
        self._known[optimizer] = tracker
        for part in selections:
            if part.model is not None and (model := part.model()) is not None:
                self._models.append((weakref.ref(model), weakref.ref(tracker)))
        tracker.measure_step_under_way(optimizer, has_closure)
        if self._announce is not None and rank() == 0:
            with suppress(OSError, ValueError):  # stderr is closed
                self._announce(tracker)

    def _judge(self, discovery: Discovery, optimizer: Optimizer) -> Selection | InputCapture:
        """Selects a model's weights, or captures the input of its next forward pass.

        The smallest module is tried first. If it cannot be run by itself, the next larger one is tried.
        """
        if discovery.ambiguous:
            return InputCapture(discovery.candidates, "its model made no forward pass")
        return self._first_that_runs(list(discovery.candidates), optimizer)

    def _first_that_runs(self, candidates: list[nn.Module], optimizer: Optimizer) -> Selection | InputCapture:
        try:
            return self._select(candidates[0], optimizer)
        except WrongOptionError:
            raise
        except SmdtrackError as error:
            if len(candidates) == 1:
                return InputCapture(candidates, str(error))
        larger = self._first_that_runs(candidates[1:], optimizer)
        return InputCapture(candidates, larger.reason) if isinstance(larger, InputCapture) else larger

    def _selection(self, part: Selection | InputCapture, optimizer: Optimizer) -> Selection:
        if isinstance(part, Selection):
            return part
        part.remove()
        if part.model is None:
            # The training calls no candidate as a module; judge the smallest as if it did.
            try:
                return self._select(part.candidates[0], optimizer)
            except SmdtrackError:
                raise SmdtrackError(part.reason) from None
        return self._select(part.model, optimizer, part.example)

    def _select(self, model: nn.Module, optimizer: Optimizer, example: Any = None) -> Selection:
        return select(model, optimizer, self._options, example, leave_to_others=False)

    def _state_before(self, optimizer: Optimizer) -> TrainingState:
        parameters = parameters_of(optimizer)
        whole = rank() == 0 and not any(is_dtensor(parameter) for parameter in parameters)
        return training_state(optimizer, parameters, whole, self._options.resume_run is not None, steps_since=1)


def _remove_captures(waiting: _Waiting) -> None:
    for part in waiting.parts:
        if isinstance(part, InputCapture):
            part.remove()
