"""The evidence ladder: which parameters leave the function unchanged when they are scaled.

Structural invariance, `f(k w) = f(w)` for all `k > 0` at every value of the other parameters, is tested where it can be
seen: on a float64 copy without eps and noise, at a generic point. Gradients propose (a radial derivative is the
proof of its opposite), forward passes certify.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from smdtrack.invariance.attribution import FrozenVariance, responsible
from smdtrack.invariance.bench import ORTHOGONAL, Bench, RadialDerivatives, Reading
from smdtrack.invariance.duplicate import neutralise, private_copy, set_training_mode, unwrapped
from smdtrack.invariance.feed import Feed, candidate_feeds, feed_of_example, feed_of_size, larger
from smdtrack.invariance.isolation import isolated
from smdtrack.invariance.scan import nothing_normalises
from smdtrack.invariance.verdicts import Audit, Cause, Scope, Verdict, Weight
from smdtrack.notices import SmdtrackError

ZERO_ENERGY = 1e-10
FAINT_ENERGY = 1e-7
FAINT_INVARIANT_ENERGY = 1e-5
INVARIANT_COSINE = ORTHOGONAL
RADIAL_COSINE = 1e-5
UNCHANGED = 1e-6
UNCHANGED_ALONE = 1e-5
UNTOUCHED = 1e-8
AMPLITUDES = (0.3, 0.1, 0.02)
MOST_HONESTY_PASSES = 200
NOT_FINITE = "the outputs are not finite"


@dataclass
class _Finding:
    """What is known of one tensor while the ladder is being climbed."""

    readings: list[Reading] = field(default_factory=list)
    energy: float = 0.0
    verdict: Verdict | None = None
    scope: Scope | None = None
    filter_dim: int | None = None
    cause: Cause | None = None
    norm: str | None = None
    radial: RadialDerivatives | None = None
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def cosine(self) -> float:
        return max((reading.cosine for reading in self.readings), default=0.0)

    @property
    def filter_dims(self) -> list[int]:
        """Dimensions along which every slice had no radial derivative of its own, in all draws."""
        seen = [reading.slices for reading in self.readings]
        dims = set.intersection(*(set(slices) for slices in seen)) if seen else set()
        return sorted(dim for dim in dims if all(slices[dim] < INVARIANT_COSINE for slices in seen))


def audit(
    model: nn.Module,
    example_input: Any = None,
    *,
    input_size: Sequence[int] | None = None,
    seed: int = 0,
    name: str | None = None,
    device: torch.device | str | None = None,
) -> Audit:
    """Decides for every parameter of a model whether it is scale-invariant, and why.

    The model is copied to float64 (about 32 bytes per parameter); its values, gradients, buffers, mode, hooks and the
    random states of the process are as before when the function returns. The decision is made for the model as it
    trains: modules keep their own training flag, unless the whole model is in eval mode, which is then put
    into training mode in the copy. Wrappers of `torch.compile` and data parallelism are looked through; the
    names stay those of `model.named_parameters()`.

    Args:
        model: Any module whose forward returns floating tensors, in whatever containers.
        example_input: A tensor, a tuple of positional arguments or a dict of keyword arguments, the first dimension of
            the tensors being the batch; only shapes, ranges and integer values are used. Found by trying when neither
            it nor `input_size` is given.
        input_size: Shape of the input without the batch dimension, instead of an example.
        seed: Seeds the draws of points, batches and losses.
        name: What to call the model in the result; its class by default.
        device: Where to compute; by default where the first parameter is.

    Raises:
        SmdtrackError: No input is known that the model takes, or it cannot be copied or run.
    """
    started = time.perf_counter()
    core = unwrapped(model)
    names = dict(model.named_parameters())
    title = name or type(core).__name__
    place = _place(core, device)
    if example_input is not None and input_size is not None:
        raise SmdtrackError("give example_input or input_size, not both")
    feeds: Iterable[Feed]
    if example_input is not None:
        feeds = [feed_of_example(example_input)]
    elif input_size is not None:
        feeds = [feed_of_size(input_size)]
    else:
        feeds = candidate_feeds(core)
    if not names or nothing_normalises(core):
        weights = tuple(Weight(key, tuple(value.shape), "not") for key, value in names.items())
        return _summed_up(title, None, {"tensor": None, "filter": None}, weights, started)
    with isolated(place):
        duplicate, copies = private_copy(core, place)
        set_training_mode(duplicate)
        neutralise(duplicate)
        bench = Bench(duplicate, {key: copies[id(value)] for key, value in names.items()}, place, seed)
        feed, findings, certificate = _climbed(bench, feeds, title)
        bigger = larger(feed)
        if bigger is not None and any(_blind_to_taps(bench, key, finding) for key, finding in findings.items()):
            with suppress(SmdtrackError):
                feed, findings, certificate = _climbed(bench, [bigger], title)
    weights = tuple(_weight(key, value, findings[key]) for key, value in names.items())
    return _summed_up(title, feed.input_size, certificate, weights, started)


def _place(model: nn.Module, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    first = next(model.parameters(), None)
    place = first.device if first is not None else torch.device("cpu")
    return torch.device("cpu") if place.type == "mps" else place


def _summed_up(
    title: str,
    input_size: tuple[int, ...] | None,
    certificate: dict[str, float | None],
    weights: tuple[Weight, ...],
    started: float,
) -> Audit:
    total = sum(weight.size for weight in weights)
    invariant = sum(weight.size for weight in weights if weight.verdict == "invariant")
    seconds = round(time.perf_counter() - started, 3)
    return Audit(title, input_size, total, invariant, seconds, certificate, weights)


def _weight(name: str, parameter: Tensor, finding: _Finding) -> Weight:
    verdict = finding.verdict or "not"
    cosine = finding.cosine if finding.energy > ZERO_ENERGY else None
    evidence = {
        "cosines": [reading.cosine for reading in finding.readings],
        "energy": finding.energy,
        "slices": {str(dim): value for dim, value in finding.readings[-1].slices.items()} if finding.readings else {},
        **finding.evidence,
    }
    return Weight(
        name, tuple(parameter.shape), verdict, finding.cause, finding.norm, finding.scope, finding.filter_dim, cosine,
        evidence,
    )


def _blind_to_taps(bench: Bench, name: str, finding: _Finding) -> bool:
    """A spatial kernel of which only one tap could be seen: the input was too small to judge it."""
    shape = bench.parameters[name].shape
    return finding.verdict == "degenerate" and len(shape) > 2 and any(extent > 1 for extent in shape[2:])


def _climbed(
    bench: Bench, feeds: Iterable[Feed], title: str
) -> tuple[Feed, dict[str, _Finding], dict[str, float | None]]:
    """Climbs all rungs with the first feed that the model takes."""
    feed, findings = _two_draws(bench, feeds, title)
    _propose(findings)
    frozen = _freeze_batch_variance(bench, findings)
    base, _ = bench.before()
    _settle_silent(bench, base, findings, frozen)
    _settle_doubtful(bench, base, findings)
    certificate = _certify(bench, base, findings)
    _attribute(bench, findings, frozen)
    _check_gradients(bench, findings)
    bench.release()
    return feed, findings, certificate


def _two_draws(bench: Bench, feeds: Iterable[Feed], title: str) -> tuple[Feed, dict[str, _Finding]]:
    """Rungs 2 and 3: gradients at two generic points, with two batches and two random linear losses."""
    feed, amplitude = _first_that_runs(bench, feeds, title)
    findings = {name: _Finding() for name in bench.parameters}
    for draw in range(2):
        if draw:
            bench.move_to_generic_point(amplitude)
            bench.draw_batch(feed)
            try:
                bench.backward()
            except FloatingPointError as error:
                raise SmdtrackError(f"{title}: {error}, at a generic point in float64") from error
        readings = {name: bench.reading(name) for name in findings}
        most = max(reading.energy for reading in readings.values())
        for name, reading in readings.items():
            findings[name].readings.append(reading)
            findings[name].energy = max(findings[name].energy, reading.energy / most if most > 0 else 0.0)
    return feed, findings


def _first_that_runs(bench: Bench, feeds: Iterable[Feed], title: str) -> tuple[Feed, float]:
    """The first input that the model takes, and how far from initialisation its outputs stay finite."""
    tried: list[tuple[Feed, str]] = []
    for feed in feeds:
        for amplitude in AMPLITUDES:
            reason = _reason_not_to_run(bench, feed, amplitude, title)
            if reason is None:
                return feed, amplitude
            tried.append((feed, reason))
            if reason != NOT_FINITE:
                break
    if not tried:
        raise SmdtrackError(f"{title}: nothing in it says what input it takes; give example_input or input_size")
    feed, reason = tried[0]
    if feed.found:
        raise SmdtrackError(f"{title}: no input found that it takes; give example_input or input_size "
                            f"(tried {len(tried)}, first {feed.input_size}: {reason})")
    raise SmdtrackError(f"{title} does not take an input of size {feed.input_size}: {reason}")


def _reason_not_to_run(bench: Bench, feed: Feed, amplitude: float, title: str) -> str | None:
    try:
        bench.move_to_generic_point(amplitude)
        bench.draw_batch(feed)
        bench.backward()
    except SmdtrackError:
        raise
    except FloatingPointError:
        return NOT_FINITE
    except Exception as error:
        if is_out_of_memory(error):
            raise SmdtrackError(f"{title}: out of memory on {bench.device}, input size {feed.input_size}") from error
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else ''}"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "not enough memory" in text or (
        "can't allocate memory" in text or "out of memory" in text
    )


def _propose(findings: dict[str, _Finding]) -> None:
    """Rung 3: what the gradients say."""
    for finding in findings.values():
        if finding.energy <= ZERO_ENERGY:
            finding.evidence["proposed"] = "silent"
        # Of a one-tap filter that is nearly zero, the eps that is left shows as a faint radial gradient, and over many
        # filters that may cancel.
        elif finding.cosine < INVARIANT_COSINE and finding.energy <= FAINT_INVARIANT_ENERGY:
            finding.evidence["proposed"] = "doubtful"
        elif finding.cosine < INVARIANT_COSINE:
            finding.evidence["proposed"] = finding.verdict = "invariant"
        elif finding.cosine > RADIAL_COSINE and finding.energy > FAINT_ENERGY:
            finding.evidence["proposed"] = finding.verdict = "not"
        else:
            finding.evidence["proposed"] = "doubtful"


def _named(findings: dict[str, _Finding], proposed: str) -> list[str]:
    return [name for name, finding in findings.items() if finding.evidence["proposed"] == proposed]


def _freeze_batch_variance(bench: Bench, findings: dict[str, _Finding]) -> FrozenVariance:
    """Rung 6, run early because it also tells tensors that batch norm silences from those that nothing reads."""
    mode = FrozenVariance()
    with mode.watching(bench.model):
        bench.backward(mode)
    readings = {name: bench.reading(name) for name in findings}
    most = max(reading.energy for reading in readings.values())
    for name, finding in findings.items():
        finding.evidence["frozen_cosine"] = readings[name].cosine
        finding.evidence["frozen_energy"] = readings[name].energy / most if most > 0 else 0.0
        if finding.evidence["proposed"] != "not":
            finding.radial = bench.radial_derivatives(name, finding.filter_dims)
    # The forward passes that follow keep copies of the weights: gradients beside them would be the peak of memory.
    bench.release()
    return mode


def _culprits(names: list[str], unchanged: Callable[[list[str]], bool]) -> list[str]:
    """Finds by halving the tensors of a group whose change is felt."""
    if not names or unchanged(names):
        return []
    if len(names) == 1:
        return names
    middle = len(names) // 2
    found = _culprits(names[:middle], unchanged) + _culprits(names[middle:], unchanged)
    return found or names


def _settle_silent(bench: Bench, base: Tensor, findings: dict[str, _Finding], frozen: FrozenVariance) -> None:
    """Rung 4: of the tensors without a gradient, one forward pass changes all; what is felt is looked into."""
    silent = _named(findings, "silent")
    if not silent:
        return
    deviation = bench.deviation(base, silent, bench.anything_else)
    if deviation <= UNTOUCHED:
        for name in silent:
            findings[name].verdict = "null"
            findings[name].evidence["null_deviation"] = deviation
        return
    felt = set(_culprits(silent, lambda group: bench.deviation(base, group, bench.element_factors) <= UNCHANGED))
    quiet = [name for name in silent if name not in felt]
    sign_only = [name for name in quiet if findings[name].evidence["frozen_energy"] > ZERO_ENERGY]
    unread = [name for name in quiet if findings[name].evidence["frozen_energy"] <= ZERO_ENERGY]
    felt |= set(_culprits(unread, lambda group: bench.deviation(base, group, bench.anything_else) <= UNTOUCHED))
    for name in sign_only:
        findings[name].verdict = "degenerate"
    for name in unread:
        findings[name].verdict = "null"
    for name in felt:
        _judge_alone(bench, base, name, findings[name])


def _settle_doubtful(bench: Bench, base: Tensor, findings: dict[str, _Finding]) -> None:
    for name in _named(findings, "doubtful"):
        _judge_alone(bench, base, name, findings[name])


def _judge_alone(bench: Bench, base: Tensor, name: str, finding: _Finding) -> None:
    """Decides one tensor by forward passes: other values, a common factor, a factor per element."""
    anything = bench.deviation(base, [name], bench.anything_else)
    limit = max(UNCHANGED_ALONE * anything, 1e-12)
    scaled = bench.deviation(base, [name], lambda _, value: 2.3 * value)
    flipped = bench.deviation(base, [name], lambda _, value: -value)
    elements = bench.deviation(base, [name], bench.element_factors)
    finding.evidence["alone"] = {"anything": anything, "k=2.3": scaled, "k=-1": flipped, "elements": elements}
    if anything <= UNTOUCHED and flipped <= UNTOUCHED and finding.energy <= ZERO_ENERGY:
        finding.verdict = "null"
    elif elements <= limit:
        finding.verdict = "degenerate"
    else:
        finding.verdict = "invariant" if scaled <= limit else "not"


def _certify(bench: Bench, base: Tensor, findings: dict[str, _Finding]) -> dict[str, float | None]:
    """Rung 5: all invariant tensors scaled at once, per tensor and then per filter; what fails is judged alone."""
    positive = [name for name, finding in findings.items() if finding.verdict == "invariant"]
    if not positive:
        return {"tensor": None, "filter": None}
    deviation = bench.deviation(base, positive, bench.one_factor)
    if deviation > UNCHANGED:
        for name in _culprits(positive, lambda group: bench.deviation(base, group, bench.one_factor) <= UNCHANGED):
            _judge_alone(bench, base, name, findings[name])
        positive = [name for name in positive if findings[name].verdict == "invariant"]
        deviation = bench.deviation(base, positive, bench.one_factor)
    for name in positive:
        findings[name].evidence["group_deviation"] = deviation
    by_filter = _certify_filters(bench, base, {name: findings[name] for name in positive})
    return {"tensor": deviation, "filter": by_filter}


def _certify_filters(bench: Bench, base: Tensor, positive: dict[str, _Finding]) -> float | None:
    for name, finding in positive.items():
        dims = [dim for dim in finding.filter_dims if bench.parameters[name].dim() > 1]
        finding.scope = "filter" if dims else "tensor"
        finding.filter_dim = dims[0] if dims else None

    def change(name: str, value: Tensor) -> Tensor:
        return bench.slice_factors(positive[name].filter_dim or 0)(name, value)

    filters = [name for name, finding in positive.items() if finding.scope == "filter"]
    if not filters:
        return None
    deviation = bench.deviation(base, filters, change)
    if deviation > UNCHANGED:
        for name in _culprits(filters, lambda group: bench.deviation(base, group, change) <= UNCHANGED):
            positive[name].scope, positive[name].filter_dim = "tensor", None
        filters = [name for name in filters if positive[name].scope == "filter"]
        deviation = bench.deviation(base, filters, change)
    for name in filters:
        positive[name].evidence["filter_deviation"] = deviation
    return deviation


def _attribute(bench: Bench, findings: dict[str, _Finding], frozen: FrozenVariance) -> None:
    """Rung 6: with the variance of batch norm held constant, what batch norm made invariant is so no more."""
    caused = {name: finding for name, finding in findings.items() if finding.verdict in ("invariant", "degenerate")}
    for finding in caused.values():
        radial = finding.evidence["frozen_cosine"] > INVARIANT_COSINE
        finding.cause = "batch_norm" if radial and finding.evidence["frozen_energy"] > ZERO_ENERGY else "other"
    _name_norms([finding for finding in caused.values() if finding.cause == "batch_norm"], frozen)
    others = {key: value for key, value in caused.items() if value.cause == "other"}
    if others:
        mode = FrozenVariance(everything=True)
        with mode.watching(bench.model):
            bench.backward(mode)
        for name, finding in others.items():
            finding.radial = bench.radial_derivatives(name, finding.filter_dims)
        bench.release()
        _name_norms(others.values(), mode)


def _name_norms(findings: Iterable[_Finding], mode: FrozenVariance) -> None:
    for finding in findings:
        if finding.radial is None:
            continue
        by_filter = finding.filter_dim is not None or finding.verdict == "degenerate"
        radial = finding.radial.by_slice[finding.filter_dim or 0] if by_filter else finding.radial.whole
        if float(radial.abs().sum()) > INVARIANT_COSINE * finding.radial.energy:
            finding.norm = responsible(radial, mode.signatures)


def _check_gradients(bench: Bench, findings: dict[str, _Finding]) -> None:
    """Asks whether autograd tells the truth: straight-through tricks hide that a function is invariant.

    A radial derivative proves that a tensor is not invariant only if it is the derivative of the function. A
    difference quotient along random radial directions of all such tensors at once must equal what autograd says; if it
    does not, with three steps (a kink of the function may lie within one), the tensors that lie are found by halving
    and judged by their function.
    """
    negative = [name for name, finding in findings.items() if finding.evidence["proposed"] == "not"]
    if not negative:
        return
    radial = {name: findings[name].readings[-1].inner for name in negative}
    directions = {name: 1.5 - float(torch.rand((), generator=bench.generator)) for name in negative}
    here = bench.before()[1]
    noise = 1e-14 * max(1.0, abs(here))
    passes = iter(range(MOST_HONESTY_PASSES))

    def loss_at(group: list[str], step: float) -> float:
        next(passes)
        with bench.changed(group, lambda name, value: value * (1 + step * directions[name])):
            return bench.loss()

    def honest(group: list[str]) -> bool:
        claimed = sum(directions[name] * radial[name] for name in group)
        size = sum(abs(directions[name] * radial[name]) for name in group)
        for step in (1e-8, 1e-7, 1e-9):
            limit = 1e-6 * size + noise / step
            try:
                ahead = loss_at(group, step)
                if abs((ahead - here) / step - claimed) <= limit:
                    return True
                if abs((ahead - loss_at(group, -step)) / (2 * step) - claimed) <= limit:
                    return True
            except StopIteration:
                return True
        return False

    lying = _culprits(negative, honest)
    if lying:
        base, _ = bench.before()
        for name in lying:
            _judge_alone(bench, base, name, findings[name])
            findings[name].evidence["straight_through"] = True
        _certify_filters(bench, base, {name: findings[name] for name in lying if findings[name].verdict == "invariant"})
        for name in lying:
            if findings[name].verdict in ("invariant", "degenerate"):
                findings[name].cause = "other"
