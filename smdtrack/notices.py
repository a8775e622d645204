"""Warnings and errors. Each is one line that says what to do."""

import sys
import warnings
from contextlib import suppress

_LONGEST_LINE = 300


class SmdtrackWarning(UserWarning):
    """Something that smdtrack could not do. The training itself is not affected."""


class SmdtrackError(ValueError):
    """Wrong input. The message is one line that repeats the input and names what is accepted."""


def notify(message: str, stacklevel: int = 2) -> None:
    """Issues a `SmdtrackWarning`. Raises nothing, even under `python -W error` or when stderr is closed."""
    with suppress(OSError, ValueError):
        try:
            warnings.warn(message, SmdtrackWarning, stacklevel=stacklevel + 1)
        except SmdtrackWarning:
            print(f"smdtrack: {message}", file=sys.stderr)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message that is not blank, cut to 300 characters; its type's name if none.

    Example:
        >>> first_line(ValueError("no such file\\n  while reading"))
        'no such file'
        >>> first_line(KeyboardInterrupt())
        'KeyboardInterrupt'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 3] + "..."


def one_line(error: BaseException) -> str:
    """Returns the whole message of an error as one line, cut to 300 characters; the name of its type if it is empty."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 3] + "..."


def reason_of(error: BaseException) -> str:
    """Returns an error in one line: the message alone for our own errors, else with the name of its type in front."""
    return first_line(error) if isinstance(error, SmdtrackError) else f"{type(error).__name__}: {first_line(error)}"
