"""From one optimizer to the lines of its weights.

family = identify(optimizer)
line = family.line(optimizer.param_groups[0], (64, 32, 3, 3))
"""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from smdtrack.notices import SmdtrackError
from smdtrack.theory import filters
from smdtrack.theory.calibration import CannotRunError, calibrated
from smdtrack.theory.decay_pulls import decay_pulls
from smdtrack.theory.dynamics import Dynamics, description_of, line_of, no_line, with_buffer
from smdtrack.theory.group_settings import GroupSettings
from smdtrack.theory.line import Line, LineDescription
from smdtrack.theory.lookahead import inside_lookahead
from smdtrack.theory.optimizer_info import OptimizerInfo, never
from smdtrack.theory.optimizer_table import info_of
from smdtrack.theory.own_process import check_reproducible, in_own_process
from smdtrack.theory.rules_calibrated import cautious, unknown
from smdtrack.theory.update_statistics import UpdateStatistics

_CODE_READ = "code read, not run"
_CORRECTED_DECAY = "corrected decay: Defazio, 2506.02285"
#: Entries of a parameter group on which no line depends, and which change from step to step.
_NOT_HYPER_PARAMETERS = frozenset({"params", "step", "lookahead_step", "initial_lr", "param_names", "k", "exp_avg_sq"})
#: Lines kept at most; a schedule makes a new one at every step.
_MOST_KEPT = 4096
#: Relative change of the step count at which a momentum that depends on it is computed anew.
_STEP_CHANGE = 0.02


class Family:
    """The lines of one optimizer's weights; they are kept while the hyper-parameters stay the same.

    Attributes:
        name: The optimizer's name for people.
        known: False if the optimizer has no record, so that its lines are calibrated.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        inner = getattr(optimizer, "_base_optimizer", None)
        self._lookahead = type(optimizer).__name__ == "Lookahead" and isinstance(inner, Optimizer)
        optimizer = inner if self._lookahead and inner is not None else optimizer
        # A weak reference: tracking must not keep a training's memory.
        self._optimizer_reference = weakref.ref(optimizer)
        info = info_of(type(optimizer))
        self.known = info is not None
        self._info = info or _info_of_unknown(optimizer)
        self.name = self._info.title
        self._step: int | None = None
        self._dynamics: dict[tuple[Any, ...], Dynamics] = {}
        self._lines: dict[tuple[Any, ...], Line] = {}
        self._tensor_values: dict[int, tuple[int, float]] = {}

    @property
    def _optimizer(self) -> Optimizer:
        optimizer = self._optimizer_reference()
        if optimizer is None:
            raise SmdtrackError(f"{self.name}: the optimizer has been freed")
        return optimizer

    @property
    def info(self) -> OptimizerInfo:
        """The optimizer's record; one made for the occasion if it has none."""
        return self._info

    def line(
        self,
        group: Mapping[str, Any],
        shape: tuple[int, ...],
        *,
        state_factor: float | None = None,
        alignment: float | None = None,
    ) -> Line:
        """Returns the line of a weight of this shape under the group's present hyper-parameters.

        Args:
            group: A parameter group of the optimizer (timm's `lr_scale` is already in its lr).
            shape: Of the weight.
            state_factor: The weight's entry of `decay_pulls` over its squared norm, if the optimizer has one.
            alignment: `<u, b>/|u|^2` of update and momentum buffer, from means over several steps, if `momentum_entry`
                names the buffer.
        """
        key = self._key(group, tuple(shape))
        if state_factor is not None or alignment is not None:
            return line_of(self._dynamics_of(key, group, shape), state_factor, alignment)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = line_of(self._dynamics_of(key, group, shape))
            if len(self._lines) > _MOST_KEPT:
                self._lines.clear()
        return line

    def describe(
        self, group: Mapping[str, Any], shape: tuple[int, ...], *, in_training: bool = True
    ) -> LineDescription:
        """Returns in words the line that a weight of this shape gets.

        Args:
            group: A parameter group of the optimizer.
            shape: Of the weight.
            in_training: Whether to describe the line that training gets, which may use the optimizer's state. False
                describes what is known from the hyper-parameters alone. No optimizer that has a record is run then, and
                a line that cannot be calibrated is described as if it could.
        """
        if not in_training:
            return description_of(self._compute(group, shape, _as_if_memoryless))
        dynamics = self._dynamics_of(self._key(group, tuple(shape)), group, shape)
        return description_of(dynamics if self.momentum_entry(group) is None else with_buffer(dynamics))

    def momentum_entry(self, group: Mapping[str, Any]) -> str | None:
        """Returns the name of the momentum buffer in the state if it makes the line exact; None otherwise.

        It does for Nesterov momentum with coupled decay. The line needs the inner product `<d, b>` of the weight's
        change d of a step and the buffer b after it: `<u, b>/|u|^2 = -lr <d, b>/<d, d>`.
        """
        nesterov = group.get("nesterov") and group.get("weight_decay")
        return self._info.momentum_entry if nesterov and not self._lookahead else None

    def decay_pulls(
        self,
        parameters: Sequence[Tensor],
        states: Sequence[Mapping[str, Any]],
        group: Mapping[str, Any],
    ) -> list[Tensor] | None:
        """Returns `<w, w/denom>` per weight if weight decay is divided by a denominator of the state, else None.

        Call it after a step. The results are 0-d float64 tensors on the weights' device. They are sums over elements,
        so that those of a weight's shards add up. The device is never waited for. For NAdam, whose momentum grows with
        the step count, the count is noted here if it is kept on the host.

        Args:
            parameters: Weights of the group, all on one device.
            states: The optimizer's state for each; none may be empty.
            group: The parameter group.
        """
        if self._info.depends_on_step and states:
            self._note_step(states[0]["step"])
        if self._info.denominators is None or not states or not group.get("weight_decay"):
            return None
        if not self._info.is_coupled(self._optimizer, group):
            return None
        return decay_pulls(
            self._info.denominators, parameters, states, group, self._own_share(group), self._info.eps_power
        )

    def _own_share(self, group: Mapping[str, Any]) -> float:
        return self._info.own_share(group, self._step) if self._info.own_share is not None else 0.0

    def _note_step(self, step: Any) -> None:
        if isinstance(step, Tensor):
            if step.device.type != "cpu":
                return
            step = int(step)
        if self._step is None or step < self._step or step > (1 + _STEP_CHANGE) * self._step + 10:
            self._step = int(step)

    def _key(self, group: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[Any, ...]:
        values: list[Any] = [shape if self._info.depends_on_shape else None, self._step]
        for name, value in group.items():
            if name in _NOT_HYPER_PARAMETERS:
                continue
            if isinstance(value, Tensor):
                value = self._number(value)
            elif isinstance(value, list):
                value = repr(value)
            values.append(value)
        return tuple(values)

    def _number(self, value: Tensor) -> float:
        """Returns a hyper-parameter that is kept in a tensor, read again only after it was written to."""
        seen = self._tensor_values.get(id(value))
        if seen is None or seen[0] != value._version:
            seen = self._tensor_values[id(value)] = (value._version, float(value.detach()))
        return seen[1]

    def _dynamics_of(self, key: tuple[Any, ...], group: Mapping[str, Any], shape: tuple[int, ...]) -> Dynamics:
        dynamics = self._dynamics.get(key)
        if dynamics is None:
            if len(self._dynamics) >= _MOST_KEPT:
                self._dynamics.clear()
            dynamics = self._dynamics[key] = self._compute(
                group, shape, calibrated if self.known else _calibrated_apart
            )
        return dynamics

    def _compute(self, group: Mapping[str, Any], shape: tuple[int, ...], calibrate: Any) -> Dynamics:
        """Applies the optimizer's rule and completes its words from the optimizer's record."""
        plain = {
            name: self._number(value) if isinstance(value, Tensor) and value.ndim == 0 else value
            for name, value in group.items()
            if name != "params"
        }
        coupled = self._info.is_coupled(self._optimizer, plain)
        settings = GroupSettings(plain, tuple(shape), self._optimizer, self.name, coupled, calibrate, self._step)
        try:
            settings = replace(settings, own_share=self._own_share(plain) if coupled else 0.0)
            if not self.known:
                check_reproducible(self._optimizer, plain)
            dynamics = _completed(self._info.rule(settings), self._info)
            if self._info.calibrate_if_cautious and settings.flag("caution"):
                dynamics = cautious(dynamics, settings)
        except CannotRunError as error:
            dynamics = no_line(str(error), self.name)
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            # Hyper-parameters for which a formula is not defined must not end a training: there is no line.
            dynamics = no_line(f"no formula for these hyper-parameters: {error}", self.name)
        if settings.flag("corrected_weight_decay"):
            dynamics = _with_corrected_decay(dynamics)
        return inside_lookahead(dynamics, plain) if self._lookahead else dynamics


def identify(optimizer: Optimizer) -> Family:
    """Returns the family of an optimizer, by its class; inside timm's Lookahead, by the class of the inner one."""
    return Family(optimizer)


def _info_of_unknown(optimizer: Optimizer) -> OptimizerInfo:
    name = type(optimizer).__name__
    key = f"{type(optimizer).__module__}.{name}"
    return OptimizerInfo(key, name, unknown, is_coupled=never, depends_on_shape=True)


def _completed(dynamics: Dynamics, info: OptimizerInfo) -> Dynamics:
    """Fills in what the rule left to the record: title, kind, formula, source and assumptions."""
    completed = replace(
        dynamics,
        title=dynamics.title or info.title,
        kind=dynamics.kind or info.kind,
        formula=info.formula if dynamics.formula is None else dynamics.formula,
        source=info.source if dynamics.source is None else dynamics.source,
        assumptions=info.assumptions if dynamics.assumptions is None else dynamics.assumptions,
    )
    if info.verified or completed.updates is None:
        return completed
    return replace(completed, kind="approximate", assumptions=(*(completed.assumptions or ()), _CODE_READ))


def _with_corrected_decay(dynamics: Dynamics) -> Dynamics:
    """Puts the corrected decay, lr^2 wd / lr_max, into the words."""
    formula = dynamics.formula or ""
    if "lr wd" not in formula:
        return dynamics
    return replace(
        dynamics,
        formula=formula.replace("lr wd", "(lr^2/lr_max) wd"),
        source=f"{dynamics.source}; {_CORRECTED_DECAY}",
    )


def _calibrated_apart(
    optimizer: Optimizer, group: Mapping[str, Any], shape: tuple[int, ...] | None
) -> UpdateStatistics:
    """Calibrates a user's own class in a process of its own, where it cannot disturb the training."""
    return calibrated(optimizer, group, shape, in_own_process)


def _as_if_memoryless(
    optimizer: Optimizer, group: Mapping[str, Any], shape: tuple[int, ...] | None
) -> UpdateStatistics:
    """Stands in for a calibration when only words are asked for."""
    return filters.identity()
