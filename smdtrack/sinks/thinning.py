"""Thins out reference lines: trackers get a point when a line has changed, not one per sample."""

from collections.abc import Iterable, Iterator

from smdtrack.record.run import REFERENCE_FAMILIES, Point

#: Relative change after which a reference line is sent again: a decay by a factor of 100 is then under 200 points.
MOVED = 0.03
_CONSTANT_KEYS = frozenset({"smd/theory"})


class ReferenceThinner:
    """Passes measured points on and holds points of reference lines back until the line has changed.

    A constant line becomes two points, its first and, from `last_points`, its last. MLflow and W&B draw the straight
    line between them.

    Args:
        moved: Relative change after which a line is sent again.
    """

    def __init__(self, moved: float = MOVED) -> None:
        self._moved = moved
        self._sent: dict[str, Point] = {}
        self._held: dict[str, Point] = {}

    def thin(self, points: Iterable[Point]) -> Iterator[Point]:
        """Yields the points to send now.

        If a line jumps, the last point before the jump is sent too, so that a step of the learning rate is drawn as a
        step and not as a slope.
        """
        for point in points:
            if not is_reference(point.key):
                yield point
                continue
            sent = self._sent.get(point.key)
            if sent is not None and abs(point.value - sent.value) <= self._moved * abs(sent.value):
                self._held[point.key] = point
                continue
            held = self._held.pop(point.key, None)
            if held is not None and abs(point.value - held.value) > 2 * self._moved * abs(held.value):
                yield held
            self._sent[point.key] = point
            yield point

    def last_points(self) -> list[Point]:
        """Returns the held-back last point of every line, to be sent when the run has ended."""
        last = list(self._held.values())
        self._held.clear()
        return last


def is_reference(key: str) -> bool:
    """Returns whether a key belongs to a reference line."""
    return key in _CONSTANT_KEYS or key.partition("/")[0] in REFERENCE_FAMILIES
