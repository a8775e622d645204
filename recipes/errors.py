"""How the recipe reports a mistake of the person who runs it: one line on stderr, exit code 2, no traceback."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from typing import NoReturn


def stop(message: str) -> NoReturn:
    """Prints the message and ends the script with exit code 2."""
    print(f"train.py: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def reason(error: BaseException) -> str:
    """Returns an exception's type and text on one line, at most 300 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__


def near_names(name: str, names: Iterable[str]) -> str:
    """Returns "; did you mean ...?" with the most similar names, or nothing if none is similar."""
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""
