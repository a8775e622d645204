"""Scripts run under instrumentation, as Python itself would run them."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from smdtrack import SmdtrackError
from smdtrack.record import Run, read_run
from smdtrack.tracking import Options
from tests.launching import Launched, launch
from tests.said import collected_notices
from tests.tracking.witness import Witness, seed_everything

TRAINING = """
import torch
from torch import nn
from torch.nn import functional as F

def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )

def train(model, optimizer, steps):
    for _ in range(steps):
        loss = F.cross_entropy(model(torch.randn(8, 3, 10, 10)), torch.randint(0, 5, (8,)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

torch.manual_seed(0)
"""


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def launched(body: str, *args: str, training: str = TRAINING, **options: object) -> Launched:
    Path("script.py").write_text(training + textwrap.dedent(body))
    return launch("script.py", args, Options(**{"every": 1, "sinks": ["local"], **options}))


def records(outcome: Launched) -> list[Run]:
    return [read_run(tracker.folder) for tracker in outcome.trackers]


def test_a_script_is_tracked_from_its_optimizer_s_first_step() -> None:
    outcome = launched(
        """
        model = network()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3), 4)
        """
    )
    assert (outcome.exit_code, outcome.optimizers, outcome.interrupted) == (0, 1, False)
    (run,) = records(outcome)
    assert run.steps.tolist() == [1, 2, 3, 4]
    assert [weight.name for weight in run.info.weights] == ["0.weight", "3.weight"]
    assert run.status == "finished"


def test_the_smallest_module_that_holds_the_parameters_is_the_model() -> None:
    outcome = launched(
        """
        import copy
        from timm.utils import ModelEmaV3

        class Task(nn.Module):
            def __init__(self, student, teacher):
                super().__init__()
                self.student, self.teacher = student, teacher
            def forward(self, x):
                return self.student(x), self.teacher(x)

        model = network()
        compiled = torch.compile(model, backend="eager")
        average, teacher = ModelEmaV3(model), copy.deepcopy(model).requires_grad_(False)
        task = Task(compiled, teacher)
        train(compiled, torch.optim.SGD(model.parameters(), lr=0.1), 2)
        """
    )
    (run,) = records(outcome)
    assert run.info.params["model"] == "sequential"
    assert [weight.name for weight in run.info.weights] == ["0.weight", "3.weight"]


def test_a_loss_with_weights_of_its_own_does_not_hide_the_model() -> None:
    outcome = launched(
        """
        model, center = network(), nn.Parameter(torch.zeros(5))
        optimizer = torch.optim.SGD([*model.parameters(), center], lr=0.1)
        train(model, optimizer, 2)
        """
    )
    (run,) = records(outcome)
    assert [weight.name for weight in run.info.weights] == ["0.weight", "3.weight"]


def test_an_optimizer_made_anew_for_the_same_weights_goes_on_in_the_same_record() -> None:
    outcome = launched(
        """
        model = network()
        for rate in (0.1, 0.02):
            optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-3)
            train(model, optimizer, 3)
        train(model, torch.optim.AdamW(model.parameters(), lr=0.001, weight_decay=0.1), 3)
        """
    )
    assert outcome.optimizers == 3
    (run,) = records(outcome)
    assert run.steps.tolist() == list(range(1, 10))
    lines = run.values["angle_eq"][:, 0]
    chords = np.array([(2 * rate * 1e-3 / 1.9) ** 0.5 for rate in 3 * [0.1] + 3 * [0.02]])
    np.testing.assert_allclose(lines[:6], 2 * np.arcsin(chords / 2))
    np.testing.assert_allclose(lines[6:], 3 * [(2 * 0.001 * 0.1 * 0.1 / 1.9) ** 0.5], rtol=1e-3)


def test_two_optimizers_that_take_turns_on_the_same_weights_share_a_record() -> None:
    outcome = launched(
        """
        model = network()
        first, second = (torch.optim.SGD(model.parameters(), lr=rate, weight_decay=1e-3) for rate in (0.1, 0.02))
        for _ in range(3):
            train(model, first, 1)
            train(model, second, 1)
        """
    )
    (run,) = records(outcome)
    np.testing.assert_allclose(run.values["angle_eq"][:, 0], 3 * [(2e-4) ** 0.5, (4e-5) ** 0.5], rtol=1e-3)


def test_two_models_have_a_record_each() -> None:
    outcome = launched(
        """
        pairs = [(model, torch.optim.SGD(model.parameters(), lr=0.1)) for model in (network(), network())]
        for _ in range(3):
            for model, optimizer in pairs:
                train(model, optimizer, 1)
        """
    )
    assert [run.steps.tolist() for run in records(outcome)] == [[1, 2, 3], [1, 2, 3]]


TWO_INPUTS = """
import torch
from torch import nn

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU())
        self.right = nn.Sequential(nn.Linear(9, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 3)
    def forward(self, left, right):
        return self.head(self.left(left) + self.right(right))

torch.manual_seed(0)
model = Pair()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for _ in range(5):
    model(torch.randn(16, 5), right=torch.randn(16, 9)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
print("hooks", len(model._forward_pre_hooks))
"""


def test_an_input_that_nothing_tells_is_taken_from_the_next_forward_pass(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = launched("", training=TWO_INPUTS)
    (run,) = records(outcome)
    assert [weight.name for weight in run.info.weights] == ["left.0.weight", "right.0.weight"]
    # The first step ran before an input was seen; what follows has its place by the script's own count.
    assert run.steps.tolist() == [2, 3, 4, 5]
    assert capsys.readouterr().out == "hooks 0\n"


def test_a_model_without_invariant_weights_is_said_in_one_line() -> None:
    with collected_notices(match="SGD is not tracked: linear has no scale-invariant weight"):
        outcome = launched(
            """
            model = nn.Sequential(nn.Flatten(), nn.Linear(300, 5))
            train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
            """
        )
    assert outcome.trackers == ()
    assert outcome.exit_code == 0


def test_the_record_of_a_script_equals_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Witness] = []
    monkeypatch.setitem(sys.modules, "witnesses", type(sys)("witnesses"))
    sys.modules["witnesses"].attach = lambda *pair: seen.append(Witness(*pair))  # type: ignore[attr-defined]
    outcome = launched(
        """
        import witnesses
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        witnesses.attach(model, optimizer)
        train(model, optimizer, 6)
        """
    )
    (run,) = records(outcome)
    for index, weight in enumerate(run.info.weights):
        expected = [seen[0].angle(weight.name, step) for step in range(1, 7)]
        np.testing.assert_allclose(run.values["angle"][:, index], expected, rtol=1e-6)


def test_argv_path_and_name_are_those_of_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    Path("there").mkdir()
    Path("there/beside.py").write_text("VALUE = 7\n")
    Path("there/script.py").write_text(
        "import sys, beside\nprint(sys.argv, __name__, beside.VALUE, sys.path[0])\nprint(__file__)\n"
    )
    outcome = launch("there/script.py", ["--lr", "0.1", "--", "x"], Options(sinks=["local"]))
    assert outcome.exit_code == 0
    path = str(Path("there").resolve())
    said = f"{['there/script.py', '--lr', '0.1', '--', 'x']} __main__ 7 {path}\n{path}/script.py\n"
    assert capsys.readouterr().out == said


def test_a_module_runs_as_with_dash_m(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("package").mkdir()
    Path("package/__init__.py").touch()
    Path("package/__main__.py").write_text("import sys\nprint(sys.argv[1:], __name__, __package__)\nsys.exit(4)\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    assert launch("package", ["a"], Options(sinks=["local"]), module=True).exit_code == 4
    assert capsys.readouterr().out == "['a'] __main__ package\n"


def test_what_cannot_be_run_is_said() -> None:
    with pytest.raises(SmdtrackError, match="no script 'nowhere"):
        launch("nowhere.py", [], Options(sinks=["local"]))
    with pytest.raises(SmdtrackError, match="a folder"):
        launch(".", [], Options(sinks=["local"]))
    with pytest.raises(SmdtrackError, match="no module 'no"):
        launch("no.such", [], Options(sinks=["local"]), module=True)


@pytest.mark.parametrize(
    ("ending", "code"),
    [("sys.exit()", 0), ("sys.exit(3)", 3), ("sys.exit('no')", 1), ("raise ValueError", 1), ("sys.exit(True)", 1)],
)
def test_exit_code_stdout_and_traceback_are_those_of_python(ending: str, code: int) -> None:
    Path("script.py").write_text(
        f"import sys\nprint('out')\nprint('err', file=sys.stderr)\ndef f():\n    {ending}\nf()\n"
    )
    alone = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True)
    wrapped = subprocess.run(
        [sys.executable, "-c", RUNNER, "script.py"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert alone.returncode == wrapped.returncode == code
    assert wrapped.stdout == alone.stdout
    # Both name the script's file in their own way: relative, absolute.
    assert wrapped.stderr.replace(str(Path.cwd()) + "/", "") == alone.stderr.replace(str(Path.cwd()) + "/", "")


RUNNER = """
import sys
from tests.launching import launch
from tests.said import collected_notices
from smdtrack.tracking import Options
sys.exit(launch(sys.argv[1], sys.argv[2:], Options(sinks=["local"], every=1)).exit_code)
"""


def test_ctrl_c_stops_the_script_and_the_record_is_complete() -> None:
    Path("script.py").write_text(
        TRAINING
        + textwrap.dedent(
            """
            model = network()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            train(model, optimizer, 5)
            print("ready", flush=True)
            while True:
                train(model, optimizer, 1)
            """
        )
    )
    with subprocess.Popen(
        [sys.executable, "-c", RUNNER, "script.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "KeyboardInterrupt" in errors
    (folder,) = Path("smdtrack-runs").iterdir()
    run = read_run(folder)
    assert run.status == "interrupted"
    assert run.summary is not None
    assert len(run.steps) >= 5


def test_a_script_that_catches_ctrl_c_itself_was_interrupted() -> None:
    outcome = launched(
        """
        import sys
        model = network()
        try:
            train(model, torch.optim.SGD(model.parameters(), lr=0.1), 3)
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(130)
        """
    )
    assert (outcome.exit_code, outcome.interrupted) == (130, False)
    (run,) = records(outcome)
    assert run.status == "interrupted"


def test_optimizers_made_anew_are_measured_as_float64_has_it_and_change_no_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Witness] = []
    monkeypatch.setitem(sys.modules, "witnesses", type(sys)("witnesses"))
    sys.modules["witnesses"].attach = lambda *pair: seen.append(Witness(*pair))  # type: ignore[attr-defined]
    body = """
    import witnesses
    model = network()
    for make in (torch.optim.SGD, torch.optim.AdamW):
        optimizer = make(model.parameters(), lr=0.01, weight_decay=0.1)
        witnesses.attach(model, optimizer)
        train(model, optimizer, 3)
    torch.save(model.state_dict(), "end.pt")
    """
    outcome = launched(body)
    wrapped = torch.load("end.pt")
    (run,) = records(outcome)
    assert run.steps.tolist() == list(range(1, 7))
    for index, weight in enumerate(run.info.weights):
        for family, reference in (("angle", Witness.angle), ("norm", Witness.norm)):
            expected = [reference(witness, weight.name, step) for witness in seen for step in (1, 2, 3)]
            np.testing.assert_allclose(run.values[family][:, index], expected, rtol=1e-6)
    exec(compile(TRAINING + textwrap.dedent(body), "script", "exec"), {"__name__": "__main__"})
    alone = torch.load("end.pt")
    assert all(torch.equal(alone[key], wrapped[key]) for key in alone)


def test_a_fault_in_the_audit_costs_the_tracker_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from smdtrack.tracking.attach import weight_selection as selection

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("broken audit")

    monkeypatch.setattr(selection, "audit", broken)
    with collected_notices(match="SGD is not tracked: RuntimeError: broken audit") as caught:
        outcome = launched(
            """
            model = network()
            train(model, torch.optim.SGD(model.parameters(), lr=0.1), 3)
            """
        )
    assert len(caught) == 1
    assert outcome.exit_code == 0


def test_no_hook_is_left_behind() -> None:
    from torch.optim import optimizer as torch_optimizer

    before = len(torch_optimizer._global_optimizer_pre_hooks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        launched("train(model := network(), torch.optim.SGD(model.parameters(), lr=0.1), 2)")
    assert len(torch_optimizer._global_optimizer_pre_hooks) == before


def test_training_under_the_launcher_is_the_same_bits() -> None:
    body = """
    from timm.utils import ModelEmaV3
    model = network()
    average = ModelEmaV3(model, decay=0.9)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 5)
    average.update(model)
    torch.save([model.state_dict(), average.module.state_dict(), torch.get_rng_state()], "end.pt")
    """
    launched(body)
    seed_everything(0)
    wrapped = torch.load("end.pt")
    Path("end.pt").unlink()
    exec(compile(TRAINING + textwrap.dedent(body), "script", "exec"), {"__name__": "__main__"})
    alone = torch.load("end.pt")
    for one, other in zip(alone[:2], wrapped[:2], strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(alone[2], wrapped[2])
