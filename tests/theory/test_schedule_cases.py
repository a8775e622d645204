"""Windows of 100 steps under changing settings stay on the drift-corrected line."""

import pytest

from tests.theory.schedule_cases import OPTIMIZERS, SCHEDULES, windows_of

FAST = {("cosine to 0", "momentum")}
# Lion's signs have a random part along the weight, so that its norm drifts by chance in windows this short.
ROWS = [(name, optimizer) for name in SCHEDULES for optimizer in OPTIMIZERS if optimizer != "lion"]


@pytest.mark.parametrize(
    ("schedule", "optimizer"),
    [pytest.param(*row, marks=() if row in FAST else pytest.mark.slow) for row in ROWS],
)
def test_windows_are_on_the_line(schedule, optimizer):
    found = windows_of(optimizer, SCHEDULES[schedule])
    assert found.mean == pytest.approx(1.0, abs=0.02)
    assert found.within >= 0.9
    assert len(found.ratios) >= 35
