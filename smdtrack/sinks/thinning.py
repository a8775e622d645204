"""Reference lines as trackers should get them: when they move, never one point a step."""

from collections.abc import Iterable, Iterator

from smdtrack.record.run import REFERENCE_FAMILIES, Point

#: A reference is sent again once it has moved by this share: under 200 points over a schedule's hundredfold decay.
MOVED = 0.03
_CONSTANT_KEYS = frozenset({"smd/theory"})


class ReferenceThinner:
    """Passes measured points through and holds reference points back until the line has moved.

    A line that stands still thus becomes two points, its first and (from `last_points`) its last, and MLflow and W&B
    draw the straight line between them.
    """

    def __init__(self, moved: float = MOVED) -> None:
        self._moved = moved
        self._sent: dict[str, Point] = {}
        self._held: dict[str, Point] = {}

    def thin(self, points: Iterable[Point]) -> Iterator[Point]:
        """Yields the points to send now.

        Before a line that stood still moves away, the last point at which it stood is sent too, so that a step in the
        schedule is drawn as a step and not as a ramp.
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
        """Returns the last point of every line that is still held back: its end at the run's end."""
        last = list(self._held.values())
        self._held.clear()
        return last


def is_reference(key: str) -> bool:
    """Whether a key's curve is a reference line that hardly moves."""
    return key in _CONSTANT_KEYS or key.partition("/")[0] in REFERENCE_FAMILIES
