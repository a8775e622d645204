"""Out of equilibrium: the drift-corrected line and predicted trajectories, from norms four times too large or small."""

import math

import pytest
import torch

from smdtrack.theory import finite_decay
from tests.planning.trajectory import trajectory
from tests.theory.cases import Case
from tests.theory.compare import build
from tests.theory.schedules import SCHEDULES, WINDOW, windows
from tests.theory.simulator import Simulation, angle_between, at_equilibrium

STEPS = 3000
BETAS = (0.9, 0.99)
RUNS = {
    "momentum": Case("momentum", 0.1, 1e-3),
    "sgd": Case("sgd", 0.1, 1e-3),
    "adamw": Case("adamw", 1e-3, 1.0, {"betas": BETAS}),
    "cadamw": Case("cadamw", 1e-3, 1.0, {"betas": BETAS}),
}
FAST = {("momentum", "step"), ("sgd", "cosine"), ("adamw", "warm-up"), ("cadamw", "constant")}
ALL = [
    pytest.param(name, schedule, off, marks=() if (name, schedule) in FAST and off > 1 else pytest.mark.slow)
    for name in RUNS
    for schedule in SCHEDULES
    for off in (4.0, 0.25)
]


def equilibrium_norm(line):
    """Returns ||w|| at equilibrium under an effective gradient of 1 in 1024 coordinates."""
    if line.norm_exponent == 1:
        return math.sqrt(line.step_size * line.updates.gain) / (2 * line.decay_rate) ** 0.25
    return line.step_size * math.sqrt(line.updates.energy * 1024 * line.memory / (2 * line.decay_rate))


@pytest.mark.parametrize(("name", "schedule", "off"), ALL)
def test_under_a_schedule_from_a_norm_four_times_off(name, schedule, off):
    case = RUNS[name]
    start = off * equilibrium_norm(Simulation(build(case)).line())
    simulation = Simulation(build(case), norm=start)
    rates = SCHEDULES[schedule](case.lr, STEPS)
    trace = simulation.run(STEPS, rates, sample=0)

    ratios = [measured / line for measured, line in windows(simulation, trace) if line > 0]
    assert len(ratios) >= 10
    assert sum(ratios) / len(ratios) == pytest.approx(1.0, abs=0.02)

    if name == "cadamw":
        return
    tolerance = 0.06 if name == "adamw" else 0.03
    lines = [simulation.family.line({**simulation.group, "lr": lr}, (32, 32)) for lr in rates]
    points = list(
        trajectory(
            lines, map(math.sqrt, trace.gradient2), start, coordinates=1024, betas=BETAS if name == "adamw" else None
        )
    )
    for step in range(0, STEPS, 50):
        assert points[step].norm == pytest.approx(math.sqrt(trace.norm2[step]), rel=tolerance)
    for first in range(WINDOW, STEPS - WINDOW, WINDOW):
        predicted = math.sqrt(sum(point.angle**2 for point in points[first : first + WINDOW]))
        assert predicted == pytest.approx(math.sqrt(sum(trace.angle2[first : first + WINDOW])), rel=tolerance)


@pytest.mark.parametrize(("name", "power", "tolerance"), [("momentum", 4, 0.06), ("adamw", 2, 0.10)])
def test_the_norm_approaches_equilibrium_within_the_time_constant(name, power, tolerance):
    """The tolerance for AdamW is wider because its second moment lags by 100 of the 500 steps."""
    case = RUNS[name]
    line = Simulation(build(case)).line()
    target = equilibrium_norm(line)
    simulation = Simulation(build(case), norm=1.5 * target)
    constant = line.time_constant
    trace = simulation.run(round(constant) + 1, sample=0)
    excess = [(norm2 ** (power / 2) - target**power) for norm2 in (trace.norm2[0], trace.norm2[-1])]
    assert excess[1] / excess[0] == pytest.approx(math.exp(-1), rel=tolerance)


@pytest.mark.parametrize(
    "name", ["momentum", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sgd", "adamw", "cadamw"))]
)
def test_angles_over_many_steps(name):
    simulation = Simulation(build(RUNS[name]))
    at_equilibrium(simulation)
    simulation.run(500, sample=0)
    line = simulation.line()
    kept = []
    for _ in range(3000):
        simulation.run(1, sample=0)
        kept.append(simulation.weight.detach().clone())
    for lag in (1, 3, 10, 30, 100, 300, 1000):
        pairs = torch.arange(0, len(kept) - lag, max(1, lag // 5)).tolist()
        measured = math.sqrt(sum(angle_between(kept[i], kept[i + lag]) ** 2 for i in pairs) / len(pairs))
        assert measured == pytest.approx(line.lag_angle(lag), rel=0.03), lag


@pytest.mark.parametrize(
    ("k", "ratio"),
    [pytest.param(4, 1.88, marks=pytest.mark.slow), (16, 3.14), pytest.param(64, 4.02, marks=pytest.mark.slow)],
)
def test_k_small_steps_against_one_step_of_the_k_fold_batch_and_rate(k, ratio):
    """Linear scaling by simulation: batch B at lr against batch kB, whose noise is smaller by sqrt(k), at k lr."""
    lr, decay, steps = 2e-3, 2e-3, 2500

    def run(scale):
        case = Case("momentum", scale * lr, decay)
        simulation = Simulation(build(case), effective_gradient=1 / math.sqrt(scale))
        at_equilibrium(simulation)
        simulation.run(400, sample=0)
        return simulation

    small, large = run(1), run(k)
    kept = [small.weight.detach().clone()]
    for _ in range(steps):
        small.run(1, sample=0)
        kept.append(small.weight.detach().clone())
    over_k = [angle_between(kept[i], kept[i + k]) ** 2 for i in range(0, steps - k, max(1, k // 8))]
    measured = math.sqrt(sum(over_k) / len(over_k)) / large.run(steps, sample=0).angle
    assert measured == pytest.approx(ratio, rel=0.02)
    assert small.line().linear_scaling_ratio(k) == pytest.approx(ratio, abs=0.005)


def test_no_trajectory_without_a_line():
    from timm.optim import create_optimizer_v2

    from smdtrack.theory import identify
    from tests.theory.test_family import weight

    optimizer = create_optimizer_v2([weight()], "madgrad", lr=0.1, weight_decay=0.1)
    line = identify(optimizer).line(optimizer.param_groups[0], (16, 16))
    with pytest.raises(ValueError, match="MADGRAD"):
        next(trajectory([line], [1.0], 1.0))


@pytest.mark.slow
@pytest.mark.parametrize(("off", "low", "high"), [(4.0, 0.93, 1.10), (0.25, 0.94, 1.05)])
def test_lions_memory_follows_the_growing_norm(off, low, high):
    """After 300 steps, in which its momentum fills. A memory that does not follow would be 14 % off at off = .25."""
    simulation = Simulation(build(Case("lion", 1e-3, 0.5)), (48, 48))
    line = simulation.line()
    simulation.rescale(off * 1e-3 * 48 / math.sqrt(finite_decay.relative_update(line.decay_rate, line.overlap)))
    simulation.run(300, sample=0)
    for _ in range(6):
        trace = simulation.run(100, sample=0)
        assert low < trace.angle / line.drift_corrected(trace.drift) < high
