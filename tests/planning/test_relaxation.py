"""The closed solution of the norm's path to equilibrium, against the step-by-step recursion."""

import math

import pytest

from smdtrack.planning.relaxation import LineSegment, relax
from smdtrack.theory import identify
from tests.planning.trajectory import trajectory
from tests.theory.compare import build
from tests.theory.simulator import Simulation
from tests.theory.test_transients import RUNS, equilibrium_norm


@pytest.mark.parametrize("start", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_each_segment_ends_where_the_recursion_ends(name, start):
    case = RUNS[name]
    simulation = Simulation(build(case))
    line = simulation.line()
    tenth = simulation.family.line({**simulation.group, "lr": case.lr / 10}, (32, 32))
    first, second = relax([LineSegment(600, line), LineSegment(1000, tenth)], line, start)
    home = equilibrium_norm(line)
    points = list(trajectory([line] * 600 + [tenth] * 1001, [1.0] * 1601, start * home, coordinates=1024))
    assert first.norm == pytest.approx(points[600].norm / home, rel=0.01)
    assert second.norm == pytest.approx(points[-1].norm / home, rel=0.01)
    assert second.angle == pytest.approx(points[-1].angle, rel=0.01)


def test_from_equilibrium_a_constant_line_is_kept():
    line = Simulation(build(RUNS["momentum"])).line()
    (state,) = relax([LineSegment(4000, line)], line)
    assert state.norm == pytest.approx(1.0)
    assert state.angle == pytest.approx(line.angular_update)


def test_without_weight_decay_the_norm_grows_by_its_power_law():
    """||w||^4 grows by 4 R P a step for SGD, so that the angle falls as the inverse root of the time."""
    simulation = Simulation(build(RUNS["momentum"]))
    line = simulation.line()
    free = simulation.family.line({**simulation.group, "weight_decay": 0.0}, (32, 32))
    (state,) = relax([LineSegment(10_000, free)], line)
    growth = 2 * line.memory * line.angular_update**2 * 10_000
    assert state.norm**4 == pytest.approx(1 + growth)
    assert state.angle == pytest.approx(line.angular_update / math.sqrt(1 + growth))


def test_a_trust_ratio_has_its_angle_at_once_and_no_norm():
    from timm.optim import create_optimizer_v2

    from tests.theory.test_family import weight

    optimizer = create_optimizer_v2([weight()], "lamb", lr=0.01, weight_decay=0.1)
    line = identify(optimizer).line(optimizer.param_groups[0], (16, 16))
    (state,) = relax([LineSegment(1, line)], line, 5.0)
    assert state.angle == line.angular_update
    assert math.isnan(state.norm)


def test_nothing_is_predicted_without_an_equilibrium():
    simulation = Simulation(build(RUNS["momentum"]))
    free = simulation.family.line({**simulation.group, "weight_decay": 0.0}, (32, 32))
    with pytest.raises(ValueError, match="no equilibrium for SGD with momentum: weight decay is 0"):
        relax([LineSegment(1, free)], free)
