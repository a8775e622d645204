"""The audit on networks that break its assumptions: right verdicts, an untouched model, a bounded number of passes."""

import random
import warnings

import numpy
import pytest
import torch

from smdtrack.invariance import audit
from smdtrack.invariance.trial_model import TrialModel
from smdtrack.notices import SmdtrackError
from tests.invariance.hard_networks import BY_CONSTRUCTION, KINDS, case, functional_truth

SEEDS = 4
#: Forward and backward passes of an audit of a small convolutional network with batch norm.
NORMAL_PASSES = 10

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


@pytest.fixture
def passes(monkeypatch):
    """Counts the forward and backward passes of all audits."""
    counted = {"forward": 0, "backward": 0}
    outputs, backward = TrialModel.outputs, TrialModel.backward

    def counting_outputs(self, *args, **kwargs):
        counted["forward"] += 1
        return outputs(self, *args, **kwargs)

    def counting_backward(self, *args, **kwargs):
        counted["backward"] += 1
        return backward(self, *args, **kwargs)

    monkeypatch.setattr(TrialModel, "outputs", counting_outputs)
    monkeypatch.setattr(TrialModel, "backward", counting_backward)
    return counted


def everything_of(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    versions = {name: tensor._version for name, tensor in model.named_parameters()}
    return state, versions, random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def check(kind, seed, passes):
    one = case(kind, seed)
    before = everything_of(one.model)
    if one.refused:
        with pytest.raises(SmdtrackError, match=one.refused) as caught:
            audit(one.model, one.example)
        assert "\n" not in str(caught.value)
    else:
        result = audit(one.model, one.example)
        assert {name: result[name].verdict for name in one.expected} == one.expected
        assert result.precision == one.precision
    after = everything_of(one.model)
    assert all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())
    assert before[1:] == after[1:]
    assert passes["forward"] + passes["backward"] <= 4 * NORMAL_PASSES


@pytest.mark.parametrize("kind", KINDS)
def test_the_verdicts_are_right_and_nothing_changes(kind, passes):
    check(kind, 0, passes)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, SEEDS))
@pytest.mark.parametrize("kind", KINDS)
def test_the_verdicts_are_right_for_other_sizes(kind, seed, passes):
    check(kind, seed, passes)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in BY_CONSTRUCTION])
def test_what_is_expected_is_the_functional_truth(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = case(kind, 0)
    assert functional_truth(one) == one.expected


def test_there_are_at_least_150_networks():
    assert SEEDS * len(KINDS) >= 150
