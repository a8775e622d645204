"""Parameters that come and go: groups added, parts unfrozen, several optimizers, a step that raises."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import smdtrack
from smdtrack.record import read_run
from tests.loops.harness import WEIGHTS, Loop, assert_equal_to_float64, column, network, plain_step, sgd, trained
from tests.tracking.witness import Witness, assert_same_bits, everything, seed_everything


def angle_of_chord(chord: float) -> float:
    """sqrt(2 lr wd / (1 + a)) is the length of a step in units of the norm: the chord of the angle."""
    return 2 * math.asin(chord / 2)


def test_a_group_added_in_mid_run_is_measured_from_then_on_with_its_own_hyper_parameters() -> None:
    def make() -> Loop:
        model = network()
        optimizer = torch.optim.SGD(model[4:].parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)

        def step(number: int) -> None:
            if number == 5:
                optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.01, "weight_decay": 0.03})
            plain_step(model, optimizer)

        return Loop(model, optimizer, step)

    witness, run = trained(make)
    assert_equal_to_float64(witness, run)
    late = column(run, "0.weight")
    assert run.steps[np.isfinite(run.values["angle"][:, late])].tolist() == list(range(6, 13))
    assert run.values["angle_eq"][-1, late] == pytest.approx(angle_of_chord((2 * 0.01 * 0.03 / 1.9) ** 0.5))
    assert run.values["angle_eq"][-1, column(run, "4.weight")] == pytest.approx(
        angle_of_chord((2 * 0.05 * 0.01 / 1.9) ** 0.5)
    )


def test_a_part_that_is_unfrozen_in_mid_run_is_measured_from_then_on() -> None:
    def make() -> Loop:
        model = network()
        model[0].requires_grad_(False)
        optimizer = sgd(model)

        def step(number: int) -> None:
            if number == 7:
                model[0].requires_grad_(True)
            plain_step(model, optimizer)

        return Loop(model, optimizer, step)

    witness, run = trained(make)
    late = column(run, "0.weight")
    assert run.steps[np.isfinite(run.values["angle"][:, late])].tolist() == list(range(8, 13))
    assert_equal_to_float64(witness, run)


def test_two_optimizers_on_the_parts_of_one_model_have_a_record_each() -> None:
    def final(watched: bool) -> tuple[object, list[tuple[Witness, smdtrack.Tracker]]]:
        seed_everything(2)
        model = network()
        optimizers = [
            torch.optim.SGD(model[:3].parameters(), lr=0.05, momentum=0.9, weight_decay=0.01),
            torch.optim.AdamW(model[3:].parameters(), lr=0.01, weight_decay=0.1),
        ]
        seen = [
            (Witness(model, optimizer), smdtrack.watch(model, optimizer, every=1, sinks=["local"]))
            for optimizer in optimizers
            if watched
        ]
        for _ in range(6):
            for optimizer in optimizers:
                plain_step(model, optimizer)
        for _, tracker in seen:
            tracker.finish()
        return everything(model, optimizers), seen

    (without, _), (with_trackers, seen) = final(False), final(True)
    assert_same_bits(without, with_trackers)
    for (witness, tracker), name in zip(seen, WEIGHTS, strict=True):
        run = read_run(tracker.folder)
        assert [weight.name for weight in run.info.weights] == [name]
        assert_equal_to_float64(witness, run, names=[name])


def test_two_models_side_by_side() -> None:
    seed_everything(2)
    seen = []
    for _ in range(2):
        model = network()
        optimizer = sgd(model)
        seen.append(
            (model, optimizer, Witness(model, optimizer), smdtrack.watch(model, optimizer, every=1, sinks=["local"]))
        )
    for _ in range(5):
        for model, optimizer, _, _ in seen:
            plain_step(model, optimizer)
    for _, _, witness, tracker in seen:
        tracker.finish()
        assert_equal_to_float64(witness, read_run(tracker.folder))


class Raising(torch.optim.SGD):
    """Raises in some steps, after the hooks of the step have begun."""

    fails = False

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        if self.fails:
            raise ZeroDivisionError
        super().step()


def test_a_step_that_raises_leaves_no_sample() -> None:
    seed_everything(2)
    model, other = network(), network()
    failing = Raising(model.parameters(), lr=0.05, momentum=0.9)
    following = sgd(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = smdtrack.watch(model, failing, every=1, sinks=["local"])
        two = smdtrack.watch(other, following, every=1, sinks=["local"])
    witness = Witness(other, following)
    failing.fails = True
    with pytest.raises(ZeroDivisionError):
        plain_step(model, failing)
    failing.fails = False
    for _ in range(3):
        plain_step(other, following)
        plain_step(model, failing)
    one.finish()
    two.finish()
    assert_equal_to_float64(witness, read_run(two.folder))
    assert read_run(two.folder).steps.tolist() == [1, 2, 3]
    # The step that raised is counted too.
    assert read_run(one.folder).steps.tolist() == [2, 3, 4]


def test_a_finished_tracker_keeps_no_weight_alive() -> None:
    import gc
    import weakref

    model = network()
    optimizer = sgd(model)
    tracker = smdtrack.watch(model, optimizer, every=1, sinks=["local"])
    plain_step(model, optimizer)
    tracker.finish()
    gone = weakref.ref(model[0].weight)
    del tracker, optimizer, model
    gc.collect()
    assert gone() is None


def test_a_model_is_audited_once_for_all_its_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    from smdtrack.tracking.attach import weight_selection as selection

    audits = []
    monkeypatch.setattr(selection, "audit", lambda *a, **k: audits.append(a) or smdtrack.audit(*a, **k))
    model = network()
    for _ in range(3):
        smdtrack.watch(model, sgd(model), sinks=["local"]).finish()
    assert len(audits) == 1
    model[0] = nn.Conv2d(3, 8, 3, padding=1, bias=True)
    smdtrack.watch(model, sgd(model), sinks=["local"]).finish()
    assert len(audits) == 2
