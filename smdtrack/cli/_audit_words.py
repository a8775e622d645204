"""What `smdtrack audit` says in sentences: the meaning of the verdicts, and the evidence for one parameter."""

from collections.abc import Iterable
from typing import Any

from smdtrack.invariance import Weight
from smdtrack.invariance.evidence import DOUBLE, SINGLE, Limits

#: What each verdict means.
MEANINGS = {
    "invariant": "scaling the weight by any positive factor leaves the output unchanged",
    "degenerate": "only the signs of its elements matter (filters with one tap), so it has no angle",
    "unused": "the output does not depend on it (a bias before batch norm, a layer that forward does not call)",
    "sensitive": "scaling it changes the output",
}

#: What the causes mean.
CAUSES = {
    "batch norm": "a batch norm after the weight removes its scale",
    "weight standardisation": "the layer normalises its own weight",
    "other norm": "a layer, group, instance or RMS norm after the weight removes its scale",
    "other": "something removes its scale that is not a module of its own: a hand-written normalisation, a softmax",
}


def cause_in_words(weight: Weight) -> str:
    """Returns what makes a weight invariant; an empty string if nothing does."""
    if weight.cause is None:
        return ""
    if weight.cause == "batch_norm":
        return "batch norm"
    if weight.norm is None:
        return "other"
    own_module = weight.name.rpartition(".")[0]
    return "weight standardisation" if weight.norm == own_module else "other norm"


def legend(weights: Iterable[Weight], verdicts: Iterable[str]) -> list[str]:
    """Returns a line for each verdict and cause that occurs among weights."""
    listed = [weight for weight in weights if weight.verdict in set(verdicts)]
    occurring = {weight.verdict for weight in listed}
    lines = [f"{verdict}: {meaning}" for verdict, meaning in MEANINGS.items() if verdict in occurring]
    causes = {cause_in_words(weight) for weight in listed}
    return lines + [f"{cause}: {meaning}" for cause, meaning in CAUSES.items() if cause in causes]


def sentences(weight: Weight) -> list[str]:
    """Returns the verdict on one weight in sentences."""
    said = [f"{weight.name} {list(weight.shape)} is {weight.verdict}: {MEANINGS[weight.verdict]}."]
    cause = cause_in_words(weight)
    if cause:
        where = f" ({weight.norm})" if weight.norm else ""
        said.append(f"Cause: {cause}{where}: {CAUSES[cause]}.")
    if weight.scope == "filter":
        said.append(f"Each filter may be scaled by its own factor (slices along dimension {weight.filter_dim}).")
    elif weight.scope == "tensor":
        said.append("Only the whole tensor may be scaled, not its filters one by one.")
    if weight.evidence.get("gradient_is_wrong"):
        said.append(
            "Its gradient is not the derivative of the function (detach, a straight-through estimator): it is not "
            "orthogonal to the weight, so its angle follows no line and is not tracked."
        )
    said.append(
        "Weight decay reaches it under timm's rule."
        if weight.decayed
        else "Weight decay does not reach it under timm's rule (vectors, biases, what the model excludes)."
    )
    return said


def numbers(weight: Weight, precision: str) -> list[str]:
    """Returns the evidence for one weight, a line per test, in the order in which the tests were made."""
    limits = DOUBLE if precision == "float64" else SINGLE
    shown = [(text, weight.evidence.get(key)) for key, text in _evidence(limits)]
    return [f"{text}: {_plain(value)}" for text, value in shown if value not in (None, False, {}, [])]


def _evidence(limits: Limits) -> list[tuple[str, str]]:
    return [
        (
            "cosines",
            "|cos| between weight and gradient at random points "
            f"(below {limits.cosine:.0e} proposes invariant, above {limits.radial_cosine:.0e} proves sensitive)",
        ),
        ("slice_cosines", "the same for the worst slice, by dimension"),
        (
            "energy",
            "|weight| times |gradient|, relative to the largest of all parameters "
            f"(up to {limits.zero_energy:.0e} counts as no gradient)",
        ),
        ("proposal", "what the gradients propose"),
        (
            "constant_variance_cosine",
            "|cos| with batch norm's variance held constant (not small: batch norm is the cause)",
        ),
        ("constant_variance_energy", "|weight| times |gradient| in that pass, relative to the largest"),
        ("cosines_through_detach", "|cos| with the gradient through detach and no_grad"),
        (
            "unused_deviation",
            "change of the output when all parameters without a gradient get other values "
            f"(up to {limits.untouched:.0e} counts as none)",
        ),
        ("changes", "change of the output when this parameter alone is changed"),
        (
            "group_deviation",
            "change of the output when all invariant parameters are scaled at once "
            f"(up to {limits.unchanged:.0e} counts as none)",
        ),
    ]


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}"
    if isinstance(value, dict):
        names = {key: f"dim {key}" if str(key).isdigit() else str(key).replace("_", " ") for key in value}
        return ", ".join(f"{names[key]} {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    return str(value)
