"""The memory of any optimizer, measured: run it on white noise and look at its updates.

Where a mask, a sign or a matrix function stands between gradients and updates, no impulse response gives R. But R is a
property of the optimizer alone: run the real class with the run's own hyper-parameters, without weight decay, on
gradients that are white noise, and take the autocorrelation of its updates. Derived here, three readings of one run:

    rho_j = <u_t, u_{t+j}> / <u_t, u_t>      by FFT over time, averaged over coordinates
    S     = <u_t, u_t> / <g_t, g_t>
    H     = sum_k <u_t, g_{t-k}> / <g, g>    the gain of a constant pull, since for Gaussian gradients
                                             E[du_t/dg_{t-k}] = E[u_t g_{t-k}]/<g, g> (Stein's lemma), whatever u is

Unknown optimizers are probed further (see `probing`).
"""

import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from smdtrack.theory.updates import Updates, white

_STEPS, _BURN_IN = 4096, 400
_SHAPE = (32, 32)
_SMALL_SIDE = 32
# beyond this the longer side of a matrix only repeats what is there
_LARGEST_ASPECT = 64
_MOST_NUMBERS = 6_000_000
_cache: dict[tuple[Any, ...], Updates] = {}

_running: ContextVar[bool] = ContextVar("running", default=True)


class CannotRunError(RuntimeError):
    """The optimizer does not run by itself on a plain gradient."""


def calibrated(optimizer: Optimizer, group: Mapping[str, Any], shape: tuple[int, ...] | None = None) -> Updates:
    """The updates of an optimizer of this class and these hyper-parameters, measured once and remembered.

    Args:
        optimizer: the user's own; only its class and `group` are used, it is not touched.
        group: the parameter group whose hyper-parameters hold.
        shape: of the weight, where the optimizer looks at it (Muon); a stand-in of the same aspect ratio and smaller
            side of at most 32 is run. None: a 32 x 32 weight.

    Raises:
        CannotRunError: where the class cannot be built or stepped that way.
    """
    if not _running.get():
        return white()
    key = (type(optimizer), frozen(hyper_parameters(type(optimizer), group)), _stand_in(shape))
    if key not in _cache:
        # those that look at the shape (matrix functions) cost more per step; half of them is enough for 1 % of R
        most = _STEPS if shape is None else _STEPS // 2
        _cache[key] = _calibrate(type(optimizer), hyper_parameters(type(optimizer), group), _stand_in(shape), most)
    return _cache[key]


@contextmanager
def without_running() -> Iterator[None]:
    """Within it nothing is run and all memories are 1: for asking what kind of line there is."""
    token = _running.set(False)
    try:
        yield
    finally:
        _running.reset(token)


def hyper_parameters(optimizer_class: type[Optimizer], group: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments that the group knows, without learning rate and decay (which do not change R)."""
    accepted = inspect.signature(optimizer_class.__init__).parameters
    known = {name: value for name, value in group.items() if name in accepted and name not in ("params", "lr")}
    known.pop("weight_decay", None)
    known.pop("corrected_weight_decay", None)
    if "beta1" in group and "betas" in accepted and group["beta1"] is not None:
        known["betas"] = (group["beta1"], 0.999)
    for switch in ("foreach", "fused", "capturable", "differentiable", "verbose"):
        known.pop(switch, None)
    return known


def decay_argument(optimizer_class: type[Optimizer], value: float) -> dict[str, float]:
    """Weight decay as an argument, where the constructor takes one."""
    accepted = inspect.signature(optimizer_class.__init__).parameters
    taken = "weight_decay" in accepted or any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values()
    )
    return {"weight_decay": value} if taken else {}


def frozen(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, repr(value)) for name, value in values.items()))


def _stand_in(shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """A matrix with the aspect ratio of the weight (flattened as convolutions are) that is quick to run."""
    if shape is None:
        return _SHAPE
    rows, columns = shape[0], math.prod(shape[1:])
    small, large = min(rows, columns), max(rows, columns)
    side = min(small, _SMALL_SIDE)
    other = max(side, min(round(large * side / max(small, 1)), side * _LARGEST_ASPECT))
    return (side, other) if rows <= columns else (other, side)


@contextmanager
def alone() -> Iterator[None]:
    """On the CPU in fp32; the caller's random numbers, gradient mode and defaults stay; compilation is left out.

    Random numbers and compilation belong to the whole process. Beside a training that runs on, as on a writer thread
    after a hyper-parameter has changed in mid-run, borrowing them would change its bits.

    Raises:
        CannotRunError: Off the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise CannotRunError("its hyper-parameters changed in mid-run, and nothing is run beside a training")
    compiling = getattr(torch.compiler, "set_stance", None)
    stance = compiling("force_eager") if compiling is not None else None
    usual = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        torch.set_default_dtype(torch.float32)
        torch.manual_seed(0)
        try:
            if stance is not None:
                stance.__enter__()
            yield
        finally:
            torch.set_default_dtype(usual)
            if stance is not None:
                stance.__exit__(None, None, None)


def run(
    optimizer_class: type[Optimizer],
    arguments: Mapping[str, Any],
    weight: Tensor,
    gradients: Callable[[int], Tensor],
    steps: int,
) -> Iterator[Tensor]:
    """Steps a fresh optimizer over given gradients; yields the change of the weight at each step.

    Raises:
        CannotRunError: naming what went wrong.
    """
    parameter = torch.nn.Parameter(weight.clone())
    try:
        optimizer = optimizer_class([parameter], **arguments)
        for step in range(steps):
            parameter.grad = gradients(step)
            before = parameter.detach().clone()
            optimizer.step()
            yield parameter.detach() - before
    except CannotRunError:
        raise
    except Exception as error:
        raise CannotRunError(f"{optimizer_class.__name__} does not run on plain gradients: {error}") from error


def _calibrate(
    optimizer_class: type[Optimizer],
    arguments: Mapping[str, Any],
    shape: tuple[int, ...],
    most_steps: int,
) -> Updates:
    size, lr = math.prod(shape), 1e-3
    steps = max(1024, min(most_steps, _MOST_NUMBERS // size))
    generator = torch.Generator("cpu").manual_seed(7)
    noise: list[Tensor] = []
    moves: list[Tensor] = []
    chosen = torch.randperm(size, generator=generator, device="cpu")[: min(size, 1024)]

    def gradient(step: int) -> Tensor:
        draw = torch.randn(shape, generator=generator, dtype=torch.float32)
        if step >= _BURN_IN:
            noise.append(draw.flatten()[chosen])
        return draw

    with alone():
        start = torch.randn(shape, generator=generator)
        for step, move in enumerate(
            run(
                optimizer_class,
                {**arguments, "lr": lr, **decay_argument(optimizer_class, 0.0)},
                start,
                gradient,
                _BURN_IN + steps,
            )
        ):
            if step >= _BURN_IN:
                moves.append(-move.flatten()[chosen] / lr)
        return measure(torch.stack(moves), torch.stack(noise))


def measure(moves: Tensor, gradients: Tensor) -> Updates:
    """Statistics of the updates from a record of updates and white gradients, both (steps, coordinates).

    The drawn gradients are not perfectly white, and at low frequency, where R lives, that is most of the noise (2 % of
    R in a run of 4096 steps and 1024 coordinates). It is known, so it is taken out: with `u = h * g + e`, h by
    regression of the spectra, `S_uu - |h|^2 (S_gg - <g^2>)` is what white gradients would have given.

    Sums run to lag 512, or to ten times the memory found so far where that is longer (Sokal's window): a mask leaves
    slow tails of small correlation, and further out there is only noise.
    """
    moves, gradients = moves.double(), gradients.double()
    if not bool(moves.isfinite().all()) or float(moves.square().sum()) == 0:
        raise CannotRunError("its updates on white noise are zero or not finite")
    steps = moves.shape[0]
    padded = 1 << (2 * steps - 1).bit_length()
    own = torch.zeros(padded // 2 + 1, dtype=torch.float64)
    drawn = torch.zeros(padded // 2 + 1, dtype=torch.float64)
    across = torch.zeros(padded // 2 + 1, dtype=torch.complex128)
    for first in range(0, moves.shape[1], 64):
        update = torch.fft.rfft(moves[:, first : first + 64], n=padded, dim=0)
        gradient = torch.fft.rfft(gradients[:, first : first + 64], n=padded, dim=0)
        own += update.abs().square().sum(1)
        drawn += gradient.abs().square().sum(1)
        across += (update * gradient.conj()).sum(1)
    reach = min(steps // 4, 512)
    while True:
        response = torch.fft.irfft(across / drawn, n=padded)[:reach]
        linear = torch.fft.rfft(response, n=padded).abs().square()
        whitened = own - linear * (drawn - gradients.square().sum())
        pairs = torch.arange(steps, 0, -1, dtype=torch.float64) * moves.shape[1]
        covariance = torch.fft.irfft(whitened, n=padded)[:steps] / pairs
        autocorrelation = covariance[:reach] / covariance[0]
        memory = float(2 * autocorrelation.sum() - 1)
        if reach >= min(10 * memory, steps // 4):
            break
        reach = min(steps // 4, 2 * reach)
    power = float(gradients.square().mean())
    return Updates(float(response.sum()), float(covariance[0]) / power, autocorrelation.clone(), memory)
