import numpy as np
import pytest

from smdtrack.record.sampling_error import sampling_error_of_rms


def angles_of_momentum_sgd(runs: int, steps: int) -> np.ndarray:
    """Angles per step, (runs, steps), of weights of 64 elements that noise turns: heavy ball, in float64."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((runs, 64))
    buffer = np.zeros_like(weight)
    angles = np.empty((runs, steps))
    for step in range(-1000, steps):
        norm = np.linalg.norm(weight, axis=1, keepdims=True)
        gradient = generator.standard_normal((runs, 64)) / 8
        gradient -= weight * (gradient * weight).sum(1, keepdims=True) / norm**2
        buffer = 0.9 * buffer + gradient / norm + 1e-3 * weight
        new = weight - 0.1 * buffer
        if step >= 0:
            angles[:, step] = np.arccos((weight * new).sum(1) / norm[:, 0] / np.linalg.norm(new, axis=1))
        weight = new
    return angles


@pytest.mark.parametrize("every", [2, 5, 10, 50])
def test_the_error_is_the_distance_from_the_rms_of_all_steps(every: int) -> None:
    angles = angles_of_momentum_sgd(runs=400, steps=1000)
    sampled = angles[:, every - 1 :: every]
    off = np.sqrt((sampled**2).mean(axis=1) / (angles**2).mean(axis=1)) - 1
    errors = [sampling_error_of_rms(run, 1 / every) for run in sampled]
    # On the safe side where neighbours are alike, about right where they are not.
    ratio = np.median(np.array(errors, dtype=float)) / np.sqrt((off**2).mean())
    assert 0.95 < ratio < (1.3 if every == 50 else 2)
    assert (np.abs(off) < 2 * np.array(errors, dtype=float)).mean() > 0.95


def test_a_trend_is_no_scatter() -> None:
    noise = 0.1 * np.random.default_rng(1).standard_normal(900)
    still, falling = (
        sampling_error_of_rms(line * (1 + noise), 0.1) for line in (np.ones(900), np.linspace(1.5, 0.5, 900))
    )
    assert still == pytest.approx(0.1 * np.sqrt(0.9 / 900), rel=0.1)
    assert falling == pytest.approx(still, rel=0.3)


def test_where_every_step_is_sampled_there_is_no_error() -> None:
    assert sampling_error_of_rms(np.random.default_rng(2).random(100), 1.0) == 0


def test_few_samples_have_no_error() -> None:
    assert sampling_error_of_rms(np.full(15, 0.1), 0.1) is None
    assert sampling_error_of_rms(np.append(np.full(15, 0.1), np.nan), 0.1) is None
    assert sampling_error_of_rms(np.zeros(40), 0.1) is None
    assert sampling_error_of_rms(np.full(16, 0.1), 0.1) == pytest.approx(0, abs=1e-12)
