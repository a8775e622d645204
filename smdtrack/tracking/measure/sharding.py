"""Weights that are sharded over processes (FSDP2): the local part, and the sum over parts.

A partial sum that passes for the whole makes every norm and angle wrong by the root of the number of shards. So what is
measured is the local part, without a collective, and one all-reduce adds up the whole table of sums per sample.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from smdtrack.notices import SmdtrackError


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is distributed over processes."""
    return type(tensor).__name__ == "DTensor" or hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Returns this process's part of a tensor, the tensor itself where it is not distributed; no collective."""
    return tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def shard_like(whole: Tensor, sharded: Tensor) -> Tensor:
    """Returns the part of a tensor that every process has whole, for which this one holds the part of another.

    Args:
        whole: Of the other's shape.
        sharded: Sharded along its first dimension, as FSDP2 does; one that is not distributed asks for the whole.
    """
    if not is_dtensor(sharded):
        return whole
    mesh, placements = sharded.device_mesh, sharded.placements  # type: ignore[attr-defined]
    for dim, placement in enumerate(placements):
        if placement.is_shard():
            parts = whole.chunk(mesh.size(dim))
            rank = mesh.get_local_rank(dim)
            return parts[rank] if rank < len(parts) else whole[:0]
    return whole


def shard_group(weights: Iterable[Tensor]) -> Any:
    """Returns the process group over which the weights are sharded, None where they are not.

    Raises:
        SmdtrackError: If they are sharded in more than one way.
    """
    groups: list[Any] = []
    for weight in weights:
        if not is_dtensor(weight):
            continue
        mesh, placements = weight.device_mesh, weight.placements  # type: ignore[attr-defined]
        dims = [dim for dim, placement in enumerate(placements) if placement.is_shard()]
        if len(dims) > 1:
            raise SmdtrackError("weights sharded over more than one dimension of a mesh are not tracked")
        groups += [mesh.get_group(dim) for dim in dims]
    if any(group is not groups[0] for group in groups):
        raise SmdtrackError("weights sharded over different groups of processes are not tracked")
    return groups[0] if groups else None


class ShardSum:
    """Adds tables of sums up over the processes that hold the shards: one all-reduce a table.

    The table that travels has always the same shape, so that a process in which measuring has failed can take its part
    with NaN: were it to stay away, the others would wait for it, or take the training's next collective for it.

    Attributes:
        calls: So many tables have been added up.
    """

    ROWS = 8

    def __init__(self, group: Any, width: int) -> None:
        self.calls = 0
        self._group = group
        self._width = width

    def __call__(self, columns: Sequence[int], table: Tensor) -> Tensor:
        """Returns the summed table of the same shape."""
        whole = torch.zeros(self.ROWS, self._width, dtype=torch.float64, device=table.device)
        whole[: table.shape[0], list(columns)] = table
        self.calls += 1
        dist.all_reduce(whole, group=self._group)
        return whole[: table.shape[0], list(columns)]

    def abstain(self, device: torch.device) -> None:
        """Takes part with NaN, which tells all processes that this one measures no more."""
        dist.all_reduce(
            torch.full((self.ROWS, self._width), torch.nan, dtype=torch.float64, device=device), group=self._group
        )
