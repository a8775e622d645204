"""Whether autograd's radial derivatives are those of the function.

They are not where a model detaches a part of the path or uses a straight-through estimator.
"""

import torch

from smdtrack.invariance.evidence import ParameterEvidence, Proposal, names_with
from smdtrack.invariance.functional_tests import decide_alone, members_that_fail
from smdtrack.invariance.trial_model import TrialModel

#: Forward passes spent on finding the parameters whose derivatives are wrong.
MOST_PASSES = 200

#: Relative steps of the difference quotient. Three, because a kink of the function may lie within one of them.
_STEPS = (1e-8, 1e-7, 1e-9)


def check_gradients(trial: TrialModel, evidence: dict[str, ParameterEvidence]) -> None:
    """Finds parameters whose radial derivative autograd gets wrong, and decides them by the function.

    A radial derivative proves that a parameter is not invariant only if it is the derivative of the function. A
    difference quotient along random radial directions of all such parameters at once must equal what autograd says. If
    it does not, halving finds the wrong ones.
    """
    names = names_with(evidence, Proposal.SENSITIVE)
    if not names:
        return
    radial = {name: evidence[name].gradients[-1].inner for name in names}
    directions = {name: 1.5 - float(torch.rand((), generator=trial.generator, device="cpu")) for name in names}
    here = trial.before()[1]
    noise = 1e-14 * max(1.0, abs(here))
    passes = iter(range(MOST_PASSES))

    def loss_at(group: list[str], step: float) -> float:
        next(passes)
        with trial.changed(group, lambda name, value: value * (1 + step * directions[name])):
            return trial.loss()

    def derivatives_are_right(group: list[str]) -> bool:
        claimed = sum(directions[name] * radial[name] for name in group)
        size = sum(abs(directions[name] * radial[name]) for name in group)
        for step in _STEPS:
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

    for name in members_that_fail(names, derivatives_are_right):
        decide_alone(trial, trial.before()[0], name, evidence[name])
        evidence[name].gradient_is_wrong = True
