"""Measured over line on a real network: the digits recipe under seven optimizers, each weight, RMS over the last third.

    python -m tests.benchmarks.real_network            prints the README's table; about two minutes a row
    python -m tests.benchmarks.real_network lion muon  only these

Each row is `smdtrack run recipes/train.py` as a user types it; the figures come from the local record. Under the table
stand the weights that lie off their drift-corrected line, by name.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from smdtrack.record import read_run

FAR = 0.05
RECIPES = Path(__file__).parents[2] / "recipes"
# Rates and decays that turn the weights by .01 to .03 rad a step, as the recipes' own do.
SETTINGS: dict[str, tuple[str, list[str]]] = {
    "momentum": ("digits_momentum.yaml", []),
    "sgd": ("digits_sgd.yaml", []),
    "adamw": ("digits_adamw.yaml", []),
    "nadamw": ("digits_adamw.yaml", ["--opt", "nadamw"]),
    "lion": ("digits_adamw.yaml", ["--opt", "lion", "--lr", "4e-4", "--weight-decay", "10", "--warmup-lr", "4e-5"]),
    "lamb": ("digits_adamw.yaml", ["--opt", "lamb", "--lr", "2e-2", "--weight-decay", "1e-2"]),
    "muon": ("digits_adamw.yaml", ["--opt", "muon", "--lr", "4e-3", "--weight-decay", "1"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("optimizers", nargs="*", default=list(SETTINGS), help="default: all")
    parser.add_argument("--every", default="5", help="optimizer steps between samples (default: %(default)s)")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="keep the runs' records there, one folder each")
    options = parser.parse_args()
    unknown = set(options.optimizers) - set(SETTINGS)
    if unknown:
        parser.error(f"no settings for {', '.join(sorted(unknown))}; there are {', '.join(SETTINGS)}")
    print("| optimizer | kind of line | measured / drift-corrected | median | measured / equilibrium | accuracy |")
    print("|---|---|---|---|---|---|")
    lying_off = []
    for name in options.optimizers:
        with tempfile.TemporaryDirectory() as scratch:
            folder = options.keep / name if options.keep else Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            shown, off = row(name, options.every, folder)
        print(shown, flush=True)
        lying_off.append(f"{name}: " + (", ".join(f"{key} {ratio:.3f}" for key, ratio in off.items()) or "none"))
    print(f"\nmore than {FAR:.0%} off the drift-corrected line:")
    print("\n".join(lying_off))


def row(name: str, every: str, folder: Path) -> tuple[str, dict[str, float]]:
    """Trains once in a folder; returns the row, lowest to highest over the weights and median, and what lies off."""
    recipe, flags = SETTINGS[name]
    subprocess.run(
        [
            *(sys.executable, "-m", "smdtrack", "run", "--sink", "local", "--every", every),
            *(str(RECIPES / "train.py"), "--config", str(RECIPES / recipe), "--experiment", "it", *flags),
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
    drift, equilibrium = (ratios(rows, key) for key in ("pred_ratio", "eq_ratio"))
    kind = ", ".join(sorted({weight["line_kind"] for weight in rows}))
    shown = (
        f"| {name} | {kind} | {span(drift)} | {np.median(drift):.3f} | {span(equilibrium)} | {float(accuracy):.1f} % |"
    )
    off = {weight["key"]: ratio for weight, ratio in zip(rows, drift, strict=True) if not abs(ratio - 1) <= FAR}
    return shown, off


def ratios(rows: list[dict[str, float | None]], key: str) -> np.ndarray:
    return np.array([np.nan if row[key] is None else row[key] for row in rows], dtype=float)


def span(values: np.ndarray) -> str:
    return "-" if np.isnan(values).all() else f"{np.nanmin(values):.3f} to {np.nanmax(values):.3f}"


if __name__ == "__main__":
    main()
