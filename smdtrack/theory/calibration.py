"""The memory of any optimizer, measured: run it on white noise and look at its updates.

If a mask, a sign or a matrix function stands between gradients and updates, no impulse response gives R. But R is a
property of the optimizer alone. So the real class is run with the hyper-parameters of the training, without weight
decay, on gradients that are white noise, and R follows from the autocorrelation of its updates. Derived here, three
results of one run:

    rho_j = <u_t, u_{t+j}> / <u_t, u_t>      by FFT over time, averaged over coordinates
    S     = <u_t, u_t> / <g_t, g_t>
    H     = sum_k <u_t, g_{t-k}> / <g, g>    the gain of a constant pull: for Gaussian gradients
                                             E[du_t/dg_{t-k}] = E[u_t g_{t-k}]/<g, g> (Stein's lemma), whatever u is

For optimizers without a record, `decay_response` measures more.
"""

import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from smdtrack.theory.update_statistics import UpdateStatistics

CALIBRATED = "derived here (autocorrelation of the real optimizer's updates on white noise)"
#: Steps that are read, and steps before them in which the filters fill.
_STEPS, _BURN_IN = 4096, 400
#: Shape of the weight that is run when the shape does not matter.
_SHAPE = (32, 32)
#: Shorter side of the matrix that stands in for a weight whose shape matters.
_SMALL_SIDE = 32
#: Longest aspect ratio of the stand-in: the updates of longer matrices have the same autocorrelation.
_LARGEST_ASPECT = 64
#: Steps times coordinates of a run at most, which bounds its time and memory.
_MOST_NUMBERS = 6_000_000
#: Coordinates whose updates are kept.
_MOST_COORDINATES = 1024
#: Learning rate of the runs; R does not depend on it.
_LR = 1e-3
#: Hyper-parameters that choose an implementation, not the mathematics.
_SWITCHES = ("foreach", "fused", "capturable", "differentiable", "verbose")
_cache: dict[tuple[Any, ...], UpdateStatistics] = {}


class CannotRunError(RuntimeError):
    """The optimizer does not run by itself on a plain gradient."""


def calibrated(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    shape: tuple[int, ...] | None = None,
    call: Callable[[Callable[[], UpdateStatistics]], UpdateStatistics] | None = None,
) -> UpdateStatistics:
    """Returns the statistics of an optimizer of this class and these hyper-parameters, measured once and kept.

    Args:
        optimizer: The user's own. Only its class is used; the optimizer itself is not touched.
        group: The parameter group whose hyper-parameters hold.
        shape: Of the weight, if the optimizer depends on it (Muon). A stand-in with the same aspect ratio and a shorter
            side of at most 32 is run. None: a 32 x 32 weight.
        call: Calls the function that measures, for example in another process; by default it is called here.

    Raises:
        CannotRunError: If the class cannot be built or stepped that way.
    """
    arguments = settings_that_matter(type(optimizer), group)
    stand_in = _stand_in(shape)
    key = (type(optimizer), as_key(arguments), stand_in)
    if key not in _cache:
        # Optimizers that depend on the shape (matrix functions) cost more per step; half the steps give 1 % of R.
        most = _STEPS if shape is None else _STEPS // 2

        def measure() -> UpdateStatistics:
            return _calibrate(type(optimizer), arguments, stand_in, most)

        _cache[key] = measure() if call is None else call(measure)
    return _cache[key]


def settings_that_matter(optimizer_class: type[Optimizer], group: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the constructor's arguments that the group has, except learning rate and decay: R depends on neither."""
    accepted = inspect.signature(optimizer_class.__init__).parameters
    left_out = {"params", "lr", "weight_decay", "corrected_weight_decay", *_SWITCHES}
    known = {name: value for name, value in group.items() if name in accepted and name not in left_out}
    if "beta1" in group and "betas" in accepted and group["beta1"] is not None:
        known["betas"] = (group["beta1"], 0.999)
    return known


def decay_argument(optimizer_class: type[Optimizer], value: float) -> dict[str, float]:
    """Returns weight decay as a keyword argument; empty if the constructor takes none."""
    accepted = inspect.signature(optimizer_class.__init__).parameters
    taken = "weight_decay" in accepted or any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values()
    )
    return {"weight_decay": value} if taken else {}


def as_key(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Returns hyper-parameters in a form that can be the key of a dictionary."""
    return tuple(sorted((name, repr(value)) for name, value in values.items()))


def _stand_in(shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Returns the shape of a matrix with the aspect ratio of the weight (flattened as convolutions are)."""
    if shape is None:
        return _SHAPE
    rows, columns = shape[0], math.prod(shape[1:])
    small, large = min(rows, columns), max(rows, columns)
    side = min(small, _SMALL_SIDE)
    other = max(side, min(round(large * side / max(small, 1)), side * _LARGEST_ASPECT))
    return (side, other) if rows <= columns else (other, side)


@contextmanager
def isolated() -> Iterator[None]:
    """Runs what is inside on the CPU in fp32, without compilation, and restores the process's state afterwards.

    Restored are the random number generators, the gradient mode and torch's defaults. They belong to the whole process.
    On another thread, as after a hyper-parameter has changed in the middle of a run, a training would be running at the
    same time, and borrowing its random numbers would change its bits.

    Raises:
        CannotRunError: If called from another thread than the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise CannotRunError(
            "its hyper-parameters changed during the training, and it cannot be calibrated while a training runs"
        )
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
    """Steps a new optimizer over given gradients and yields the change of the weight at each step.

    Args:
        optimizer_class: Of the optimizer.
        arguments: For its constructor.
        weight: To start from; it is copied.
        gradients: Returns the gradient of each step, counted from 0.
        steps: Number of steps.

    Raises:
        CannotRunError: If the optimizer cannot be built or stepped; the message says why.
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
) -> UpdateStatistics:
    size = math.prod(shape)
    steps = max(1024, min(most_steps, _MOST_NUMBERS // size))
    generator = torch.Generator("cpu").manual_seed(7)
    noise: list[Tensor] = []
    changes: list[Tensor] = []
    chosen = torch.randperm(size, generator=generator, device="cpu")[: min(size, _MOST_COORDINATES)]

    def gradient(step: int) -> Tensor:
        draw = torch.randn(shape, generator=generator, dtype=torch.float32)
        if step >= _BURN_IN:
            noise.append(draw.flatten()[chosen])
        return draw

    with isolated():
        start = torch.randn(shape, generator=generator)
        for step, change in enumerate(
            run(
                optimizer_class,
                {**arguments, "lr": _LR, **decay_argument(optimizer_class, 0.0)},
                start,
                gradient,
                _BURN_IN + steps,
            )
        ):
            if step >= _BURN_IN:
                changes.append(-change.flatten()[chosen] / _LR)
        return statistics_of(torch.stack(changes), torch.stack(noise))


def statistics_of(changes: Tensor, gradients: Tensor) -> UpdateStatistics:
    """Returns the statistics of recorded updates and the white gradients that caused them, both (steps, coordinates).

    Gradients drawn in a finite run are not perfectly white. At low frequencies, which determine R, that is most of the
    noise: 2 % of R in a run of 4096 steps and 1024 coordinates. It is known and can be taken out: with `u = h * g + e`
    and h by regression of the spectra, `S_uu - |h|^2 (S_gg - <g^2>)` is the spectrum under exactly white gradients.

    Sums run to lag 512, or to ten times the memory found so far if that is longer (Sokal's window). A mask leaves slow
    tails of small correlation; beyond the window there is only noise.

    Raises:
        CannotRunError: If the updates are zero or not finite.
    """
    changes, gradients = changes.double(), gradients.double()
    if not bool(changes.isfinite().all()) or float(changes.square().sum()) == 0:
        raise CannotRunError("its updates on white noise are zero or not finite")
    steps = changes.shape[0]
    padded = 1 << (2 * steps - 1).bit_length()
    own = torch.zeros(padded // 2 + 1, dtype=torch.float64)
    drawn = torch.zeros(padded // 2 + 1, dtype=torch.float64)
    across = torch.zeros(padded // 2 + 1, dtype=torch.complex128)
    for first in range(0, changes.shape[1], 64):
        update = torch.fft.rfft(changes[:, first : first + 64], n=padded, dim=0)
        gradient = torch.fft.rfft(gradients[:, first : first + 64], n=padded, dim=0)
        own += update.abs().square().sum(1)
        drawn += gradient.abs().square().sum(1)
        across += (update * gradient.conj()).sum(1)
    reach = min(steps // 4, 512)
    while True:
        response = torch.fft.irfft(across / drawn, n=padded)[:reach]
        linear = torch.fft.rfft(response, n=padded).abs().square()
        whitened = own - linear * (drawn - gradients.square().sum())
        pairs = torch.arange(steps, 0, -1, dtype=torch.float64) * changes.shape[1]
        covariance = torch.fft.irfft(whitened, n=padded)[:steps] / pairs
        autocorrelation = covariance[:reach] / covariance[0]
        memory = float(2 * autocorrelation.sum() - 1)
        if reach >= min(10 * memory, steps // 4):
            break
        reach = min(steps // 4, 2 * reach)
    power = float(gradients.square().mean())
    return UpdateStatistics(float(response.sum()), float(covariance[0]) / power, autocorrelation.clone(), memory)
