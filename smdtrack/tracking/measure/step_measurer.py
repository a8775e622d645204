"""One sampled step, from the optimizer's pre-hook to its post-hook: what is read when, and from where."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from smdtrack.notices import SmdtrackError
from smdtrack.optimizers import group_indices, parameters_of, snapshot_of_group, state_of
from smdtrack.theory import Family, identify
from smdtrack.tracking.measure import clipping_traces as clipping
from smdtrack.tracking.measure.eps_remainder import EpsRemainder
from smdtrack.tracking.measure.lag_window import LagWindow
from smdtrack.tracking.measure.measurement import Measurement
from smdtrack.tracking.measure.precision import floor_of, measured
from smdtrack.tracking.measure.probe import Probe
from smdtrack.tracking.measure.sharding import ShardSum, is_dtensor, local


class StepMeasurer:
    """Reads the weights of one optimizer before and after a step; any method may raise.

    Args:
        optimizer: Whose steps are measured.
        parameters: The tracked weights; each is named by its place among them, its column.
        norms: Per weight the module that makes it invariant, where one could be named.
        lags: Further numbers of steps over which angles are measured.
        reduce: Adds tables up over processes, where the weights are sharded.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Sequence[nn.Parameter],
        norms: Sequence[nn.Module | None],
        lags: Sequence[int],
        reduce: ShardSum | None,
    ) -> None:
        self._parameters = list(parameters)
        self._reduce = reduce
        self._probe = Probe(len(parameters))
        self._eps_radial = EpsRemainder(parameters, norms or [None] * len(parameters))
        self._lags = [LagWindow(steps, len(parameters)) for steps in sorted(set(lags))]
        self._weights: dict[int, Tensor] = {}
        self._groups: list[dict[str, Any]] = []
        self._seen: tuple[Any, ...] = ()
        self._group_of: list[int | None] = []
        self._clip_columns: list[int] | None = None
        self._looks = 0
        self._traces: dict[int, tuple[Tensor, Tensor]] = {}
        self._frozen: list[bool] = []
        self._eps_rows: dict[int, Tensor] = {}
        self.follow(optimizer)

    def follow(self, optimizer: Optimizer) -> None:
        """Goes on with another optimizer of the same weights."""
        self._optimizer = optimizer
        self._family: Family = identify(optimizer)
        self._seen = ()

    def prepare(self) -> None:
        """Does once, before the first step, what may take long or wait for a device."""
        self._probe.prepare({parameter.device for parameter in self._parameters})
        self._eps_radial.note()

    def look_ahead(self) -> None:
        """Notes what the forward pass of a sampled step will change: call it after the step before."""
        self._eps_radial.note()

    def look_at_groups(self) -> None:
        """Finds each weight's group, again only where the groups hold other parameters than before.

        Raises:
            SmdtrackError: If the optimizer holds none of the weights.
        """
        groups = self._optimizer.param_groups
        seen = tuple(tuple(map(id, group["params"])) for group in groups)
        if seen == self._seen:
            return
        self._seen = seen
        self._group_of = group_indices(self._optimizer, self._parameters)
        self._clip_columns = None
        if all(index is None for index in self._group_of):
            sharded = self._reduce is None and any(map(is_dtensor, parameters_of(self._optimizer)))
            raise SmdtrackError(
                "the weights were sharded after watch began: call watch after fully_shard"
                if sharded
                else "the optimizer holds none of the watched weights any more: watch again after they are replaced"
            )

    def begin(self, step: int, has_closure: bool) -> bool:
        """Copies the weights that the step will move, and reads their gradients; False where it moves none."""
        self._weights, self._traces = {}, {}
        columns = self._columns_that_move(has_closure)
        if not columns:
            return False
        self.open_windows(step)
        self._groups = [snapshot_of_group(group) for group in self._optimizer.param_groups]
        weights = {column: self._source(column) for column in columns}
        for lag in self._lags:
            lag.begin(step, weights)
        parts = {column: local(weight) for column, weight in weights.items()}
        # A closure's gradients come to be inside the step.
        gradients = {} if has_closure else self._gradients(columns)
        loss_scale = getattr(self._optimizer, "grad_scale", None)
        self._probe.begin(parts, gradients, loss_scale)
        if has_closure:
            self._eps_radial.note()
        else:
            self._look_at_norms(loss_scale)
        self._look_for_clipping(parts, gradients)
        self._weights = weights
        return True

    def discard(self) -> None:
        """Forgets what was begun: a step that raised never came to its end."""
        self._weights = {}

    def end(self, step: int, has_closure: bool) -> Measurement | None:
        """Measures the change since `begin`, and the windows that end with this step; None where nothing was begun."""
        for lag in self._lags:
            lag.end(step, self._reduce)
        weights, self._weights = self._weights, {}
        if not weights:
            return None
        if has_closure:
            self._probe.read_gradients(self._gradients(list(weights)))
            self._look_at_norms(None)
        along = self._momentum_buffers(weights)
        names, extra = self._extra_rows(weights)
        found_inf = getattr(self._optimizer, "found_inf", None)
        return Measurement(
            step=step,
            time=time.time(),
            reading=self._probe.end({c: local(weight) for c, weight in weights.items()}, extra, self._reduce, along),
            groups=self._groups,
            group_of=self._group_of,
            family=self._family,
            floors=[floor_of(weights.get(column, parameter)) for column, parameter in enumerate(self._parameters)],
            extra=["change_along_momentum", *names] if along else names,
            sharded=self._reduce is not None,
            has_gradients_of_the_step=not has_closure or _evaluates_once(self._optimizer),
            frozen=self._frozen,
            skipped=found_inf.detach().clone() if found_inf is not None else None,
            lags={lag.steps: reading for lag in self._lags if (reading := lag.take()) is not None},
        )

    def weights(self) -> dict[int, Tensor]:
        """Returns all weights by column, or the master copies that the optimizer keeps of them."""
        return {column: self._source(column) for column in range(len(self._parameters))}

    def open_windows(self, step: int) -> None:
        """Opens the windows of the lags that begin with this step."""
        for lag in self._lags:
            lag.open(step)

    def windows_ending(self, step: int) -> int:
        """Returns how many windows end with this step."""
        return sum(lag.ends(step) for lag in self._lags)

    def skip(self, step: int) -> None:
        """Lets the windows that end with this step end unmeasured."""
        for lag in self._lags:
            lag.skip(step)

    def release(self) -> None:
        """Lets go of all memory."""
        self._weights = {}
        self._probe.release()
        for lag in self._lags:
            lag.release()

    def _source(self, column: int) -> Tensor:
        parameter = self._parameters[column]
        return measured(parameter, state_of(self._optimizer).get(parameter, {}))

    def _gradients(self, columns: list[int]) -> dict[int, Tensor]:
        found = {column: self._parameters[column].grad for column in columns}
        return {column: local(gradient) for column, gradient in found.items() if gradient is not None}

    def _columns_that_move(self, has_closure: bool) -> list[int]:
        """Weights that this step moves: the optimizer holds them, and they have a gradient."""
        return [
            column
            for column, (group, parameter) in enumerate(zip(self._group_of, self._parameters, strict=True))
            if group is not None and (parameter.grad is not None or (has_closure and parameter.requires_grad))
        ]

    def _look_at_norms(self, loss_scale: Tensor | None) -> None:
        self._frozen, self._eps_rows = self._eps_radial.frozen(), self._eps_radial.read(loss_scale)

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

    def _extra_rows(self, weights: Mapping[int, Tensor]) -> tuple[list[str], list[dict[int, Tensor]]]:
        """Rows below the moments: what lines need from the optimizer's state, eps's part, traces of clipping."""
        names: list[str] = []
        rows: list[dict[int, Tensor]] = []
        pulls = self._decay_pulls(list(weights))
        if pulls:
            names.append("decay_pull")
            rows.append(pulls)
        if self._eps_rows:
            names.append("eps_radial")
            rows.append({column: self._eps_rows[column] for column in weights if column in self._eps_rows})
        if self._traces:
            names += ["tied_elements", "tied_filters"]
            rows += [{column: pair[index] for column, pair in self._traces.items()} for index in range(2)]
        return names, rows

    def _decay_pulls(self, columns: list[int]) -> dict[int, Tensor]:
        """Returns `<w, w/denom>` by column if lines need it from the optimizer's state; the sums of shards add up."""
        state, alike = state_of(self._optimizer), defaultdict[tuple[int, torch.device], list[int]](list)
        for column in columns:
            if state.get(self._parameters[column]):
                alike[self._group_of[column] or 0, self._parameters[column].device].append(column)
        pulls: dict[int, Tensor] = {}
        for (group, _), those in alike.items():
            parts = [local(self._parameters[column].detach()) for column in those]
            entries = [
                {
                    key: local(value) if isinstance(value, Tensor) else value
                    for key, value in state[self._parameters[column]].items()
                }
                for column in those
            ]
            found = self._family.decay_pulls(parts, entries, self._optimizer.param_groups[group])
            if found is not None:
                pulls |= zip(those, found, strict=True)
        return pulls

    def _momentum_buffers(self, weights: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """By column, where the line gets exact by the change's inner product with them."""
        state, buffers = state_of(self._optimizer), {}
        entries = [self._family.momentum_entry(group) for group in self._optimizer.param_groups]
        if not any(entries):
            return {}
        for column in weights:
            entry = entries[self._group_of[column] or 0]
            buffer = state.get(self._parameters[column], {}).get(entry) if entry is not None else None
            if isinstance(buffer, Tensor):
                buffers[column] = local(buffer)
        return buffers


def _evaluates_once(optimizer: Optimizer) -> bool:
    """Whether a closure's gradients are those at the weights before the step: Lightning steps with one always."""
    known = type(optimizer).__module__.split(".")[0] in ("torch", "timm")
    return known and not isinstance(optimizer, torch.optim.LBFGS)
