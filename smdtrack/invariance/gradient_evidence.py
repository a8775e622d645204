"""Gradients at generic points, and what they propose."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from smdtrack.invariance.computation_mode import UsesOriginalError
from smdtrack.invariance.evidence import Limits, ParameterEvidence, Proposal
from smdtrack.invariance.generic_point import DISTANCES, Distance
from smdtrack.invariance.gradient_statistics import GradientStatistics
from smdtrack.invariance.input_template import InputTemplate, Sampling
from smdtrack.invariance.outputs import Baseline
from smdtrack.invariance.trial_model import NotFiniteError, TrialModel
from smdtrack.notices import SmdtrackError, reason_of

#: Times that a point is drawn again if the outputs are not finite there.
_MORE_TRIES = 3


class DoesNotRunError(SmdtrackError):
    """The model takes none of the inputs."""


@dataclass(frozen=True)
class PointSettings:
    """How generic points and batches are drawn for one model.

    Attributes:
        template: The input.
        distance: How far the points lie from the model's own values.
        title: Name of the model in messages.
    """

    template: InputTemplate
    distance: Distance
    title: str


def gradients_at_two_points(
    trial: TrialModel, templates: Iterable[InputTemplate], title: str
) -> tuple[PointSettings, dict[str, ParameterEvidence]]:
    """Takes gradients at two generic points, with two batches and two random linear losses.

    Raises:
        DoesNotRunError: The model takes none of the inputs.
        SmdtrackError: Two passes with the same parameters, input and random numbers differ.
    """
    settings = _first_that_runs(trial, templates, title)
    evidence = {name: ParameterEvidence() for name in trial.parameters}
    _check_that_it_repeats(trial, title)
    add_statistics(evidence, trial.statistics())
    gradients_at_one_more_point(trial, settings, evidence)
    return settings, evidence


def gradients_at_one_more_point(
    trial: TrialModel, settings: PointSettings, evidence: dict[str, ParameterEvidence]
) -> None:
    """Takes gradients at one more generic point.

    Raises:
        SmdtrackError: The outputs are not finite there.
    """
    for tries_left in reversed(range(_MORE_TRIES)):
        trial.move(settings.distance, settings.template)
        try:
            trial.backward()
            add_statistics(evidence, trial.statistics())
            return
        except NotFiniteError as error:
            if not tries_left:
                raise SmdtrackError(f"{settings.title}: {error} at a generic point in {trial.precision}") from error


def add_statistics(evidence: dict[str, ParameterEvidence], statistics: dict[str, GradientStatistics]) -> None:
    """Adds the statistics of one backward pass to the evidence."""
    largest = max((entry.energy for entry in statistics.values()), default=0.0)
    for name, entry in statistics.items():
        evidence[name].gradients.append(entry)
        evidence[name].energy = max(evidence[name].energy, entry.energy / largest if largest > 0 else 0.0)


def outputs_at_one_more_point(trial: TrialModel, settings: PointSettings) -> Baseline:
    """Moves to a generic point at which no gradient was taken, and returns the outputs there.

    Raises:
        SmdtrackError: They are not finite.
    """
    for tries_left in reversed(range(_MORE_TRIES)):
        trial.move(settings.distance, settings.template)
        try:
            return trial.baseline()
        except NotFiniteError as error:
            if not tries_left:
                raise SmdtrackError(f"{settings.title}: {error} at a generic point in {trial.precision}") from error
    raise AssertionError


def _check_that_it_repeats(trial: TrialModel, title: str) -> None:
    """Compares the last pass with an unchanged one.

    A model may set itself up in its first pass. So if the two differ, the pass is made once more from the state that
    the first one left.

    Raises:
        SmdtrackError: The forward does not repeat.
    """
    trial.keep_state()
    difference = trial.baseline().deviation(trial.values())
    if difference <= trial.limits.repeat:
        return
    trial.keep_state()
    trial.backward()
    difference = trial.baseline().deviation(trial.values())
    if difference > trial.limits.repeat:
        raise SmdtrackError(
            f"{title}: this forward does not repeat: two passes with the same parameters, input and random seed differ "
            f"by {difference:.1e} of the outputs, so nothing can be said about its weights"
        )


def _first_that_runs(trial: TrialModel, templates: Iterable[InputTemplate], title: str) -> PointSettings:
    """Takes gradients with the first input that the model takes, as far from its own values as outputs are finite."""
    tried: list[tuple[InputTemplate, str]] = []
    for template in templates:
        for distance in DISTANCES:
            reason = _reason_not_to_run(trial, template, distance, title)
            if reason is None:
                return PointSettings(template, distance, title)
            tried.append((template, reason))
            if reason != str(NotFiniteError()):
                break
    if not tried:
        raise DoesNotRunError(f"{title}: nothing in it says what input it takes; give example_input or input_size")
    template, reason = tried[0]
    if template.found:
        raise DoesNotRunError(
            f"{title}: no input found that it takes; give example_input or input_size "
            f"(tried {len(tried)}, first {template.input_size}: {reason})"
        )
    template, reason = tried[-1]
    if template.sampling is Sampling.RANDOM:
        raise DoesNotRunError(f"{title} does not take an input of size {template.input_size}: {reason}")
    raise DoesNotRunError(f"{title} does not run on the example input: {reason}")


def _reason_not_to_run(trial: TrialModel, template: InputTemplate, distance: Distance, title: str) -> str | None:
    try:
        trial.move(distance, template)
        trial.backward()
        trial.statistics()
    except UsesOriginalError as error:
        raise SmdtrackError(f"{title}: {error}") from error
    except SmdtrackError:
        raise
    except NotFiniteError as error:
        return str(error)
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


def propose(evidence: dict[str, ParameterEvidence], limits: Limits) -> None:
    """Sets what the gradients propose for each parameter, and the verdict if they are clear."""
    for known in evidence.values():
        known.verdict = None
        known.proposal = proposal(known.cosine, known.energy, limits)
        if known.proposal is Proposal.INVARIANT:
            known.verdict = "invariant"
        elif known.proposal is Proposal.SENSITIVE:
            known.verdict = "sensitive"


def proposal(cosine: float, energy: float, limits: Limits) -> Proposal:
    """Returns what the largest |cos| and the largest energy of several draws propose."""
    if energy <= limits.zero_energy:
        return Proposal.NO_GRADIENT
    if cosine < limits.cosine and energy > limits.faint_invariant_energy:
        return Proposal.INVARIANT
    if cosine > limits.radial_cosine and energy > limits.faint_energy:
        return Proposal.SENSITIVE
    # Among others a filter of one tap near zero: what is left of eps shows as a faint radial gradient, and may cancel
    # over many filters.
    return Proposal.UNCLEAR
