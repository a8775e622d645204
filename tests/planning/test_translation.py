"""Translated recipes: by their own prediction, by known scaling rules, and by simulation with the real optimizers."""

import math
from dataclasses import replace

import pytest

from smdtrack.notices import SmdtrackError
from smdtrack.planning.lr_schedule import line_at_peak, make_optimizer
from smdtrack.planning.matching import equilibrium_rms, growth_over, matched_angle, typical_rms
from smdtrack.planning.recipe import Recipe
from smdtrack.planning.solve import solve_for_angle
from smdtrack.planning.target import Target
from smdtrack.planning.translation import translate
from tests.theory.simulator import Simulation, at_equilibrium

SHAPE = (32, 32)
MOMENTUM = Recipe(opt="momentum", lr=0.1, weight_decay=1e-3)
ADAMW = Recipe(opt="adamw", lr=1e-3, weight_decay=0.5, opt_betas=(0.9, 0.99))
CLOSED_FORMS = [
    "sgd",
    "sgdw",
    "sgdp",
    "adamw",
    "nadamw",
    "adamp",
    "laprop",
    "adan",
    "lion",
    "lamb",
    "lars",
    "novogradw",
]
CALIBRATED = ["cadamw", "muon"]


@pytest.mark.parametrize("name", [*CLOSED_FORMS, *CALIBRATED])
@pytest.mark.parametrize("source", [MOMENTUM, ADAMW], ids=lambda recipe: recipe.opt)
def test_the_translation_predicts_the_angle_of_its_source(source, name):
    translated = translate(source, Target(opt=name), SHAPE).after
    angle = line_at_peak(source, SHAPE).angular_update
    assert line_at_peak(translated, SHAPE).angular_update == pytest.approx(angle, rel=1e-3)


@pytest.mark.parametrize("name", ["adamw", "lion", "lamb", "sgd"])
def test_translating_back_gives_the_source(name):
    there = translate(ADAMW, Target(opt=name), SHAPE).after
    lr = ADAMW.lr if name == "sgd" else None
    back = translate(there, Target(opt="adamw", lr=lr, settings={"opt_betas": ADAMW.opt_betas}), SHAPE).after
    assert back.lr == pytest.approx(ADAMW.lr, rel=2e-3)
    assert back.weight_decay == pytest.approx(ADAMW.weight_decay, rel=4e-3)


@pytest.mark.parametrize(
    "name",
    ["adamw", "sgd", "lamb", *(pytest.param(name, marks=pytest.mark.slow) for name in ("nadamw", "lion", "muon"))],
)
def test_the_real_optimizer_turns_the_weight_as_far_as_the_source(name):
    """Each optimizer by timm's factory, on noise without a scale, from equilibrium; RMS over 2500 steps."""
    changes = {"opt_betas": (0.9, 0.99)} if name in ("adamw", "nadamw", "lion", "lamb") else {}
    # Lion remembers 46 steps: at the decay rate of .0024 that MOMENTUM's angle needs, second-order terms are 9 %.
    source = replace(MOMENTUM, weight_decay=1e-4) if name == "lion" else MOMENTUM
    translated = translate(source, Target(opt=name, settings=changes), SHAPE).after

    def measured(recipe):
        simulation = Simulation(lambda parameters: _real_optimizer(recipe, parameters), SHAPE)
        at_equilibrium(simulation)
        simulation.run(800, sample=0)
        trace = simulation.run(2500, sample=0)
        return trace.angle, math.sqrt(sum(trace.norm2) / len(trace.norm2) / math.prod(SHAPE))

    angle, rms = measured(translated)
    source_angle, _ = measured(source)
    assert angle == pytest.approx(source_angle, rel=0.03)
    expected = equilibrium_rms(line_at_peak(translated, SHAPE), translated, SHAPE)
    if expected is not None and name != "lamb":
        assert rms == pytest.approx(expected, rel=0.05)
        assert expected == pytest.approx(typical_rms(SHAPE), rel=1e-3)


def _real_optimizer(recipe, parameters):
    from timm.optim import create_optimizer_v2, optimizer_kwargs

    return create_optimizer_v2(parameters, **optimizer_kwargs(recipe))


@pytest.mark.slow
def test_lamb_settles_at_the_norm_that_its_weight_decay_was_chosen_for():
    """Started at the expected norm, so that a wrong one would show as a drift."""
    recipe = translate(MOMENTUM, Target(opt="lamb", settings={"opt_betas": (0.9, 0.99)}), SHAPE).after
    expected = equilibrium_rms(line_at_peak(recipe, SHAPE), recipe, SHAPE) * math.sqrt(math.prod(SHAPE))
    simulation = Simulation(lambda parameters: _real_optimizer(recipe, parameters), SHAPE, norm=1.3 * expected)
    trace = simulation.run(6000, sample=0)
    late = trace.norm2[-2000:]
    assert math.sqrt(sum(late) / len(late)) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("match", "lr", "weight_decay"),
    [("epoch", 4.0, 1.0), ("step", 2.0, 0.5), ("k-steps", 4 * math.sqrt(3.527), math.sqrt(3.527))],
)
def test_a_batch_four_times_as_large_under_momentum(match, lr, weight_decay):
    """Linear scaling for the decay per epoch; R_4 = 3.527 at a momentum of .9 for the angle of four steps."""
    after = translate(MOMENTUM, Target(batch_factor=4, step_factor=4, match=match), SHAPE).after
    # The angle is large enough here for the sphere's curvature to show in the third digit.
    assert after.lr / MOMENTUM.lr == pytest.approx(lr, rel=5e-3)
    assert after.weight_decay / MOMENTUM.weight_decay == pytest.approx(weight_decay, rel=5e-3)


def test_a_batch_four_times_as_large_under_adamw_is_square_root_scaling():
    after = translate(replace(ADAMW, batch_size=64), Target(batch_factor=4, step_factor=4), SHAPE).after
    assert (after.lr, after.weight_decay, after.batch_size) == (2e-3, 1.0, 256)


@pytest.mark.parametrize("factor", [2, 4, 16])
def test_one_step_of_the_larger_batch_turns_as_far_as_k_of_the_smaller(factor):
    line = line_at_peak(replace(MOMENTUM, weight_decay=1e-5), SHAPE)
    assert matched_angle(line, factor, "k-steps") == pytest.approx(line.lag_angle(factor))
    larger = replace(MOMENTUM, weight_decay=1e-5)
    large = translate(larger, Target(batch_factor=factor, step_factor=factor, match="k-steps"), SHAPE)
    back = matched_angle(large.line_after, 1 / factor, "k-steps")
    assert back == pytest.approx(line.angular_update, rel=2e-3)


@pytest.mark.slow
def test_k_small_steps_and_one_large_step_by_simulation():
    """Gradient noise of the large batch is half as large; the angle over 4 small steps is measured, not predicted."""
    from tests.theory.simulator import angle_between

    small = replace(MOMENTUM, weight_decay=1e-4)
    large = translate(small, Target(batch_factor=4, step_factor=4, match="k-steps"), SHAPE).after

    def settled(recipe, gradient):
        simulation = Simulation(lambda p: _real_optimizer(recipe, p), SHAPE, effective_gradient=gradient)
        at_equilibrium(simulation)
        simulation.run(1000, sample=0)
        return simulation

    first, second = settled(small, 1.0), settled(large, 0.5)
    norms = [math.sqrt(simulation.run(1, sample=0).norm2[0]) for simulation in (first, second)]
    assert norms[0] == pytest.approx(norms[1], rel=0.03), "the second condition: the equilibrium norm is kept"
    kept = [first.weight.detach().clone()]
    for _ in range(3000):
        first.run(1, sample=0)
        kept.append(first.weight.detach().clone())
    over_four = [angle_between(kept[i], kept[i + 4]) ** 2 for i in range(len(kept) - 4)]
    measured = math.sqrt(sum(over_four) / len(over_four))
    assert second.run(3000, sample=0).angle == pytest.approx(measured, rel=0.03)


def test_growth_between_whole_numbers_of_steps_is_linear():
    line = line_at_peak(MOMENTUM, SHAPE)
    assert growth_over(line, 3) == pytest.approx(3 * line.updates.memory_over(3))
    assert growth_over(line, 2.5) == pytest.approx((growth_over(line, 2) + growth_over(line, 3)) / 2)


def test_another_number_of_epochs_stretches_the_schedule_and_leaves_the_angle():
    recipe = replace(MOMENTUM, epochs=90, sched="multistep", decay_milestones=(30, 60, 80), warmup_epochs=5)
    translation = translate(recipe, Target(epochs=180), SHAPE)
    assert translation.changes == {"epochs": 180, "decay_milestones": (60, 120, 160), "warmup_epochs": 10}
    assert translation.line_after == translation.line_before


def test_fractions_of_the_schedule_stay_fractions():
    recipe = replace(MOMENTUM, epochs=100, sched="wsd", decay_epochs=0.2)
    assert translate(recipe, Target(epochs=50), SHAPE).after.decay_epochs == 0.2


def test_under_a_trust_ratio_the_schedules_drops_are_square_roots():
    """The angle goes as the root of momentum's learning rate, but as LAMB's learning rate itself."""
    recipe = replace(MOMENTUM, sched="step", decay_rate=0.1, warmup_lr=1e-3)
    after = translate(recipe, Target(opt="lamb"), SHAPE).after
    assert after.decay_rate == pytest.approx(math.sqrt(0.1), rel=1e-3)
    dropped = replace(recipe, lr=recipe.lr * 0.1)
    expected = line_at_peak(dropped, SHAPE).angular_update
    lower = line_at_peak(replace(after, lr=after.lr * after.decay_rate), SHAPE)
    assert lower.angular_update == pytest.approx(expected, rel=2e-3)
    warm = line_at_peak(replace(after, lr=after.warmup_lr), SHAPE).angular_update
    assert warm == pytest.approx(line_at_peak(replace(recipe, lr=1e-3), SHAPE).angular_update, rel=2e-3)


def test_the_average_of_weights_keeps_its_window_in_images():
    recipe = replace(MOMENTUM, model_ema=True, model_ema_decay=0.999)
    after = translate(recipe, Target(batch_factor=4, step_factor=4), SHAPE).after
    assert after.model_ema_decay == pytest.approx(0.999**4, rel=1e-4)


def test_settings_of_the_old_optimizer_are_dropped_and_named():
    translation = translate(ADAMW, Target(opt="momentum"), SHAPE)
    assert translation.changes["opt_betas"] is None
    assert "opt_betas of adamw: dropped, momentum has its own defaults" in translation.not_kept
    assert translation.after.lr == 0.1


def test_it_says_what_is_kept_and_what_is_not():
    translation = translate(replace(MOMENTUM, clip_grad=1.0), Target(opt="adamw"), SHAPE)
    assert translation.kept == (
        "the angle of one step at the largest learning rate",
        "the norm of a fresh weight: it begins at its equilibrium norm, RMS 0.25 per element (He initialisation)",
    )
    assert [sentence.split(":")[0] for sentence in translation.not_kept] == [
        "the time constant",
        "exactness",
        "biases, norm layers' gains and the classifier",
        "clip_grad",
    ]
    assert translation.not_kept[0].startswith("the time constant: 2 times as long in steps")


@pytest.mark.parametrize(
    ("recipe", "target", "message"),
    [
        (replace(MOMENTUM, weight_decay=0.0), Target(opt="adamw"), "the recipe has no equilibrium angle to keep: .*"),
        (replace(MOMENTUM, opt="adam"), Target(opt="adamw"), "the recipe has no equilibrium angle to keep: .*state.*"),
        (MOMENTUM, Target(opt="madgrad"), "madgrad has no equilibrium angle: dual averaging .*"),
        (MOMENTUM, Target(opt="adam"), "adam has no equilibrium angle: .*known only in training.*"),
        (MOMENTUM, Target(opt="lamb", lr=0.5), "lamb has this angle only at a learning rate of .*, not 0.5: .*"),
    ],
)
def test_what_cannot_be_translated_says_why(recipe, target, message):
    with pytest.raises(SmdtrackError, match=f"^{message}$"):
        translate(recipe, target, SHAPE)


@pytest.mark.parametrize("name", ["momentum", "adamw", "lion", "lamb"])
@pytest.mark.parametrize("angle", [1e-4, 0.01, 0.2])
def test_the_advised_setting_predicts_the_wanted_angle(name, angle):
    solution = solve_for_angle(replace(MOMENTUM, opt=name), angle, SHAPE)
    assert line_at_peak(solution.recipe, SHAPE).angular_update == pytest.approx(angle, rel=1e-3)
    assert solution.setting == ("lr" if name == "lamb" else "weight_decay")
    assert make_optimizer(solution.recipe, SHAPE).param_groups[0]["lr"] == solution.recipe.lr


@pytest.mark.parametrize("name", ["momentum", "adamw", "lamb"])
def test_an_angle_out_of_reach_is_refused(name):
    with pytest.raises(SmdtrackError, match=rf"^an angle of 4 rad per step is out of reach for {name}"):
        solve_for_angle(replace(MOMENTUM, opt=name), 4.0, SHAPE)
