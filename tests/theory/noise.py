"""Gradient noise for the simulator: white, correlated in time, bursty, heavy-tailed, of low rank, of unequal rows.

Each function returns an endless iterator of tensors of a shape, with mean square 1 per coordinate.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor

Shape = tuple[int, ...]
Noise = Callable[[Generator, Shape], Iterator[Tensor]]


def normal(generator: Generator, shape: Shape) -> Tensor:
    """Returns one Gaussian tensor in float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def white(generator: Generator, shape: Shape) -> Iterator[Tensor]:
    """Independent Gaussian tensors."""
    while True:
        yield normal(generator, shape)


def correlated(correlation: float) -> Noise:
    """A first-order autoregressive process, AR(1)."""

    def draw(generator: Generator, shape: Shape) -> Iterator[Tensor]:
        present = normal(generator, shape)
        while True:
            yield present
            fresh = normal(generator, shape)
            present = correlation * present + math.sqrt(1 - correlation**2) * fresh

    return draw


def bursts(correlation: float, spread: float = 1.0) -> Noise:
    """White noise times a common size, whose logarithm is Gaussian with this spread and AR(1) in time."""

    def draw(generator: Generator, shape: Shape) -> Iterator[Tensor]:
        sizes = correlated(correlation)(generator, (1,))
        for size in sizes:
            yield normal(generator, shape) * (spread * size - spread**2).exp()

    return draw


def heavy_tailed(generator: Generator, shape: Shape) -> Iterator[Tensor]:
    """Independent Student-t coordinates with 3 degrees of freedom."""
    while True:
        chi = sum(normal(generator, shape).square() for _ in range(3))
        yield normal(generator, shape) / chi.sqrt()


def low_rank(rank: int) -> Noise:
    """Products of two Gaussian matrices of this rank, new ones at each step."""

    def draw(generator: Generator, shape: Shape) -> Iterator[Tensor]:
        rows, columns = shape[0], math.prod(shape[1:])
        while True:
            left, right = normal(generator, (rows, rank)), normal(generator, (rank, columns))
            yield (left @ right / math.sqrt(rank)).view(shape)

    return draw


def unequal_rows(generator: Generator, shape: Shape) -> Iterator[Tensor]:
    """White noise whose rows have fixed sizes, lognormal(1)."""
    sizes = (normal(generator, (shape[0],)) - 1).exp().view(-1, *(1 for _ in shape[1:]))
    while True:
        yield normal(generator, shape) * sizes


NOISES: dict[str, Noise] = {
    "white": white,
    **{f"AR({c:g})": correlated(c) for c in (-0.7, -0.3, 0.5, 0.9, 0.97)},
    "bursts": bursts(0.0),
    "bursts, AR(.95)": bursts(0.95),
    "t(3)": heavy_tailed,
    "rank 8": low_rank(8),
    "unequal rows": unequal_rows,
}


def mean_square(noise: Noise, shape: Shape = (32, 32), steps: int = 2000) -> float:
    """Returns the mean square of a coordinate over the first steps of a noise."""
    drawn = itertools.islice(noise(torch.Generator().manual_seed(0), shape), steps)
    return sum(float(tensor.square().mean()) for tensor in drawn) / steps
