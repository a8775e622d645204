"""Time and peak memory of the audit, as ratios to one training step of the same model; one core.

`python -m tests.benchmarks.audit_cost [MODEL...]`. Each model runs in a process of its own. Time is CPU
time, so that a busy machine counts less; memory is what the resident set grew by beyond the built model.
"""

import json
import resource
import subprocess
import sys
import time

BATCH, PIXELS = 32, 224
LIMITS = {"resnet50": "8 s", "mobilenetv3_small_100": "1 s", "mobileone_s0": "10 s"}


def measured(name):
    """Figures of one model, from a fresh process."""
    script = f"import json\nfrom tests.benchmarks.audit_cost import measure\nprint(json.dumps(measure({name!r})))"
    done = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def measure(name):
    import timm
    import torch

    from smdtrack.invariance import audit

    torch.set_num_threads(1)
    audit(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)))
    model = timm.create_model(name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    before = _peak()
    started = time.process_time()
    result = audit(model)
    seconds = time.process_time() - started
    grown = _peak() - before
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batch = torch.randn(BATCH, 3, PIXELS, PIXELS)
    started = time.process_time()
    model(batch).square().mean().backward()
    optimizer.step()
    step = time.process_time() - started
    return {
        "parameters": parameters,
        "input_size": result.input_size,
        "seconds": seconds,
        "bytes": grown,
        "step_seconds": step,
        "step_bytes": _peak() - before,
    }


def _peak():
    """The largest resident set that the process has had, bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main():
    print(f"one training step: batch {BATCH}, {PIXELS} px, float32, SGD with momentum\n")
    headings = "model | parameters | input | CPU time | limit | time / training step | bytes per parameter"
    print(f"| {headings} | peak memory / training step |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in sys.argv[1:] or LIMITS:
        seen = measured(name)
        size = "x".join(map(str, seen["input_size"]))
        print(
            f"| {name} | {seen['parameters'] / 1e6:.1f} M | {size} | {seen['seconds']:.2f} s | {LIMITS.get(name, '-')} "
            f"| {seen['seconds'] / seen['step_seconds']:.2f} | {seen['bytes'] / seen['parameters']:.0f} "
            f"| {seen['bytes'] / seen['step_bytes']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
