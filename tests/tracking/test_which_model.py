"""Which module is the model, and which optimizers train it together."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from smdtrack.record import Run, read_run
from smdtrack.tracking import Options
from tests.launching import Launched, launch
from tests.said import collected_notices
from tests.test_launch import TRAINING

NETWORK = (
    TRAINING
    + """
class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
        )
    def forward(self, images):
        return self.body(images)

class Skip(Body):
    def forward(self, images):
        first, second, end = self.body[:3], self.body[3:4], self.body[4:]
        hidden = first(images)
        return end(hidden + second(hidden))
"""
)


def launched(body: str, **options: object) -> Launched:
    Path("script.py").write_text(NETWORK + textwrap.dedent(body))
    return launch("script.py", [], Options(**{"every": 1, "sinks": ["local"], **options}))


def runs(outcome: Launched) -> list[Run]:
    return [read_run(tracker.folder) for tracker in outcome.trackers]


def names(run: Run) -> list[str]:
    return [weight.name for weight in run.info.weights]


def test_the_owner_of_a_container_gives_the_verdicts_and_the_names() -> None:
    outcome = launched("model = Skip()\ntrain(model, torch.optim.SGD(model.parameters(), lr=0.1), 4)")
    (run,) = runs(outcome)
    # The second convolution is added to its input: in the container alone it would be scale-invariant.
    assert names(run) == ["body.0.weight"]
    assert run.steps.tolist() == [2, 3, 4]


def test_globs_match_the_names_of_the_model_s_state_dict() -> None:
    outcome = launched(
        "model = Body()\ntrain(model, torch.optim.SGD(model.parameters(), lr=0.1), 3)", include=["body.3.*"]
    )
    (run,) = runs(outcome)
    assert names(run) == ["body.3.weight"]


def test_one_optimizer_for_two_models_tracks_both() -> None:
    outcome = launched(
        """
        import itertools
        first, second = network(), network()
        optimizer = torch.optim.SGD(itertools.chain(first.parameters(), second.parameters()), lr=0.1)
        for _ in range(3):
            images = torch.randn(8, 3, 10, 10)
            (first(images) * second(images)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        """
    )
    (run,) = runs(outcome)
    assert names(run) == [f"sequential{number}.{index}.weight" for number in (1, 2) for index in (0, 3)]
    assert np.isfinite(run.values["angle"]).all()


@pytest.mark.parametrize("order", ["one after the other", "in backward"])
def test_optimizers_for_parts_of_a_model_share_one_record(order: str) -> None:
    outcome = launched(
        f"""
        model = Body()
        optimizers = {{
            parameter: torch.optim.AdamW([parameter], lr=0.01 * (1 + index), weight_decay=0.1)
            for index, parameter in enumerate(model.parameters())
        }}
        in_backward = {order == "in backward"}
        def hook(parameter):
            optimizers[parameter].step()
            optimizers[parameter].zero_grad()
        for parameter in model.parameters() if in_backward else ():
            parameter.register_post_accumulate_grad_hook(hook)
        for _ in range(4):
            F.cross_entropy(model(torch.randn(8, 3, 10, 10)), torch.randint(0, 5, (8,))).backward()
            for optimizer in () if in_backward else optimizers.values():
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    (run,) = runs(outcome)
    assert names(run) == ["body.0.weight", "body.3.weight"]
    assert run.steps.tolist() == [2, 3, 4]
    assert np.isfinite(run.values["angle"]).all()
    # Each weight has the line of its own optimizer: the learning rates are those of parameters 0 and 3.
    ratio = run.values["angle_eq"][-1, 1] / run.values["angle_eq"][-1, 0]
    assert ratio == pytest.approx(2, rel=0.02)
    assert run.info.params["weights_tracked"] == 2


def test_backbone_and_head_with_different_optimizers_share_one_record() -> None:
    outcome = launched(
        """
        model = Body()
        backbone = torch.optim.SGD(model.body[:3].parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        head = torch.optim.AdamW(model.body[3:].parameters(), lr=0.01, weight_decay=0.1)
        for _ in range(4):
            F.cross_entropy(model(torch.randn(8, 3, 10, 10)), torch.randint(0, 5, (8,))).backward()
            for optimizer in (backbone, head):
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    (run,) = runs(outcome)
    assert names(run) == ["body.0.weight", "body.3.weight"]
    assert np.isfinite(run.values["angle"]).all()
    assert run.info.params["optimizer"] == "SGD, AdamW"


def test_the_networks_of_a_gan_have_a_record_each_under_their_own_names() -> None:
    outcome = launched(
        """
        first, second = Body(), Skip()
        both = nn.ModuleList([first, second])
        pairs = [(model, torch.optim.SGD(model.parameters(), lr=0.1)) for model in both]
        for _ in range(3):
            for model, optimizer in pairs:
                train(model, optimizer, 1)
        """
    )
    assert sorted(names(run) for run in runs(outcome)) == [["body.0.weight"], ["body.0.weight", "body.3.weight"]]


def test_a_wrapper_called_with_keywords_passes_its_input_on() -> None:
    outcome = launched(
        """
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Sequential(nn.Linear(7, 8, bias=False), nn.BatchNorm1d(8))
                self.b = nn.Linear(9, 8)
            def forward(self, left, right):
                return self.a(left) * self.b(right)
        model = nn.DataParallel(Two())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            model(left=torch.randn(16, 7), right=torch.randn(16, 9)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        """
    )
    (run,) = runs(outcome)
    assert names(run) == ["a.0.weight"]
    assert run.steps.tolist() == [2, 3]


def test_a_glob_that_matches_nothing_ends_the_script_before_its_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = launched(
        "model = network()\ntrain(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)\nprint('one step')",
        include=["conv*"],
    )
    assert outcome.exit_code == 2
    assert outcome.trackers == ()
    assert "one step" not in capsys.readouterr().out
    assert not Path("smdtrack-runs").exists()


def test_a_parameter_of_no_module_is_said() -> None:
    with collected_notices() as notices:
        outcome = launched(
            """
            weight = nn.Parameter(torch.randn(3, 3))
            optimizer = torch.optim.SGD([weight], lr=0.1)
            weight.square().sum().backward()
            optimizer.step()
            """
        )
    assert outcome.trackers == ()
    assert notices == ["SGD is not tracked: no module holds its parameters; call smdtrack.watch(model, optimizer)"]


SPAWNED = """
import sys
import torch
import torch.multiprocessing as mp

def work(rank, steps):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16, bias=False), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        model(torch.randn(32, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    print(float(model[0].weight.double().sum()))

if __name__ == "__main__":
    mp.spawn(work, (4,), 1)
    mp.start_processes(work, (3,), 1, start_method=sys.argv[1])
"""


@pytest.mark.parametrize("method", ["fork"])
def test_processes_that_torch_spawns_are_tracked(method: str, tmp_path: Path) -> None:
    Path("spawned.py").write_text(SPAWNED)
    command = ["-m", "smdtrack", "run", "--sink", "local", "--every", "1"]
    alone, wrapped = (
        subprocess.run([sys.executable, *words, "spawned.py", method], capture_output=True, text=True, timeout=300)
        for words in ([], command)
    )
    assert (wrapped.returncode, wrapped.stdout) == (alone.returncode, alone.stdout), wrapped.stderr
    found = sorted(read_run(folder).steps.tolist() for folder in Path("smdtrack-runs").iterdir())
    assert found == [[1, 2, 3], [1, 2, 3, 4]]
    assert "nothing was tracked" not in wrapped.stderr
