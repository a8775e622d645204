"""Rows of the second table: which line holds under which gradients."""

import pytest

from tests.theory.conditions import CONDITIONS, outcome
from tests.theory.noise import NOISES, mean_square

ROWS = {(condition.label, condition.optimizer): condition for condition in CONDITIONS}
FAST = [("AR(0.5)", "lion"), ("AR(0.5)", "momentum"), ("t(3)", "adamw"), ("AMSGrad", "adamw")]


def check(row):
    found = outcome(ROWS[row])
    assert min(abs(found.ratio - 1), abs(found.with_memory - 1)) <= 0.02, found
    return found


@pytest.mark.parametrize("row", FAST)
def test_the_line_holds_or_the_memory_says_why_not(row):
    found = check(row)
    if row == ("AR(0.5)", "lion"):
        assert found.ratio < 0.9, "or there would be nothing to explain"
        assert found.memory > 1.3


# Sizes that stay large or small for 20 steps change the correlation of signs within the memory: 3 % off.
MISSED = {("bursts, AR(.95)", "lion")}


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row not in {*FAST, *MISSED}], ids="-".join)
def test_all_other_rows(row):
    check(row)


@pytest.mark.parametrize("name", ["white", "AR(-0.7)", "AR(0.9)", "rank 8"])
def test_noises_have_a_mean_square_of_one(name):
    assert mean_square(NOISES[name], steps=400) == pytest.approx(1.0, rel=0.02)
