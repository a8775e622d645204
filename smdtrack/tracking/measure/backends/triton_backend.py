"""The backend of CUDA: two Triton kernels before a step and two after it, for any number of tensors.

Each array is read from memory once, and the copies of the weights are the only extra memory. The addresses of the
tensors are sent to the device through pinned memory, so that the host does not wait.
"""

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from smdtrack.tracking.measure.backends.backend import CopyBuffers
from smdtrack.tracking.measure.table import to_device

#: The name of Triton's type for each of torch's types.
TYPES = {torch.float32: "float32", torch.float64: "float64", torch.float16: "float16", torch.bfloat16: "bfloat16"}


@functools.cache
def works_on(device: torch.device) -> bool:
    """Returns whether Triton compiles for this GPU and its sums are right. The first call tries it, and waits."""
    try:
        generator = torch.Generator("cpu").manual_seed(0)
        drawn = torch.randn(3, 3, 40_000, generator=generator, dtype=torch.float32, device="cpu")
        weight, gradient, change = drawn.unbind()
        after = weight + 0.01 * change
        backend = TritonBackend()
        before = weight.to(device)
        backend.begin({0: before}, {0: gradient.to(device)}, None)
        found = backend.end({0: after.to(device)}, {0: gradient.to(device)}).view(-1).cpu()
        w, g, d = weight.double(), gradient.double(), after.double() - weight.double()
        expected = torch.stack([(a * b).sum() for a, b in ((w, w), (w, g), (g, g), (w, d), (d, d), (d, g))])
        return torch.allclose(found, expected, rtol=1e-9)
    except Exception:
        # Triton, its C compiler or a folder for its cache is missing, or it does not support this GPU.
        return False


class TritonBackend:
    """See `Backend`."""

    def __init__(self) -> None:
        self._buffers = CopyBuffers()
        self._before: dict[int, Tensor] = {}
        self._plan = _ChunkPlan((), torch.device("cpu"))
        self._table = torch.zeros(6, 0, device="cpu")

    def begin(
        self,
        weights: Mapping[int, Tensor],
        gradients: Mapping[int, Tensor],
        loss_scale: Tensor | None,
    ) -> None:
        """See `Backend`."""
        self._before = self._buffers.for_weights(weights)
        elements = tuple(weight.numel() for weight in weights.values())
        device = next(iter(weights.values())).device
        if elements != self._plan.elements:
            self._plan = _ChunkPlan(elements, device)
        self._table = torch.empty(6, len(weights), dtype=torch.float64, device=device)
        self._run("read", weights, gradients, self._table[:3])
        if loss_scale is not None:
            inverse = loss_scale.to(torch.float64).reciprocal()
            self._table[1] *= inverse
            self._table[2] *= inverse * inverse

    def read_gradients(self, gradients: Mapping[int, Tensor]) -> None:
        """See `Backend`."""
        # The kernel also copies: here each copy onto itself.
        self._run("read", self._before, gradients, self._table[:3])

    def end(self, weights: Mapping[int, Tensor], vectors: Mapping[int, Tensor]) -> Tensor:
        """See `Backend`."""
        self._run("compare", weights, vectors, self._table[3:])
        return self._table

    def _run(self, name: str, weights: Mapping[int, Tensor], vectors: Mapping[int, Tensor], into: Tensor) -> None:
        with torch.cuda.device(into.device) if into.is_cuda else contextlib.nullcontext():
            self._launch(name, weights, vectors, into)

    def _launch(self, name: str, weights: Mapping[int, Tensor], vectors: Mapping[int, Tensor], into: Tensor) -> None:
        from smdtrack.tracking.measure.backends import triton_kernels as kernels

        plan, before = self._plan, list(self._before.values())
        now = [_in_layout_of(weight, copy) for weight, copy in zip(weights.values(), before, strict=True)]
        others = [_in_layout_of(vectors[c], copy) if c in vectors else None for c, copy in self._before.items()]
        rows = (now, before, others)
        places = [[0 if tensor is None else tensor.data_ptr() for tensor in row] for row in rows]
        addresses = to_device(_integers(places), into.device)
        sums = torch.empty(3, plan.count, dtype=torch.float64, device=into.device)
        kinds = tuple(
            (old.dtype, old.dtype if other is None else other.dtype) for old, other in zip(before, others, strict=True)
        )
        kernel: Any = getattr(kernels, name)
        for (weight, vector), programs in plan.programs_of(kinds):
            kernel[(len(programs),)](
                programs,
                plan.chunks,
                addresses,
                plan.elements_on_device,
                len(before),
                sums,
                plan.count,
                WEIGHT=_type(weight),
                VECTOR=_type(vector),
            )
        total: Any = kernels.total
        total[(len(before), 3)](sums, plan.bounds, plan.count, into, len(before))


class _ChunkPlan:
    """How tensors of given sizes are cut into chunks. It is sent to the device once and kept while the sizes stay."""

    def __init__(self, elements: tuple[int, ...], device: torch.device) -> None:
        from smdtrack.tracking.measure.backends.triton_kernels import CHUNK

        self.elements = elements
        starts = [(index, start) for index, size in enumerate(elements) for start in range(0, size, CHUNK)]
        counts = _integers([0] + [-(-size // CHUNK) for size in elements])
        self.count = len(starts)
        self.chunks = to_device(_integers(starts).view(-1, 2).T.contiguous(), device)
        self.bounds = to_device(counts.cumsum(0), device)
        self.elements_on_device = to_device(_integers(elements), device)
        self._tensor_of = [index for index, _ in starts]
        self._programs: dict[tuple[Any, ...], list[tuple[Any, Tensor]]] = {}

    def programs_of(self, kinds: tuple[Any, ...]) -> list[tuple[Any, Tensor]]:
        """Returns the chunks of each kind of tensor. A kernel is compiled per kind; nearly always there is one."""
        found = self._programs.get(kinds)
        if found is None:
            found = self._programs[kinds] = []
            for kind in dict.fromkeys(kinds):
                chunks = [chunk for chunk, tensor in enumerate(self._tensor_of) if kinds[tensor] == kind]
                if chunks:
                    found.append((kind, to_device(_integers(chunks), self.chunks.device)))
        return found


def _integers(values: Any) -> Tensor:
    """Returns int64 on the host, also where a script has set another default device."""
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def _in_layout_of(tensor: Tensor, model: Tensor) -> Tensor:
    """Returns a tensor in the memory layout of another one of its shape; the tensor itself if it has that layout."""
    if tensor.stride() == model.stride() and tensor.device == model.device:
        return tensor
    return torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)


def _type(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return getattr(tl, TYPES[dtype])
