"""The tracker: measures the weights of a model from its optimizer's first step until the training ends."""

import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from smdtrack.notices import notify
from smdtrack.optimizers import cycle_of, inner_optimizer, parameters_of
from smdtrack.record.checkpoints import Checkpoint
from smdtrack.record.summary import Summary
from smdtrack.sinks import make_sinks
from smdtrack.tracking.attach.checkpoint_notes import CheckpointListener
from smdtrack.tracking.attach.options import Options
from smdtrack.tracking.attach.process_rank import rank
from smdtrack.tracking.attach.recording import LONGEST_CLOSE, Recording
from smdtrack.tracking.attach.resume import TrainingState, starting_point, training_state
from smdtrack.tracking.attach.run_description import describe_run
from smdtrack.tracking.attach.script_runs import a_run_ended, open_runs
from smdtrack.tracking.attach.step_hooks import some_steps_call_no_hooks
from smdtrack.tracking.attach.step_sampler import StepSampler
from smdtrack.tracking.attach.training_steps import TrainingSteps
from smdtrack.tracking.attach.weight_selection import Selection
from smdtrack.tracking.measure.sharding import is_dtensor
from smdtrack.tracking.measure.weak_items import WeakItems

_NOT_THE_RECORDING_PROCESS = "this process does not record: in a distributed training the process of rank 0 does"
_SHARDED_LATER = (
    "nothing was measured, because the weights were sharded after watch began: call watch after fully_shard; training"
    " goes on"
)
_NEVER_STEPPED = "the watched optimizer never made a step, but another one did: watch the one that trains"
#: Seconds after an optimizer has been freed in which a new one for the same weights continues the open record.
_SECONDS_FOR_A_NEW_OPTIMIZER = 2.0
_NO_WEIGHTS = "there is no scale-invariant weight to measure"


class Tracker:
    """Measures the scale-invariant weights of one training. `watch` and `smdtrack run` make trackers.

    Keys of the recorded values; `<w>` is the layer's dotted name, angles are in radian per optimizer step:

    | key | value |
    |---|---|
    | `angle/<w>` | measured angular update of this step |
    | `angle_pred/<w>` | drift-corrected line: theory at the present rate of change of the norm |
    | `angle_eq/<w>` | equilibrium line under the present lr, weight decay, momentum |
    | `norm/<w>` | weight norm |
    | `norm_eq/<w>` | norm that the weight keeps at equilibrium with the present gradients |
    | `effective_grad/<w>` | effective gradient norm, `||g|| ||w||` |
    | `growth/<w>`, `decay/<w>` | relative growth of `||w||^2` per step by the updates, and shrinking by weight decay |
    | `memory/<w>` | measured memory of the updates / that under uncorrelated gradients |
    | `angle_k<K>/<w>` | angle over K steps, for `lags` |
    | `angle_k<K>_pred/<w>` | its line, from the drift-corrected angles of single steps |
    | `smd/angle_ratio_p10`, `_p50`, `_p90` | quantiles over the weights of measured / equilibrium |
    | `smd/efficiency_k<K>` | median of the distance over K steps / that under uncorrelated gradients |
    | `smd/theory` | always 1, the line to compare the ratios with |
    | `smd/pred_ratio_p50` | median over the weights of measured / drift-corrected |
    | `smd/in_equilibrium` | share of weights within 10 % of equilibrium (RMS over fifty samples) |
    | `smd/orthogonality_residual` | largest |cos| between gradient and weight that batch norm's eps does not explain; \
near 0 while the weights are scale-invariant |
    | `smd/not_invariant` | share of weights that are no longer scale-invariant; absent if all are |
    | `smd/below_floor` | share of weights whose angle is smaller than the rounding of their storage (bf16: 5e-3 rad) |
    | `smd/clipped` | 1 if gradients are clipped by value, 2 if adaptively (AGC); absent if neither was seen |

    Attributes:
        selection: The weights that are measured; without the parameters themselves.
        resumed_from: The recorded checkpoint from which this training was resumed; None if none was found.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        selection: Selection,
        options: Options,
        *,
        others: Sequence[Optimizer] = (),
        earlier_state: TrainingState | None = None,
        steps_before: int | None = None,
    ) -> None:
        self.resumed_from: Checkpoint | None = None
        self._options = options
        self._earlier_state = earlier_state
        self._known_steps_before = steps_before
        self._closed = False
        self._script_runs = open_runs()
        self._recording: Recording | None = None
        sinks = make_sinks(options.sinks)
        if selection.parameters and rank() == 0:
            self._recording = Recording(describe_run((optimizer, *others), selection, options), sinks)
        # From here on the weights are referred to weakly: tracking must not keep a training's memory.
        self.selection = replace(selection, parameters=(), norms=())
        self._weights = WeakItems(selection.parameters)
        self._norms = [None if norm is None else weakref.ref(norm) for norm in selection.norms]
        self._weights_alive = len(selection.parameters)
        self._weight_references = [weakref.ref(weight, self._weight_freed) for weight in selection.parameters]
        self._steps = TrainingSteps(options.schedule(cycle_of(optimizer)), self._recording)
        self._samplers: list[StepSampler] = []
        self._checkpoints: CheckpointListener | None = None
        self._state_was_loaded = False
        if selection.parameters and (not others or self.holds_weights_of(optimizer)):
            self.join(optimizer)
        for other in others:
            # All take part from the first step on; an optimizer for the same weights is joined when it makes a step.
            held = {id(parameter) for parameter in parameters_of(other)}
            mine = {index for index, weight in enumerate(selection.parameters) if id(weight) in held}
            if mine and not any(sampler.columns & mine for sampler in self._samplers):
                self.join(other)

    @property
    def optimizer(self) -> Optimizer | None:
        """The first optimizer whose steps are measured; None if it has been freed."""
        return self._samplers[0].optimizer if self._samplers else None

    @property
    def folder(self) -> Path | None:
        """Folder of the local record; None in a process that does not record."""
        return self._recording.folder if self._recording is not None else None

    @property
    def step(self) -> int:
        """Optimizer steps that the training has taken; 0 before the first."""
        return self._steps.step or 0

    @property
    def closed(self) -> bool:
        """Whether the tracking has ended: by `finish`, or because the model or the optimizer has been freed."""
        return self._closed or (self._recording is not None and self._recording.closing)

    def measure_step_under_way(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Begins with the step whose hook made this tracker: that hook's list of listeners does not have it yet."""
        for sampler in self._samplers:
            sampler.before_step(optimizer, has_closure)

    def measures(self, optimizer: Optimizer) -> bool:
        """Returns whether the steps of this optimizer are measured now."""
        return any(sampler.optimizer is optimizer for sampler in self._samplers)

    def holds_weights_of(self, optimizer: Optimizer) -> bool:
        """Returns whether this optimizer holds a tracked weight."""
        held = {id(parameter) for parameter in parameters_of(optimizer)}
        return any(id(weight) in held for weight in self._weights.alive().values())

    def join(self, optimizer: Optimizer) -> bool:
        """Measures the steps of this optimizer too.

        If another optimizer was measured for the same weights, this one takes its place: scripts make a new optimizer
        for each phase of a training.

        Returns:
            Whether a listener was added. During a step its hook's list of listeners does not have it yet.
        """
        if self.measures(optimizer):
            return False
        if self._recording is not None:
            self._recording.close_after(None)
        held = {id(parameter) for parameter in parameters_of(optimizer)}
        mine = {index for index, weight in self._weights.alive().items() if id(weight) in held}
        earlier = next((sampler for sampler in self._samplers if sampler.columns & mine), None)
        if earlier is not None:
            earlier.follow(optimizer, mine)
        else:
            alive = self._weights.alive()
            if len(alive) < len(self._weights):
                return False  # a part of the model has been freed
            # Each further sampler notes the norms of its own weights only.
            norms = [
                reference() if reference is not None and (not self._samplers or index in mine) else None
                for index, reference in enumerate(self._norms)
            ]
            selection = replace(self.selection, parameters=[*alive.values()], norms=norms)
            sampler = StepSampler(
                optimizer, selection, self._options, self._steps, self._recording, self._find_starting_point, mine
            )
            self._samplers.append(sampler)
            sampler.start()
        self._listen_to(optimizer)
        return earlier is None

    def continues(self, selections: Sequence[Selection]) -> bool:
        """Returns whether these selections have the weights that were tracked here, with values that continue them."""
        names = [weight.name for selection in selections for weight in selection.weights]
        same = names == [weight.name for weight in self.selection.weights]
        return same and self._weights_alive > 0 and not any(sampler.started_again() for sampler in self._samplers)

    def belongs_to_an_earlier_training(self, optimizer: Optimizer) -> bool:
        """Returns whether a step of this optimizer begins a new training.

        A training has ended if a tracker run that the script had open has ended. It has also ended if the weights were
        drawn anew or set back; that is looked at when the optimizer is a new one, or after its state was loaded.
        """
        if self._script_runs and a_run_ended(self._script_runs, open_runs()):
            return True
        if self.measures(optimizer) and not self._state_was_loaded:
            return False
        self._state_was_loaded = False
        return any(sampler.started_again() for sampler in self._samplers)

    def summary(self) -> Summary:
        """Returns measured against predicted per weight, from what has been recorded so far.

        The tracking goes on. After `finish` this is the run's final summary. If nothing was measured, the summary has
        no weights and says why in its `reason`.
        """
        if self._recording is not None:
            summary = self._recording.summary()
            never_stepped = summary.reason is not None and self._steps.step is None
            return Summary.empty(_NEVER_STEPPED) if never_stepped else summary
        return Summary.empty(_NO_WEIGHTS if rank() == 0 else _NOT_THE_RECORDING_PROCESS)

    def hints(self) -> list[str]:
        """Returns the commands and addresses that show the run in its trackers."""
        return self._recording.hints() if self._recording is not None else []

    def finish(self, status: str = "finished", timeout: float = LONGEST_CLOSE) -> None:
        """Ends the tracking: removes the hooks and writes what is left. A second call does nothing.

        Args:
            status: finished, failed or interrupted.
            timeout: Seconds that this waits for the trackers at most.
        """
        if self._closed:
            return
        self._closed = True
        if self._checkpoints is not None:
            self._checkpoints.stop()
        for sampler in self._samplers:
            sampler.end()
        # A step compiled as one graph calls no hooks, so the watched optimizer may have stepped unseen.
        unseen = some_steps_call_no_hooks()
        if self._steps.step is None and not unseen and any(sampler.saw_another for sampler in self._samplers):
            notify(_SHARDED_LATER if self._shards_replaced_the_weights() else _NEVER_STEPPED)
        if self._recording is not None:
            with suppress(Exception):
                self._steps.submit_rest()
            self._recording.close(status, timeout)

    def _shards_replaced_the_weights(self) -> bool:
        """Returns whether an optimizer holds sharded parameters, though the watched weights were not sharded."""
        optimizers = [sampler.optimizer for sampler in self._samplers]
        held = [parameter for one in optimizers if one is not None for parameter in parameters_of(one)]
        return any(is_dtensor(parameter) for parameter in held)

    def abandon(self) -> None:
        """Ends the tracking in a forked child process. The parent process goes on and writes the record."""
        self._closed = True
        for sampler in self._samplers:
            sampler.end()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.finish(status_after(error))

    def _find_starting_point(self, optimizer: Optimizer, weights: list[nn.Parameter], with_norms: bool) -> int:
        """Returns how many steps the training took before the first one that is counted; 0 unless it was resumed."""
        if self._known_steps_before is not None:
            return self._known_steps_before
        continues_a_record = self._options.resume_run is not None
        state = self._earlier_state or training_state(optimizer, weights, with_norms, always=continues_a_record)
        if self._recording is None:
            return state.steps_since + (state.steps_taken or 0)
        start = starting_point(state, weights, self._recording.info, Path(self._options.folder))
        self.resumed_from = start.checkpoint
        self._recording.begin_at(start)
        return start.steps_before

    def _listen_to(self, optimizer: Optimizer) -> None:
        self._optimizer_references = [
            weakref.ref(sampler.optimizer, self._optimizer_freed)
            for sampler in self._samplers
            if sampler.optimizer is not None
        ]
        tracker = weakref.ref(self)
        with suppress(AttributeError):  # an optimizer whose constructor did not call that of Optimizer
            inner_optimizer(optimizer).register_load_state_dict_post_hook(lambda _: _note_loaded_state(tracker()))
        first = self._samplers[0]
        if first.saves_whole_weights and first.optimizer is optimizer:
            if self._checkpoints is not None:
                self._checkpoints.stop()
            self._checkpoints = CheckpointListener(first.note_checkpoint)
            self._checkpoints.listen_to(optimizer)

    # Called by the garbage collector at any point of any thread: they set plain attributes and take no lock.

    def _optimizer_freed(self, reference: Any) -> None:
        # A script that makes a new optimizer for each phase does so soon, if not before the old one is freed.
        gone = all(other() is None for other in self._optimizer_references)
        if reference in self._optimizer_references and gone and self._recording is not None:
            self._recording.close_after(_SECONDS_FOR_A_NEW_OPTIMIZER)

    def _weight_freed(self, _: Any) -> None:
        self._weights_alive -= 1
        if not self._weights_alive:
            for sampler in self._samplers:
                sampler.ended = True
            if self._recording is not None:
                self._recording.close_after(0)


def status_after(error: BaseException | None) -> str:
    """Returns a run's status after its training has ended, normally or by an exception.

    A script that ends by `sys.exit(0)` has finished; one that catches Ctrl-C conventionally exits with 130.
    """
    if isinstance(error, SystemExit):
        return {None: "finished", 0: "finished", 130: "interrupted"}.get(error.code, "failed")  # type: ignore[arg-type]
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return "finished" if error is None or isinstance(error, GeneratorExit) else "failed"


def _note_loaded_state(tracker: Tracker | None) -> None:
    if tracker is not None:
        tracker._state_was_loaded = True
