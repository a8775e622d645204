"""Runs a user's optimizer class in a process of its own, where it can disturb neither the script nor other ranks."""

import inspect
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer

from smdtrack.theory.calibration import CannotRunError

T = TypeVar("T")

#: Seconds that a calibration may take; the training waits for it.
TIME_LIMIT = 20.0
#: Constructor arguments that change what an optimizer prints or how it computes, not what.
_HARMLESS = frozenset({"params", "lr", "foreach", "fused", "capturable", "differentiable", "verbose", "maximize"})


def check_reproducible(optimizer: Optimizer, group: Mapping[str, Any]) -> None:
    """Checks that a new instance, made with the group's hyper-parameters, behaves as this optimizer does.

    Raises:
        CannotRunError: If the constructor takes an argument that the groups do not hold and that may have another
            value than its default.
    """
    for name, parameter in inspect.signature(type(optimizer).__init__).parameters.items():
        if name == "self" or name in group or name in _HARMLESS:
            continue
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        values = [vars(optimizer)[key] for key in (name, f"_{name}") if key in vars(optimizer)]
        try:
            as_by_default = bool(values) and all(bool(value == parameter.default) for value in values)
        except Exception:  # values that cannot be compared, such as tensors
            as_by_default = False
        if not as_by_default:
            raise CannotRunError(
                f"its constructor takes {name!r}, which its parameter groups do not hold, so that it cannot be"
                " calibrated"
            )


def in_own_process(function: Callable[[], T], seconds: float = TIME_LIMIT) -> T:
    """Returns what a function returns in a forked child process.

    There it prints nothing, has one thread and no process group, and its random numbers are its own.

    Args:
        function: What to run; its result is pickled.
        seconds: Time limit.

    Raises:
        CannotRunError: If the function raises it, takes too long, or ends its process.
    """
    if threading.current_thread() is not threading.main_thread():
        raise CannotRunError(
            "its hyper-parameters changed during the training, and it cannot be calibrated while a training runs"
        )
    if not hasattr(os, "fork"):
        raise CannotRunError("it cannot be calibrated on this system, which has no fork")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _run_in_child(function, writing)
    os.close(writing)
    try:
        answer = _read_all(reading, time.monotonic() + seconds)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if answer is None:
        raise CannotRunError(f"its calibration took more than {seconds:.0f} s")
    if not answer:
        raise CannotRunError("its calibration ended the process in which it ran")
    succeeded, value = pickle.loads(answer)
    if not succeeded:
        raise CannotRunError(value)
    result: T = value
    return result


def _read_all(descriptor: int, deadline: float) -> bytes | None:
    """Reads until the other end is closed; returns None if that takes too long."""
    import select

    parts: list[bytes] = []
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        part = os.read(descriptor, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _run_in_child(function: Callable[[], Any], writing: int) -> None:
    """Runs the function, sends its pickled result and ends the process. Never returns."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        # The connections to other ranks and to trackers are the parent's.
        os.closerange(3, writing)
        os.closerange(writing + 1, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") > 0 else 65536)
        # A process group would wait for the other ranks: without one, a collective raises.
        if torch.distributed.is_available():
            torch.distributed.GroupMember.WORLD = None
        torch.set_num_threads(1)
        # The script may have replaced sys.stdout by a file that is closed by now.
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        try:
            answer: tuple[bool, Any] = True, function()
        except CannotRunError as error:
            answer = False, str(error)
        except BaseException as error:
            answer = False, f"it does not run on plain gradients: {type(error).__name__}: {error}"
        data = pickle.dumps(answer)
        while data:
            data = data[os.write(writing, data) :]
    finally:
        os._exit(0)
