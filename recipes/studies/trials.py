"""Reads a study's YAML and runs its trainings, each once: a finished one is read back instead."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from smdtrack import read_run
from smdtrack.record import Run

RECIPES = Path(__file__).parents[1]


@dataclass(frozen=True)
class Trial:
    """One training of a study.

    Attributes:
        name: Its name in the study's YAML.
        settings: All options of train.py that differ from their defaults.
        initial_norm: Factor by which the initial norm of each scale-invariant weight is multiplied.
        lags: Numbers of steps K over which the angle is measured.
    """

    name: str
    settings: Mapping[str, Any]
    initial_norm: float
    lags: tuple[int, ...]

    @property
    def key(self) -> str:
        """A name for the folder of the training that is the same for the same training in every study."""
        what = json.dumps([dict(self.settings), self.initial_norm, self.lags], sort_keys=True)
        return f"{self.settings['opt']}-{hashlib.sha256(what.encode()).hexdigest()[:10]}"


@dataclass(frozen=True)
class Result:
    """A finished training.

    Attributes:
        trial: Its settings.
        run: Its record, every step measured.
        accuracy: Accuracy on the held-out images at the end, in percent.
    """

    trial: Trial
    run: Run
    accuracy: float


def read_trials(file: Path) -> list[Trial]:
    """Returns the trainings of a study's YAML.

    `base` names a recipe, `settings` changes it for all trainings, and each entry of `trials` changes it for one.
    """
    study = yaml.safe_load(file.read_text(encoding="utf-8"))
    base = yaml.safe_load((RECIPES / study["base"]).read_text(encoding="utf-8"))
    trials = []
    for name, changes in study["trials"].items():
        settings = {**base, **study.get("settings", {}), **(changes or {})}
        lags = tuple(settings.pop("lags", ()))
        trials.append(Trial(name, settings, float(settings.pop("initial_norm", 1.0)), lags))
    return trials


def run_trials(trials: list[Trial], cache: Path) -> dict[str, Result]:
    """Returns the results by name; trains what is not in the cache, one training at a time, with a line for each."""
    results = {}
    for number, trial in enumerate(trials, 1):
        folder = cache / trial.key
        label = f"[{number}/{len(trials)}] {trial.name}"
        if (folder / "done").is_file():
            print(f"{label}: read from {folder}", flush=True)
        else:
            print(f"{label}: training, {trial.settings['epochs']} epochs ...", end=" ", flush=True)
            started = time.monotonic()
            _train(trial, folder)
            print(f"{time.monotonic() - started:.0f} s", flush=True)
        results[trial.name] = _result(trial, folder)
    return results


def _train(trial: Trial, folder: Path) -> None:
    """Trains in a process of its own; what an interrupted training left is removed first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    settings = dict(trial.settings)
    if trial.initial_norm != 1:
        settings["initial_checkpoint"] = str(_scaled_weights(trial, folder / "initial.pth"))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [sys.executable, "-m", "smdtrack", "run", "--sink", "local", "--every", "1", "--folder", str(folder)]
    if trial.lags:
        command += ["--lags", ",".join(map(str, trial.lags))]
    command += [str(RECIPES / "train.py"), "--config", str(folder / "config.yaml")]
    command += ["--output", str(folder), "--experiment", "training"]
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    if code != 0:
        lines = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
        script = [line for line in lines if line.strip() and not line.startswith("smdtrack:")] or ["no output"]
        raise SystemExit(f"\nthe training {trial.name} ended with code {code}: {script[-1]} ({folder / 'log.txt'})")
    (folder / "done").touch()


def _scaled_weights(trial: Trial, file: Path) -> Path:
    """Writes the model's initial weights with the scale-invariant ones multiplied by the trial's factor."""
    import timm
    import torch

    from smdtrack import audit

    torch.manual_seed(int(trial.settings.get("seed", 42)))
    model = timm.create_model(str(trial.settings["model"]), num_classes=10)
    size = int(trial.settings["img_size"])
    invariant = set(audit(model, input_size=(3, size, size)).invariant)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in invariant:
                parameter.mul_(trial.initial_norm)
    torch.save(model.state_dict(), file)
    return file


def _result(trial: Trial, folder: Path) -> Result:
    (record,) = (path.parent for path in folder.glob("*/run.json"))
    lines = (folder / "training" / "summary.csv").read_text(encoding="utf-8").splitlines()
    last = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
    return Result(trial, read_run(record), float(last["eval_top1"]))
