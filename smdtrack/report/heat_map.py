"""The heat map of a run: weights x time of measured / equilibrium line, as a small PNG."""

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smdtrack.record.run import Floats, Run

#: Columns of the map; more cannot be told apart on a page.
MOST_COLUMNS = 240
#: A ratio of 2 or 1/2 has the full colour: log2 of it.
FULL_COLOUR = 1.0
#: Okabe and Ito's vermillion above the line, blue below it.
ABOVE, BELOW = (213, 94, 0), (0, 114, 178)
_ABSENT = (128, 128, 128, 90)


@dataclass(frozen=True)
class HeatMap:
    """RMS of measured over RMS of the line per weight and stretch of time.

    Attributes:
        ratios: (W, C); NaN where there is no line.
        first_steps: (C,) first sampled step of each column.
        last_steps: (C,) last one.
    """

    ratios: Floats
    first_steps: npt.NDArray[np.int64]
    last_steps: npt.NDArray[np.int64]


def heat_map(run: Run, most_columns: int = MOST_COLUMNS) -> HeatMap | None:
    """Returns the heat map of a run; None if no weight has a line."""
    angle, line = run.values.get("angle"), run.values.get("angle_eq")
    if angle is None or line is None or not len(run.steps) or not (line > 0).any():
        return None
    count = min(most_columns, len(run.steps))
    starts = np.linspace(0, len(run.steps), count, endpoint=False).astype(np.int64)
    both = np.isfinite(angle) & (line > 0)
    squared = [np.add.reduceat(np.where(both, table**2, 0.0), starts, axis=0) for table in (angle, line)]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = np.sqrt(squared[0] / squared[1]).T
    ends = np.append(starts[1:], len(run.steps)) - 1
    return HeatMap(ratios, run.steps[starts], run.steps[ends])


def png(ratios: Floats) -> bytes:
    """Returns the map as a PNG of one pixel a cell.

    The colour's opacity grows with the distance from the line, so that the map fits a light and a dark page.

    Args:
        ratios: (H, W).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = np.clip(np.log2(ratios) / FULL_COLOUR, -1, 1)
    pixels = np.zeros((*ratios.shape, 4), dtype=np.uint8)
    known = np.isfinite(distance)
    pixels[..., :3] = np.where((distance > 0)[..., None], ABOVE, BELOW)
    pixels[..., 3] = np.where(known, np.rint(255 * np.abs(np.where(known, distance, 0))), 0)
    pixels[~known] = _ABSENT
    return _encode(pixels)


def _encode(pixels: npt.NDArray[np.uint8]) -> bytes:
    """An 8-bit RGBA PNG (ISO/IEC 15948): signature, header, one compressed stream of unfiltered rows, end."""
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + 4 * width), dtype=np.uint8)  # each row starts with its filter type, 0
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body
