"""Confusion table of the audit and the obvious tests against the functional truth.

`python -m tests.benchmarks.audit_confusion [--models N]`
"""

import argparse
import warnings
from collections import Counter
from itertools import pairwise

import timm
import torch
from torch import nn

from smdtrack.invariance import audit
from tests.invariance.models import TINY
from tests.invariance.truth import functional_truth


def cosines_at_init(model, size, dtype):
    """`|<w, g>| / (||w|| ||g||)` of a random linear loss at the initial point, None without a gradient."""
    model = model.to(dtype).train()
    torch.manual_seed(0)
    model.zero_grad()
    output = model(torch.randn(4, 3, size, size, dtype=dtype))
    outputs = output if isinstance(output, (tuple, list)) else [output]
    sum((part * torch.randn_like(part)).sum() for part in outputs).backward()
    found = {}
    for name, parameter in model.named_parameters():
        grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        energy = float(parameter.norm() * grad.norm())
        found[name] = abs(float((parameter * grad).sum())) / energy if energy > 0 else None
    return found


def naive(model, size):
    """float64, the real eps, the initial point, `|cos| < 1e-4`."""
    cosines = cosines_at_init(model, size, torch.float64)
    return {name for name, cosine in cosines.items() if cosine is not None and cosine < 1e-4}


def adamp(model, size):
    """AdamP's rule for matrices: `|cos| < 0.1 / sqrt(d)` in float32 at the initial point."""
    sizes = {name: parameter for name, parameter in model.named_parameters() if parameter.dim() > 1}
    cosines = cosines_at_init(model, size, torch.float32)
    return {name for name, w in sizes.items() if cosines[name] is not None and cosines[name] < 0.1 / w.numel() ** 0.5}


def registration_order(model, size):
    """A convolution or linear layer that is registered right before a batch norm."""
    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    return {
        f"{name}.weight"
        for (name, module), (_, following) in pairwise(leaves)
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
        and isinstance(following, nn.modules.batchnorm._BatchNorm)
    }


def by_audit(model, size):
    """The audit."""
    return set(audit(model, input_size=(3, size, size)).invariant)


METHODS = {
    "audit": by_audit,
    "naive cosine, 1e-4, at init": naive,
    "AdamP's rule, matrices, at init": adamp,
    "registration order (conv, BN)": registration_order,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=len(TINY))
    count = parser.parse_args().models
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    totals = {method: Counter() for method in METHODS}
    truths = Counter()
    for name, settings, size in TINY[:count]:
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=10, **settings)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        truth = functional_truth(model, (3, size, size))
        truths.update(truth.values())
        for method, decide in METHODS.items():
            model.load_state_dict(state)
            found = decide(model.float(), size)
            for tensor, verdict in truth.items():
                if verdict == "invariant":
                    totals[method]["true" if tensor in found else "missed"] += 1
                elif tensor in found:
                    totals[method][f"false ({verdict})"] += 1
    print(f"{count} models, {sum(truths.values())} tensors; verdicts of the independent test: {dict(truths)}\n")
    columns = ("true", "missed", "false (sensitive)", "false (unused)", "false (degenerate)")
    titles = ("found", "missed", "invented: sensitive", "invented: unused", "invented: degenerate")
    print(f"| evidence | {' | '.join(titles)} |\n|---|{'---|' * len(columns)}")
    for method, counts in totals.items():
        print(f"| {method} | {' | '.join(str(counts[column]) for column in columns)} |")


if __name__ == "__main__":
    main()
