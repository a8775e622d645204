"""Keeps the number of sums over processes the same in all of them when measuring has failed in one."""

import torch

from smdtrack.tracking.measure.sharding import ShardSum
from smdtrack.tracking.measure.step_measurer import StepMeasurer


class ShardSums:
    """Counts the sums over processes that a sampled step needs, and takes part in those that this process missed.

    Every process that holds a shard must take part in each sum. If one stays away after a fault, the others wait for
    it, or mistake the training's next collective for the missing one.

    Args:
        reduce: Sums over processes; None if the weights are not sharded. Then nothing has to be made up for.
        measurer: Its open lag windows are skipped when sums are made up for.
        device: On which the shards lie.
    """

    def __init__(self, reduce: ShardSum | None, measurer: StepMeasurer, device: torch.device | None) -> None:
        self._reduce = reduce
        self._measurer = measurer
        self._device = device
        self._calls_after_step = 0

    def expect(self, sums: int) -> None:
        """Notes how many sums the other processes make after this step."""
        if self._reduce is not None:
            self._calls_after_step = self._reduce.calls + sums

    def make_up(self, step: int) -> None:
        """Takes part, with no values, in those of the expected sums that were not made here.

        Raises:
            RuntimeError: If a collective fails.
        """
        if self._reduce is None or self._device is None:
            return
        missing = self._calls_after_step - self._reduce.calls
        self._measurer.skip_windows(step)
        for _ in range(missing):
            self._reduce.contribute_nan(self._device)
