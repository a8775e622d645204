"""Measures one sampled step, from the optimizer's pre-hook to its post-hook."""

import time
import weakref
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from smdtrack.notices import SmdtrackError
from smdtrack.optimizers import group_indices, parameters_of, snapshot_of_group, state_of
from smdtrack.theory import Family, identify
from smdtrack.tracking.measure.clipping_traces import columns_to_search, count_ties
from smdtrack.tracking.measure.eps_remainder import EpsRemainder
from smdtrack.tracking.measure.lag_window import LagWindow
from smdtrack.tracking.measure.measurement import Measurement
from smdtrack.tracking.measure.precision import smallest_angle, tensor_to_measure
from smdtrack.tracking.measure.probe import Probe
from smdtrack.tracking.measure.sharding import ShardSum, is_dtensor, local
from smdtrack.tracking.measure.table import Row
from smdtrack.tracking.measure.weak_items import WeakItems

#: Samples in each of which traces of clipping are searched for; later they are searched for in every tenth sample,
#: because a training that clips does so from its start.
_FIRST_SEARCHES = 10


class StepMeasurer:
    """Reads the weights of one optimizer before and after a step. Any method may raise.

    The order of calls for a sampled step: `copy_norms` after the step before it, `update_groups` and `begin` in the
    pre-hook, `end` in the post-hook.

    Args:
        optimizer: The optimizer whose steps are measured.
        parameters: The tracked weights. Each is named by its place among them, its column.
        norms: Per weight the module that makes it invariant; None where it is not known.
        lags: Numbers of steps over which angles are measured besides those of single steps.
        reduce: Adds tables up over processes; None if the weights are not sharded.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Sequence[nn.Parameter],
        norms: Sequence[nn.Module | None],
        lags: Sequence[int],
        reduce: ShardSum | None,
    ) -> None:
        # Weak references, here and for the optimizer: tracking must not keep a training's memory.
        self._parameters = WeakItems(parameters)
        self._reduce = reduce
        self._probe = Probe(len(parameters))
        self._eps_remainder = EpsRemainder(parameters, norms or [None] * len(parameters))
        self._lag_windows = [LagWindow(steps, len(parameters)) for steps in sorted(set(lags))]
        self._weights: dict[int, Tensor] = {}
        self._groups: list[dict[str, Any]] = []
        self._known_groups: tuple[Any, ...] = ()
        self._group_of: list[int | None] = []
        self._clipping_columns: list[int] | None = None
        self._samples = 0
        self._ties: dict[int, tuple[Tensor, Tensor]] = {}
        self._norm_in_eval_mode: list[bool] = []
        self._eps_radial: dict[int, Tensor] = {}
        self.follow(optimizer)

    def follow(self, optimizer: Optimizer) -> None:
        """Measures the steps of another optimizer of the same weights from now on."""
        self._optimizer_reference = weakref.ref(optimizer)
        self._family: Family = identify(optimizer)
        self._known_groups = ()

    @property
    def _optimizer(self) -> Optimizer:
        optimizer = self._optimizer_reference()
        if optimizer is None:
            raise SmdtrackError("the optimizer has been freed")
        return optimizer

    def prepare(self) -> None:
        """Does what may take long or wait for a device. Call it once, before the first step."""
        self._probe.prepare({parameter.device for parameter in self._parameters.alive().values()})
        self._eps_remainder.copy_norms()

    def copy_norms(self) -> None:
        """Copies the state of the batch norms. Call it before the forward pass of a sampled step."""
        self._eps_remainder.copy_norms()

    def update_groups(self) -> None:
        """Finds the parameter group of each weight, if the groups hold other parameters than at the last call.

        Raises:
            SmdtrackError: If the optimizer holds none of the weights.
        """
        groups = self._optimizer.param_groups
        known_groups = tuple(tuple(map(id, group["params"])) for group in groups)
        if known_groups == self._known_groups:
            return
        self._known_groups = known_groups
        found = dict(
            zip(alive := self._parameters.alive(), group_indices(self._optimizer, alive.values()), strict=True)
        )
        self._group_of = [found.get(column) for column in range(len(self._parameters))]
        self._clipping_columns = None
        if all(index is None for index in self._group_of):
            sharded = self._reduce is None and any(map(is_dtensor, parameters_of(self._optimizer)))
            raise SmdtrackError(
                "the weights were sharded after watch began: call watch after fully_shard"
                if sharded
                else "the optimizer holds none of the watched weights any more: watch again after they are replaced"
            )

    def begin(self, step: int, has_closure: bool) -> bool:
        """Copies the weights that the step will change, and reads their gradients.

        Returns:
            False if the step will change none of the weights; there is then nothing to measure.
        """
        self._weights, self._ties = {}, {}
        columns = self._columns_that_change(has_closure)
        if not columns:
            return False
        self.open_windows(step)
        self._groups = [snapshot_of_group(group) for group in self._optimizer.param_groups]
        weights = {column: self._tensor_to_measure(column) for column in columns}
        for window in self._lag_windows:
            window.begin(step, weights)
        shards = {column: local(weight) for column, weight in weights.items()}
        # A closure computes the gradients inside the step.
        gradients = {} if has_closure else self._gradients(columns)
        loss_scale = getattr(self._optimizer, "grad_scale", None)
        self._probe.begin(shards, gradients, loss_scale)
        if has_closure:
            self._eps_remainder.copy_norms()
        else:
            self._read_norms(loss_scale)
        self._search_for_clipping(shards, gradients)
        self._weights = weights
        return True

    def discard(self) -> None:
        """Discards what `begin` has read: a step that raises never reaches its post-hook."""
        self._weights = {}

    def end(self, step: int, has_closure: bool) -> Measurement | None:
        """Measures the change since `begin`, and the lag windows that end with this step.

        Returns:
            None if this step was not begun, or changes none of the weights.
        """
        for window in self._lag_windows:
            window.end(step, self._reduce)
        weights, self._weights = self._weights, {}
        if not weights:
            return None
        if has_closure:
            self._probe.read_gradients(self._gradients(list(weights)))
            self._read_norms(None)
        shards = {column: local(weight) for column, weight in weights.items()}
        momentum = self._momentum_buffers(weights)
        further_rows = self._further_rows(weights)
        found_inf = getattr(self._optimizer, "found_inf", None)
        return Measurement(
            step=step,
            time=time.time(),
            reading=self._probe.end(shards, further_rows, self._reduce, momentum),
            groups=self._groups,
            group_of=self._group_of,
            families=[self._family] * len(self._groups),
            optimizers=[self._optimizer],
            sharded=self._reduce is not None,
            smallest_angles=self._smallest_angles(weights),
            has_gradients_of_the_step=not has_closure or _closure_runs_once(self._optimizer),
            norm_in_eval_mode=self._norm_in_eval_mode,
            skipped=[found_inf.detach().clone()] if found_inf is not None else [],
            lags={w.steps: reading for w in self._lag_windows if (reading := w.take()) is not None},
        )

    def weights(self) -> dict[int, Tensor]:
        """Returns all weights by column, or the master copies that the optimizer keeps of them."""
        return {column: self._tensor_to_measure(column) for column in self._parameters.alive()}

    def open_windows(self, step: int) -> None:
        """Opens the lag windows that begin with this step."""
        for window in self._lag_windows:
            window.open(step)

    def windows_ending(self, step: int) -> int:
        """Returns the number of lag windows that end with this step."""
        return sum(window.ends(step) for window in self._lag_windows)

    def skip_windows(self, step: int) -> None:
        """Closes the lag windows that end with this step, without measuring."""
        for window in self._lag_windows:
            window.skip(step)

    def release(self) -> None:
        """Frees all copies of weights."""
        self._weights = {}
        self._probe.release()
        for window in self._lag_windows:
            window.release()

    def _tensor_to_measure(self, column: int) -> Tensor:
        parameter = self._parameters[column]
        return tensor_to_measure(parameter, state_of(self._optimizer).get(parameter, {}))

    def _smallest_angles(self, weights: Mapping[int, Tensor]) -> list[float]:
        """Returns per weight the smallest angle that its storage lets one read; 0 for one that has been freed."""
        tensors = {**self._parameters.alive(), **weights}
        return [smallest_angle(tensors[c]) if c in tensors else 0.0 for c in range(len(self._parameters))]

    def _gradients(self, columns: list[int]) -> dict[int, Tensor]:
        found = {column: self._parameters[column].grad for column in columns}
        return {column: local(gradient) for column, gradient in found.items() if gradient is not None}

    def _columns_that_change(self, has_closure: bool) -> list[int]:
        """Returns the weights that the optimizer holds and that have a gradient, or get one from the closure."""
        return [
            column
            for column, parameter in self._parameters.alive().items()
            if self._group_of[column] is not None
            and (parameter.grad is not None or (has_closure and parameter.requires_grad))
        ]

    def _read_norms(self, loss_scale: Tensor | None) -> None:
        self._norm_in_eval_mode = self._eps_remainder.in_eval_mode()
        self._eps_radial = self._eps_remainder.read(loss_scale)

    def _search_for_clipping(self, weights: Mapping[int, Tensor], gradients: Mapping[int, Tensor]) -> None:
        self._samples += 1
        # A shard may hold a part of a filter only, whose ratio says nothing.
        if self._reduce is not None or (self._samples > _FIRST_SEARCHES and self._samples % 10):
            return
        if self._clipping_columns is None:
            self._clipping_columns = columns_to_search(weights)
        for column in self._clipping_columns:
            gradient = gradients.get(column)
            if column in weights and gradient is not None and gradient.dtype == torch.float32:
                self._ties[column] = count_ties(weights[column].detach(), gradient.detach())

    def _further_rows(self, weights: Mapping[int, Tensor]) -> dict[Row, dict[int, Tensor]]:
        """Returns the rows of the table besides the sums over weights, by column."""
        rows: dict[Row, dict[int, Tensor]] = {}
        pulls = self._decay_pulls(list(weights))
        if pulls:
            rows[Row.DECAY_PULL] = pulls
        if self._eps_radial:
            rows[Row.EPS_RADIAL] = {c: self._eps_radial[c] for c in weights if c in self._eps_radial}
        if self._ties:
            rows[Row.TIED_ELEMENTS] = {column: elements for column, (elements, _) in self._ties.items()}
            rows[Row.TIED_FILTERS] = {column: filters for column, (_, filters) in self._ties.items()}
        return rows

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
        """Returns the momentum buffers by column, for optimizers whose line is read from them."""
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


def _closure_runs_once(optimizer: Optimizer) -> bool:
    """Returns whether the optimizer is known to evaluate a closure once, at the weights before the step.

    Lightning gives a closure to every step, so that this is the usual case.
    """
    known = type(optimizer).__module__.split(".")[0] in ("torch", "timm")
    return known and not isinstance(optimizer, torch.optim.LBFGS)
