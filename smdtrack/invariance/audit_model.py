"""The evidence ladder: which parameters leave the function unchanged when they are scaled.

Structural invariance, `f(k w) = f(w)` for all `k > 0` at every value of the other parameters, is tested where it can be
seen: on a float64 copy without eps and noise, at a generic point. Gradients propose (a radial derivative is the
proof of its opposite), forward passes certify.
"""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from smdtrack.invariance.causes import attribute, freeze_batch_variance
from smdtrack.invariance.certificates import asleep, certify, settle_doubtful, settle_silent
from smdtrack.invariance.findings import ZERO_ENERGY, Finding
from smdtrack.invariance.gradient_evidence import move_on, one_more_draw, propose, two_draws
from smdtrack.invariance.inputs import Feed, candidate_feeds, feed_of_example, feed_of_size, larger
from smdtrack.invariance.isolation import isolated
from smdtrack.invariance.private_copy import neutralise, private_copy, set_training_mode, unwrapped
from smdtrack.invariance.quick_scan import nothing_normalises
from smdtrack.invariance.results import Audit, Weight
from smdtrack.invariance.straight_through import check_gradients
from smdtrack.invariance.trial_model import Bench
from smdtrack.notices import SmdtrackError

#: Points tried beyond two where a part of the network sleeps.
MORE_DRAWS = 6


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
        weights = tuple(Weight(key, tuple(value.shape), "sensitive") for key, value in names.items())
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


def _weight(name: str, parameter: Tensor, finding: Finding) -> Weight:
    verdict = finding.verdict or "sensitive"
    cosine = finding.cosine if finding.energy > ZERO_ENERGY else None
    evidence = {
        "cosines": [reading.cosine for reading in finding.readings],
        "energy": finding.energy,
        "slices": {str(dim): value for dim, value in finding.readings[-1].slices.items()} if finding.readings else {},
        **finding.evidence,
    }
    return Weight(
        name,
        tuple(parameter.shape),
        verdict,
        finding.cause,
        finding.norm,
        finding.scope,
        finding.filter_dim,
        cosine,
        evidence,
    )


def _blind_to_taps(bench: Bench, name: str, finding: Finding) -> bool:
    """A spatial kernel of which only one tap could be seen: the input was too small to judge it."""
    shape = bench.parameters[name].shape
    return finding.verdict == "degenerate" and len(shape) > 2 and any(extent > 1 for extent in shape[2:])


def _climbed(
    bench: Bench, feeds: Iterable[Feed], title: str
) -> tuple[Feed, dict[str, Finding], dict[str, float | None]]:
    """Climbs all rungs with the first feed that the model takes."""
    draws, findings = two_draws(bench, feeds, title)
    for more in reversed(range(MORE_DRAWS + 1)):
        propose(findings)
        frozen = freeze_batch_variance(bench, findings)
        base, _ = bench.before()
        sleeping = asleep(bench, base, findings) if more else []
        if not sleeping:
            break
        bench.stir(sleeping)
        one_more_draw(bench, draws, findings)
    settle_silent(bench, base, findings)
    settle_doubtful(bench, base, findings)
    check_gradients(bench, findings)
    certificate = certify(bench, move_on(bench, draws), findings)
    attribute(bench, findings, frozen)
    bench.release()
    return draws.feed, findings, certificate
