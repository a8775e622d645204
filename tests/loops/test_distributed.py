"""DDP and FSDP2 in two gloo processes under torchrun, against the same training in one process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from smdtrack.record import Run, read_run
from tests.loops.two_ranks import network
from tests.tracking.witness import Witness

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def torchrun(
    folder: Path, mode: str, watch: str = "yes", optimizer: str = "sgd"
) -> tuple[dict[str, torch.Tensor], str]:
    """Returns the whole weights at the end, and the output of both processes."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--standalone",
            "-m",
            "tests.loops.two_ranks",
            mode,
            str(folder),
            watch,
            optimizer,
        ],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "end.pt"), done.stdout + done.stderr


def launched(folder: Path, mode: str) -> Run:
    """Returns the record of the unmodified script under `smdtrack run` in each process."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--standalone",
            "-m",
            "smdtrack",
            "run",
            "--sink",
            "local",
            "--every",
            "2",
            "--folder",
            str(folder / "runs"),
            "-m",
            "tests.loops.two_ranks",
            mode,
            str(folder),
            "no",
        ],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("scale-invariant weights of") == 1
    return only_run(folder)


def only_run(folder: Path) -> Run:
    (run,) = (folder / "runs").iterdir()
    return read_run(run)


def in_one_process(optimizer_name: str = "sgd") -> tuple[Witness, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = network()
    if optimizer_name == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    witness = Witness(model, optimizer)
    for number in range(8):
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(16, 3, 10, 10, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, 5, (16,), generator=generator)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return witness, dict(model.state_dict())


@pytest.mark.parametrize(("mode", "optimizer"), [("ddp", "sgd"), ("fsdp", "sgd"), ("fsdp", "adam")])
def test_ddp_and_fsdp_record_the_values_of_one_process_and_leave_the_training_unchanged(
    mode: str, optimizer: str, tmp_path: Path
) -> None:
    folders = {watch: tmp_path / watch for watch in ("yes", "no")}
    ends = {}
    for watch, folder in folders.items():
        folder.mkdir()
        ends[watch], _ = torchrun(folder, mode, watch, optimizer)
    assert all(torch.equal(ends["yes"][key], ends["no"][key]) for key in ends["no"])
    run = only_run(folders["yes"])
    witness, end = in_one_process(optimizer)
    torch.testing.assert_close(ends["yes"]["0.weight"], end["0.weight"], rtol=1e-9, atol=1e-12)
    assert [weight.name for weight in run.info.weights] == ["0.weight", "3.weight"]
    assert run.steps.tolist() == list(range(1, 9))
    for index, weight in enumerate(run.info.weights):
        for family, reference in (
            ("angle", witness.angle),
            ("norm", witness.norm),
            ("effective_grad", witness.effective_gradient),
        ):
            expected = [reference(weight.name, step) for step in range(1, 9)]
            np.testing.assert_allclose(run.values[family][:, index], expected, rtol=1e-5)
        # The part due to eps is computed from shards and subtracted: in float64 it would dominate the residual.
        cosines = [witness.cosine(weight.name, step) for step in range(1, 9)]
        assert min(cosines) > 1e-8
        np.testing.assert_array_less(run.values["orthogonality_residual"][:, index], 0.02 * np.max(cosines))
        lag = run.values["angle_k3"][:, index]
        np.testing.assert_allclose(lag[[2, 5]], [witness.angle(weight.name, step, lag=3) for step in (3, 6)], rtol=1e-5)
    if optimizer == "sgd":
        # sqrt(2 lr wd / (1 + a)) is the length of a step in units of the norm: the chord of the angle.
        chord = (2 * 0.1 * 0.01 / 1.9) ** 0.5
        np.testing.assert_allclose(run.values["angle_eq"], 2 * np.arcsin(chord / 2), rtol=1e-6)
    else:
        assert np.isfinite(run.values["angle_eq"]).all()


def test_a_fault_in_one_process_of_a_sharded_training_does_not_block_the_others(tmp_path: Path) -> None:
    end, said = torchrun(tmp_path, "fsdp", "fault")
    _, alone = in_one_process()
    torch.testing.assert_close(end["0.weight"], alone["0.weight"], rtol=1e-9, atol=1e-12)
    assert said.count("measuring stopped at step 1") == 1
    assert said.count("smdtrack: nothing could be measured in another process") == 1


def test_weights_sharded_after_watch_are_reported_and_leave_the_training_unchanged(tmp_path: Path) -> None:
    end, said = torchrun(tmp_path, "late")
    _, alone = in_one_process()
    torch.testing.assert_close(end["0.weight"], alone["0.weight"], rtol=1e-9, atol=1e-12)
    assert said.count("call watch after fully_shard; training goes on") == 1
    assert said.count("smdtrack: ") == 1
    (tmp_path / "no").mkdir()
    without, _ = torchrun(tmp_path / "no", "late", "no")
    assert all(torch.equal(end[key], without[key]) for key in without)
    # Under `smdtrack run`, tracking begins with the first step, so that the order does not matter.
    (tmp_path / "run").mkdir()
    run = launched(tmp_path / "run", "late")
    assert run.steps.tolist() == [2, 4, 6, 8]


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_an_unmodified_script_under_torchrun_is_measured(mode: str, tmp_path: Path) -> None:
    run = launched(tmp_path, mode)
    witness, _ = in_one_process()
    assert run.steps.tolist() == [2, 4, 6, 8]
    for index, weight in enumerate(run.info.weights):
        expected = [witness.angle(weight.name, step) for step in (2, 4, 6, 8)]
        np.testing.assert_allclose(run.values["angle"][:, index], expected, rtol=1e-5)
