"""Gradients at generic points, and what they propose."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from smdtrack.invariance.evidence import (
    FAINT_ENERGY,
    FAINT_INVARIANT_ENERGY,
    INVARIANT_COSINE,
    RADIAL_COSINE,
    ZERO_ENERGY,
    ParameterEvidence,
    Proposal,
)
from smdtrack.invariance.inputs import InputTemplate
from smdtrack.invariance.trial_model import TrialModel
from smdtrack.notices import SmdtrackError, reason_of

#: Relative distances of the generic point from the model's own values; the next is tried if outputs are not finite.
AMPLITUDES = (0.3, 0.1, 0.02)
NOT_FINITE = "the outputs are not finite"


@dataclass(frozen=True)
class PointSettings:
    """How generic points and batches are drawn for one model.

    Attributes:
        template: The input.
        amplitude: Relative distance of the points from the model's own values.
        title: Name of the model in messages.
    """

    template: InputTemplate
    amplitude: float
    title: str


def gradients_at_two_points(
    trial: TrialModel, templates: Iterable[InputTemplate], title: str
) -> tuple[PointSettings, dict[str, ParameterEvidence]]:
    """Takes gradients at two generic points, with two batches and two random linear losses.

    Raises:
        SmdtrackError: The model takes none of the inputs.
    """
    template, amplitude = _first_that_runs(trial, templates, title)
    settings, evidence = PointSettings(template, amplitude, title), {n: ParameterEvidence() for n in trial.parameters}
    _add_statistics(trial, evidence)
    gradients_at_one_more_point(trial, settings, evidence)
    return settings, evidence


def gradients_at_one_more_point(
    trial: TrialModel, settings: PointSettings, evidence: dict[str, ParameterEvidence]
) -> None:
    """Takes gradients at one more generic point.

    Raises:
        SmdtrackError: The outputs are not finite there.
    """
    trial.move_to_generic_point(settings.amplitude)
    trial.draw_batch(settings.template)
    try:
        trial.backward()
    except FloatingPointError as error:
        raise SmdtrackError(f"{settings.title}: {error}, at a generic point in float64") from error
    _add_statistics(trial, evidence)


def _add_statistics(trial: TrialModel, evidence: dict[str, ParameterEvidence]) -> None:
    statistics = {name: trial.statistics(name) for name in evidence}
    largest = max(entry.energy for entry in statistics.values())
    for name, entry in statistics.items():
        evidence[name].gradients.append(entry)
        evidence[name].energy = max(evidence[name].energy, entry.energy / largest if largest > 0 else 0.0)


def outputs_at_one_more_point(trial: TrialModel, settings: PointSettings) -> Tensor:
    """Moves to a generic point at which no gradient was taken, and returns the outputs there.

    Raises:
        SmdtrackError: The outputs are not finite there.
    """
    trial.move_to_generic_point(settings.amplitude)
    trial.draw_batch(settings.template)
    outputs = trial.values()
    if not bool(torch.isfinite(outputs).all()):
        raise SmdtrackError(f"{settings.title}: {NOT_FINITE}, at a generic point in float64")
    return outputs


def _first_that_runs(trial: TrialModel, templates: Iterable[InputTemplate], title: str) -> tuple[InputTemplate, float]:
    """Returns the first input that the model takes, and the largest amplitude at which its outputs are finite."""
    tried: list[tuple[InputTemplate, str]] = []
    for template in templates:
        for amplitude in AMPLITUDES:
            reason = _reason_not_to_run(trial, template, amplitude, title)
            if reason is None:
                return template, amplitude
            tried.append((template, reason))
            if reason != NOT_FINITE:
                break
    if not tried:
        raise SmdtrackError(f"{title}: nothing in it says what input it takes; give example_input or input_size")
    template, reason = tried[0]
    if template.found:
        raise SmdtrackError(
            f"{title}: no input found that it takes; give example_input or input_size "
            f"(tried {len(tried)}, first {template.input_size}: {reason})"
        )
    raise SmdtrackError(f"{title} does not take an input of size {template.input_size}: {reason}")


def _reason_not_to_run(trial: TrialModel, template: InputTemplate, amplitude: float, title: str) -> str | None:
    try:
        trial.move_to_generic_point(amplitude)
        trial.draw_batch(template)
        trial.backward()
    except SmdtrackError:
        raise
    except FloatingPointError:
        return NOT_FINITE
    except Exception as error:
        if is_out_of_memory(error):
            raise SmdtrackError(
                f"{title}: out of memory on {trial.device}, input size {template.input_size}"
            ) from error
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


def propose(evidence: dict[str, ParameterEvidence]) -> None:
    """Sets what the gradients propose for each parameter, and the verdict where they are clear."""
    for known in evidence.values():
        known.verdict = None
        if known.energy <= ZERO_ENERGY:
            known.proposal = Proposal.NO_GRADIENT
        elif known.cosine < INVARIANT_COSINE and known.energy > FAINT_INVARIANT_ENERGY:
            known.proposal, known.verdict = Proposal.INVARIANT, "invariant"
        elif known.cosine > RADIAL_COSINE and known.energy > FAINT_ENERGY:
            known.proposal, known.verdict = Proposal.SENSITIVE, "sensitive"
        else:
            # Among others a filter of one tap near zero: what is left of eps shows as a faint radial gradient, and may
            # cancel over many filters.
            known.proposal = Proposal.UNCLEAR
