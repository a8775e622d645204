"""The tracker: from the first optimizer step on it samples, and never raises into the training."""

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from smdtrack.notices import SmdtrackError, notify
from smdtrack.record.run import RunInfo
from smdtrack.record.summary import Summary
from smdtrack.sinks import make_sinks
from smdtrack.sinks.writer import Writer
from smdtrack.theory import Family, identify
from smdtrack.tracking import clipping
from smdtrack.tracking.assembly import Assembler, Measurement
from smdtrack.tracking.description import describe_run, hyper_parameters
from smdtrack.tracking.discovery import group_indices, parameters_of, state_of
from smdtrack.tracking.hooks import add_listener, remove_listener
from smdtrack.tracking.lag import Lag
from smdtrack.tracking.options import Options
from smdtrack.tracking.orthogonality import EpsRadial
from smdtrack.tracking.precision import floor_of, measured
from smdtrack.tracking.probe import Probe, squares
from smdtrack.tracking.resume import Before, Checkpoint, SavedState, find_checkpoint, state_before, step_of
from smdtrack.tracking.selection import Selection
from smdtrack.tracking.sharding import ShardSum, is_dtensor, local, shard_group


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
    | `smd/in_equilibrium` | share of weights within 10 % of equilibrium (RMS over fifty samples) |
    | `smd/orthogonality` | largest |cos| between gradient and weight but for what batch norm's eps accounts for: a live
      check that the weights are invariant |
    | `smd/not_invariant` | share of weights that have stopped being invariant; absent while there are none |
    | `smd/below_floor` | share of weights whose angle drowns in the rounding of their storage (bf16: 5e-3 rad) |
    | `smd/clipped` | 1 where gradients are clipped by value, 2 where adaptively (AGC); absent where neither is seen |
    """

    def __init__(
            self, optimizer: Optimizer, selection: Selection, options: Options, late: Before | None = None,
    ) -> None:
        self.selection = selection
        self.folder: Path | None = None
        self.resumed_from: Checkpoint | None = None
        self._optimizer = optimizer
        self._options = options
        self._schedule = options.schedule()
        self._family: Family = identify(optimizer)
        self._parameters = list(selection.parameters)
        self._late = late
        self._step: int | None = None
        self._recorded_to = 0
        self._sampled: dict[int, Tensor] = {}
        self._due = False
        self._writer: Writer | None = None
        self._closed = False
        self._stopped = False
        self._reduce: ShardSum | None = None
        self._seen: tuple[Any, ...] = ()
        self._group_of: list[int | None] = []
        self._clip_columns: list[int] | None = None
        self._looks = 0
        self._probe = Probe(len(self._parameters))
        self._eps_radial = EpsRadial(self._parameters, selection.norms or [None] * len(self._parameters))
        self._next: tuple[int, bool] | None = None
        self._lags = [Lag(steps, len(self._parameters)) for steps in sorted(set(options.lags))]
        self._sinks = make_sinks(options.sinks)
        self._info: RunInfo | None = None
        self._on_state_dict: Any = None
        if self._parameters:
            group = shard_group(self._parameters)
            self._reduce = ShardSum(group, len(self._parameters)) if group is not None else None
            if rank() == 0:
                self._info = describe_run(optimizer, self._family, selection, options)
                self._recorded_to = self._info.earlier.last_step if self._info.earlier is not None else 0
                self.folder = self._info.folder
            self._probe.prepare({parameter.device for parameter in self._parameters})
            self._listen_to_checkpoints()
            self._eps_radial.note()
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
        self._optimizer, self._family = optimizer, identify(optimizer)
        self._seen = ()
        self._listen_to_checkpoints()

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
        remove_listener(self)
        if self._on_state_dict is not None:
            self._on_state_dict.remove()
        self._release()
        if self._writer is not None:
            self._writer.close(status)

    def abandon(self) -> None:
        """Ends the tracking in a forked child, where no writer runs: the record is the parent's, who goes on."""
        self._closed = True
        self._release()

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
        self._sampled, self._due = {}, False
        try:
            if self._step is None:
                self._look_at_groups(optimizer)
                self._step = self._steps_before()
                self._begin_at(self._step)
            self._step += 1
            if not self._samples(self._step) or self._step <= self._recorded_to:
                return
            self._due = True
            if self._stopped:
                self._open_windows(self._step)
                return
            if self._info is not None and self._writer is None:
                self._start_writing(self._info)
            self._look_at_groups(optimizer)
            columns = self._columns_that_move(has_closure)
            if not columns:
                self._due = False
                return
            self._open_windows(self._step)
            self._groups = [hyper_parameters(group) for group in optimizer.param_groups]
            weights = {column: self._source(column) for column in columns}
            for lag in self._lags:
                lag.begin(self._step, weights)
            parts = {column: local(weight) for column, weight in weights.items()}
            # A closure's gradients come to be inside the step.
            gradients = {} if has_closure else self._gradients(columns)
            self._probe.begin(parts, gradients, getattr(optimizer, "grad_scale", None))
            if has_closure:
                self._eps_radial.note()
            else:
                self._look_at_norms(getattr(optimizer, "grad_scale", None))
            self._traces: dict[int, tuple[Tensor, Tensor]] = {}
            self._look_for_clipping(parts, gradients)
            self._sampled = weights
        except Exception as error:
            self._give_up(error)

    def after_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """On a sampled step measures the change and hands it to the writer."""
        if optimizer is not self._optimizer or self._closed:
            return
        self._measure_change(optimizer, has_closure)
        self._look_ahead()

    def _measure_change(self, optimizer: Optimizer, has_closure: bool) -> None:
        assert self._step is not None
        owed = self._due + sum(lag.ends(self._step) for lag in self._lags)
        if self._stopped:
            self._abstain(owed)
            return
        summed = self._reduce.calls if self._reduce is not None else 0
        try:
            for lag in self._lags:
                lag.end(self._step, self._reduce)
            weights, self._sampled = self._sampled, {}
            columns = list(weights)
            if not columns:
                return
            if has_closure:
                self._probe.read_gradients(self._gradients(columns))
                self._look_at_norms(None)
            along = self._momentum_buffers(optimizer, weights)
            names, extra = self._extra_rows(optimizer, weights)
            found_inf = getattr(optimizer, "found_inf", None)
            measurement = Measurement(
                step=self._step,
                time=time.time(),
                reading=self._probe.end(
                    {column: local(weight) for column, weight in weights.items()}, extra, self._reduce, along
                ),
                groups=self._groups,
                group_of=self._group_of,
                family=self._family,
                floors=[floor_of(weights.get(column, parameter)) for column, parameter in enumerate(self._parameters)],
                extra=["change_along_momentum", *names] if along else names,
                sharded=self._reduce is not None,
                has_gradients_of_the_step=not has_closure or _evaluates_once(optimizer),
                frozen=self._frozen,
                skipped=found_inf.detach().clone() if found_inf is not None else None,
                lags={lag.steps: reading for lag in self._lags if (reading := lag.take()) is not None},
            )
            if self._writer is not None:
                self._writer.submit(measurement)
        except Exception as error:
            self._give_up(error)
            self._abstain(owed - (self._reduce.calls if self._reduce is not None else 0) + summed)

    # What is measured.

    def _samples(self, step: int) -> bool:
        """Whether a step is sampled; asks a schedule, which may be the user's own, once a step."""
        if self._next is None or self._next[0] != step:
            self._next = (step, bool(self._schedule(step)))
        return self._next[1]

    def _look_ahead(self) -> None:
        """Before a sampled step's forward pass notes what that will change."""
        if self._stopped or self._step is None:
            return
        try:
            due = self._samples(self._step + 1)
        except Exception:
            return  # the step itself will ask again, and tell
        if due:
            try:
                self._eps_radial.note()
            except Exception as error:
                self._give_up(error)

    def _look_at_norms(self, loss_scale: Tensor | None) -> None:
        self._frozen, self._eps_rows = self._eps_radial.frozen(), self._eps_radial.read(loss_scale)

    def _source(self, column: int) -> Tensor:
        """The weight, or the master copy that the optimizer keeps of it."""
        parameter = self._parameters[column]
        return measured(parameter, state_of(self._optimizer).get(parameter, {}))

    def _gradients(self, columns: list[int]) -> dict[int, Tensor]:
        found = {column: self._parameters[column].grad for column in columns}
        return {column: local(gradient) for column, gradient in found.items() if gradient is not None}

    def _look_at_groups(self, optimizer: Optimizer) -> None:
        """Finds each weight's group, again only where the groups hold other parameters than before."""
        seen = tuple(tuple(map(id, group["params"])) for group in optimizer.param_groups)
        if seen == self._seen:
            return
        self._seen = seen
        self._group_of = group_indices(optimizer, self._parameters)
        self._clip_columns = None
        if all(index is None for index in self._group_of):
            sharded = self._reduce is None and any(is_dtensor(parameter) for parameter in parameters_of(optimizer))
            raise SmdtrackError(
                "the weights were sharded after watch began: call watch after fully_shard" if sharded
                else "the optimizer holds none of the watched weights any more: watch again after they are replaced"
            )  # fmt: skip

    def _columns_that_move(self, has_closure: bool) -> list[int]:
        """Weights that this step moves: the optimizer holds them, and they have a gradient."""
        return [
            column for column, (group, parameter) in enumerate(zip(self._group_of, self._parameters, strict=True))
            if group is not None and (parameter.grad is not None or (has_closure and parameter.requires_grad))
        ]  # fmt: skip

    def _look_for_clipping(self, weights: Mapping[int, Tensor], gradients: Mapping[int, Tensor]) -> None:
        self._looks += 1
        # Seldom after the first samples: nobody starts to clip late. Shards cut across filters.
        if self._reduce is not None or (self._looks > 10 and self._looks % 10):
            return
        if self._clip_columns is None:
            self._clip_columns = clipping.watched_columns(weights)
        for column in self._clip_columns:
            gradient = gradients.get(column)
            if column in weights and gradient is not None and gradient.dtype == torch.float32:
                self._traces[column] = clipping.traces(weights[column].detach(), gradient.detach())

    def _extra_rows(
            self, optimizer: Optimizer, weights: Mapping[int, Tensor],
    ) -> tuple[list[str], list[dict[int, Tensor]]]:
        """Rows below the moments: what lines need from the optimizer's state, and traces of clipping."""
        names: list[str] = []
        rows: list[dict[int, Tensor]] = []
        factors = self._state_factors(optimizer, list(weights))
        if factors:
            names.append("state_factor")
            rows.append(factors)
        if self._eps_rows:
            names.append("eps_radial")
            rows.append({column: self._eps_rows[column] for column in weights if column in self._eps_rows})
        if self._traces:
            names += ["tied_elements", "tied_filters"]
            rows += [{column: pair[index] for column, pair in self._traces.items()} for index in range(2)]
        return names, rows

    def _state_factors(self, optimizer: Optimizer, columns: list[int]) -> dict[int, Tensor]:
        """By column, for lines that read the state; as a share of the squared norm, so that shards add up."""
        factors = {}
        state = state_of(optimizer)
        for column in columns:
            parameter, group = self._parameters[column], self._group_of[column] or 0
            entries = {
                key: local(value) if isinstance(value, Tensor) else value
                for key, value in state.get(parameter, {}).items()
            }
            part = local(parameter)
            factor = self._family.state_factor(part, entries, optimizer.param_groups[group])
            if factor is not None:
                whole = 1.0 if self._reduce is None else part.detach().double().square().sum()
                factors[column] = factor * whole if part.numel() else torch.zeros((), device=part.device)
        return factors

    def _momentum_buffers(self, optimizer: Optimizer, weights: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """By column, where the line gets exact by the change's inner product with them."""
        state, buffers = state_of(optimizer), {}
        entries = [self._family.momentum_entry(group) for group in optimizer.param_groups]
        if not any(entries):
            return {}
        for column in weights:
            entry = entries[self._group_of[column] or 0]
            buffer = state.get(self._parameters[column], {}).get(entry) if entry is not None else None
            if isinstance(buffer, Tensor):
                buffers[column] = local(buffer)
        return buffers

    # Beginning and end.

    def _start_writing(self, info: RunInfo) -> None:
        assembler = Assembler(info.weights)

        def assemble(item: Any) -> Any:
            if isinstance(item, SavedState):
                return item.write(info.folder)
            return assembler(item)

        self._writer = Writer(info, self._sinks, assemble)

    def _steps_before(self) -> int:
        """How many steps lie behind the first one that is seen: 0 but for a resumed training."""
        resume_run = self._options.resume_run
        whole = self._reduce is None and self._info is not None
        before = self._late or state_before(self._optimizer, self._parameters, whole, always=resume_run is not None)
        since = 0 if self._late is None else 1
        if self._info is None:
            return since + (before.taken or 0)
        norms = before.squares_of(self._parameters)
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

    def _all_weights(self) -> dict[int, Tensor]:
        return {column: self._source(column) for column in range(len(self._parameters))}

    def _listen_to_checkpoints(self) -> None:
        """Hears when the optimizer's state is asked for: that is when checkpoints are made."""
        if self._on_state_dict is not None:
            self._on_state_dict.remove()
        if self._info is not None and self._reduce is None:
            inner: Optimizer = getattr(self._optimizer, "_base_optimizer", self._optimizer)
            self._on_state_dict = inner.register_state_dict_pre_hook(self._note_checkpoint)

    def _note_checkpoint(self, optimizer: Optimizer) -> None:
        try:
            if self._step is None or self._closed or self._stopped or self._info is None:
                return
            if self._writer is None:
                self._start_writing(self._info)
            assert self._writer is not None
            self._writer.submit(
                SavedState(self._step, self._names, squares(self._all_weights(), len(self._parameters)))
            )
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        reason = str(error) if isinstance(error, SmdtrackError) else f"{type(error).__name__}: {error}"
        notify(f"measuring stopped at step {self._step or 1} ({reason}); training goes on")
        self._stopped = True
        if self._due and self._step is not None:
            self._open_windows(self._step)
        if self._reduce is None:
            remove_listener(self)
        self._release()

    def _open_windows(self, step: int) -> None:
        for lag in self._lags:
            lag.open(step)

    def _abstain(self, tables: int) -> None:
        """After a fault here the other processes still sum over shards: takes its part in so many sums with nothing."""
        if self._reduce is None or self._step is None:
            return
        try:
            for lag in self._lags:
                lag.skip(self._step)
            for _ in range(tables):
                self._reduce.abstain(local(self._parameters[0]).device)
        except Exception:
            self._closed = True

    def _release(self) -> None:
        self._probe.release()
        for lag in self._lags:
            lag.release()


def _evaluates_once(optimizer: Optimizer) -> bool:
    """Whether a closure's gradients are those at the weights before the step: Lightning steps with one always."""
    known = type(optimizer).__module__.split(".")[0] in ("torch", "timm")
    return known and not isinstance(optimizer, torch.optim.LBFGS)


def rank() -> int:
    """Returns this process's rank, 0 outside distributed training."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", "0"))
