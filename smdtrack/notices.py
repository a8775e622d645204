"""What smdtrack tells a person in the middle of training: one line, once, never an exception."""

import sys
import warnings
from contextlib import suppress


class SmdtrackWarning(UserWarning):
    """Something smdtrack could not do; the training itself is unharmed."""


class SmdtrackError(ValueError):
    """Wrong input, said in one line that names what is accepted."""


def notify(message: str, stacklevel: int = 2) -> None:
    """Warns with `SmdtrackWarning`; raises neither under `-W error` nor where stderr is gone."""
    with suppress(OSError, ValueError):
        try:
            warnings.warn(message, SmdtrackWarning, stacklevel=stacklevel + 1)
        except SmdtrackWarning:
            print(f"smdtrack: {message}", file=sys.stderr)
