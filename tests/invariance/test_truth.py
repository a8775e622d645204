"""The audit against a functional truth that shares no code with it, tensor by tensor, over timm's families."""

import random
import warnings

import pytest
import timm
import torch

from smdtrack.invariance import audit
from tests.invariance.models import SLOW, TINY
from tests.invariance.truth import functional_truth

SAMPLE = 20


def check(name, settings, size, sample=None):
    """Compares every tensor, or a random sample of them."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(name, num_classes=10, **settings)
    names = [name for name, _ in model.named_parameters()]
    chosen = set(names if sample is None else random.Random(name).sample(names, min(sample, len(names))))
    truth = functional_truth(model, (3, size, size), only=chosen)
    found = {weight.name: weight.verdict for weight in audit(model, input_size=(3, size, size)).weights}
    wrong = {name: (found[name], verdict) for name, verdict in truth.items() if found[name] != verdict}
    assert wrong == {}, "(found, true)"
    assert truth.keys() == chosen
    assert list(found) == names


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("name", "settings", "size"), TINY, ids=[model[0] for model in TINY])
def test_every_tensor_of_tiny_models(name, settings, size):
    check(name, settings, size)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings", "size"), SLOW, ids=[model[0] for model in SLOW])
def test_a_sample_of_the_tensors_of_more_models(name, settings, size):
    check(name, settings, size, SAMPLE)


def test_the_models_come_from_many_families():
    from timm.models._registry import _model_to_module

    assert len(TINY) >= 40
    assert len({_model_to_module[name] for name, _, _ in TINY}) >= 30
    assert len({name for name, _, _ in SLOW}) >= 150
