"""When a tracker begins and ends: several trainings in one process, freed models, weights drawn anew."""

import gc
import sys
import textwrap
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest

import smdtrack
from smdtrack.record import read_run
from smdtrack.tracking import Options
from smdtrack.tracking.attach.tracker import status_after
from smdtrack.tracking.attach.watch import _status_at_exit
from tests.launching import Launched, launch
from tests.said import collected_notices
from tests.test_launch import TRAINING
from tests.tracking.test_tracker import sgd, tiny, train


def launched(body: str, **options: object) -> Launched:
    Path("script.py").write_text(TRAINING + textwrap.dedent(body))
    return launch("script.py", [], Options(**{"every": 1, "sinks": ["local"], **options}))


def steps_of(outcome: Launched) -> list[list[int]]:
    return [read_run(tracker.folder).steps.tolist() for tracker in outcome.trackers]


def test_ten_trainings_leave_no_weight_no_optimizer_and_no_thread_alive() -> None:
    import threading

    # The pool for sums belongs to the process; another test of this process may have started it.
    before = set(threading.enumerate())
    alive: list[weakref.ref[object]] = []
    trackers = []
    for _ in range(10):
        model = tiny()
        optimizer = sgd(model)
        trackers.append(smdtrack.watch(model, optimizer, every=1, lags=[2], sinks=["local"]))
        train(model, optimizer, 3)
        alive += [weakref.ref(parameter) for parameter in model.parameters()] + [weakref.ref(optimizer)]
        folders = [tracker.folder for tracker in trackers]
        del model, optimizer
    gc.collect()
    for tracker in trackers:
        tracker.finish()
    assert sum(reference() is not None for reference in alive) == 0
    assert {thread for thread in threading.enumerate() if not thread.name.startswith("smdtrack-sums")} <= before
    assert [read_run(folder).steps.tolist() for folder in folders] == 10 * [[1, 2, 3]]
    assert {read_run(folder).status for folder in folders} == {"finished"}


def test_a_tracker_ends_when_its_model_is_freed() -> None:
    model = tiny()
    optimizer = sgd(model)
    tracker = smdtrack.watch(model, optimizer, every=1, sinks=["local"])
    train(model, optimizer, 2)
    assert not tracker.closed
    del model, optimizer
    gc.collect()
    tracker._recording._writer._thread.join(30)
    assert tracker.closed
    assert read_run(tracker.folder).status == "finished"


FOLDS = """
model = network()
for fold in range(3):
    {begin}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-3)
    train(model, optimizer, 4)
"""


@pytest.mark.parametrize(
    "begin",
    [
        "model.apply(lambda part: part.reset_parameters() if hasattr(part, 'reset_parameters') else None)",
        "first = {k: v.clone() for k, v in model.state_dict().items()} if not fold else first\n"
        "    model.load_state_dict(first)",
        "model = network()",
    ],
)
def test_each_fold_has_a_record_of_its_own(begin: str) -> None:
    outcome = launched(FOLDS.format(begin=begin))
    assert steps_of(outcome) == 3 * [[1, 2, 3, 4]]


def test_weights_and_optimizer_set_back_in_place_begin_a_new_record() -> None:
    outcome = launched(
        """
        import copy
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        first = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
        train(model, optimizer, 3)
        model.load_state_dict(first[0])
        optimizer.load_state_dict(first[1])
        train(model, optimizer, 2)
        """
    )
    assert steps_of(outcome) == [[1, 2, 3], [1, 2]]


def test_a_checkpoint_of_this_training_continues_its_record() -> None:
    outcome = launched(
        """
        import copy
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        train(model, optimizer, 3)
        best = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
        train(model, optimizer, 3)
        model.load_state_dict(best[0])
        optimizer.load_state_dict(best[1])
        train(model, optimizer, 2)
        """
    )
    assert steps_of(outcome) == [[1, 2, 3, 4, 5, 6, 7, 8]]


def test_a_phase_whose_optimizer_was_freed_is_continued_by_the_next_one() -> None:
    outcome = launched(
        """
        model = network()
        def phase(rate):
            train(model, torch.optim.SGD(model.parameters(), lr=rate), 2)
        phase(0.1)
        phase(0.01)
        """
    )
    assert steps_of(outcome) == [[1, 2, 3, 4]]


def test_a_training_ends_with_the_script_s_own_tracker_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(run=None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    outcome = launched(
        """
        import sys
        from types import SimpleNamespace
        wandb = sys.modules["wandb"]
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for name, steps in (("a", 3), ("b", 2), (None, 2)):
            wandb.run = name and SimpleNamespace(id=name)
            train(model, optimizer, steps)
        """
    )
    assert steps_of(outcome) == [[1, 2, 3], [1, 2], [1, 2]]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "finished"),
        (SystemExit(), "finished"),
        (SystemExit(0), "finished"),
        (SystemExit(3), "failed"),
        (SystemExit("no"), "failed"),
        (SystemExit(130), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (GeneratorExit(), "finished"),
        (ValueError(), "failed"),
    ],
)
def test_the_status_after_each_way_to_end(error: BaseException | None, status: str) -> None:
    assert status_after(error) == status


def test_sys_exit_0_inside_the_block_is_no_failure() -> None:
    model = tiny()
    optimizer = sgd(model)
    tracker = smdtrack.watch(model, optimizer, every=1, sinks=["local"])
    train(model, optimizer, 1)
    with pytest.raises(SystemExit), tracker:
        sys.exit(0)
    assert read_run(tracker.folder).status == "finished"


def test_the_exception_of_an_earlier_notebook_cell_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "last_value", ValueError("an earlier cell"), raising=False)
    assert _status_at_exit() == "failed"
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert _status_at_exit() == "finished"


def test_an_optimizer_that_never_steps_is_reported_if_another_one_does() -> None:
    model = tiny()
    with collected_notices() as notices, smdtrack.watch(model, sgd(model), sinks=["local"]) as tracker:
        train(model, sgd(model), 3)
    assert notices == ["the watched optimizer never made a step, but another one did: watch the one that trains"]
    assert tracker.summary().reason == notices[0]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda m, o: (o, m), "model=<SGD> is not a torch.nn.Module: model and optimizer are swapped"),
        (lambda m, o: (None, o), "model=None is not a torch.nn.Module"),
        (lambda m, o: (m, None), "optimizer=None is not a torch.optim.Optimizer"),
        (
            lambda m, o: (m, SimpleNamespace(optimizer=o)),
            "optimizer=<SimpleNamespace> is not a torch.optim.Optimizer: pass the optimizer inside it, its attribute "
            "'optimizer'",
        ),
        (lambda m, o: (tiny(), o), "the optimizer holds no parameter of Sequential: is it another model's?"),
    ],
)
def test_a_wrong_pair_of_model_and_optimizer_is_one_line(wrong: object, said: str) -> None:
    model = tiny()
    with pytest.raises(smdtrack.SmdtrackError) as error:
        smdtrack.watch(*wrong(model, sgd(model)))  # type: ignore[operator]
    assert str(error.value) == said


def test_an_optimizer_is_not_kept_alive_by_its_hooks() -> None:
    model = tiny()
    optimizer = sgd(model)
    tracker = smdtrack.watch(model, optimizer, every=1, sinks=["local"])
    train(model, optimizer, 1)
    reference = weakref.ref(optimizer)
    tracker._recording._writer.flush(30)
    del optimizer
    gc.collect()
    assert reference() is None
    tracker.finish()
