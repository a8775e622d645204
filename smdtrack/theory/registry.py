"""Which rule an optimizer has: a table by class, and the family that one optimizer resolves to.

    family = identify(optimizer)
    line = family.line(optimizer.param_groups[0], (64, 32, 3, 3))

Classes are told by where they come from and what their step is, not by name alone: a subclass with a `step` of its own
is unknown, and calibrated.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from smdtrack.optimizers import state_of
from smdtrack.theory import rules_adam, rules_other, rules_sgd, rules_trust
from smdtrack.theory import updates as up
from smdtrack.theory.calibration import CannotRunError
from smdtrack.theory.line import Line
from smdtrack.theory.motion import Motion, line_of, no_line
from smdtrack.theory.rules_other import Rule, approximate, cautious
from smdtrack.theory.settings import Setting
from smdtrack.theory.state_factor import state_factors

_READ = "code read, not run"
_CORRECTED = "corrected decay: Defazio, 2506.02285"

RULES: dict[str, Rule] = {
    "torch.SGD": rules_sgd.sgd,
    "torch.Adam": rules_adam.torch_adam,
    "torch.AdamW": rules_adam.torch_adam,
    "torch.NAdam": rules_adam.nadam,
    "torch.RAdam": rules_adam.radam,
    "torch.Adamax": rules_adam.adamax,
    "torch.Adagrad": rules_adam.adagrad,
    "torch.RMSprop": rules_adam.rmsprop,
    "torch.Adadelta": rules_other.adadelta,
    "timm.SGDW": cautious(rules_sgd.sgdw),
    "timm.SGDP": rules_sgd.sgdp,
    "timm.NvNovoGrad": rules_sgd.novograd,
    "timm.AdamWLegacy": cautious(rules_adam.adamw),
    "timm.RAdamLegacy": rules_adam.adamw,
    "timm.LaProp": cautious(rules_adam.adamw),
    "timm.Adahessian": rules_adam.adahessian,
    "timm.AdaBelief": rules_adam.adabelief,
    "timm.Adopt": cautious(rules_adam.adopt),
    "timm.NAdamLegacy": rules_adam.nadam,
    "timm.NAdamW": cautious(rules_adam.nadamw),
    "timm.AdamP": rules_adam.adamp,
    "timm.Adan": cautious(rules_adam.adan),
    "timm.Mars": cautious(rules_adam.mars),
    "timm.Lion": cautious(rules_adam.lion),
    "timm.RMSpropTF": cautious(rules_adam.rmsprop),
    "timm.Adafactor": cautious(rules_adam.adafactor),
    "timm.AdafactorBigVision": cautious(rules_adam.adafactor_bv),
    "timm.Lamb": rules_trust.lamb,
    "timm.Lars": rules_trust.lars,
    "timm.Muon": rules_other.muon,
    "timm.Kron": rules_other.kron,
    "timm.MADGRAD": rules_other.madgrad,
    "apex.FusedSGD": approximate(rules_sgd.sgd, _READ),
    "apex.FusedAdam": approximate(rules_other.fused_adam, _READ),
    "apex.FusedLAMB": approximate(rules_trust.lamb, _READ),
    "apex.FusedNovoGrad": approximate(rules_other.fused_novograd, _READ),
    "bitsandbytes.SGD": approximate(rules_other.bnb_sgd, _READ),
    "bitsandbytes.Adam": approximate(rules_other.bnb_adam, _READ),
    "bitsandbytes.AdamW": approximate(rules_other.bnb_adam, _READ),
    "bitsandbytes.Lion": approximate(rules_adam.lion, _READ),
    "bitsandbytes.AdEMAMix": approximate(rules_other.bnb_ademamix, _READ),
}
for _name in ("SGD", "Adam", "AdamW", "Lion", "AdEMAMix"):
    RULES[f"bitsandbytes.{_name}8bit"] = RULES[f"bitsandbytes.{_name}"]

NAMES = {
    "timm.AdamWLegacy": "AdamW",
    "timm.RAdamLegacy": "RAdamW",
    "timm.LaProp": "LaProp",
}
_COUNTERS = frozenset({"params", "step", "lookahead_step", "initial_lr", "param_names", "k", "exp_avg_sq"})
_BY_SHAPE = frozenset({"timm.Muon"})


def _key(optimizer_class: type) -> str | None:
    """The table's key of a class, through subclasses that leave `step` as it is."""
    step = inspect.unwrap(getattr(optimizer_class, "step", optimizer_class))
    for ancestor in optimizer_class.__mro__:
        key = f"{ancestor.__module__.split('.')[0]}.{ancestor.__name__}"
        if key in RULES and inspect.unwrap(ancestor.__dict__.get("step", getattr(ancestor, "step", None))) is step:
            return key
    return None


class Family:
    """The rule of one optimizer, resolved once; lines are kept while the hyper-parameters stand still.

    Attributes:
        name: for people.
        known: False where the optimizer has no rule and is calibrated.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        inner = getattr(optimizer, "_base_optimizer", None)
        self._lookahead = type(optimizer).__name__ == "Lookahead" and isinstance(inner, Optimizer)
        self._optimizer: Optimizer = inner if self._lookahead and inner is not None else optimizer
        found = _key(type(self._optimizer))
        self.known = found is not None
        self._class = found or f"{type(self._optimizer).__module__}.{type(self._optimizer).__name__}"
        self._rule = RULES[found] if found else rules_other.unknown
        self.name = NAMES.get(self._class, type(self._optimizer).__name__)
        self._by_shape = self._class in _BY_SHAPE or not self.known
        self._step: int | None = None
        self._motions: dict[tuple[Any, ...], Motion] = {}
        self._lines: dict[tuple[Any, ...], Line] = {}
        self._tensor_values: dict[int, tuple[int, float]] = {}

    def line(
        self,
        group: Mapping[str, Any],
        shape: tuple[int, ...],
        *,
        state_factor: float | None = None,
        alignment: float | None = None,
    ) -> Line:
        """The line of a weight of this shape under the group's present hyper-parameters.

        Args:
            group: a parameter group of the optimizer (`lr_scale` is already in its lr).
            shape: of the weight.
            state_factor: the weight's value of `Family.state_factors`, where the family has one.
            alignment: `<u, b>/|u|^2` of update and momentum buffer, means over several steps, where
                `Family.momentum_entry` names the buffer.
        """
        key = self._hyper_parameters(group, tuple(shape))
        if state_factor is None and alignment is None:
            line = self._lines.get(key)
            if line is None:
                line = self._lines[key] = line_of(self._motion(key, group, shape))
                if len(self._lines) > 4096:
                    self._lines.clear()
            return line
        return line_of(self._motion(key, group, shape), state_factor, alignment)

    def momentum_entry(self, group: Mapping[str, Any]) -> str | None:
        """Name of the state's momentum buffer where the line gets exact by it (coupled Nesterov SGD), else None.

        What is wanted of it is `<d, b>`, d the weight's change of the step and b the buffer after it, since
        `<u, b>/|u|^2 = -lr <d, b>/<d, d>`.
        """
        nesterov = self._class == "torch.SGD" and group.get("nesterov") and group.get("weight_decay")
        return "momentum_buffer" if nesterov and not self._lookahead else None

    def state_factors(
        self,
        parameters: Sequence[Tensor],
        states: Sequence[Mapping[str, Any]],
        group: Mapping[str, Any],
    ) -> list[Tensor] | None:
        """`<w^2/denom>/<w^2>` per weight, 0-d float64, where weight decay passes through the state, else None.

        Call it after a step. It never waits for the device. A momentum that grows with the step count (NAdam) is
        noted on the way, from a counter that lives on the host.

        Args:
            parameters: weights of the group, all on one device.
            states: the optimizer's state for each; None of them may be empty.
            group: the parameter group.
        """
        if not group.get("weight_decay") or group.get("decoupled_weight_decay") or group.get("decoupled_decay"):
            return None
        if group.get("decoupled") or not states:
            return None
        if self._class in ("torch.NAdam", "timm.NAdamLegacy"):
            self._note_step(states[0]["step"])
        return state_factors(self._class, parameters, states, group) if self._is_coupled() else None

    def _is_coupled(self) -> bool:
        return not (
            self._class == "torch.AdamW"
            or (self._class == "apex.FusedAdam" and bool(getattr(self._optimizer, "adam_w_mode", 1)))
        )

    def _note_step(self, step: Any) -> None:
        if isinstance(step, Tensor):
            if step.device.type != "cpu":
                return
            step = int(step)
        if self._step is None or step < self._step or step > 1.02 * self._step + 10:
            self._step = int(step)

    def _hyper_parameters(self, group: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[Any, ...]:
        values: list[Any] = [shape if self._by_shape else None, self._step]
        for name, value in group.items():
            if name in _COUNTERS:
                continue
            if isinstance(value, Tensor):
                value = self._tensor(value)
            elif isinstance(value, list):
                value = repr(value)
            values.append(value)
        return tuple(values)

    def _tensor(self, value: Tensor) -> float:
        """A hyper-parameter held in a tensor, read again only after it was written to."""
        seen = self._tensor_values.get(id(value))
        if seen is None or seen[0] != value._version:
            seen = self._tensor_values[id(value)] = (value._version, float(value.detach()))
        return seen[1]

    def _motion(self, key: tuple[Any, ...], group: Mapping[str, Any], shape: tuple[int, ...]) -> Motion:
        motion = self._motions.get(key)
        if motion is None:
            plain = {
                name: self._tensor(value) if isinstance(value, Tensor) and value.ndim == 0 else value
                for name, value in group.items()
                if name != "params"
            }
            setting = Setting(plain, tuple(shape), self._optimizer, self.name, self._step)
            try:
                motion = self._rule(setting)
            except CannotRunError as error:
                motion = no_line(self.name, str(error))
            except (ValueError, KeyError, TypeError, ArithmeticError) as error:
                # a line must never end somebody's training: what the hyper-parameters do not allow has none
                motion = no_line(self.name, f"its hyper-parameters give none: {error}")
            if setting.flag("corrected_weight_decay") and "lr wd" in motion.formula:
                motion = replace(
                    motion,
                    formula=motion.formula.replace("lr wd", "(lr^2/lr_max) wd"),
                    source=f"{motion.source}; {_CORRECTED}",
                )
            if self._lookahead and motion.updates is not None:
                motion = _looking_ahead(motion, plain)
            if len(self._motions) > 4096:
                self._motions.clear()
            self._motions[key] = motion
        return motion


def _looking_ahead(motion: Motion, group: Mapping[str, Any]) -> Motion:
    """A motion inside timm's Lookahead: decay and growth of the slow weights (derived in `updates.lookahead`)."""
    alpha, period = float(group["lookahead_alpha"]), int(group["lookahead_k"])
    assert motion.updates is not None
    if motion.trust is not None:
        return no_line(f"Lookahead {motion.optimizer}", "a trust ratio inside Lookahead: not worked out")
    return replace(
        motion,
        optimizer=f"Lookahead {motion.optimizer}",
        updates=up.lookahead(motion.updates, alpha, period),
        decay=alpha * motion.decay,
        formula="2 alpha gamma / R of whole Lookahead steps",
        source="derived here (slow weights move by alpha times the fast path)",
        assumptions=(*motion.assumptions, "RMS over whole cycles; a step is one of Lookahead's, jump included"),
    )


def identify(optimizer: Optimizer) -> Family:
    """The family of an optimizer: by its class and flags; timm's Lookahead is looked through."""
    return Family(optimizer)


def equilibrium_lines(optimizer: Optimizer) -> list[Line]:
    """One line per parameter group, for the shape of the group's first weight with two dimensions or more.

    Where weight decay passes through the optimizer's state the state is read, if there has been a step.

    Example:
        >>> import torch, smdtrack
        >>> weight = torch.nn.Parameter(torch.randn(8, 8))
        >>> sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=1e-4)
        >>> round(smdtrack.equilibrium_lines(sgd)[0].angular_update, 6)
        0.003244
    """
    family = identify(optimizer)
    lines = []
    for group in optimizer.param_groups:
        weights = [parameter for parameter in group["params"] if parameter.ndim >= 2] or list(group["params"])
        state = state_of(optimizer)
        seen = [weight for weight in weights[:1] if state.get(weight)]
        factors = family.state_factors(seen, [state[weight] for weight in seen], group)
        shape = tuple(weights[0].shape) if weights else (1, 1)
        with torch.no_grad():
            lines.append(family.line(group, shape, state_factor=float(factors[0]) if factors else None))
    return lines
