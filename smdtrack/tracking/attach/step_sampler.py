"""Counts an optimizer's steps, measures the sampled ones and hands them to the record."""

from pathlib import Path

from torch.optim import Optimizer

from smdtrack.notices import notify, reason_of
from smdtrack.optimizers import cycle_of
from smdtrack.record.checkpoints import Checkpoint
from smdtrack.tracking.attach.options import Options
from smdtrack.tracking.attach.recording import Recording
from smdtrack.tracking.attach.resume import TrainingState, starting_point, training_state
from smdtrack.tracking.attach.shard_sums import ShardSums
from smdtrack.tracking.attach.step_hooks import add_listener, remove_listener
from smdtrack.tracking.attach.weight_selection import Selection
from smdtrack.tracking.measure.probe import read_squared_norms
from smdtrack.tracking.measure.sharding import ShardSum, local, shard_group
from smdtrack.tracking.measure.step_measurer import StepMeasurer


class StepSampler:
    """Listens to the steps of one optimizer. A fault ends the measuring; no exception reaches the training.

    Args:
        optimizer: Whose steps are measured.
        selection: The weights to measure.
        options: Which steps are sampled.
        recording: Where measurements go; None in a process that only takes part in the sums over shards.
        earlier_state: The training's state before an untracked first step, if the tracker was made only after it.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        selection: Selection,
        options: Options,
        recording: Recording | None,
        earlier_state: TrainingState | None = None,
    ) -> None:
        self.checkpoint: Checkpoint | None = None
        self._optimizer = optimizer
        self._parameters = selection.parameters
        self._options = options
        self._schedule = options.schedule(cycle_of(optimizer))
        self._recording = recording
        self._earlier_state = earlier_state
        self._step: int | None = None
        self._asked: tuple[int, bool] | None = None
        self._measuring = False
        self._failed = False
        self._ended = False
        group = shard_group(self._parameters)
        self._reduce = ShardSum(group, len(self._parameters)) if group is not None else None
        self._measurer = StepMeasurer(optimizer, self._parameters, selection.norms, options.lags, self._reduce)
        device = local(self._parameters[0]).device if self._parameters else None
        self._shard_sums = ShardSums(self._reduce, self._measurer, device)

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer whose steps are measured."""
        return self._optimizer

    @property
    def saves_whole_weights(self) -> bool:
        """Whether the weights' norms at a checkpoint are known without a sum over processes."""
        return self._recording is not None and self._reduce is None

    def start(self) -> None:
        """Prepares what may take long and begins to listen."""
        self._measurer.prepare()
        add_listener(self)

    def follow(self, optimizer: Optimizer) -> None:
        """Continues with another optimizer that holds the same weights."""
        self._optimizer = optimizer
        self._measurer.follow(optimizer)

    def end(self) -> None:
        """Stops listening and releases all memory."""
        self._ended = True
        remove_listener(self)
        self._measurer.release()

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Counts the step. If it is sampled, copies the weights and reads the gradients."""
        if optimizer is not self._optimizer or self._ended:
            return
        self._measuring = False
        self._measurer.discard()
        try:
            if self._step is None:
                self._measurer.update_groups()
                self._step = self._steps_before()
            self._step += 1
            recorded_to = self._recording.last_step if self._recording is not None else 0
            if not self._is_sampled(self._step) or self._step <= recorded_to:
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
        if optimizer is not self._optimizer or self._ended or self._step is None:
            return
        self._shard_sums.expect(self._measuring + self._measurer.windows_ending(self._step))
        if not self._failed:
            try:
                measurement = self._measurer.end(self._step, has_closure)
                if measurement is not None and self._recording is not None:
                    self._recording.submit(measurement)
            except Exception as error:
                self._give_up(error)
        if self._failed:
            self._take_part_in_sums(self._step)
        else:
            self._prepare_next(self._step)

    def note_checkpoint(self) -> None:
        """Records the weights' norms at the moment when the training saves a checkpoint."""
        if self._step is None or self._ended or self._failed or self._recording is None:
            return
        try:
            reading = read_squared_norms(self._measurer.weights(), len(self._parameters))
            self._recording.submit_checkpoint(self._step, reading)
        except Exception as error:
            self._give_up(error)

    def _steps_before(self) -> int:
        """Returns how many steps the training took before the first one that is counted; 0 unless it was resumed."""
        continues_a_record = self._options.resume_run is not None
        state = self._earlier_state or training_state(
            self._optimizer, self._parameters, with_norms=self.saves_whole_weights, always=continues_a_record
        )
        if self._recording is None:
            return state.steps_since + (state.steps_taken or 0)
        start = starting_point(state, self._parameters, self._recording.info, Path(self._options.folder))
        self.checkpoint = start.checkpoint
        self._recording.begin_at(start)
        return start.steps_before

    def _is_sampled(self, step: int) -> bool:
        """Asks the schedule, which may be the user's own, once per step."""
        if self._asked is None or self._asked[0] != step:
            self._asked = (step, bool(self._schedule(step)))
        return self._asked[1]

    def _prepare_next(self, step: int) -> None:
        """Notes what the forward pass of the next step will change, if that step is sampled."""
        try:
            sampled = self._is_sampled(step + 1)
        except Exception:
            return  # the next step asks again and reports the fault
        if sampled:
            try:
                self._measurer.copy_norms()
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        notify(f"measuring stopped at step {self._step or 1} ({reason_of(error)}); training goes on")
        self._failed = True
        if self._measuring and self._step is not None:
            self._measurer.open_windows(self._step)
        if self._reduce is None:
            remove_listener(self)
        self._measurer.release()

    def _take_part_in_sums(self, step: int) -> None:
        try:
            self._shard_sums.make_up(step)
        except Exception:
            self._ended = True
