"""Linear scaling on one's own data: k steps at a small batch against one step at k times the batch and rate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from smdtrack.notices import SmdtrackError
from smdtrack.record.opened_run import OpenedRun, Setting
from smdtrack.record.run import Run
from smdtrack.record.summary import Summary
from smdtrack.report.facts import summary_of
from smdtrack.report.settings import number, settings_of

#: Share by which the learning rates' ratio may differ from the batches' and still count as scaled with them.
_SAME_FACTOR = 0.01


@dataclass(frozen=True)
class WeightScaling:
    """One weight, or the median of all.

    Attributes:
        ratio: RMS angle over k steps of the small batch / RMS angle of one step of the large one.
        measured: The ratio that the small run's own angles predict: sqrt(R_k), R_k = theta_k^2 / (k theta_1^2).
    """

    key: str
    ratio: float
    measured: float


@dataclass(frozen=True)
class LinearScaling:
    """Two runs whose batch and learning rate differ by the same factor k.

    Attributes:
        white: sqrt(R_k) for gradients uncorrelated in time; None where theory does not know the optimizer.
        bound: sqrt(k), which no momentum exceeds.
    """

    small: str
    large: str
    factor: int
    weights: tuple[WeightScaling, ...]
    overall: WeightScaling
    white: float | None
    bound: float
    verdict: str


def linear_scaling_of(one: tuple[str, OpenedRun], other: tuple[str, OpenedRun]) -> LinearScaling:
    """Returns how far k small steps turn each weight, over one large step.

    With lines at equilibrium, `Delta^2` goes as the learning rate, so that one step of the large run turns
    `sqrt(k) Delta`. The k small ones turn `sqrt(k R_k) Delta`. Their ratio is `sqrt(R_k)`, with
    `R_k = 1 + 2 sum_{j<k} (1 - j/k) rho_j` and rho the autocorrelation of the updates (derived here; see `theory`).

    Args:
        one, other: A run's letter and the run.

    Raises:
        SmdtrackError: If batch and learning rate do not differ by one whole factor, or the angle over k steps was not
            measured.
    """
    settings = [settings_of(opened.run.info.params, opened.settings) for _, opened in (one, other)]
    factor = _factor(settings)
    if factor < 1:
        one, other, settings = other, one, settings[::-1]
        factor = 1 / factor
    steps = round(factor)
    (small, small_run), (large, large_run) = ((letter, opened.run) for letter, opened in (one, other))
    family = f"angle_k{steps}"
    if family not in small_run.values:
        lags = sorted(int(name[7:]) for name in small_run.values if name.startswith("angle_k") and name[7:].isdigit())
        there = f"; it has {', '.join(map(str, lags))}" if lags else ""
        raise SmdtrackError(
            f"run {small_run.info.name} has no angle over {steps} steps{there}: train it again with the lag {steps}"
        )
    rows = _rows(small_run, large_run, family, steps)
    if not rows:
        raise SmdtrackError(f"runs {small_run.info.name} and {large_run.info.name} have no weight in common")
    overall = WeightScaling(
        "median", float(np.median([row.ratio for row in rows])), float(np.median([row.measured for row in rows]))
    )
    white, bound = white_ratio(settings[0], _shape(small_run), steps), float(np.sqrt(steps))
    verdict = _verdict(small, large, steps, overall, white, bound)
    return LinearScaling(small, large, steps, tuple(rows), overall, white, bound, verdict)


def white_ratio(settings: Mapping[str, Setting], shape: tuple[int, ...], steps: int) -> float | None:
    """Returns sqrt(R_k) of an optimizer for gradients uncorrelated in time; None if theory does not know it.

    Args:
        settings: With `optimizer`, the name of its class, and its hyper-parameters.
        shape: Of a weight, for optimizers that look at it.
        steps: k.
    """
    import torch

    from smdtrack.theory import identify

    kind = _class(str(settings.get("optimizer", "")))
    if kind is None:
        return None
    try:
        optimizer = kind([torch.nn.Parameter(torch.ones(shape))], lr=0.1)
        group = optimizer.param_groups[0]
        group.update({key: _hyper_parameter(settings[key], group[key]) for key in group if key in settings})
        return identify(optimizer).line(group, shape).linear_scaling_ratio(steps)
    except (TypeError, ValueError):
        return None


def _factor(settings: Sequence[Mapping[str, Setting]]) -> float:
    batches = [number(run, "batch_size") for run in settings]
    rates = [number(run, "lr") for run in settings]
    if not all(batches) or not all(rates):
        missing = "batch_size" if not all(batches) else "lr"
        raise SmdtrackError(f"linear scaling takes batch size and learning rate of both runs; {missing} is not known")
    batch = (batches[1] or 1) / (batches[0] or 1)
    rate = (rates[1] or 1) / (rates[0] or 1)
    larger = max(batch, 1 / batch)
    if larger == 1 or abs(larger - round(larger)) > 1e-9 or abs(rate / batch - 1) > _SAME_FACTOR:
        raise SmdtrackError(
            f"linear scaling takes runs whose batch and learning rate differ by one whole factor;"
            f" here the batch is x {batch:g} and the rate x {rate:g}"
        )
    return batch


def _rows(small: Run, large: Run, family: str, steps: int) -> list[WeightScaling]:
    windows = [summary_of(run) for run in (small, large)]
    places = {weight.key: index for index, weight in enumerate(large.info.weights)}
    rows = []
    for index, weight in enumerate(small.info.weights):
        if weight.key not in places:
            continue
        many = _rms(small, family, index, windows[0])
        single = _rms(small, "angle", index, windows[0])
        large_step = _rms(large, "angle", places[weight.key], windows[1])
        if many and single and large_step:
            rows.append(WeightScaling(weight.key, many / large_step, many / (single * float(np.sqrt(steps)))))
    return rows


def _rms(run: Run, family: str, index: int, window: Summary | None) -> float | None:
    if window is None:
        return None
    inside = (run.steps >= window.first_step) & (run.steps <= window.last_step)
    values = run.values[family][inside, index]
    values = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(values**2))) if len(values) else None


def _verdict(small: str, large: str, steps: int, overall: WeightScaling, white: float | None, bound: float) -> str:
    said = (
        f"{steps} steps of {small} turn a weight {overall.ratio:.2f}x as far as one step of {large} (1 would be exact"
    )
    said += " linear scaling)"
    if white is not None:
        said += f"; theory has {white:.2f} for gradients uncorrelated in time"
    said += f", {small}'s own angles over {steps} steps predict {overall.measured:.2f}, and the bound is {bound:.2f}."
    return said


def _shape(run: Run) -> tuple[int, ...]:
    shape = run.info.weights[0].shape if run.info.weights else ()
    return shape if len(shape) >= 2 else (64, 64)


def _class(name: str) -> type | None:
    import timm.optim
    import torch

    for home in (torch.optim, timm.optim):
        kind = getattr(home, name, None)
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
            return kind
    return None


def _hyper_parameter(given: Setting, default: object) -> object:
    if isinstance(default, tuple):
        return tuple(float(part) for part in str(given).split())
    return given
