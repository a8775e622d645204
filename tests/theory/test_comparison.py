"""Prediction against simulation: a fast subset by default, every timm optimizer when slow tests run."""

import pytest
import timm.optim

from smdtrack.theory.catalogue import entry
from tests.theory.cases import CASES
from tests.theory.comparison import compare

FAST = ("momentum", "sgd", "sgdp", "novograd", "adamw", "adam", "cadamw", "lamb", "lars", "lookahead_momentum")


@pytest.mark.parametrize("name", FAST)
def test_measured_over_predicted(name):
    row = compare(CASES[name])
    assert row.deviation <= CASES[name].tolerance, f"{name}: {row.ratio:.4f}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in FAST])
def test_measured_over_predicted_for_all_others(name):
    row = compare(CASES[name])
    assert row.deviation <= CASES[name].tolerance, f"{name}: {row.ratio:.4f}, drift-corrected {row.corrected:.4f}"


def test_no_optimizer_is_forgotten():
    without = {str(name) for name in timm.optim.list_optimizers()} - set(CASES)
    for name in without:
        found = entry(name)
        assert found.reason
        assert not found.installed or found.kind == "none"
