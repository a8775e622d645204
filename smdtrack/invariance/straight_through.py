"""Whether autograd tells the truth: straight-through tricks hide that a function is invariant."""

import torch

from smdtrack.invariance.certificates import culprits, judge_alone
from smdtrack.invariance.findings import Finding
from smdtrack.invariance.trial_model import Bench

MOST_PASSES = 200


def check_gradients(bench: Bench, findings: dict[str, Finding]) -> None:
    """Finds tensors whose radial derivative autograd gets wrong, and judges them by their function.

    A radial derivative proves that a tensor is not invariant only if it is the derivative of the function. A
    difference quotient along random radial directions of all such tensors at once must equal what autograd says; if it
    does not, with three steps (a kink of the function may lie within one), the tensors that lie are found by halving
    and judged by their function.
    """
    negative = [name for name, finding in findings.items() if finding.evidence["proposed"] == "sensitive"]
    if not negative:
        return
    radial = {name: findings[name].readings[-1].inner for name in negative}
    directions = {name: 1.5 - float(torch.rand((), generator=bench.generator, device="cpu")) for name in negative}
    here = bench.before()[1]
    noise = 1e-14 * max(1.0, abs(here))
    passes = iter(range(MOST_PASSES))

    def loss_at(group: list[str], step: float) -> float:
        next(passes)
        with bench.changed(group, lambda name, value: value * (1 + step * directions[name])):
            return bench.loss()

    def honest(group: list[str]) -> bool:
        claimed = sum(directions[name] * radial[name] for name in group)
        size = sum(abs(directions[name] * radial[name]) for name in group)
        for step in (1e-8, 1e-7, 1e-9):
            limit = 1e-6 * size + noise / step
            try:
                ahead = loss_at(group, step)
                if abs((ahead - here) / step - claimed) <= limit:
                    return True
                if abs((ahead - loss_at(group, -step)) / (2 * step) - claimed) <= limit:
                    return True
            except StopIteration:
                return True
        return False

    for name in culprits(negative, honest):
        judge_alone(bench, bench.before()[0], name, findings[name])
        findings[name].evidence["straight_through"] = True
