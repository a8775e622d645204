"""Rungs 2 and 3: gradients at generic points, and what they propose."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from smdtrack.invariance.findings import (
    FAINT_ENERGY,
    FAINT_INVARIANT_ENERGY,
    INVARIANT_COSINE,
    RADIAL_COSINE,
    ZERO_ENERGY,
    Finding,
)
from smdtrack.invariance.inputs import Feed
from smdtrack.invariance.trial_model import Bench
from smdtrack.notices import SmdtrackError, reason_of

#: How far from initialisation the generic point lies; the next where the outputs are not finite.
AMPLITUDES = (0.3, 0.1, 0.02)
NOT_FINITE = "the outputs are not finite"


@dataclass(frozen=True)
class Draws:
    """How generic points and batches are drawn for one model."""

    feed: Feed
    amplitude: float
    title: str


def two_draws(bench: Bench, feeds: Iterable[Feed], title: str) -> tuple[Draws, dict[str, Finding]]:
    """Rungs 2 and 3: gradients at two generic points, with two batches and two random linear losses."""
    feed, amplitude = _first_that_runs(bench, feeds, title)
    draws, findings = Draws(feed, amplitude, title), {name: Finding() for name in bench.parameters}
    _read(bench, findings)
    one_more_draw(bench, draws, findings)
    return draws, findings


def one_more_draw(bench: Bench, draws: Draws, findings: dict[str, Finding]) -> None:
    """Gradients at one more point.

    Raises:
        SmdtrackError: If the outputs are not finite there.
    """
    bench.move_to_generic_point(draws.amplitude)
    bench.draw_batch(draws.feed)
    try:
        bench.backward()
    except FloatingPointError as error:
        raise SmdtrackError(f"{draws.title}: {error}, at a generic point in float64") from error
    _read(bench, findings)


def _read(bench: Bench, findings: dict[str, Finding]) -> None:
    readings = {name: bench.reading(name) for name in findings}
    most = max(reading.energy for reading in readings.values())
    for name, reading in readings.items():
        findings[name].readings.append(reading)
        findings[name].energy = max(findings[name].energy, reading.energy / most if most > 0 else 0.0)


def move_on(bench: Bench, draws: Draws) -> Tensor:
    """Goes to a point at which no gradient was taken, and returns the outputs there.

    Raises:
        SmdtrackError: If they are not finite.
    """
    bench.move_to_generic_point(draws.amplitude)
    bench.draw_batch(draws.feed)
    outputs = bench.values()
    if not bool(torch.isfinite(outputs).all()):
        raise SmdtrackError(f"{draws.title}: {NOT_FINITE}, at a generic point in float64")
    return outputs


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
        raise SmdtrackError(
            f"{title}: no input found that it takes; give example_input or input_size "
            f"(tried {len(tried)}, first {feed.input_size}: {reason})"
        )
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
        return reason_of(error)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    text = str(error).lower()
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "not enough memory" in text
        or ("can't allocate memory" in text or "out of memory" in text)
    )


def propose(findings: dict[str, Finding]) -> None:
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
            finding.evidence["proposed"] = finding.verdict = "sensitive"
        else:
            finding.evidence["proposed"] = "doubtful"
