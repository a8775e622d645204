"""Inputs from which the audit makes its batches: an example of the caller, or shapes alone."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from smdtrack.notices import SmdtrackError

#: Items in a batch, if any number works. Batch norm on maps of one pixel has no gradient with 2 and raises with 1.
BATCH = 4
#: Each element of an example moves this part of the way towards another element of the same tensor.
_MIXING = 0.1
#: Magnitude from which an entry is taken for a mask, as in `scores + mask` with -1e9.
_HUGE = 1e4
_MOST_DEPTH = 6


class Sampling(Enum):
    """How a batch is made from an example."""

    RANDOM = "four random items of the example's shapes"
    WHOLE_RANDOM = "random values of the example's shapes"
    SLICE_VARIED = "four of the example's items, values slightly varied"
    SLICE = "four of the example's items"
    WHOLE_VARIED = "the whole example, values slightly varied"
    WHOLE = "the whole example"


@dataclasses.dataclass(frozen=True)
class InputTemplate:
    """Arguments of a forward pass, and how batches are made from them.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        input_size: Shape of the first tensor without its batch dimension.
        sampling: How a batch is made.
        batch: Items in the example; None if its tensors have no common first dimension.
        found: Whether the size was found by trying, so that another one may be tried.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    input_size: tuple[int, ...] | None
    sampling: Sampling
    batch: int | None = None
    found: bool = False

    @property
    def is_sliced(self) -> bool:
        """Whether a batch has fewer items than the example."""
        return self.sampling in (Sampling.SLICE, Sampling.SLICE_VARIED) and (self.batch or 0) > BATCH

    def sample(
        self, generator: torch.Generator, device: torch.device, dtype: torch.dtype
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Makes one batch; random and sliced ones differ from call to call."""
        sampled: Tensor | None = None
        if self.is_sliced and self.batch is not None:
            sampled = torch.randperm(self.batch, generator=generator, device="cpu")[:BATCH].sort().values

        def change(tensor: Tensor, rows: Tensor | None) -> Tensor:
            if self.sampling in (Sampling.RANDOM, Sampling.WHOLE_RANDOM):
                batch = BATCH if self.sampling is Sampling.RANDOM else None
                return _random_like(tensor, batch, generator, device, dtype)
            value = tensor.detach().to(device)
            if rows is not None and value.dim() and len(value) == self.batch:
                value = value[rows.to(device)]
            if value.is_floating_point():
                value = value.to(dtype)
                if self.sampling in (Sampling.SLICE_VARIED, Sampling.WHOLE_VARIED):
                    value = _varied(value, generator)
            return value

        args, kwargs = _rebuilt((self.args, dict(self.kwargs)), change, sampled, self.batch)
        return args, kwargs


def fresh(batch: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns a copy of a batch, for a model that changes its input in place."""
    args, kwargs = _rebuilt(batch, lambda tensor, _: tensor.clone())
    return args, kwargs


def templates_of_example(example: Any) -> list[InputTemplate]:
    """Returns ways to make batches from an example, the cheapest first.

    Args:
        example: A tensor, a tuple or list of positional arguments, or a dict of keyword arguments.

    Raises:
        SmdtrackError: The example contains no tensor.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example, Mapping):
        kwargs = {str(key): value for key, value in example.items()}
    else:
        args = tuple(example) if type(example) in (tuple, list) else (example,)
    tensors = list(_tensors((args, kwargs)))
    if not tensors:
        raise SmdtrackError(
            f"example_input is {type(example).__name__} without a tensor; "
            "give a tensor, a tuple of positional arguments or a dict of keyword arguments"
        )
    batch = _common_batch(args, kwargs, tensors)
    size = tuple(tensors[0].shape[1:])
    samplings = [Sampling.SLICE_VARIED, Sampling.SLICE] if batch is not None and batch > BATCH else []
    samplings += [Sampling.WHOLE_VARIED, Sampling.WHOLE]
    lists = any(type(value) is list for value in (*args, *kwargs.values()))
    if batch is not None and batch < BATCH and not lists and not _is_constant(tensors):
        samplings.insert(0, Sampling.RANDOM)
    elif _is_constant(tensors):
        samplings = [Sampling.RANDOM, Sampling.WHOLE_RANDOM, Sampling.WHOLE]
    return [InputTemplate(args, kwargs, size, sampling, batch) for sampling in samplings]


def _common_batch(args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: list[Tensor]) -> int | None:
    """Returns the first dimension that all tensors share, or the common length of lists of items."""
    lists = [value for value in (*args, *kwargs.values()) if type(value) is list and value]
    if lists:
        lengths = {len(value) for value in lists}
        lengths |= {len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()}
        return lengths.pop() if len(lengths) == 1 else None
    sizes = {len(tensor) for tensor in tensors if tensor.dim()}
    return sizes.pop() if len(sizes) == 1 else None


def _is_constant(tensors: list[Tensor]) -> bool:
    """Whether an example has only shapes to say: all its values are equal, as in `torch.zeros(8, 3, 32, 32)`."""
    if not all(tensor.is_floating_point() and tensor.dim() > 1 and tensor.numel() > 1 for tensor in tensors):
        return False
    return all(bool((tensor == tensor.flatten()[0]).all()) for tensor in tensors if not tensor.is_meta)


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    for item in _items(value) if depth <= _MOST_DEPTH else ():
        yield from _tensors(item, depth + 1)


def _items(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, (type, nn.Module)) or callable(value):
        return []
    return list(getattr(value, "__dict__", {}).values())


def _rebuilt(
    value: Any,
    change: Callable[[Tensor, Tensor | None], Tensor],
    rows: Tensor | None = None,
    batch: int | None = None,
    depth: int = 0,
) -> Any:
    """Returns a nested value with its tensors changed, and with lists of `batch` items reduced to some rows."""
    if isinstance(value, Tensor):
        return change(value, rows)
    if depth > _MOST_DEPTH or not any(True for _ in _tensors(value)):
        return value

    def inner(item: Any) -> Any:
        return _rebuilt(item, change, rows, batch, depth + 1)

    if isinstance(value, Mapping):
        items = {key: inner(item) for key, item in value.items()}
        if type(value) is dict:
            return items
        duplicate = copy.copy(value)
        if isinstance(duplicate, dict):
            duplicate.update(items)
            return duplicate
        if hasattr(duplicate, "data") and isinstance(duplicate.data, dict):  # transformers' BatchEncoding
            duplicate.data = items
            return duplicate
        return items
    if isinstance(value, tuple):
        parts = [inner(item) for item in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        if rows is None or len(value) != batch:
            return [inner(item) for item in value]
        # The rows are those of the list, so its tensors are whole items.
        return [_rebuilt(value[int(row)], change, None, None, depth + 1) for row in rows]
    duplicate = copy.copy(value)
    for key, item in list(vars(duplicate).items()):
        object.__setattr__(duplicate, key, inner(item))
    return duplicate


def _varied(value: Tensor, generator: torch.Generator) -> Tensor:
    """Moves each element a little towards another one, so that no two are equal and the range stays.

    Whole numbers and infinities stay: they may be masks, labels or counts.
    """
    finite = torch.isfinite(value)
    if value.numel() < 2 or bool((value == value.round())[finite].all()):
        return value
    flat = value.flatten()
    others = flat[torch.randint(len(flat), (len(flat),), generator=generator, device="cpu").to(value.device)]
    varied = torch.lerp(flat, others, _MIXING).view_as(value)
    return torch.where(finite & torch.isfinite(varied), varied, value)


def _random_like(
    tensor: Tensor, batch: int | None, generator: torch.Generator, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Returns random values like an example's: normal, uniform if nowhere negative, integers out of the example.

    What looks like a mask is not drawn: items of the example are repeated.
    """
    if tensor.dim() == 0:
        return tensor.detach().to(device, dtype if tensor.is_floating_point() else tensor.dtype)
    shape = (len(tensor) if batch is None else batch, *tensor.shape[1:])
    if not tensor.is_meta and tensor.numel() and (tensor.dtype == torch.bool or _looks_like_a_mask(tensor)):
        rows = torch.arange(shape[0], device=tensor.device) % len(tensor)
        repeated = tensor.detach()[rows].to(device)
        return repeated.to(dtype) if repeated.is_floating_point() else repeated
    if tensor.is_floating_point():
        constant = tensor.is_meta or tensor.numel() == 0 or bool((tensor == tensor.flatten()[0]).all())
        if constant or bool(tensor.min() < 0):
            return torch.randn(shape, generator=generator, dtype=dtype, device="cpu").to(device)
        top = float(tensor.max()) or 1.0
        return top * torch.rand(shape, generator=generator, dtype=dtype, device="cpu").to(device)
    if tensor.is_complex() or tensor.numel() == 0:
        return tensor.detach().to(device)
    pool = tensor.detach().flatten().cpu()
    count = torch.Size(shape).numel()
    return pool[torch.randint(len(pool), (count,), generator=generator, device="cpu")].view(shape).to(device)


def _looks_like_a_mask(tensor: Tensor) -> bool:
    """Whether a floating tensor has infinite or huge entries, or few different whole numbers."""
    if not tensor.is_floating_point():
        return False
    if bool((~torch.isfinite(tensor)).any()) or bool((tensor.abs() > _HUGE).any()):
        return True
    different = torch.unique(tensor.detach().flatten()[:10_000])
    return 1 < len(different) <= BATCH and tensor.numel() > BATCH and bool((different == different.round()).all())
