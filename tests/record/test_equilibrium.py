"""`equilibrium_step` against a plain loop over its definition, on curves as trainings give them."""

import numpy as np
import pytest

from smdtrack.record.equilibrium import equilibrium_step, span_of, span_sums


def by_definition(steps: np.ndarray, angle: np.ndarray, line: np.ndarray) -> int | None:
    """The first step from which on every span of samples has an RMS angle within 10 % of the RMS line."""
    usable = [index for index in range(len(steps)) if np.isfinite(angle[index]) and line[index] > 0]
    span = max(10, len(usable) // 10)
    starts = range(len(usable) - span + 1)

    def is_inside(start: int) -> bool:
        chosen = usable[start : start + span]
        return abs(np.sqrt(np.mean(angle[chosen] ** 2) / np.mean(line[chosen] ** 2)) - 1) <= 0.1

    inside = [is_inside(start) for start in starts]
    return next((int(steps[usable[start]]) for start in starts if all(inside[start:])), None)


def curve(kind: str, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    time = np.linspace(0, 1, count)
    line = np.full(count, 0.02)
    if kind == "never":
        ratio = np.full(count, 0.55)
    elif kind == "from the start":
        ratio = np.ones(count)
    elif kind == "relaxes":
        ratio = 1 + 2 * np.exp(-8 * time)
    elif kind == "leaves again":
        ratio = np.where((time > 0.3) & (time < 0.6), 1.0, 1.5)
    elif kind == "steps of the learning rate":
        line = 0.02 * np.where(time < 0.5, 1.0, 0.1)
        ratio = np.where(time < 0.5, 1.0, 1 + 3 * np.exp(-20 * (time - 0.5)))
    else:
        line = 0.02 * np.cos(time * 1.5)
        ratio = 1 + np.exp(-6 * time)
    angle = line * ratio * (1 + 0.15 * generator.standard_normal(count))
    angle[generator.random(count) < 0.05] = np.nan
    return angle, line


KINDS = ("never", "from the start", "relaxes", "leaves again", "steps of the learning rate", "cosine")


@pytest.mark.parametrize("count", [5, 9, 10, 11, 60, 300, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_its_definition_says(kind: str, count: int) -> None:
    generator = np.random.default_rng(count)
    for _ in range(5):
        angle, line = curve(kind, count, generator)
        steps = np.cumsum(generator.integers(1, 9, count))
        assert equilibrium_step(steps, angle, line) == by_definition(steps, angle, line)


def test_a_sudden_change_is_found_at_its_step() -> None:
    angle = 0.01 * np.where(np.arange(100) < 40, 2.0, 1.0)
    assert equilibrium_step(np.arange(1, 101), angle, np.full(100, 0.01)) == 41


def test_a_weight_far_from_its_line_never_reached_it() -> None:
    generator = np.random.default_rng(0)
    angle = 0.01 * 0.55 * (1 + 0.3 * generator.standard_normal(200))
    angle[:5] = 0.01
    assert equilibrium_step(np.arange(200), angle, np.full(200, 0.01)) is None


def test_noise_in_equilibrium_does_not_hide_it() -> None:
    generator = np.random.default_rng(0)
    for count, noise in ((200, 0.15), (2000, 0.3), (20_000, 0.5)):
        angle = 0.01 * (1 + noise * generator.standard_normal(count)) / np.sqrt(1 + noise**2)
        reached = equilibrium_step(np.arange(count), angle, np.full(count, 0.01))
        assert reached is not None
        assert reached <= count / 4


@pytest.mark.parametrize("span", [1, 3, 10, 50, 1003])
def test_span_sums(span: int) -> None:
    values = np.random.default_rng(0).random(1003)
    expected = [values[start : start + span].sum() for start in range(len(values) - span + 1)]
    np.testing.assert_allclose(span_sums(values, span), expected, rtol=1e-12)


@pytest.mark.parametrize(("count", "span"), [(0, 10), (109, 10), (400, 40), (100_000, 10_000)])
def test_the_span_grows_with_the_run(count: int, span: int) -> None:
    assert span_of(count) == span
