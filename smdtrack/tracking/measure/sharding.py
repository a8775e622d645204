"""Weights that are sharded over processes (FSDP2): each process's shard, and sums over all shards.

A sum over one shard must never be taken for the sum over the weight: norms and angles would be wrong by the square
root of the number of shards. So each process measures its own shard without communicating, and one all-reduce per
sample then adds up the whole table of sums.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from smdtrack.notices import SmdtrackError
from smdtrack.tracking.measure.table import Row


def is_dtensor(tensor: Tensor) -> bool:
    """Returns whether a tensor is distributed over processes."""
    return type(tensor).__name__ == "DTensor" or hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Returns this process's shard of a tensor, or the tensor itself if it is not distributed. Does not communicate."""
    return tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def shard_like(whole: Tensor, sharded: Tensor) -> Tensor:
    """Cuts a tensor that every process holds whole, in the way in which another tensor is sharded.

    Args:
        whole: A tensor with the shape of the other.
        sharded: A tensor that is sharded along its first dimension, as FSDP2 does, or not distributed at all.

    Returns:
        The elements of `whole` of which this process holds the counterpart in `sharded`; all of them if `sharded` is
        not distributed.
    """
    if not is_dtensor(sharded):
        return whole
    mesh, placements = sharded.device_mesh, sharded.placements  # type: ignore[attr-defined]
    for dim, placement in enumerate(placements):
        if placement.is_shard():
            shards = whole.chunk(mesh.size(dim))
            rank = mesh.get_local_rank(dim)
            return shards[rank] if rank < len(shards) else whole[:0]
    return whole


def shard_group(weights: Iterable[Tensor]) -> Any:
    """Returns the process group over which the weights are sharded; None if they are not sharded.

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
    """Adds up tables of sums over the processes that hold the shards, with one all-reduce per table.

    Every process sends a table of the same shape, with each row at its own place, whatever rows it has measured. A
    process in which measuring has failed takes part with NaN (`contribute_nan`). If it did not take part, the others
    would wait for it for ever, or would mistake the training's next collective for its answer.

    Attributes:
        calls: Number of tables that were added up.
    """

    def __init__(self, group: Any, width: int) -> None:
        self.calls = 0
        self._group = group
        self._width = width

    def __call__(self, columns: Sequence[int], rows: Sequence[Row], table: Tensor) -> Tensor:
        """Returns the summed table.

        Args:
            columns: The weights, by their places among all tracked weights.
            rows: The rows of the table.
            table: (rows, columns) float64.
        """
        cells = ([[int(row)] for row in rows], list(columns))
        every_row = torch.zeros(len(Row), self._width, dtype=torch.float64, device=table.device)
        every_row[cells] = table
        self.calls += 1
        dist.all_reduce(every_row, group=self._group)
        return every_row[cells]

    def contribute_nan(self, device: torch.device) -> None:
        """Takes part in one sum with NaN, which tells all processes that this one measures no more."""
        nothing = torch.full((len(Row), self._width), torch.nan, dtype=torch.float64, device=device)
        dist.all_reduce(nothing, group=self._group)
