"""Time and peak memory of the audit, as ratios to one training step of the same model; one core.

`python -m tests.benchmarks.audit_cost [MODEL...]`. Each model runs in a process of its own. Time is CPU
time, so that a busy machine counts less; memory is what the resident set grew by beyond the built model.
"""

import resource
import subprocess
import sys
import time

BATCH, PIXELS = 32, 224
LIMITS = {"resnet50": 8.0, "mobilenetv3_small_100": 1.0, "mobileone_s0": 10.0}


def measure(name):
    import timm
    import torch

    from smdtrack.invariance import audit

    torch.set_num_threads(1)
    audit(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)))
    model = timm.create_model(name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    result = audit(model)
    seconds = time.process_time() - started
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batch = torch.randn(BATCH, 3, PIXELS, PIXELS)
    started = time.process_time()
    model(batch).square().mean().backward()
    optimizer.step()
    step = time.process_time() - started
    whole = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    size = "x".join(map(str, result.input_size))
    print(
        f"| {name} | {parameters / 1e6:.1f} M | {size} | {seconds:.2f} s | {LIMITS.get(name, float('nan')):.0f} s "
        f"| {seconds / step:.2f} | {grown / parameters:.0f} | {grown / whole:.2f} |"
    )


def main():
    print(f"one training step: batch {BATCH}, {PIXELS} px, float32, SGD with momentum\n")
    headings = "model | parameters | audited at | CPU time | limit | / training step | bytes per parameter"
    print(f"| {headings} | / step's memory |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in sys.argv[1:] or LIMITS:
        command = [sys.executable, "-c", f"from tests.benchmarks.audit_cost import measure; measure({name!r})"]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
