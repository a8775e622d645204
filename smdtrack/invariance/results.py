"""The records that an audit returns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["invariant", "degenerate", "unused", "sensitive"]
Cause = Literal["batch_norm", "other"]
Scope = Literal["filter", "tensor"]

VERDICTS: tuple[Verdict, ...] = ("invariant", "degenerate", "unused", "sensitive")


@dataclass(frozen=True)
class Weight:
    """The verdict on one parameter.

    Attributes:
        name: The name in the given module's `named_parameters()`.
        shape: The parameter's shape.
        verdict: `invariant`: `f(k w) = f(w)` for all `k > 0` at every value of the other parameters, and the direction
            of `w` matters. `degenerate`: only the signs of its elements matter (a filter with one tap). `unused`: the
            output does not depend on it at all (a bias before batch norm). `sensitive`: none of these.
        cause: What makes it invariant or degenerate: `batch_norm`, or `other` (layer, group, instance or RMS norm,
            weight standardisation, softmax); None for the other verdicts.
        norm: Dotted name of the normalisation module, if one alone accounts for the invariance.
        scope: `filter`: each slice along `filter_dim` may be scaled by its own factor; `tensor`: only the whole.
        filter_dim: The dimension of the filters; None unless the scope is `filter`.
        cosine: Largest `|<w, g>| / (||w|| ||g||)` over the random points; None if the gradient is zero. If the cosine
            of an invariant weight is not small, the model hides the true derivative from autograd
            (`w / w.norm().detach()`). Its gradient is then not tangential, and no theoretical line holds for it.
        decayed: Whether timm's optimizer factory gives it weight decay: it trains, is no vector and no bias, and the
            model does not exclude it.
        evidence: The numbers behind the verdict, for people to read.
    """

    name: str
    shape: tuple[int, ...]
    verdict: Verdict
    cause: Cause | None = None
    norm: str | None = None
    scope: Scope | None = None
    filter_dim: int | None = None
    cosine: float | None = None
    decayed: bool = True
    evidence: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    def to_json(self) -> dict[str, Any]:
        """Returns the weight's entry in the audit's JSON document."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "verdict": self.verdict,
            "cause": self.cause,
            "norm": self.norm,
            "scope": self.scope,
            "filter_dim": self.filter_dim,
            "cosine": self.cosine,
            "decayed": self.decayed,
        }


@dataclass(frozen=True)
class Audit:
    """The verdict on every parameter of one model.

    Attributes:
        model: Name of the model.
        input_size: Shape of the input without its batch dimension; None if no forward pass was needed.
        parameters: Number of scalar parameters.
        invariant_parameters: Number of scalar parameters in tensors whose verdict is `invariant`.
        seconds: Wall-clock time that the audit took.
        certificate: Largest relative change of the outputs when all invariant tensors are scaled at once by
            independent random factors, per `tensor` and per `filter`; None if nothing was scaled.
        weights: One record per parameter, in the order of `named_parameters()`.
        precision: `float64`, or `float32` if the model cannot compute in float64.
        notes: What a reader must know before believing the verdicts, a sentence each.
    """

    model: str
    input_size: tuple[int, ...] | None
    parameters: int
    invariant_parameters: int
    seconds: float
    certificate: Mapping[str, float | None]
    weights: tuple[Weight, ...] = field(repr=False)
    precision: str = "float64"
    notes: tuple[str, ...] = ()

    @property
    def batch_norm_parameters(self) -> int:
        """Number of scalar parameters in tensors that batch norm makes invariant."""
        return sum(w.size for w in self.weights if w.verdict == "invariant" and w.cause == "batch_norm")

    @property
    def invariant(self) -> tuple[str, ...]:
        """Names of the parameters whose verdict is `invariant`."""
        return tuple(weight.name for weight in self.weights if weight.verdict == "invariant")

    def __iter__(self) -> Iterator[Weight]:
        return iter(self.weights)

    def __getitem__(self, name: str) -> Weight:
        for weight in self.weights:
            if weight.name == name:
                return weight
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """Returns the audit as plain lists and dicts, ready for `json.dumps`."""
        return {
            "model": self.model,
            "input_size": None if self.input_size is None else list(self.input_size),
            "parameters": self.parameters,
            "invariant_parameters": self.invariant_parameters,
            "batch_norm_parameters": self.batch_norm_parameters,
            "seconds": self.seconds,
            "precision": self.precision,
            "notes": list(self.notes),
            "certificate": dict(self.certificate),
            "weights": [weight.to_json() for weight in self.weights],
        }
