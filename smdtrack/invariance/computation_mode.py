"""How the copy of a model computes: in one precision, without eps, and without touching the original model."""

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from smdtrack.notices import SmdtrackError

#: Replaces every eps: invisible in float64 (float32), but not zero, so that a variance of 0 gives no nan.
NO_EPS = {torch.float64: 1e-20, torch.float32: 1e-12}

#: A constant in the code counts as an eps up to this value, and only if it is added to a divisor or under a root.
_LARGEST_EPS_IN_CODE = 1e-2

_LOWER = {
    torch.float64: (torch.float32, torch.bfloat16, torch.float16),
    torch.float32: (torch.bfloat16, torch.float16),
}
_CASTS = {"double": torch.float64, "float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16}

#: Position of `eps` among the arguments of functions that take one.
_EPS_POSITIONS: dict[Any, int] = {
    F.batch_norm: 7,
    F.instance_norm: 7,
    F.layer_norm: 4,
    F.group_norm: 4,
    F.normalize: 3,
    F.cosine_similarity: 3,
    torch.batch_norm: 7,
    torch.instance_norm: 7,
    torch.layer_norm: 4,
    torch.group_norm: 4,
    torch.cosine_similarity: 3,
}
if hasattr(F, "rms_norm"):
    _EPS_POSITIONS[F.rms_norm] = 3
    _EPS_POSITIONS[torch.rms_norm] = 3

_ADDITIONS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
_LOWER_BOUNDS = frozenset({"clamp", "clamp_", "clamp_min", "clamp_min_", "clip", "clip_"})
_DIVISIONS = frozenset({"div", "div_", "divide", "true_divide", "__truediv__", "__itruediv__"})
_RECIPROCALS = frozenset({"reciprocal", "__rdiv__", "__rtruediv__"})
_ROOTS = frozenset({"sqrt", "sqrt_", "rsqrt", "rsqrt_"})
_POWERS = frozenset({"pow", "pow_", "__pow__", "__ipow__"})
_RESHAPINGS = frozenset(
    {"view", "view_as", "reshape", "expand", "expand_as", "broadcast_to", "unsqueeze", "squeeze", "permute"}
    | {"transpose", "flatten", "contiguous", "to", "double", "float", "type_as", "__getitem__"}
)
_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_METADATA = frozenset({"__get__", "size", "dim", "numel", "is_floating_point", "is_complex", "stride"})


class UsesOriginalError(SmdtrackError):
    """The copy computes with a tensor of the original model."""


@dataclass(frozen=True)
class ComputationSettings:
    """What every pass of one audit has in common.

    Attributes:
        dtype: float64, or float32 for a model that cannot compute in float64.
        originals: `id`s of the original model's parameters and buffers, which no pass may touch.
    """

    dtype: torch.dtype = torch.float64
    originals: Container[int] = frozenset()


class ComputationMode(TorchFunctionMode):
    """Intercepts every torch function that a forward pass calls.

    * Some modules cast their input to a lower precision (`x.float()`, `x.to(torch.bfloat16)`). That would leave
      rounding errors of 1e-7, and the audit looks for 1e-9. So every lower floating dtype that is asked for becomes
      `settings.dtype`, and every floating result is converted to it.
    * Every eps is replaced by one that cannot be seen: the eps of torch's normalisations, a small lower bound, and a
      small constant that is added to something that is then divided by or of which a root is taken.
    * A function that gets a tensor of the original model raises: a closure in the copy still refers to the original.

    Args:
        settings: What every pass has in common.
        through_detach: Differentiate through `detach`, `.data` and `no_grad`, as if the model did not use them.

    Attributes:
        saw_detach: Whether a forward pass used one of these.
    """

    def __init__(self, settings: ComputationSettings | None = None, *, through_detach: bool = False):
        super().__init__()
        self.settings = settings or ComputationSettings()
        self.through_detach = through_detach
        self.saw_detach = False
        self._lower = _LOWER[self.settings.dtype]
        self._no_eps = NO_EPS[self.settings.dtype]
        self._eps_in: Any = WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        self._refuse_originals(name, args)
        if func is torch._C._set_grad_enabled:
            self.saw_detach |= not args[0]
            if self.through_detach:
                return None
        elif name == "detach" or (name == "__get__" and func == _DATA):
            self.saw_detach = True
            if self.through_detach and args[0].is_floating_point():
                return args[0].view_as(args[0])
        dtype = self.settings.dtype
        if _CASTS.get(name) in self._lower and args and isinstance(args[0], Tensor):
            return args[0].to(dtype)
        if name == "type_as" and len(args) > 1 and args[1].dtype in self._lower:
            return args[0].to(dtype)
        if kwargs.get("dtype") in self._lower:
            kwargs = {**kwargs, "dtype": dtype}
        if any(isinstance(arg, torch.dtype) and arg in self._lower for arg in args):
            args = tuple(dtype if isinstance(arg, torch.dtype) and arg in self._lower else arg for arg in args)
        args, kwargs = self._without_eps(func, name, args, kwargs)
        result = self.call(func, args, kwargs)
        if isinstance(result, Tensor):
            if result.dtype in self._lower:
                result = result.to(dtype)
            self._follow_eps(name, args, kwargs, result)
        return result

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls the intercepted function; a subclass may replace it."""
        return func(*args, **kwargs)

    def _refuse_originals(self, name: str, args: tuple[Any, ...]) -> None:
        originals = self.settings.originals
        for arg in args:
            if isinstance(arg, Tensor):
                found = id(arg) in originals
            else:
                found = isinstance(arg, (tuple, list)) and any(id(item) in originals for item in arg)
            if found and name not in _METADATA:
                raise UsesOriginalError(
                    "its forward uses a parameter or buffer of the original model through a closure or a global name; "
                    "make that a method that reaches it through self"
                )

    def _without_eps(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Replaces the eps that a function is given, or that was added to one of its arguments before."""
        position = _EPS_POSITIONS.get(func) if name.endswith(("norm", "normalize", "similarity")) else None
        if position is not None:
            if _normalises_by_buffers(func, args, kwargs):
                return args, kwargs
            if len(args) > position:
                return (*args[:position], self._no_eps, *args[position + 1 :]), kwargs
            return args, {**kwargs, "eps": self._no_eps}
        if name in _LOWER_BOUNDS:
            if len(args) > 1 and _is_eps(args[1]):
                return (args[0], self._no_eps, *args[2:]), kwargs
            if _is_eps(kwargs.get("min")):
                return args, {**kwargs, "min": self._no_eps}
        if not self._eps_in or not args:
            return args, kwargs
        if name in _DIVISIONS and len(args) > 1:
            return (args[0], self._stripped(args[1], positive=False), *args[2:]), kwargs
        if name in _RECIPROCALS:
            return (self._stripped(args[0], positive=False), *args[1:]), kwargs
        if name in _ROOTS or (name in _POWERS and len(args) > 1 and _is_root_or_inverse(args[1])):
            return (self._stripped(args[0], positive=True), *args[1:]), kwargs
        return args, kwargs

    def _stripped(self, value: Any, positive: bool) -> Any:
        """Returns a tensor without the eps that was added to it, but nowhere zero."""
        eps = self._eps_in.get(value) if isinstance(value, Tensor) else None
        if eps is None:
            return value
        plain = value - eps
        if positive:
            return plain.clamp_min(self._no_eps)
        return torch.where(plain.abs() < self._no_eps, torch.full_like(plain, self._no_eps), plain)

    def _follow_eps(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        """Remembers to which tensors an eps was added."""
        if name in _ADDITIONS and len(args) > 1 and not kwargs:
            one, other = args[:2] if isinstance(args[0], Tensor) else args[1::-1]
            if isinstance(one, Tensor) and one.is_floating_point():
                eps = _eps_value(other)
                if eps is not None:
                    self._eps_in[result] = eps
        elif name in _RESHAPINGS and self._eps_in and args and isinstance(args[0], Tensor):
            eps = self._eps_in.get(args[0])
            if eps is not None and result is not args[0]:
                self._eps_in[result] = eps


def _normalises_by_buffers(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of batch norm uses running statistics, so that its eps is an ordinary constant."""
    if func is F.batch_norm:
        return not (args[5] if len(args) > 5 else kwargs.get("training", False))
    return func is torch.batch_norm and not args[5]


def _is_eps(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= _LARGEST_EPS_IN_CODE


def _eps_value(value: Any) -> float | None:
    """Returns a small positive constant, given as a number or as a tensor of one element."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.requires_grad or not value.is_floating_point() or value.is_meta:
            return None
        value = float(value.detach())
    return float(value) if _is_eps(value) else None


def _is_root_or_inverse(exponent: Any) -> bool:
    return isinstance(exponent, (int, float)) and exponent < 1 and exponent != 0
