"""Measured / line on a real network: the digits recipe under seven optimizers, RMS over the last third of the run.

    python -m tests.benchmarks.real_network            prints the README's table; about two minutes a row
    python -m tests.benchmarks.real_network lion muon  only these

Each row is `smdtrack run --every 1 recipes/train.py` in a process of its own; the figures come from the local record.
Every step is measured. Gradients come in bursts here, so the last third of a run sampled at every fifth step (132
samples) scatters by 1 to 2 %, and by 4 % for the smallest weight.

The lines of most optimizers assume that gradients of different steps are uncorrelated. The last column tests only that,
without norms or weight decay: it is the measured angle over 64 steps, divided by the angle that uncorrelated gradients
would have produced from the measured angle of single steps (`Line.lag_angle` has the formula). If it is not 1, the
gradients are correlated, and such a line need not hold. The lines of SGD with momentum and of timm's `sgd` still hold.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from smdtrack.cli._recipe import read_recipe
from smdtrack.planning.lr_schedule import make_optimizer
from smdtrack.record import Run, read_run
from smdtrack.theory import identify

LAG = 64
RECIPES = Path(__file__).parents[2] / "recipes"
# Learning rates and weight decays of the recipes. For Lion and Muon lr * wd is AdamW's, 0.002.
SETTINGS: dict[str, tuple[str, list[str]]] = {
    "momentum": ("digits_momentum.yaml", []),
    "sgd": ("digits_sgd.yaml", []),
    "adamw": ("digits_adamw.yaml", []),
    "nadamw": ("digits_adamw.yaml", ["--opt", "nadamw"]),
    "lion": ("digits_adamw.yaml", ["--opt", "lion", "--lr", "2e-4", "--weight-decay", "10", "--warmup-lr", "2e-5"]),
    "lamb": ("digits_adamw.yaml", ["--opt", "lamb", "--lr", "2e-2", "--weight-decay", "1e-2"]),
    "muon": ("digits_adamw.yaml", ["--opt", "muon", "--lr", "2e-3", "--weight-decay", "1"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("optimizers", nargs="*", default=list(SETTINGS), help="default: all")
    parser.add_argument("--every", default="1", help="optimizer steps between samples (default: %(default)s)")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="keep the runs' records there, one folder each")
    options = parser.parse_args()
    unknown = set(options.optimizers) - set(SETTINGS)
    if unknown:
        parser.error(f"no settings for {', '.join(sorted(unknown))}; there are {', '.join(SETTINGS)}")
    print(
        "| optimizer | kind of line | measured / drift-corrected | median | measured / equilibrium | accuracy "
        f"| over {LAG} steps: measured / uncorrelated gradients |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in options.optimizers:
        with tempfile.TemporaryDirectory() as scratch:
            folder = options.keep / name if options.keep else Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            print(row(name, options.every, folder), flush=True)


def row(name: str, every: str, folder: Path) -> str:
    """Trains once in a folder and returns the row: lowest to highest over the weights, and their median."""
    config, flags = SETTINGS[name]
    subprocess.run(
        [
            *(sys.executable, "-m", "smdtrack", "run", "--sink", "local", "--every", every, "--lags", str(LAG)),
            *(str(RECIPES / "train.py"), "--config", str(RECIPES / config), "--experiment", "it", *flags),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    run = read_run(next((folder / "smdtrack-runs").iterdir()))
    with (folder / "output/train/it/summary.csv").open() as file:
        accuracy = [epoch["eval_top1"] for epoch in csv.DictReader(file)][-1]
    assert run.summary is not None
    rows = run.summary["weights"]
    drift, equilibrium = (ratios(rows, key) for key in ("pred_ratio", "angle_ratio"))
    kind = ", ".join(sorted({weight["line_kind"] for weight in rows}))
    return (
        f"| {name} | {kind} | {span(drift)} | {np.median(drift):.3f} | {span(equilibrium)} | {float(accuracy):.1f} % "
        f"| {span(measured_over_white(run, folder / 'output/train/it/args.yaml'))} |"
    )


def measured_over_white(run: Run, args_file: Path) -> np.ndarray:
    """Returns, per weight, the angle over 64 steps / that under uncorrelated gradients, RMS over the last third."""
    recipe, _ = read_recipe(str(args_file))
    start = 2 * len(run.steps) // 3
    found = []
    for index, weight in enumerate(run.info.weights):
        optimizer = make_optimizer(recipe, weight.shape)
        white = identify(optimizer).line(optimizer.param_groups[0], weight.shape).updates.memory_over(LAG)
        once, over_many = (run.values[family][start:, index] for family in ("angle", f"angle_k{LAG}"))
        straight = np.nanmean(-2 * np.log(np.cos(over_many)))
        found.append(np.sqrt(straight / (white * LAG * np.nanmean(once**2))))
    return np.array(found)


def ratios(rows: list[dict[str, float | None]], key: str) -> np.ndarray:
    return np.array([np.nan if row[key] is None else row[key] for row in rows], dtype=float)


def span(values: np.ndarray) -> str:
    return "-" if np.isnan(values).all() else f"{np.nanmin(values):.3f} to {np.nanmax(values):.3f}"


if __name__ == "__main__":
    main()
