"""Measures the time of one line while hyper-parameters do not change, and the time of one calibration.

    python -m tests.benchmarks.theory_cost

All times are CPU seconds of one core, so that other processes on the machine do not matter.
"""

import time
import warnings
from typing import Any

import torch
from timm.optim import create_optimizer_v2

from smdtrack.theory import identify

BOUND = 50e-6
CALIBRATION_BOUND = 10.0
# Optimizers that are calibrated, with weights of shapes that matter to them.
CALIBRATED = {
    "cadamw": [(64, 64, 3, 3)],
    "csgdw": [(64, 64, 3, 3)],
    "clion": [(64, 64, 3, 3)],
    "cadan": [(64, 64, 3, 3)],
    "muon": [(64, 64, 3, 3), (512, 512), (2048, 512, 1, 1), (64, 3, 7, 7)],
    "adamuon": [(64, 64, 3, 3)],
    "unknown": [(64, 64, 3, 3), (512, 512)],
}
NAMES = ("momentum", "sgd", "adamw", "adam", "nadamw", "lion", "cadamw", "lamb", "lars", "muon")


def seconds_per_line(name: str, calls: int = 5000) -> tuple[float, float, float]:
    """Returns seconds per line: with nothing changed, with a new lr each time, with a new state factor each time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = create_optimizer_v2([torch.nn.Parameter(torch.zeros(16, 16))], name, lr=1e-3, weight_decay=0.1)
    family, group = identify(optimizer), optimizer.param_groups[0]
    family.line(group, (16, 16))
    began = time.process_time()
    for _ in range(calls):
        family.line(group, (16, 16))
    still = (time.process_time() - began) / calls
    began = time.process_time()
    for call in range(calls // 10):
        group["lr"] = 1e-3 * (1 + call * 1e-6)
        family.line(group, (16, 16))
    moving = (time.process_time() - began) / (calls // 10)
    began = time.process_time()
    for call in range(calls // 10):
        family.line(group, (16, 16), state_factor=1.0 + call * 1e-6)
    state = (time.process_time() - began) / (calls // 10)
    return still, moving, state


class Unknown(torch.optim.AdamW):
    """An optimizer without a record, because it has a step of its own."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def seconds_of_calibration(name: str, shape: tuple[int, ...]) -> float:
    """Returns the seconds until an optimizer that is calibrated has its first line."""
    weight = torch.nn.Parameter(torch.zeros(shape))
    optimizer: torch.optim.Optimizer = (
        Unknown([weight], lr=1e-3, weight_decay=0.1)
        if name == "unknown"
        else create_optimizer_v2([weight], name, lr=1e-3, weight_decay=0.1)
    )
    began = time.process_time()
    line = identify(optimizer).line(optimizer.param_groups[0], shape)
    assert line.angular_update
    return time.process_time() - began


def main() -> int:
    """Prints both tables; returns 1 if an unchanged line takes more than 50 us or a calibration more than 10 s."""
    torch.set_num_threads(1)
    print(f"microseconds per line; limit for unchanged hyper-parameters: {BOUND * 1e6:.0f}")
    print(f"{'optimizer':10s} {'unchanged':>9s} {'new lr':>9s} {'new state':>9s}")
    worst = 0.0
    for name in NAMES:
        times = seconds_per_line(name)
        worst = max(worst, times[0])
        print(f"{name:10s} " + " ".join(f"{value * 1e6:9.1f}" for value in times))
    print(f"slowest / limit = {worst / BOUND:.2f}\n")
    print(f"seconds per calibration; limit: {CALIBRATION_BOUND:.0f}")
    longest = 0.0
    for name, shapes in CALIBRATED.items():
        for shape in shapes:
            seconds = seconds_of_calibration(name, shape)
            longest = max(longest, seconds)
            print(f"{name:10s} {'x'.join(map(str, shape)):12s} {seconds:6.2f}", flush=True)
    print(f"slowest / limit = {longest / CALIBRATION_BOUND:.2f}")
    return 1 if worst > BOUND or longest > CALIBRATION_BOUND else 0


if __name__ == "__main__":
    raise SystemExit(main())
