"""The audit: decides for every parameter whether scaling it leaves the function unchanged.

A parameter `w` is scale-invariant if `f(k w) = f(w)` for all `k > 0` at every value of the other parameters. This is
tested on a float64 copy without eps and noise, at generic points. A gradient with a radial part proves that a parameter
is not invariant. One without proposes that it is, and forward passes with scaled parameters confirm it.
"""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from smdtrack.invariance.causes import attribute, hold_batch_variance_constant
from smdtrack.invariance.evidence import ZERO_ENERGY, ParameterEvidence
from smdtrack.invariance.functional_tests import certify, decide_unclear, decide_without_gradient, inactive_parameters
from smdtrack.invariance.gradient_check import check_gradients
from smdtrack.invariance.gradient_evidence import (
    gradients_at_one_more_point,
    gradients_at_two_points,
    outputs_at_one_more_point,
    propose,
)
from smdtrack.invariance.inputs import (
    InputTemplate,
    candidate_templates,
    larger,
    template_of_example,
    template_of_size,
)
from smdtrack.invariance.isolation import isolated
from smdtrack.invariance.module_scan import has_no_normalisation
from smdtrack.invariance.private_copy import private_copy, remove_noise_and_eps, set_training_mode, unwrapped
from smdtrack.invariance.results import Audit, Weight
from smdtrack.invariance.trial_model import TrialModel
from smdtrack.notices import SmdtrackError

#: Points tried beyond two while a part of the network is inactive.
MORE_POINTS = 6


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

    The audit runs a float64 copy of the model (about 32 bytes per parameter). The model itself stays as it is, and so
    do the random states of the process. The decision holds for the model as it trains: modules keep their own training
    flag, but a model that is wholly in eval mode is put into training mode in the copy. Models wrapped by
    `torch.compile` or for data parallelism are unwrapped; the names stay those of `model.named_parameters()`.

    Args:
        model: Any module whose forward returns floating tensors, in whatever containers.
        example_input: A tensor, a tuple of positional arguments or a dict of keyword arguments. The first dimension of
            the tensors is the batch. Only shapes, ranges and integer values are used. If neither it nor `input_size` is
            given, usual sizes are tried.
        input_size: Shape of the input without the batch dimension, instead of an example.
        seed: Seed of the random points, batches and losses.
        name: Name of the model in the result; its class by default.
        device: Where to compute; by default the device of the first parameter.

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
    templates: Iterable[InputTemplate]
    if example_input is not None:
        templates = [template_of_example(example_input)]
    elif input_size is not None:
        templates = [template_of_size(input_size)]
    else:
        templates = candidate_templates(core)
    if not names or has_no_normalisation(core):
        weights = tuple(Weight(key, tuple(value.shape), "sensitive") for key, value in names.items())
        return _summed_up(title, None, {"tensor": None, "filter": None}, weights, started)
    with isolated(place):
        duplicate, copies = private_copy(core, place)
        set_training_mode(duplicate)
        remove_noise_and_eps(duplicate)
        trial = TrialModel(duplicate, {key: copies[id(value)] for key, value in names.items()}, place, seed)
        template, evidence, certificate = _decide(trial, templates, title)
        bigger = larger(template)
        if bigger is not None and any(_saw_one_tap(trial, key, known) for key, known in evidence.items()):
            with suppress(SmdtrackError):
                template, evidence, certificate = _decide(trial, [bigger], title)
    weights = tuple(_weight(key, value, evidence[key]) for key, value in names.items())
    return _summed_up(title, template.input_size, certificate, weights, started)


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


def _weight(name: str, parameter: Tensor, known: ParameterEvidence) -> Weight:
    return Weight(
        name,
        tuple(parameter.shape),
        known.verdict or "sensitive",
        known.cause,
        known.norm,
        known.scope,
        known.filter_dim,
        cosine=known.cosine if known.energy > ZERO_ENERGY else None,
        evidence=known.numbers(),
    )


def _saw_one_tap(trial: TrialModel, name: str, known: ParameterEvidence) -> bool:
    """Whether the input was so small that only one tap of a spatial kernel met anything but padding."""
    shape = trial.parameters[name].shape
    return known.verdict == "degenerate" and len(shape) > 2 and any(extent > 1 for extent in shape[2:])


def _decide(
    trial: TrialModel, templates: Iterable[InputTemplate], title: str
) -> tuple[InputTemplate, dict[str, ParameterEvidence], dict[str, float | None]]:
    """Runs the whole procedure with the first input that the model takes."""
    settings, evidence = gradients_at_two_points(trial, templates, title)
    for more in reversed(range(MORE_POINTS + 1)):
        propose(evidence)
        batch_norm = hold_batch_variance_constant(trial, evidence)
        base, _ = trial.before()
        inactive = inactive_parameters(trial, base, evidence) if more else []
        if not inactive:
            break
        trial.redraw(inactive)
        gradients_at_one_more_point(trial, settings, evidence)
    decide_without_gradient(trial, base, evidence)
    decide_unclear(trial, base, evidence)
    check_gradients(trial, evidence)
    certificate = certify(trial, outputs_at_one_more_point(trial, settings), evidence)
    attribute(trial, evidence, batch_norm)
    trial.drop_gradients()
    return settings.template, evidence, certificate
