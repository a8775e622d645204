"""The tracker: from the first optimizer step on it samples, and never raises into the training."""

from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.optim import Optimizer

from smdtrack.notices import notify, reason_of
from smdtrack.optimizers import inner_optimizer
from smdtrack.record.checkpoints import Checkpoint, find_checkpoint, step_of
from smdtrack.record.run import RunInfo
from smdtrack.record.summary import Summary
from smdtrack.sinks import make_sinks
from smdtrack.sinks.writer import Writer
from smdtrack.theory import identify
from smdtrack.tracking.attach.options import Options
from smdtrack.tracking.attach.process_rank import rank
from smdtrack.tracking.attach.resume import Before, SavedState, state_before
from smdtrack.tracking.attach.run_description import describe_run
from smdtrack.tracking.attach.step_hooks import add_listener, remove_listener
from smdtrack.tracking.attach.weight_selection import Selection
from smdtrack.tracking.interpret.sample_builder import SampleBuilder
from smdtrack.tracking.measure.probe import squares
from smdtrack.tracking.measure.sharding import ShardSum, local, shard_group
from smdtrack.tracking.measure.step_measurer import StepMeasurer


class Tracker:
    """Measures the scale-invariant weights of one optimizer; made by `watch` or by `smdtrack run`.

    Keys, in radian per optimizer step where an angle (`<w>` is the layer's dotted name):

    | key | what |
    |---|---|
    | `angle/<w>` | measured angular update of this step |
    | `angle_pred/<w>` | drift-corrected line: theory at the present rate of change of the norm |
    | `angle_eq/<w>` | equilibrium line under the present lr, weight decay, momentum |
    | `norm/<w>`, `norm_eq/<w>` | weight norm, and the norm at which it would stand still under the present gradients |
    | `effective_grad/<w>` | effective gradient norm, `||g|| ||w||` |
    | `angle_k<K>/<w>` | angle over K steps, for `lags` |
    | `smd/angle_ratio_p10`, `_p50`, `_p90` | measured / equilibrium over the weights |
    | `smd/theory` | 1, the line to hold the ratios against |
    | `smd/pred_ratio_p50` | measured / drift-corrected, median |
    | `smd/in_equilibrium` | share of weights within 10 % of equilibrium (RMS over fifty samples) |
    | `smd/orthogonality_residual` | largest |cos| of gradient and weight without what eps of batch norm explains: a live
      check that the weights are invariant |
    | `smd/not_invariant` | share of weights that have stopped being invariant; absent while there are none |
    | `smd/below_floor` | share of weights whose angle drowns in the rounding of their storage (bf16: 5e-3 rad) |
    | `smd/clipped` | 1 where gradients are clipped by value, 2 where adaptively (AGC); absent where neither is seen |
    """

    def __init__(
        self,
        optimizer: Optimizer,
        selection: Selection,
        options: Options,
        late: Before | None = None,
    ) -> None:
        self.selection = selection
        self.folder: Path | None = None
        self.resumed_from: Checkpoint | None = None
        self._optimizer = optimizer
        self._options = options
        self._schedule = options.schedule()
        self._late = late
        self._step: int | None = None
        self._next: tuple[int, bool] | None = None
        self._recorded_to = 0
        self._due = False
        self._writer: Writer | None = None
        self._closed = False
        self._stopped = False
        self._sinks = make_sinks(options.sinks)
        self._info: RunInfo | None = None
        self._on_state_dict: Any = None
        group = shard_group(selection.parameters)
        self._reduce = ShardSum(group, len(selection.parameters)) if group is not None else None
        self._measurer = StepMeasurer(optimizer, selection.parameters, selection.norms, options.lags, self._reduce)
        if selection.parameters:
            if rank() == 0:
                self._info = describe_run(optimizer, identify(optimizer), selection, options)
                self._recorded_to = self._info.earlier.last_step if self._info.earlier is not None else 0
                self.folder = self._info.folder
            self._measurer.prepare()
            self._listen_to_checkpoints()
            add_listener(self)

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer whose steps are measured."""
        return self._optimizer

    @property
    def closed(self) -> bool:
        """Whether the tracking has ended."""
        return self._closed

    def follow(self, optimizer: Optimizer) -> None:
        """Goes on with another optimizer of the same weights, as scripts make one anew for each phase."""
        if optimizer is self._optimizer:
            return
        self._optimizer = optimizer
        self._measurer.follow(optimizer)
        self._listen_to_checkpoints()

    def summary(self) -> Summary | None:
        """Returns measured against predicted per weight; ends the tracking first if it still goes on."""
        self.finish()
        return self._writer.summary if self._writer is not None else None

    def hints(self) -> list[str]:
        """Returns the commands and addresses that show the run in its trackers, once it has ended."""
        return self._writer.hints() if self._writer is not None else []

    def finish(self, status: str = "finished") -> None:
        """Ends the tracking: takes the hooks out, writes what is left. A second call does nothing.

        Args:
            status: finished, failed or interrupted.
        """
        if self._closed:
            return
        self._closed = True
        remove_listener(self)
        if self._on_state_dict is not None:
            self._on_state_dict.remove()
        self._measurer.release()
        if self._writer is not None:
            self._writer.close(status)

    def abandon(self) -> None:
        """Ends the tracking in a forked child, where no writer runs: the record is the parent's, who goes on."""
        self._closed = True
        self._measurer.release()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.finish("interrupted" if interrupted else "failed" if kind else "finished")

    # The hooks. Nothing may leave them: a fault ends the measuring, never the training.

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Counts the step; on a sampled one copies the weights and reads the gradients."""
        if optimizer is not self._optimizer or self._closed:
            return
        self._due = False
        self._measurer.discard()
        try:
            if self._step is None:
                self._measurer.look_at_groups()
                self._step = self._steps_before()
                self._begin_at(self._step)
            self._step += 1
            if not self._samples(self._step) or self._step <= self._recorded_to:
                return
            self._due = True
            if self._stopped:
                self._measurer.open_windows(self._step)
                return
            if self._info is not None and self._writer is None:
                self._start_writing(self._info)
            self._measurer.look_at_groups()
            self._due = self._measurer.begin(self._step, has_closure)
        except Exception as error:
            self._give_up(error)

    def after_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """On a sampled step measures the change and hands it to the writer."""
        if optimizer is not self._optimizer or self._closed or self._step is None:
            return
        owed = self._due + self._measurer.windows_ending(self._step)
        if self._stopped:
            self._abstain(owed)
            return
        summed = self._reduce.calls if self._reduce is not None else 0
        try:
            measurement = self._measurer.end(self._step, has_closure)
            if measurement is not None and self._writer is not None:
                self._writer.submit(measurement)
        except Exception as error:
            self._give_up(error)
            self._abstain(owed - (self._reduce.calls if self._reduce is not None else 0) + summed)
            return
        self._look_ahead(self._step)

    def _samples(self, step: int) -> bool:
        """Whether a step is sampled; asks a schedule, which may be the user's own, once a step."""
        if self._next is None or self._next[0] != step:
            self._next = (step, bool(self._schedule(step)))
        return self._next[1]

    def _look_ahead(self, step: int) -> None:
        try:
            due = self._samples(step + 1)
        except Exception:
            return  # the step itself will ask again, and tell
        if due:
            try:
                self._measurer.look_ahead()
            except Exception as error:
                self._give_up(error)

    # Beginning and end.

    def _start_writing(self, info: RunInfo) -> None:
        assembler = SampleBuilder(info.weights)

        def assemble(item: Any) -> Any:
            if isinstance(item, SavedState):
                return item.write(info.folder)
            return assembler(item)

        self._writer = Writer(info, self._sinks, assemble)

    def _steps_before(self) -> int:
        """How many steps lie behind the first one that is seen: 0 but for a resumed training."""
        resume_run = self._options.resume_run
        whole = self._reduce is None and self._info is not None
        parameters = self.selection.parameters
        before = self._late or state_before(self._optimizer, parameters, whole, always=resume_run is not None)
        since = 0 if self._late is None else 1
        if self._info is None:
            return since + (before.taken or 0)
        norms = before.squares_of(parameters)
        if resume_run is None:
            found = find_checkpoint(self._names, norms, Path(self._options.folder)) if len(norms) else None
            if found is not None and before.taken in (None, found.step):
                self.resumed_from = found
                return since + found.step
            return since + (before.taken or 0)
        known = step_of(self._names, norms, self._info.folder) if len(norms) else None
        if known is None and before.taken is None:
            notify(f"{self._info.folder} has no such checkpoint: its steps go on after the last, {self._recorded_to}")
        return since + next(step for step in (known, before.taken, self._recorded_to) if step is not None)

    def _begin_at(self, steps_before: int) -> None:
        """What is known of the run from its first step on: where it goes on."""
        if self._info is None:
            return
        params = dict(self._info.params)
        if self.resumed_from is not None:
            params["resumed_from"] = f"{self.resumed_from.folder.name}, step {self.resumed_from.step}"
        self._info = replace(self._info, params=params, steps_before=steps_before)

    @property
    def _names(self) -> list[str]:
        return [weight.name for weight in self.selection.weights]

    def _listen_to_checkpoints(self) -> None:
        """Hears when the optimizer's state is asked for: that is when checkpoints are made."""
        if self._on_state_dict is not None:
            self._on_state_dict.remove()
        if self._info is not None and self._reduce is None:
            self._on_state_dict = inner_optimizer(self._optimizer).register_state_dict_pre_hook(self._note_checkpoint)

    def _note_checkpoint(self, optimizer: Optimizer) -> None:
        try:
            if self._step is None or self._closed or self._stopped or self._info is None:
                return
            if self._writer is None:
                self._start_writing(self._info)
            assert self._writer is not None
            reading = squares(self._measurer.weights(), len(self.selection.parameters))
            self._writer.submit(SavedState(self._step, self._names, reading))
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        notify(f"measuring stopped at step {self._step or 1} ({reason_of(error)}); training goes on")
        self._stopped = True
        if self._due and self._step is not None:
            self._measurer.open_windows(self._step)
        if self._reduce is None:
            remove_listener(self)
        self._measurer.release()

    def _abstain(self, tables: int) -> None:
        """After a fault here the other processes still sum over shards: takes its part in so many sums with nothing."""
        if self._reduce is None or self._step is None:
            return
        try:
            self._measurer.skip(self._step)
            for _ in range(tables):
                self._reduce.abstain(local(self.selection.parameters[0]).device)
        except Exception:
            self._closed = True
