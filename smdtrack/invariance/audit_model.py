"""The audit: decides for every parameter whether scaling it leaves the function unchanged.

A parameter `w` is scale-invariant if `f(k w) = f(w)` for all `k > 0` at every value of the other parameters. This is
tested on a float64 copy without eps and noise, at generic points. A gradient with a radial part proves that a parameter
is not invariant. One without proposes that it is, and forward passes with scaled parameters confirm it.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smdtrack.invariance.causes import attribute, hold_batch_variance_constant
from smdtrack.invariance.computation_mode import ComputationSettings
from smdtrack.invariance.evidence import ParameterEvidence, Proposal, limits_of, names_with
from smdtrack.invariance.functional_tests import (
    Certificate,
    certify,
    decide_unclear,
    decide_without_gradient,
    without_influence,
)
from smdtrack.invariance.gradient_check import check_gradients
from smdtrack.invariance.gradient_evidence import (
    DoesNotRunError,
    PointSettings,
    gradients_at_one_more_point,
    gradients_at_two_points,
    outputs_at_one_more_point,
    propose,
)
from smdtrack.invariance.input_template import InputTemplate, Sampling, templates_of_example
from smdtrack.invariance.inputs import candidate_templates, larger, template_of_size
from smdtrack.invariance.isolation import isolated
from smdtrack.invariance.module_scan import has_no_normalisation
from smdtrack.invariance.preparation import remove_noise_and_eps, set_training_mode
from smdtrack.invariance.private_copy import private_copy, unwrapped
from smdtrack.invariance.results import Audit, Weight
from smdtrack.invariance.trial_model import TrialModel
from smdtrack.notices import SmdtrackError

#: Points tried beyond two while a part of the network is inactive.
MORE_POINTS = 6
#: Points tried beyond two while a layer is unused that random numbers may switch off. A layer that is dropped in half
#: of the passes then goes unseen with a chance of 1 in 4,096.
MORE_RANDOM_POINTS = 10

_DETACHED = (
    "a part of its path is hidden from autograd (detach, no_grad, a straight-through estimator); the verdicts hold for "
    "the function itself"
)
_IN_FLOAT32 = "it cannot compute in float64; float32 shows invariance less sharply, so a weight may be missed"


def audit(
    model: nn.Module,
    example_input: Any = None,
    *,
    input_size: Sequence[int] | None = None,
    seed: int = 0,
    name: str | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Audit:
    """Decides for every parameter of a model whether it is scale-invariant, and why.

    The audit runs a float64 copy of the model (about 32 bytes per parameter). The model itself stays as it is, and so
    do the random states of the process. The decision holds for the model as it trains: modules keep their own training
    flag, but a model that is wholly in eval mode is put into training mode in the copy. Models wrapped by
    `torch.compile` or for data parallelism are unwrapped; the names stay those of `model.named_parameters()`.

    Args:
        model: Any module whose forward returns floating tensors, in whatever containers.
        example_input: A batch as training gives it to the model: a tensor, a tuple of positional arguments or a dict of
            keyword arguments, with nested containers. Four items of it are run if the model takes any number, otherwise
            all of it. If neither it nor `input_size` is given, usual sizes are tried.
        input_size: Shape of the input without the batch dimension, instead of an example.
        seed: Seed of the random points, batches and losses.
        name: Name of the model in the result; its class by default.
        device: Where to compute; by default the device of the first parameter.
        progress: Is called with the name of each phase when it begins.

    Raises:
        SmdtrackError: No input is known that the model takes, the model cannot be copied, its forward does not
            repeat, or it uses its own original through a closure.
    """
    started = time.perf_counter()
    core = unwrapped(model)
    names = dict(model.named_parameters())
    title = name or type(core).__name__
    place = _place(core, device)
    if example_input is not None and input_size is not None:
        raise SmdtrackError("give example_input or input_size, not both")
    templates: Iterable[InputTemplate]
    if example_input is not None:
        templates = templates_of_example(example_input)
    elif input_size is not None:
        templates = [template_of_size(input_size)]
    else:
        templates = list(candidate_templates(core))
    decayed = _decayed(core, model)
    if not names or has_no_normalisation(core):
        weights = tuple(
            Weight(key, tuple(value.shape), "sensitive", decayed=key in decayed) for key, value in names.items()
        )
        return _summed_up(title, None, Certificate(), weights, started)
    report = progress or (lambda phase: None)
    notes: list[str] = []
    dtype = torch.float64
    try:
        decision = _decide_copy(core, names, templates, title, place, seed, dtype, report)
    except DoesNotRunError as error:
        if not _is_about_precision(error):
            raise
        dtype = torch.float32
        try:
            decision = _decide_copy(core, names, templates, title, place, seed, dtype, report)
        except SmdtrackError:
            raise error from None
        notes.append(_IN_FLOAT32)
    if decision.detached:
        notes.append(_DETACHED)
    zero_energy = limits_of(dtype).zero_energy
    weights = tuple(
        _weight(key, value, decision.evidence.get(key, ParameterEvidence()), zero_energy, key in decayed)
        for key, value in names.items()
    )
    size = decision.template.input_size
    return _summed_up(title, size, decision.certificate, weights, started, dtype, tuple(notes))


def _place(model: nn.Module, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    first = next(model.parameters(), None)
    place = first.device if first is not None else torch.device("cpu")
    return torch.device("cpu") if place.type == "mps" else place


def _decayed(core: nn.Module, model: nn.Module) -> frozenset[str]:
    """Returns the names of the parameters that timm's optimizer factory gives weight decay.

    Source: `timm.optim.param_groups_weight_decay`: no vectors, no biases, nothing that the model's own
    `no_weight_decay()` names, nothing that does not train.
    """
    excluded: set[str] = set()
    with suppress(Exception):
        no_weight_decay: Any = getattr(core, "no_weight_decay", None)
        excluded = {str(name) for name in no_weight_decay()} if callable(no_weight_decay) else set()
    by_id = {id(parameter): name for name, parameter in core.named_parameters()}
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and parameter.ndim > 1
        and not name.endswith(".bias")
        and by_id.get(id(parameter)) not in excluded
    )


def _is_about_precision(error: DoesNotRunError) -> bool:
    """Whether a model refused its input because of float64."""
    text = str(error).lower()
    return any(word in text for word in ("double", "float64", "dtype", "scalar type", "'float'", "data type"))


def _summed_up(
    title: str,
    input_size: tuple[int, ...] | None,
    certificate: Certificate,
    weights: tuple[Weight, ...],
    started: float,
    dtype: torch.dtype = torch.float64,
    notes: tuple[str, ...] = (),
) -> Audit:
    return Audit(
        model=title,
        input_size=input_size,
        parameters=sum(weight.size for weight in weights),
        invariant_parameters=sum(weight.size for weight in weights if weight.verdict == "invariant"),
        seconds=round(time.perf_counter() - started, 3),
        certificate=certificate._asdict(),
        weights=weights,
        precision=str(dtype).removeprefix("torch."),
        notes=notes,
    )


def _weight(name: str, parameter: Tensor, known: ParameterEvidence, zero_energy: float, decayed: bool) -> Weight:
    return Weight(
        name,
        tuple(parameter.shape),
        known.verdict or "sensitive",
        known.cause,
        known.norm,
        known.scope,
        known.filter_dim,
        cosine=known.cosine if known.energy > zero_energy else None,
        decayed=decayed,
        evidence=known.numbers(),
    )


@dataclass(frozen=True)
class _Decision:
    template: InputTemplate
    evidence: dict[str, ParameterEvidence]
    certificate: Certificate
    detached: bool


def _decide_copy(
    core: nn.Module,
    names: dict[str, nn.Parameter],
    templates: Iterable[InputTemplate],
    title: str,
    place: torch.device,
    seed: int,
    dtype: torch.dtype,
    report: Callable[[str], None],
) -> _Decision:
    """Copies a model and decides with the first input that it takes, or a better one if that shows too little."""
    with isolated(place):
        report("copying the model")
        duplicate = private_copy(core, place, dtype)
        set_training_mode(duplicate.model)
        remove_noise_and_eps(duplicate.model, dtype)
        parameters = {
            key: duplicate.parameters[id(value)]
            for key, value in names.items()
            if value.is_floating_point() or value.is_complex()
        }
        settings = ComputationSettings(dtype, duplicate.originals)
        trial = TrialModel(duplicate.model, parameters, place, seed, settings)
        decision = _decide(trial, templates, title, report)
        better: list[InputTemplate] = []
        if decision.template.is_sliced and _any_unused_matrix(trial, decision.evidence):
            # Four items may reach only some of a mixture's experts.
            better = [
                template for template in templates if template.sampling in (Sampling.WHOLE_VARIED, Sampling.WHOLE)
            ]
        elif any(_saw_one_tap(trial, key, known) for key, known in decision.evidence.items()):
            bigger = larger(decision.template)
            better = [] if bigger is None else [bigger]
        if better:
            with suppress(SmdtrackError):
                decision = _decide(trial, better, title, report)
    return decision


def _any_unused_matrix(trial: TrialModel, evidence: dict[str, ParameterEvidence]) -> bool:
    return any(known.verdict == "unused" and trial.parameters[name].dim() > 1 for name, known in evidence.items())


def _saw_one_tap(trial: TrialModel, name: str, known: ParameterEvidence) -> bool:
    """Whether the input was so small that only one tap of a spatial kernel met anything but padding."""
    shape = trial.parameters[name].shape
    return known.verdict == "degenerate" and len(shape) > 2 and any(extent > 1 for extent in shape[2:])


def _decide(
    trial: TrialModel, templates: Iterable[InputTemplate], title: str, report: Callable[[str], None]
) -> _Decision:
    """Runs the whole procedure with the first input that the model takes."""
    limits = trial.limits
    report("finding an input that the model takes")
    settings, evidence = gradients_at_two_points(trial, templates, title)
    report("comparing gradients and weights")
    _more_random_points(trial, settings, evidence)
    for more in reversed(range(MORE_POINTS + 1)):
        propose(evidence, limits)
        batch_norm = hold_batch_variance_constant(trial, evidence)
        base = trial.baseline()
        unread = without_influence(names_with(evidence, Proposal.NO_GRADIENT), evidence, limits.zero_energy)
        deviation = trial.deviation(base, unread, trial.other_values) if unread else 0.0
        if deviation <= limits.untouched or trial.uses_detach or not more:
            break
        # They have no gradient, and yet the function depends on them: all units of a small gate may be dead here.
        trial.points.replace(trial.parameters[name] for name in unread)
        gradients_at_one_more_point(trial, settings, evidence)
    report("changing weights and comparing outputs")
    felt = decide_without_gradient(trial, base, evidence, deviation)
    decide_unclear(trial, base, evidence)
    detached = check_gradients(trial, settings, evidence, felt)
    report("scaling all invariant weights at once")
    certificate = certify(trial, outputs_at_one_more_point(trial, settings), evidence)
    report("finding what makes them invariant")
    attribute(trial, evidence, batch_norm)
    trial.drop_gradients()
    return _Decision(settings.template, evidence, certificate, detached)


def _more_random_points(trial: TrialModel, settings: PointSettings, evidence: dict[str, ParameterEvidence]) -> None:
    """Takes more gradients while random numbers may have switched off a layer in all passes so far (LayerDrop)."""
    for _ in range(MORE_RANDOM_POINTS if trial.uses_random_numbers else 0):
        switched_off = (
            known.energy <= trial.limits.zero_energy and trial.parameters[name].dim() > 1
            for name, known in evidence.items()
        )
        if not any(switched_off):
            return
        gradients_at_one_more_point(trial, settings, evidence)
