"""What the audit takes in memory, in a process of its own."""

import pytest

from tests.benchmarks.audit_cost import measured

MOST = 40


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "mobilenetv3_large_100"])
def test_the_peak_is_within_forty_bytes_a_parameter(name):
    seen = measured(name)
    assert seen["bytes"] <= MOST * seen["parameters"]
