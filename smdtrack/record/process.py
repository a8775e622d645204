"""Which process records a run, and whether it still lives."""

import os
import socket
from collections.abc import Mapping
from typing import Any

import psutil

#: Start times of one process, as two programs read them, differ by less than this many seconds.
_SAME_START = 2.0


def process_identity() -> dict[str, Any]:
    """Returns what tells this process from every other: its host, its number and the time at which it started."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def is_alive(process: Mapping[str, Any]) -> bool | None:
    """Returns whether the process with this identity runs; None if that cannot be known, as on another host."""
    if process.get("host") != socket.gethostname() or not isinstance(process.get("pid"), int):
        return None
    try:
        found = psutil.Process(process["pid"])
        if found.status() == psutil.STATUS_ZOMBIE:
            return False
        return bool(abs(found.create_time() - float(process.get("started", 0))) < _SAME_START)
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, TypeError, ValueError):
        return None
