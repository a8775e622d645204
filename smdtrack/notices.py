"""Notices and errors. Each is one line that says what to do."""

import sys
from contextlib import suppress

_LONGEST_LINE = 300

#: Every notice of this process, in order. Each kind is given once, so that they are few.
_given: list[str] = []


class SmdtrackError(ValueError):
    """Wrong input. The message is one line that repeats the input and names what is accepted."""


class WrongOptionError(SmdtrackError):
    """An option cannot be met, which is known only once the script has made its model: a glob that matches nothing."""


class InterruptedRunError(BaseException):
    """A tracked script was ended by Ctrl-C. The process ends as Python does then, after its `atexit` handlers."""


def notify(message: str) -> None:
    """Prints a notice, one line, to stderr: something that smdtrack could not do, while the training goes on.

    It is not a Python warning: a script's `warnings.filterwarnings("ignore")` must not hide it, nor
    `filterwarnings("error")` turn it into an exception. Raises nothing, also if stderr is closed.
    """
    _given.append(message)
    show(message)


def show(message: str) -> None:
    """Prints one line to stderr that is not a notice: the audit's progress, or where a run is recorded."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"smdtrack: {message}\n")
        sys.stderr.flush()


def count() -> int:
    """Returns how many notices this process has given."""
    return len(_given)


def given_since(start: int) -> list[str]:
    """Returns the notices that this process has given after its first `start` ones."""
    return _given[start:]


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
