"""Which steps are sampled."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from timm.optim import Lookahead

from smdtrack.optimizers import cycle_of
from smdtrack.tracking.attach.options import Options
from smdtrack.tracking.attach.sampling_schedule import EverySteps


def test_every_fifth_step_and_the_first_three() -> None:
    assert [step for step in range(1, 17) if EverySteps(5, 3)(step)] == [1, 2, 3, 5, 10, 15]


@pytest.mark.parametrize("every", [1, 2, 3, 4, 5, 6, 8, 10, 12, 30])
@pytest.mark.parametrize("cycle", [1, 2, 5, 6, 8, 12])
def test_as_many_samples_as_a_cycle_has_steps_meet_each_of_its_steps_once(every: int, cycle: int) -> None:
    schedule = EverySteps(every, cycle=cycle)
    sampled = [step for step in range(1, 20 * every * cycle) if schedule(step)]
    for first in range(cycle - 1, len(sampled) - cycle, cycle):
        assert len({step % cycle for step in sampled[first : first + cycle]}) == cycle
    gaps = Counter(later - earlier for earlier, later in pairwise(sampled))
    assert gaps.total() == pytest.approx(20 * cycle, abs=2)
    assert max(gaps) <= every + 1


def test_the_cycle_of_lookahead_is_its_k() -> None:
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    assert cycle_of(sgd) == 1
    assert cycle_of(Lookahead(sgd, k=7)) == 7
    assert Options(every=14).schedule(7) == EverySteps(14, cycle=7)
