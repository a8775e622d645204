"""A sequence that does not keep its items alive: a tracker must not keep a training's weights in memory."""

import weakref
from collections.abc import Iterable
from typing import Generic, TypeVar

from smdtrack.notices import SmdtrackError

T = TypeVar("T")


class WeakItems(Generic[T]):
    """Holds weak references to its items; an item that has been freed raises when it is asked for."""

    def __init__(self, items: Iterable[T]) -> None:
        self._references = [weakref.ref(item) for item in items]

    def __len__(self) -> int:
        return len(self._references)

    def __getitem__(self, index: int) -> T:
        """Returns an item.

        Raises:
            SmdtrackError: If it has been freed.
        """
        item = self._references[index]()
        if item is None:
            raise SmdtrackError("a tracked weight has been freed")
        return item

    def get(self, index: int) -> T | None:
        """Returns an item; None if it has been freed."""
        return self._references[index]()

    def alive(self) -> dict[int, T]:
        """Returns by index the items that have not been freed."""
        found = ((index, reference()) for index, reference in enumerate(self._references))
        return {index: item for index, item in found if item is not None}
