"""A training that is cut off and resumed: its steps go on where the checkpoint was made."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.optim import Lamb, Lookahead
from torch import nn

import smdtrack
from smdtrack.optimizers import steps_taken
from smdtrack.record import read_run
from smdtrack.sinks.memory import MemorySink
from tests.said import collected_notices
from tests.tracking.test_tracker import sgd, tiny, train
from tests.tracking.witness import seed_everything

MAKERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
    "lamb": lambda model: Lamb(model.parameters(), lr=0.01),
    "lookahead": lambda model: Lookahead(sgd(model), k=3),
}


def first_part(make: Callable[[nn.Module], torch.optim.Optimizer], steps: int = 12) -> Path:
    """Trains with a checkpoint after step 7, goes on to step 12 and is cut off; returns the record's folder."""
    seed_everything(5)
    model = tiny()
    optimizer = make(model)
    tracker = smdtrack.watch(model, optimizer, every=2, sinks=["local"])
    train(model, optimizer, 7)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "checkpoint.pt")
    train(model, optimizer, steps - 7)
    tracker.finish("failed")
    assert tracker.folder is not None
    return tracker.folder


def resumed(make: Callable[[nn.Module], torch.optim.Optimizer]) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = tiny()
    optimizer = make(model)
    checkpoint = torch.load("checkpoint.pt")
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    return model, optimizer


@pytest.mark.parametrize("name", MAKERS)
def test_steps_are_counted_from_the_checkpoint(name: str) -> None:
    first_part(MAKERS[name])
    model, optimizer = resumed(MAKERS[name])
    with smdtrack.watch(model, optimizer, every=2, sinks=["local"]) as tracker:
        train(model, optimizer, 6)
    assert read_run(tracker.folder).steps.tolist() == [8, 10, 12]


def test_also_when_watching_begins_before_the_checkpoint_is_loaded() -> None:
    first_part(sgd)
    model = tiny()
    optimizer = sgd(model)
    with smdtrack.watch(model, optimizer, every=2, sinks=["local"]) as tracker:
        checkpoint = torch.load("checkpoint.pt")
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        train(model, optimizer, 6)
    assert read_run(tracker.folder).steps.tolist() == [8, 10, 12]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_same_record_goes_on_without_doubled_points(name: str) -> None:
    folder = first_part(MAKERS[name])
    before = read_run(folder)
    assert before.steps.tolist() == [2, 4, 6, 8, 10, 12]
    model, optimizer = resumed(MAKERS[name])
    sink = MemorySink()
    with smdtrack.watch(model, optimizer, every=2, sinks=[sink], resume_run=folder) as tracker:
        train(model, optimizer, 11)
    assert tracker.folder == folder
    run = read_run(folder)
    assert run.info.id == before.info.id
    assert run.info.created == before.info.created
    assert run.status == "finished"
    assert run.steps.tolist() == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    np.testing.assert_array_equal(run.values["angle"][:6], before.values["angle"])
    # A tracker that goes on with its run gets no step twice either.
    assert {point.step for point in sink.points} == {14, 16, 18}
    assert run.summary is not None


def test_a_training_started_from_a_checkpoint_s_weights_alone_counts_from_one() -> None:
    first_part(sgd)
    model = tiny()
    model.load_state_dict(torch.load("checkpoint.pt")["model"])
    optimizer = sgd(model)
    with smdtrack.watch(model, optimizer, every=2, sinks=["local"]) as tracker:
        train(model, optimizer, 4)
    assert read_run(tracker.folder).steps.tolist() == [2, 4]


def test_a_record_of_other_weights_is_refused() -> None:
    folder = first_part(sgd)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    with pytest.raises(smdtrack.SmdtrackError, match=r"cannot continue .*: it tracks other weights \(3.weight\)"):
        smdtrack.watch(model, sgd(model), sinks=["local"], resume_run=folder)
    with pytest.raises(smdtrack.SmdtrackError, match="is not a run's folder"):
        smdtrack.watch(model, sgd(model), sinks=["local"], resume_run="nowhere")


def test_a_checkpoint_that_the_record_does_not_know_goes_on_after_its_last_step() -> None:
    folder = first_part(sgd)
    (folder / "checkpoints.jsonl").write_text('torn\n{"step": 3}\n')
    model, optimizer = resumed(sgd)
    with (
        collected_notices() as notices,
        smdtrack.watch(model, optimizer, every=2, sinks=["local"], resume_run=folder),
    ):
        train(model, optimizer, 4)
    assert read_run(folder).steps.tolist() == [2, 4, 6, 8, 10, 12, 14, 16]
    assert notices == [
        f"{folder} has no checkpoint with these weights: steps are counted on from its last sample, step 12"
    ]


def test_asking_for_the_state_leaves_it_as_it_was() -> None:
    model = tiny()
    optimizer = sgd(model)
    keys = set(optimizer.state_dict())
    with smdtrack.watch(model, optimizer, every=2, sinks=["local"]):
        train(model, optimizer, 3)
        assert set(optimizer.state_dict()) == keys
        assert set(optimizer.state_dict()["param_groups"][0]) == {*optimizer.param_groups[0]}
    assert not optimizer._optimizer_state_dict_pre_hooks


@pytest.mark.parametrize("name", MAKERS)
def test_the_optimizer_s_own_count(name: str) -> None:
    model = tiny()
    optimizer = MAKERS[name](model)
    assert steps_taken(optimizer) in (None, 0)
    train(model, optimizer, 3)
    assert steps_taken(optimizer) == {"sgd": None, "adamw": 3, "lamb": 3, "lookahead": None}[name]
