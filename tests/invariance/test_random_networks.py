"""The audit against the functional truth on random networks, tensor by tensor."""

import warnings

import pytest
import torch

from smdtrack.invariance import audit
from tests.invariance.random_networks import random_network
from tests.invariance.truth import functional_truth

SHAPE = (3, 12, 12)
POINTS = 5
#: A parameter that matters at any point matters: the first of these found at any point is the truth.
ORDER = ("sensitive", "invariant", "degenerate", "unused")


def drawn(seed, values):
    torch.manual_seed(1000 * values + seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return random_network(seed)


def truth_at_several_points(seed):
    """Returns the truth of one architecture at several initialisations: a gate may be inactive at some of them."""
    found = [functional_truth(drawn(seed, k), SHAPE, seed=k, well_posed=True) for k in range(POINTS)]
    found = [verdicts for verdicts in found if verdicts]
    return {name: min((verdicts[name] for verdicts in found), key=ORDER.index) for name in (found[0] if found else ())}


def check(seed):
    """Compares audit and truth; returns whether the truth was well posed."""
    truth = truth_at_several_points(seed)
    found = {weight.name: weight.verdict for weight in audit(drawn(seed, 0), input_size=SHAPE).weights}
    wrong = {name: (found[name], verdict) for name, verdict in truth.items() if found[name] != verdict}
    assert wrong == {}, f"(found, true) in the network of seed {seed}"
    return bool(truth)


@pytest.mark.parametrize("ten", range(4))
def test_every_tensor_of_random_networks(ten):
    compared = [check(seed) for seed in range(10 * ten, 10 * ten + 10)]
    assert sum(compared) >= 8


@pytest.mark.parametrize("seed", [248, 270])
def test_a_small_gate_that_is_inactive_at_a_generic_point_is_judged_right(seed):
    assert check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("fifty", range(1, 7))
def test_every_tensor_of_many_more_random_networks(fifty):
    compared = [check(seed) for seed in range(50 * fifty, 50 * fifty + 50)]
    assert sum(compared) >= 40


def test_all_verdicts_occur_among_them():
    verdicts = set()
    for seed in range(8):
        verdicts |= set(functional_truth(drawn(seed, 0), SHAPE).values())
    assert verdicts == set(ORDER)
