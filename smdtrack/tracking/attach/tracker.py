"""The tracker: measures the weights of one optimizer from its first step until the training ends."""

from pathlib import Path
from types import TracebackType

from torch.optim import Optimizer

from smdtrack.record.checkpoints import Checkpoint
from smdtrack.record.summary import Summary
from smdtrack.sinks import make_sinks
from smdtrack.theory import identify
from smdtrack.tracking.attach.checkpoint_notes import CheckpointListener
from smdtrack.tracking.attach.options import Options
from smdtrack.tracking.attach.process_rank import rank
from smdtrack.tracking.attach.recording import Recording
from smdtrack.tracking.attach.resume import TrainingState
from smdtrack.tracking.attach.run_description import describe_run
from smdtrack.tracking.attach.step_sampler import StepSampler
from smdtrack.tracking.attach.weight_selection import Selection

_NOT_THE_RECORDING_PROCESS = "this process does not record: in a distributed training the process of rank 0 does"
_NO_WEIGHTS = "there is no scale-invariant weight to measure"


class Tracker:
    """Measures the scale-invariant weights of one optimizer. `watch` and `smdtrack run` make trackers.

    Keys of the recorded values; `<w>` is the layer's dotted name, angles are in radian per optimizer step:

    | key | value |
    |---|---|
    | `angle/<w>` | measured angular update of this step |
    | `angle_pred/<w>` | drift-corrected line: theory at the present rate of change of the norm |
    | `angle_eq/<w>` | equilibrium line under the present lr, weight decay, momentum |
    | `norm/<w>` | weight norm |
    | `norm_eq/<w>` | norm that the weight keeps at equilibrium with the present gradients |
    | `effective_grad/<w>` | effective gradient norm, `||g|| ||w||` |
    | `angle_k<K>/<w>` | angle over K steps, for `lags` |
    | `smd/angle_ratio_p10`, `_p50`, `_p90` | quantiles over the weights of measured / equilibrium |
    | `smd/theory` | always 1, the line to compare the ratios with |
    | `smd/pred_ratio_p50` | median over the weights of measured / drift-corrected |
    | `smd/in_equilibrium` | share of weights within 10 % of equilibrium (RMS over fifty samples) |
    | `smd/orthogonality_residual` | largest |cos| between gradient and weight that batch norm's eps does not explain; \
near 0 while the weights are scale-invariant |
    | `smd/not_invariant` | share of weights that are no longer scale-invariant; absent if all are |
    | `smd/below_floor` | share of weights whose angle is smaller than the rounding of their storage (bf16: 5e-3 rad) |
    | `smd/clipped` | 1 if gradients are clipped by value, 2 if adaptively (AGC); absent if neither was seen |

    Attributes:
        selection: The weights that are measured.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        selection: Selection,
        options: Options,
        earlier_state: TrainingState | None = None,
    ) -> None:
        self.selection = selection
        self._closed = False
        self._recording: Recording | None = None
        sinks = make_sinks(options.sinks)
        if selection.parameters and rank() == 0:
            info = describe_run(optimizer, identify(optimizer), selection, options)
            self._recording = Recording(info, sinks)
        self._sampler = StepSampler(optimizer, selection, options, self._recording, earlier_state)
        self._checkpoints = CheckpointListener(self._sampler.note_checkpoint)
        if selection.parameters:
            self._sampler.start()
            self._listen_to_checkpoints()

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer whose steps are measured."""
        return self._sampler.optimizer

    @property
    def folder(self) -> Path | None:
        """Folder of the local record; None in a process that does not record."""
        return self._recording.folder if self._recording is not None else None

    @property
    def resumed_from(self) -> Checkpoint | None:
        """The recorded checkpoint from which this training was resumed; None if none was found."""
        return self._sampler.checkpoint

    @property
    def closed(self) -> bool:
        """Whether the tracking has ended."""
        return self._closed

    def measure_step_under_way(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Begins with the step whose hook made this tracker: that hook's list of listeners does not have it yet."""
        self._sampler.before_step(optimizer, has_closure)

    def follow(self, optimizer: Optimizer) -> None:
        """Continues with another optimizer for the same weights; scripts make a new one for each phase."""
        if optimizer is not self._sampler.optimizer:
            self._sampler.follow(optimizer)
            self._listen_to_checkpoints()

    def summary(self) -> Summary:
        """Returns measured against predicted per weight, from what has been recorded so far.

        The tracking goes on. After `finish` this is the run's final summary. If nothing was measured, the summary has
        no weights and says why in its `reason`.
        """
        if self._recording is not None:
            return self._recording.summary()
        return Summary.empty(_NO_WEIGHTS if rank() == 0 else _NOT_THE_RECORDING_PROCESS)

    def hints(self) -> list[str]:
        """Returns the commands and addresses that show the run in its trackers."""
        return self._recording.hints() if self._recording is not None else []

    def finish(self, status: str = "finished") -> None:
        """Ends the tracking: removes the hooks and writes what is left. A second call does nothing.

        Args:
            status: finished, failed or interrupted.
        """
        if self._closed:
            return
        self._closed = True
        self._checkpoints.stop()
        self._sampler.end()
        if self._recording is not None:
            self._recording.close(status)

    def abandon(self) -> None:
        """Ends the tracking in a forked child process. The parent process goes on and writes the record."""
        self._closed = True
        self._sampler.end()

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

    def _listen_to_checkpoints(self) -> None:
        if self._sampler.saves_whole_weights:
            self._checkpoints.listen_to(self._sampler.optimizer)
