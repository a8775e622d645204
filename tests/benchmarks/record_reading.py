"""Time to read and to summarise a record of 100,000 samples of 60 weights, with a key that comes and goes.

    python -m tests.benchmarks.record_reading [SAMPLES [WEIGHTS]]

The record is written as a training writes it, 50 samples a batch. A key is present in every third sample.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from smdtrack.record import LocalStore, RunInfo, Sample, TrackedWeight, read_run, summarize

BATCH = 50
FAMILIES = ("angle", "angle_pred", "angle_eq", "norm", "norm_eq", "effective_grad", "line_memory", "time_constant")


def write_record(folder: Path, samples: int, weights: int) -> None:
    """Writes random samples around an equilibrium."""
    tracked = tuple(TrackedWeight(f"layer{i}.weight", f"layer{i}", (8, 8)) for i in range(weights))
    store = LocalStore(RunInfo("benchmark", "benchmark", folder, 0.0, tracked))
    generator = np.random.default_rng(0)
    for start in range(0, samples, BATCH):
        batch = []
        for step in range(start + 1, min(start + BATCH, samples) + 1):
            values = {family: 1 + 0.1 * generator.random(weights) for family in FAMILIES}
            overview = {"smd/theory": 1.0} | ({"smd/not_invariant": 0.1} if step % 3 == 0 else {})
            batch.append(Sample(step, float(step), values, overview))
        store.append(batch)
    store.close("finished", None)


def main(samples: int = 100_000, weights: int = 60) -> None:
    """Prints the times."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_record(folder, samples, weights)
        size = sum(path.stat().st_size for path in folder.iterdir())
        began, cpu = time.perf_counter(), time.process_time()
        run = read_run(folder)
        read = time.perf_counter()
        summary = summarize(run)
        summed, cpu = time.perf_counter(), time.process_time() - cpu
    assert summary is not None
    assert run.values["angle"].shape == (samples, weights)
    print(
        f"{samples} samples x {weights} weights, {size / 1e6:.0f} MB:"
        f" read {read - began:.2f} s, summary {summed - read:.2f} s, together {summed - began:.2f} s"
        f" ({cpu:.2f} s of CPU time)"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
