"""The line of Nesterov's SGD is computed from the momentum buffer: compared with float64 by hooks of the test."""

import math

import pytest
import torch

import smdtrack
from smdtrack.sinks.memory import MemorySink
from tests.tracking.test_tracker import sgd, tiny, train
from tests.tracking.witness import seed_everything, whole

LR, DECAY, MOMENTUM = 0.05, 0.01, 0.9


@pytest.mark.parametrize("every", [1, 3])
def test_the_nesterov_line_equals_the_identity_of_update_and_momentum_buffer(every: int) -> None:
    seed_everything(0)
    model = tiny()
    optimizer = sgd(model, lr=LR, weight_decay=DECAY, nesterov=True)
    weight = model[3].weight
    before: list[torch.Tensor] = []
    along: list[float] = []
    squared: list[float] = []

    def remember(*_: object) -> None:
        before.append(whole(weight))

    def compare(*_: object) -> None:
        update = (before[-1] - whole(weight)) / LR
        along.append(float((update * whole(optimizer.state[weight]["momentum_buffer"])).sum()))
        squared.append(float(update.square().sum()))

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(compare)
    sink = MemorySink()
    with smdtrack.watch(model, optimizer, every=every, sinks=[sink]):
        train(model, optimizer, 24)
    assert {tracked.line_kind for tracked in sink.info.weights} == {"from state"}
    # Sinks get the equilibrium line only when it moves: each value must be right at its own step.
    sent = sink.series("angle_eq/3")
    assert len(sent) >= 2
    for step, line in sent:
        sampled = range(every - 1, step, every)
        alignment = sum(along[index] for index in sampled) / sum(squared[index] for index in sampled)
        expected = math.sqrt(2 * LR * DECAY / ((1 - MOMENTUM) + 2 * MOMENTUM**2 * alignment))
        assert line == pytest.approx(expected, rel=1e-3)
