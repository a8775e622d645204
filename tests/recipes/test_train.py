"""recipes/train.py on the digits, on the CPU, mostly in a process of its own."""

from __future__ import annotations

import argparse
import ast
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from smdtrack.record import read_run
from tests.sinks.test_wandb import records
from tests.sinks.test_wandb import rows as wandb_rows

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TINY = ("--model", "test_resnet", "--img-size", "16", "--batch-size", "256", "--workers", "0")
TINY_MOMENTUM = (*TINY, "--opt", "momentum", "--lr", "0.05", "--sched", "cosine", "--warmup-epochs", "0")

Train = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


@pytest.fixture(scope="module")
def train(environment: dict[str, str]) -> Train:
    def run(*argv: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *launcher, str(RECIPES / "train.py"), *map(str, argv)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="module")
def unbroken(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run of three epochs that uses every kind of random number and a moving average."""
    folder = tmp_path_factory.mktemp("unbroken")
    noise = ("--workers", 1, "--mixup", 0.2, "--drop", 0.1, "--drop-path", 0.1)
    options = (*TINY_MOMENTUM, "--model-ema", "--epochs", 3, "--output", folder, "--experiment", "run")
    done = train(*options, *noise)
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder / "run"


def checkpoint(path: Path) -> dict[str, object]:
    torch.serialization.add_safe_globals([argparse.Namespace])
    loaded: dict[str, object] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def assert_same(left: object, right: object) -> None:
    """Bitwise, through dicts and lists."""
    assert type(left) is type(right)
    if isinstance(left, dict) and isinstance(right, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list) and isinstance(right, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    else:
        assert left == right


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_options_summary_and_checkpoints(unbroken: Path) -> None:
    options = yaml.safe_load((unbroken / "args.yaml").read_text())
    assert options["opt"] == "momentum"
    assert options["epochs"] == 3
    summary = rows(unbroken / "summary.csv")
    assert [row["epoch"] for row in summary] == ["0", "1", "2"]
    assert float(summary[-1]["train_loss"]) < float(summary[0]["train_loss"])
    assert {"eval_top1", "eval_top5", "eval_loss", "lr"} <= summary[0].keys()
    assert {path.name for path in unbroken.glob("*.pth.tar")} == {
        "last.pth.tar",
        "model_best.pth.tar",
        *(f"checkpoint-{epoch}.pth.tar" for epoch in range(3)),
    }


def test_without_a_terminal_there_is_a_line_per_epoch_and_no_bar(unbroken: Path) -> None:
    lines = (unbroken.parent / "stdout").read_text().splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("epoch")] == [
        ["epoch", f"{epoch}/3"] for epoch in (1, 2, 3)
    ]
    assert (unbroken.parent / "stderr").read_text() == ""


def test_the_options_that_a_run_wrote_repeat_it_to_the_bit(unbroken: Path, train: Train, tmp_path: Path) -> None:
    done = train("--config", unbroken / "args.yaml", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    one, other = checkpoint(unbroken / "last.pth.tar"), checkpoint(tmp_path / "run" / "last.pth.tar")
    for part in ("state_dict", "state_dict_ema", "optimizer"):
        assert_same(one[part], other[part])


def test_a_resumed_run_ends_in_the_same_bits(unbroken: Path, train: Train, tmp_path: Path) -> None:
    first = unbroken / "checkpoint-0.pth.tar"
    done = train("--config", unbroken / "args.yaml", "--output", tmp_path, "--resume", first)
    assert done.returncode == 0, done.stderr
    one, other = checkpoint(unbroken / "last.pth.tar"), checkpoint(tmp_path / "run" / "last.pth.tar")
    for part in ("epoch", "state_dict", "state_dict_ema", "optimizer"):
        assert_same(one[part], other[part])
    assert rows(tmp_path / "run" / "summary.csv") == rows(unbroken / "summary.csv")[1:]


def test_amp_accumulation_clipping_average_mixup_and_bce_run_together(train: Train, tmp_path: Path) -> None:
    # 40 pixels instead of 16: for maps of one pixel torch 2.14 leaves part of the gradient of a 3 x 3 convolution in
    # bf16 on the CPU uninitialised, and clipping then spreads these values to all weights.
    done = train(
        *(*TINY, "--img-size", "40", "--epochs", 2, "--output", tmp_path, "--experiment", "run"),
        *("--opt", "adamw", "--lr", "2e-3", "--opt-betas", "0.9", "0.99", "--channels-last"),
        *("--amp", "--amp-dtype", "bfloat16", "--grad-accum-steps", 2, "--clip-grad", 1, "--model-ema"),
        *("--mixup", 0.2, "--mixup-off-epoch", 1, "--bce-loss", "--drop-path", 0.1),
    )
    assert done.returncode == 0, done.stderr
    state = checkpoint(tmp_path / "run" / "last.pth.tar")
    optimizer = state["optimizer"]
    assert isinstance(optimizer, dict)
    # 1442 images make 5 full batches of 256. With two batches per update that is 3 updates in each of two epochs.
    assert {entry["step"].item() for entry in optimizer["state"].values()} == {6.0}
    assert float(rows(tmp_path / "run" / "summary.csv")[-1]["train_loss"]) < 1


@pytest.mark.parametrize(
    ("argv", "config", "said"),
    [
        (("--model", "resnet5O"), None, ("'resnet5O'", "resnet50")),
        (("--opt", "momentun"), None, ("'momentun'", "momentum")),
        (("--config", "nowhere.yaml"), None, ("'nowhere.yaml'", "No such file")),
        ((), "model: test_resnet\nweight_deacy: 0.1\n", ("'weight_deacy'", "weight_decay")),
        ((), "opt: addamw\n", ("'addamw'", "adamw")),
        ((), "model: vgg61\n", ("'vgg61'", "vgg16")),
        ((), "lr: fast\n", ("--lr", "'fast'")),
        ((), "amp: 3\n", ("amp", "true or false")),
        ((), "a: [1\n", ("is not YAML",)),
        ((), "- model\n", ("does not map options to values",)),
        (("--sched", "cosin"), None, ("--sched", "'cosin'", "cosine")),
        (("--resume", "nowhere.pth.tar"), None, ("--resume", "'nowhere.pth.tar'")),
        (("--data-dir", "nowhere"), None, ("--data-dir", "'nowhere'")),
        (("--dataset", "digits"), None, ("cannot open the data set 'digits'", "--data-dir")),
        (("--batch-size", "0"), None, ("--batch-size", "at least 1")),
        (("--device", "cuda"), None, ("cuda", "not available")),
        (("--nonsense",), None, ("--nonsense",)),
        (("--device", "gpu"), None, ("--device 'gpu'", "cannot be used")),
        (("--opt-kwargs", "foo"), None, ("--opt-kwargs", "'foo' is not NAME=VALUE")),
        (("--model", "test_resnet", "--opt-kwargs", "foo=1"), None, ("optimizer 'sgd'", "foo")),
        (("--model", "test_resnet", "--model-kwargs", "foo=1"), None, ("model 'test_resnet'", "foo")),
        (("--model", "test_resnet", "--num-classes", "5"), None, ("--num-classes 5", "10 classes")),
        (("--model", "test_vit", "--img-size", "24"), None, ("images of size 3x24x24", "--model-kwargs")),
        (("--model", "test_resnet", "--initial-checkpoint", __file__), None, ("--initial-checkpoint", "does not fit")),
        (
            ("--model", "test_resnet", "--val-split", "test"),
            None,
            ("--val-split 'test'", "which has train, validation"),
        ),
        (("--model", "test_resnet", "--train-split", "trian"), None, ("--train-split 'trian'", "no such folder")),
        (
            ("--dataset", "torch/cifar10", "--model", "test_resnet", "--val-split", "tset"),
            None,
            ("'tset'", "mean test"),
        ),
        (("--lr", "nan"), None, ("--lr", "finite")),
    ],
)
def test_wrong_input_ends_in_one_line_and_code_2(
    argv: tuple[str, ...],
    config: str | None,
    said: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    import train as script

    if config is not None:
        (tmp_path / "recipe.yaml").write_text(config)
        argv = ("--config", str(tmp_path / "recipe.yaml"), *argv)
    monkeypatch.setattr(sys, "argv", ["train.py", *argv])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    for words in said:
        assert words in output.err


def test_a_learning_rate_of_zero_is_zero(train: Train, tmp_path: Path) -> None:
    options = ("--lr", 0, "--warmup-lr", 0, "--sched", "none", "--epochs", 1, "--output", tmp_path)
    done = train(*TINY, *options, "--experiment", "run")
    assert done.returncode == 0, done.stderr
    assert float(rows(tmp_path / "run" / "summary.csv")[0]["lr"]) == 0


def test_log_wandb_writes_one_row_per_epoch(environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, str(RECIPES / "train.py"), *TINY, "--epochs", "2", "--log-wandb", "--experiment", "it"]
    environment = {**environment, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    record = records(folder)
    assert wandb_rows(record, "epoch") == [0, 1]
    assert len(wandb_rows(record, "eval_top1")) == len(wandb_rows(record, "lr")) == 2


def test_a_wrong_config_is_one_line_in_a_real_process(train: Train) -> None:
    done = train("--config", "nowhere.yaml")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "train.py: error: cannot read the config 'nowhere.yaml': No such file or directory\n"


def test_ctrl_c_ends_with_the_checkpoint_of_the_last_epoch(environment: dict[str, str], tmp_path: Path) -> None:
    options = (*TINY_MOMENTUM, "--epochs", "500", "--output", str(tmp_path), "--experiment", "run")
    with subprocess.Popen(
        [sys.executable, str(RECIPES / "train.py"), *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        last = tmp_path / "run" / "last.pth.tar"
        deadline = time.monotonic() + 120
        while not last.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.count("\n") == 1
    assert f"--resume {last}" in errors
    assert checkpoint(last)["epoch"] == len(rows(tmp_path / "run" / "summary.csv")) - 1


@pytest.mark.slow
def test_a_run_killed_and_resumed_under_smdtrack_has_the_curve_of_an_unbroken_run(
    environment: dict[str, str], tmp_path: Path
) -> None:
    def command(output: str, *argv: str, resume_run: Path | None = None) -> list[str]:
        goes_on = ("--resume-run", str(resume_run)) if resume_run else ()
        options = (*TINY_MOMENTUM, "--drop-path", "0.1", "--epochs", "3", "--output", output, "--experiment", "run")
        return [
            *(sys.executable, "-m", "smdtrack", "run", "--sink", "local", "--every", "1", "--folder", f"{output}-runs"),
            *(*goes_on, str(RECIPES / "train.py"), *options, *argv),
        ]

    subprocess.run(command("whole"), cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=300)
    with subprocess.Popen(
        command("cut"), cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "cut/run/checkpoint-1.pth.tar").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    (cut,) = (tmp_path / "cut-runs").iterdir()
    resumed = command("cut", "--resume", "cut/run/checkpoint-0.pth.tar", resume_run=cut)
    done = subprocess.run(resumed, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (whole,) = (tmp_path / "whole-runs").iterdir()
    unbroken, joined = read_run(whole), read_run(cut)
    updates = len(unbroken.steps) // 3
    assert unbroken.steps.tolist() == list(range(1, 3 * updates + 1))
    # Only samples from before the checkpoint that were not flushed when the process was killed may be missing.
    assert joined.steps.tolist()[-2 * updates :] == list(range(updates + 1, 3 * updates + 1))
    there = np.searchsorted(unbroken.steps, joined.steps)
    for family in ("angle", "norm", "effective_grad"):
        np.testing.assert_array_equal(joined.values[family], unbroken.values[family][there])


@pytest.mark.slow
def test_two_ranks_over_gloo_end_in_the_same_weights(train: Train, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29513")
    options = (*TINY_MOMENTUM, "--batch-size", 64, "--epochs", 2, "--grad-accum-steps", 2, "--output", tmp_path)
    for name in ("one", "other"):
        done = train(*options, "--experiment", name, launcher=launcher)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch 2/2") == 1
    one, other = (checkpoint(tmp_path / name / "last.pth.tar") for name in ("one", "other"))
    assert_same(one["state_dict"], other["state_dict"])
    summary = rows(tmp_path / "one" / "summary.csv")
    assert float(summary[-1]["train_loss"]) < float(summary[0]["train_loss"])


@pytest.mark.slow
def test_compile_trains_and_saves_plain_names(train: Train, tmp_path: Path) -> None:
    options = (*TINY_MOMENTUM, "--epochs", 1, "--output", tmp_path, "--experiment", "run")
    done = train(*options, "--torchcompile", "eager")
    assert done.returncode == 0, done.stderr
    state = checkpoint(tmp_path / "run" / "last.pth.tar")["state_dict"]
    assert isinstance(state, dict)
    assert "fc.weight" in state


def test_no_recipe_imports_smdtrack() -> None:
    files = list(RECIPES.glob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "smdtrack" for name in names), file


def test_unnamed_runs_that_start_in_the_same_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    import checkpoints

    class Clock:
        @staticmethod
        def now() -> datetime:
            return datetime(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(checkpoints, "datetime", Clock)
    args = argparse.Namespace(output=str(tmp_path / "out"), experiment="", model="test_resnet")
    names = [checkpoints.make_output_folder(args, 24).name for _ in range(3)]
    assert names == [f"20260102-030405-test_resnet-24{suffix}" for suffix in ("", "-2", "-3")]
    args.experiment = "named"
    assert (
        checkpoints.make_output_folder(args, 24)
        == checkpoints.make_output_folder(args, 24)
        == tmp_path / "out" / "named"
    )


def test_an_output_folder_that_cannot_be_written_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    import checkpoints

    (tmp_path / "file").write_text("")
    args = argparse.Namespace(output=str(tmp_path / "file"), experiment="run", model="test_resnet")
    with pytest.raises(SystemExit) as ended:
        checkpoints.make_output_folder(args, 24)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(tmp_path / "file") in error
