"""`smdtrack run` around scripts that use what a process has: stdin, pipes, signals, children, loader workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smdtrack.record import Run, read_run

SCRIPT = """
import os, signal, sys, torch
from torch import nn

def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )

def train(model, optimizer, steps):
    for _ in range(steps):
        nn.functional.cross_entropy(model(torch.randn(8, 3, 10, 10)), torch.randint(0, 5, (8,))).backward()
        optimizer.step()
        optimizer.zero_grad()

def trained(steps):
    torch.manual_seed(0)
    model = network()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), steps)
    return float(sum(parameter.detach().double().sum() for parameter in model.parameters()))
"""


class Folder:
    """Where a script is run, wrapped and not."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, body: str, *args: str, wrapped: bool = True, **options: object) -> subprocess.Popen[str]:
        (self.path / "it.py").write_text(SCRIPT + body)
        smdtrack = ["-m", "smdtrack", "run", "--sink", "local", "--every", "2"] if wrapped else []
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        return subprocess.Popen(
            [sys.executable, *smdtrack, "it.py", *args],
            cwd=self.path,
            text=True,
            stderr=subprocess.PIPE,
            env={**environment, "OMP_NUM_THREADS": "1"},
            **{"stdout": subprocess.PIPE, **options},
        )

    def run(self, body: str, *args: str, stdin: str | None = None, wrapped: bool = True) -> tuple[int, str, str]:
        """Returns exit code, stdout and stderr."""
        with self.start(body, *args, wrapped=wrapped, stdin=subprocess.PIPE) as process:
            out, err = process.communicate(stdin, timeout=240)
        return process.returncode, out, err

    def record(self) -> Run:
        (record,) = self.records()
        return record

    def records(self) -> list[Run]:
        return [read_run(folder) for folder in (self.path / "smdtrack-runs").iterdir()]

    def samples_of_the_first(self) -> list[int]:
        """Returns the steps that the first tracked training has on disk by now."""
        folders = sorted(self.path.glob("smdtrack-runs/*/samples-000.arrows"))
        return read_run(folders[0].parent).steps.tolist() if folders else []


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_stdin_and_options_named_as_ours_are_the_script_s(folder: Folder) -> None:
    body = """
import argparse
parser = argparse.ArgumentParser()
for option in ("--every", "--sink", "--include", "--folder", "--name", "-m"):
    parser.add_argument(option)
print(vars(parser.parse_args()), trained(4), sys.stdin.read())
"""
    args = ["--every", "7", "--sink", "none", "--include", "a*", "--folder", "d", "--name=n", "-m", "x"]
    code, out, err = folder.run(body, *args, stdin="typed")
    assert (code, out) == folder.run(body, *args, stdin="typed", wrapped=False)[:2], err
    assert "'--every'" not in out
    assert out.endswith(" typed\n")
    assert folder.record().steps.tolist() == [2, 4]


def test_a_reader_that_has_gone_costs_the_script_what_it_costs_alone_and_no_record(folder: Folder) -> None:
    codes = []
    for wrapped in (False, True):
        process = folder.start("trained(4)\nprint('unread')\n", wrapped=wrapped)
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read()
        codes.append(process.wait(240))
        process.stderr.close()
        assert "BrokenPipeError" in said
    assert codes[0] == codes[1] != 0
    assert folder.record().summary is not None


def test_where_stderr_has_no_reader_the_exit_code_is_still_the_script_s(folder: Folder) -> None:
    body = "import warnings\nwarnings.simplefilter('error')\nprint(trained(4), flush=True)\nsys.exit(6)\n"
    process = folder.start(body)
    assert process.stderr is not None
    process.stderr.close()
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 6
    assert out
    assert folder.record().steps.tolist() == [2, 4]
    assert folder.record().summary is not None


def test_sigterm_ends_the_script_as_it_would_alone_and_the_record_can_be_read(folder: Folder) -> None:
    with folder.start("while True:\n    trained(50)\n    print('ready', flush=True)\n") as process:
        # The file of samples is there before the first of them is.
        deadline = time.monotonic() + 120
        while not folder.samples_of_the_first() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == -signal.SIGTERM
    assert folder.samples_of_the_first()[:3] == [2, 4, 6]


def test_a_script_s_own_handler_of_sigterm_is_kept(folder: Folder) -> None:
    body = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\ntrained(4)\nos.kill(os.getpid(), signal.SIGTERM)\n"
    code, _, err = folder.run(body)
    assert code == 9, err
    assert folder.record().status == "failed"
    assert folder.record().summary is not None


def test_a_forked_child_is_left_alone_and_the_parent_goes_on(folder: Folder) -> None:
    body = """
torch.manual_seed(0)
model = network()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
train(model, optimizer, 3)
child = os.fork()
if child == 0:
    train(model, optimizer, 5)
    other = network()
    train(other, torch.optim.SGD(other.parameters(), lr=0.1), 4)
    sys.exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
train(model, optimizer, 3)
print(float(sum(parameter.detach().double().sum() for parameter in model.parameters())))
"""
    code, out, err = folder.run(body)
    assert (code, out) == folder.run(body, wrapped=False)[:2]
    assert out.startswith("3\n")
    assert folder.record().steps.tolist() == [2, 4, 6]
    assert err.count("Angular update per step") == 1
    assert "smdtrack: measuring stopped" not in err


@pytest.mark.slow
def test_spawned_processes_run_as_alone_and_are_tracked_like_the_main_one(folder: Folder) -> None:
    body = """
def work(rank):
    print(__name__, trained(2), flush=True)

if __name__ == "__main__":
    torch.multiprocessing.spawn(work, nprocs=1)
    print(trained(4))
"""
    code, out, err = folder.run(body)
    assert (code, out) == folder.run(body, wrapped=False)[:2], err
    assert sorted(record.steps.tolist() for record in folder.records()) == [[2], [2, 4]]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_loader(context: str, folder: Folder) -> None:
    body = """
from torch.utils.data import DataLoader, Dataset

class Squares(Dataset):
    def __len__(self):
        return 32
    def __getitem__(self, index):
        return torch.full((3, 10, 10), index / 32) + torch.rand(3, 10, 10), index % 5

if __name__ == "__main__":
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        loader = DataLoader(Squares(), 8, shuffle=True, num_workers=2, multiprocessing_context=sys.argv[1])
        for images, labels in loader:
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    print(float(sum(parameter.detach().double().sum() for parameter in model.parameters())))
"""
    code, out, err = folder.run(body, context)
    assert (code, out) == folder.run(body, context, wrapped=False)[:2], err
    assert folder.record().steps.tolist() == [2, 4, 6, 8]
