"""What a line costs per parameter group while hyper-parameters stand still, and while the learning rate moves.

    python -m tests.benchmarks.theory_cost
"""

import time
import warnings

import torch
from timm.optim import create_optimizer_v2

from smdtrack.theory import identify

BOUND = 50e-6
NAMES = ("momentum", "sgd", "adamw", "adam", "nadamw", "lion", "cadamw", "lamb", "lars", "muon")


def seconds_per_line(name: str, calls: int = 5000) -> tuple[float, float, float]:
    """Seconds of one line: standing still, with a new lr each time, and with a new state factor each time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = create_optimizer_v2([torch.nn.Parameter(torch.zeros(16, 16))], name, lr=1e-3, weight_decay=0.1)
    family, group = identify(optimizer), optimizer.param_groups[0]
    family.line(group, (16, 16))
    began = time.perf_counter()
    for _ in range(calls):
        family.line(group, (16, 16))
    still = (time.perf_counter() - began) / calls
    began = time.perf_counter()
    for call in range(calls // 10):
        group["lr"] = 1e-3 * (1 + call * 1e-6)
        family.line(group, (16, 16))
    moving = (time.perf_counter() - began) / (calls // 10)
    began = time.perf_counter()
    for call in range(calls // 10):
        family.line(group, (16, 16), state_factor=1.0 + call * 1e-6)
    state = (time.perf_counter() - began) / (calls // 10)
    return still, moving, state


def main() -> int:
    """Prints microseconds; exit code 1 when a line that stands still costs more than 50 us."""
    torch.set_num_threads(1)
    print(f"microseconds; bound when still: {BOUND * 1e6:.0f}")
    print(f"{'optimizer':10s} {'still':>9s} {'new lr':>9s} {'new state':>9s}")
    worst = 0.0
    for name in NAMES:
        times = seconds_per_line(name)
        worst = max(worst, times[0])
        print(f"{name:10s} " + " ".join(f"{value * 1e6:9.1f}" for value in times))
    print(f"worst / bound = {worst / BOUND:.2f}")
    return 1 if worst > BOUND else 0


if __name__ == "__main__":
    raise SystemExit(main())
