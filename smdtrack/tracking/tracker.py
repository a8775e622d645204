"""The tracker: from the first optimizer step on it samples, and never raises into the training."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from smdtrack.notices import SmdtrackError, notify
from smdtrack.record.run import RunInfo, TrackedWeight
from smdtrack.record.store import DEFAULT_FOLDER, new_run_folder
from smdtrack.record.summary import Summary
from smdtrack.sinks import check_sink_names, make_sinks
from smdtrack.sinks.protocol import Sink
from smdtrack.sinks.writer import Writer
from smdtrack.theory import Family, identify
from smdtrack.tracking.assembly import Assembler, Measurement
from smdtrack.tracking.discovery import group_indices
from smdtrack.tracking.hooks import add_listener, remove_listener
from smdtrack.tracking.probe import Probe, Reading
from smdtrack.tracking.schedule import EverySteps, Schedule
from smdtrack.tracking.selection import Selection, select_weights


@dataclass(frozen=True)
class Options:
    """What to sample and where to send it; see `watch` for each.

    Raises:
        SmdtrackError: If a number is out of range or a sink is unknown.
    """

    every: int | Schedule = 10
    warmup_samples: int = 0
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    lags: Sequence[int] = ()
    sinks: Sequence[str | Sink] | None = None
    folder: str | Path = DEFAULT_FOLDER
    name: str | None = None
    params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.schedule()
        for lag in self.lags:
            if not isinstance(lag, int) or lag < 2:
                raise SmdtrackError(f"lags: {lag!r} is no lag; whole numbers of optimizer steps are needed, 2 or more")
        check_sink_names(self.sinks or ())

    def schedule(self) -> Schedule:
        """Returns the sampling schedule."""
        if isinstance(self.every, int):
            return EverySteps(self.every, self.warmup_samples)
        if not callable(self.every):
            raise SmdtrackError(f"every={self.every!r}: a whole number of steps or a callable step -> bool is needed")
        return self.every


class Tracker:
    """Measures the scale-invariant weights of one optimizer; made by `watch` or by `smdtrack run`.

    Keys, in radian per optimizer step where an angle (`<w>` is the layer's dotted name):

    | key | what |
    |---|---|
    | `angle/<w>` | measured angular update of this step |
    | `angle_pred/<w>` | drift-corrected line: theory at the present rate of change of the norm |
    | `angle_eq/<w>` | equilibrium line under the present lr, weight decay, momentum |
    | `norm/<w>`, `norm_eq/<w>` | weight norm, and the norm at which it would stand still under the present gradients |
    | `grad/<w>` | effective gradient norm, `||g|| ||w||` |
    | `angle_k<K>/<w>` | angle over K steps, for `lags` |
    | `smd/angle_ratio_p10`, `_p50`, `_p90` | measured / equilibrium over the weights |
    | `smd/theory` | 1, the line to hold the ratios against |
    | `smd/pred_ratio_p50` | measured / drift-corrected, median |
    | `smd/in_equilibrium` | share of weights within 10 % of equilibrium (RMS over ten samples) |
    | `smd/orthogonality` | largest |cos| between gradient and weight: a live check that the weights are invariant |
    """

    def __init__(self, optimizer: Optimizer, selection: Selection, options: Options) -> None:
        self.selection = selection
        self.folder: Path | None = None
        self._optimizer = optimizer
        self._options = options
        self._schedule = options.schedule()
        self._family: Family = identify(optimizer)
        self._parameters: list[nn.Parameter] = list(selection.parameters)
        self._step = 0
        self._sampling = False
        self._writer: Writer | None = None
        self._closed = False
        self._probe = Probe(self._parameters)
        self._lags = [_Lag(steps, Probe(self._parameters)) for steps in sorted(set(options.lags))]
        self._info = self._make_info() if self._parameters else None
        self._sinks = make_sinks(options.sinks)
        if self._parameters:
            add_listener(self)

    def summary(self) -> Summary | None:
        """Returns measured against predicted per weight; ends the tracking first if it still goes on."""
        self.detach()
        return self._writer.summary if self._writer is not None else None

    def hints(self) -> list[str]:
        """Returns the commands and addresses that show the run in its trackers, once it has ended."""
        return self._writer.hints() if self._writer is not None else []

    def detach(self, status: str = "finished") -> None:
        """Ends the tracking: takes the hooks out, writes what is left. A second call does nothing.

        Args:
            status: finished, failed or interrupted.
        """
        if self._closed:
            return
        self._closed = True
        _watched.pop(id(self._optimizer), None)
        remove_listener(self)
        if self._writer is not None:
            self._writer.close(status)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.detach("interrupted" if interrupted else "failed" if kind else "finished")

    # The hooks. Nothing may leave them: a fault ends the measuring, never the training.

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Counts the step; on a sampled one copies the weights and reads the gradients."""
        if optimizer is not self._optimizer or self._closed:
            return
        self._step += 1
        self._sampling = False
        try:
            sampled = self._schedule(self._step)
            for lag in self._lags:
                lag.begin(self._step, sampled)
            if not sampled:
                return
            if self._writer is None:
                self._start_writing()
            self._group_of = [index if index is not None else 0 for index in group_indices(optimizer, self._parameters)]
            self._groups = [_hyper_parameters(group) for group in optimizer.param_groups]
            self._probe.begin()
            if not has_closure:  # a closure's gradients come to be inside the step
                self._probe.read_gradients(getattr(optimizer, "grad_scale", None))
            self._sampling = True
        except Exception as error:
            self._give_up(error)

    def after_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """On a sampled step measures the change and hands it to the writer."""
        if optimizer is not self._optimizer or self._closed:
            return
        try:
            for lag in self._lags:
                lag.end(self._step)
            if not self._sampling:
                return
            self._sampling = False
            if has_closure:
                self._probe.read_gradients()
            factors = self._state_factors(optimizer)
            found_inf = getattr(optimizer, "found_inf", None)
            measurement = Measurement(
                step=self._step,
                time=time.time(),
                reading=self._probe.end(factors),
                groups=self._groups,
                group_of=self._group_of,
                has_state_factor=bool(factors),
                skipped=found_inf.detach().clone() if found_inf is not None else None,
                lags={lag.steps: reading for lag in self._lags if (reading := lag.take()) is not None},
            )
            assert self._writer is not None
            self._writer.submit(measurement)
        except Exception as error:
            self._give_up(error)

    def _state_factors(self, optimizer: Optimizer) -> list[list[torch.Tensor]]:
        """One row of 0-d tensors for lines that read the optimizer's state; none where no weight's line does."""
        factors = [
            self._family.state_factor(parameter, optimizer.state.get(parameter, {}), optimizer.param_groups[group])
            for parameter, group in zip(self._parameters, self._group_of, strict=True)
        ]
        if all(factor is None for factor in factors):
            return []
        missing = torch.full((), float("nan"), dtype=torch.float64, device=self._parameters[0].device)
        return [[missing if factor is None else factor for factor in factors]]

    def _give_up(self, error: Exception) -> None:
        notify(f"measuring stopped at step {self._step} ({type(error).__name__}: {error}); training goes on")
        remove_listener(self)
        self._sampling = False

    def _start_writing(self) -> None:
        assert self._info is not None
        self._writer = Writer(self._info, self._sinks, Assembler(self._info.weights, self._family))

    def _make_info(self) -> RunInfo:
        name = self._options.name or self.selection.model_name
        run_id, folder = new_run_folder(Path(self._options.folder).absolute(), name)
        self.folder = folder
        groups = [_hyper_parameters(group) for group in self._optimizer.param_groups]
        group_of = group_indices(self._optimizer, self._parameters)
        weights = []
        for chosen, index in zip(self.selection.weights, group_of, strict=True):
            line = self._family.line(groups[index or 0], chosen.shape)
            weights.append(
                TrackedWeight(
                    name=chosen.name,
                    key=chosen.key,
                    shape=chosen.shape,
                    group=index or 0,
                    scope=chosen.scope,
                    filter_dim=chosen.filter_dim,
                    norm=chosen.norm,
                    line_kind=line.kind,
                    line_formula=line.formula,
                    line_source=line.source,
                    line_reason=line.reason,
                )
            )
        first = groups[weights[0].group]
        params: dict[str, str | int | float | bool] = {
            "model": self.selection.model_name,
            "optimizer": type(self._optimizer).__name__,
            **{key: value for key, value in _scalars(first).items() if key in _SHOWN_HYPER_PARAMETERS},
            "line_kind": ", ".join(sorted({weight.line_kind for weight in weights})),
            "line_source": "; ".join(sorted({weight.line_source for weight in weights if weight.line_source})),
            "weights_tracked": len(weights),
            "share_of_parameters": round(self.selection.share_of_parameters, 4),
            **self._options.params,
        }
        return RunInfo(run_id, f"{name}-{run_id}", folder, time.time(), tuple(weights), params)


_SHOWN_HYPER_PARAMETERS = ("lr", "weight_decay", "momentum", "dampening", "nesterov", "betas", "beta1", "eps")
_watched: dict[int, Tracker] = {}


def watch(
        model: nn.Module,
        optimizer: Optimizer,
        *,
        every: int | Schedule = 10,
        warmup_samples: int = 0,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        lags: Sequence[int] = (),
        sinks: Sequence[str | Sink] | None = None,
        folder: str | Path = DEFAULT_FOLDER,
        name: str | None = None,
        example_input: Any = None,
        params: dict[str, Any] | None = None,
) -> Tracker:
    """Tracks the angular update of a model's scale-invariant weights while an optimizer trains it.

    Finds the weights (on a copy), then measures around every sampled `optimizer.step()`. Training is not changed by a
    bit. In a distributed run only rank 0 measures. Use as a context manager, or call `.detach()` at the end;
    `.summary()` returns the table. Watching the same optimizer again returns the tracker that is there.

    Args:
        model: The model, wrapped (DDP, compiled) or not.
        optimizer: The optimizer that steps its parameters.
        every: A sample every so many optimizer steps, or a callable from the step (from 1) to whether it is sampled.
        warmup_samples: So many first steps are all sampled, where `every` is a number.
        include: Globs of parameter names (`layer1.*`); none: all scale-invariant weights.
        exclude: Globs of parameter names to leave out.
        lags: Further numbers of steps K over which the angle is measured (`angle_k<K>/...`).
        sinks: `mlflow`, `wandb`, `local` (the local record only), or objects with the methods of a sink; by default
            MLflow, and W&B where the script has a run open.
        folder: Where the folder of the local record is made.
        name: The run's name; by default the model's.
        example_input: A batch for a model whose input cannot be guessed.
        params: More parameters to log with the run.

    Raises:
        SmdtrackError: If an argument is out of range, a glob matches no weight, the model cannot be audited, or the
            folder cannot be written.
    """
    if id(optimizer) in _watched:
        return _watched[id(optimizer)]
    options = Options(every, warmup_samples, include, exclude, lags, sinks, folder, name, params or {})
    return start(model, optimizer, options, example_input)


def start(model: nn.Module, optimizer: Optimizer, options: Options, example_input: Any = None) -> Tracker:
    """Makes the tracker of `watch` from its options."""
    if rank() != 0:
        selection = Selection.empty(model)
    else:
        selection = select_weights(model, optimizer, options.include, options.exclude, example_input)
    tracker = Tracker(optimizer, selection, options)
    _watched[id(optimizer)] = tracker
    return tracker


def rank() -> int:
    """Returns this process's rank, 0 outside distributed training."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", "0"))


class _Lag:
    """The angle over K steps, taken from a sampled step on; a window begins only when the last one has ended."""

    def __init__(self, steps: int, probe: Probe) -> None:
        self.steps = steps
        self._probe = probe
        self._ends_at: int | None = None
        self._reading: Reading | None = None

    def begin(self, step: int, sampled: bool) -> None:
        if sampled and self._ends_at is None:
            self._probe.begin()
            self._ends_at = step + self.steps - 1

    def end(self, step: int) -> None:
        if step == self._ends_at:
            self._reading = self._probe.end()
            self._ends_at = None

    def take(self) -> Reading | None:
        reading, self._reading = self._reading, None
        return reading


def _hyper_parameters(group: dict[str, Any]) -> dict[str, Any]:
    """A group as it is during this step; a tensor (a capturable learning rate) is copied where it lies."""
    return {
        key: value.detach().clone() if isinstance(value, torch.Tensor) else value
        for key, value in group.items()
        if key != "params"
    }


def _scalars(group: dict[str, Any]) -> dict[str, str | int | float | bool]:
    found: dict[str, str | int | float | bool] = {}
    for key, value in group.items():
        if isinstance(value, torch.Tensor):
            value = value.item()
        if isinstance(value, (bool, int, float, str)):
            found[key] = value
        elif isinstance(value, tuple):
            found[key] = " ".join(map(str, value))
    return found
