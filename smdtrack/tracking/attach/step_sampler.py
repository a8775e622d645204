"""Measures the sampled steps of one optimizer and hands them to the record."""

import weakref
from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from smdtrack.notices import notify, reason_of
from smdtrack.tracking.attach.options import Options
from smdtrack.tracking.attach.recording import Recording
from smdtrack.tracking.attach.shard_sums import ShardSums
from smdtrack.tracking.attach.step_hooks import add_listener, remove_listener
from smdtrack.tracking.attach.training_steps import TrainingSteps
from smdtrack.tracking.attach.weight_fingerprint import WeightFingerprint
from smdtrack.tracking.attach.weight_selection import Selection
from smdtrack.tracking.measure.probe import read_squared_norms
from smdtrack.tracking.measure.sharding import ShardSum, local, shard_group
from smdtrack.tracking.measure.step_measurer import StepMeasurer
from smdtrack.tracking.measure.weak_items import WeakItems


class StepSampler:
    """Listens to the steps of one optimizer. A fault ends the measuring; no exception reaches the training.

    It refers to the optimizer and to the weights weakly.

    Args:
        optimizer: Whose steps are measured.
        selection: The weights to measure.
        options: Numbers of steps over which angles are measured.
        steps: Counts the training's steps and collects the measurements.
        recording: The record; None in a process that only takes part in the sums over shards.
        steps_before: Called at the first step; returns how many steps the training took before.
        columns: The weights that the optimizer holds, each by its place in the selection.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        selection: Selection,
        options: Options,
        steps: TrainingSteps,
        recording: Recording | None,
        steps_before: Callable[[Optimizer, list[nn.Parameter], bool], int],
        columns: set[int],
    ) -> None:
        self.ended = False
        self.saw_another = False
        self.columns = columns
        self._optimizer_reference = weakref.ref(optimizer)
        self._parameters = WeakItems(selection.parameters)
        self._fingerprint = WeightFingerprint()
        self._steps = steps
        self._member = steps.join()
        self._recording = recording
        self._steps_before = steps_before
        self._has_stepped = False
        self._step = 0
        self._measuring = False
        self._failed = False
        group = shard_group(selection.parameters)
        self._reduce = ShardSum(group, len(selection.parameters)) if group is not None else None
        self._measurer = StepMeasurer(optimizer, selection.parameters, selection.norms, options.lags, self._reduce)
        device = local(selection.parameters[0]).device if selection.parameters else None
        self._shard_sums = ShardSums(self._reduce, self._measurer, device)

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer whose steps are measured; None if it has been freed."""
        return self._optimizer_reference()

    @property
    def saves_whole_weights(self) -> bool:
        """Whether the weights' norms at a checkpoint are known without a sum over processes."""
        return self._recording is not None and self._reduce is None

    def started_again(self) -> bool:
        """Returns whether the weights were drawn anew or set back since the latest sampled step."""
        return self._has_stepped and self._fingerprint.started_again(self._weights())

    def start(self) -> None:
        """Prepares what may take long and begins to listen."""
        self._measurer.prepare()
        add_listener(self)

    def follow(self, optimizer: Optimizer, columns: set[int]) -> None:
        """Continues with another optimizer for the same weights."""
        self.columns = columns
        self._optimizer_reference = weakref.ref(optimizer)
        self._measurer.follow(optimizer)

    def end(self) -> None:
        """Stops listening and releases all memory."""
        self.ended = True
        remove_listener(self)
        self._measurer.release()

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Counts the step. If it is sampled, copies the weights and reads the gradients."""
        if optimizer is not self.optimizer or self.ended:
            self.saw_another = True
            return
        self._measuring = False
        self._measurer.discard()
        try:
            if not self._has_stepped:
                self._measurer.update_groups()
                if self._steps.step is None:
                    self._steps.step = self._steps_before(optimizer, self._weights(), self.saves_whole_weights)
                self._fingerprint.take(self._weights())
                self._has_stepped = True
            self._step = self._steps.begin(self._member)
            recorded_to = self._recording.last_step if self._recording is not None else 0
            if not self._steps.is_sampled(self._step) or self._step <= recorded_to:
                return
            self._measuring = True
            if self._failed:
                self._measurer.open_windows(self._step)
                return
            if self._recording is not None:
                self._recording.open()
            self._measurer.update_groups()
            self._measuring = self._measurer.begin(self._step, has_closure)
        except Exception as error:
            self._give_up(error)

    def after_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """If the step is sampled, measures the change and hands it to the record."""
        if optimizer is not self.optimizer or self.ended or not self._has_stepped:
            return
        self._shard_sums.expect(self._measuring + self._measurer.windows_ending(self._step))
        if not self._failed:
            try:
                measurement = self._measurer.end(self._step, has_closure)
                if measurement is not None:
                    self._fingerprint.take(self._weights())
                self._steps.end(measurement)
            except Exception as error:
                self._give_up(error)
        if self._failed:
            self._take_part_in_sums()
        else:
            self._prepare_next()

    def note_checkpoint(self) -> None:
        """Records the weights' norms at the moment when the training saves a checkpoint.

        A fault costs this note only.
        """
        if not self._has_stepped or self.ended or self._failed or self._recording is None:
            return
        try:
            reading = read_squared_norms(self._measurer.weights(), len(self._parameters))
            self._recording.submit_checkpoint(self._step, reading)
        except Exception as error:
            notify(
                f"the checkpoint at step {self._step} could not be noted in the record ({reason_of(error)}): a training"
                " that resumes from it may count its steps from 1"
            )

    def _weights(self) -> list[nn.Parameter]:
        return list(self._parameters.alive().values())

    def _prepare_next(self) -> None:
        """Copies what the forward pass of the next step will change, if that step is sampled."""
        try:
            sampled = self._steps.is_sampled(self._step + 1)
        except Exception:
            return  # the next step asks again and reports the fault
        if sampled:
            try:
                self._measurer.copy_norms()
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        notify(f"measuring stopped at step {max(self._step, 1)} ({reason_of(error)}); training goes on")
        self._failed = True
        if self._measuring:
            self._measurer.open_windows(self._step)
        if self._reduce is None:
            remove_listener(self)
        self._measurer.release()

    def _take_part_in_sums(self) -> None:
        try:
            self._shard_sums.make_up(self._step)
        except Exception:
            self.ended = True
