"""Runs a training script or module in this process exactly as `python SCRIPT` would run it."""

import os
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from smdtrack.notices import SmdtrackError


@dataclass(frozen=True)
class Outcome:
    """How a script ended.

    Attributes:
        exit_code: The exit code that the script's own process would have had.
        status: `finished`, `failed` or `interrupted`.
        interrupted: Whether an uncaught Ctrl-C ended the script.
        forked: Whether this process is a child that the script forked and that returned here. The parent process
            reports the outcome.
    """

    exit_code: int = 0
    status: str = "finished"
    interrupted: bool = False
    forked: bool = False


def run_script(script: str, args: Sequence[str]) -> Outcome:
    """Runs a Python file as `python SCRIPT ARGS...` would.

    Raises:
        SmdtrackError: If there is no such file.
    """
    path = Path(script)
    if not path.is_file():
        raise SmdtrackError(f"no script {script!r}{' (a folder)' if path.is_dir() else ''}")
    with _process_state(script, args, str(path.resolve().parent)):
        return _run(lambda: runpy.run_path(script, run_name="__main__"))


def run_module(module: str, args: Sequence[str]) -> Outcome:
    """Runs a module as `python -m MODULE ARGS...` would.

    Raises:
        SmdtrackError: If there is no such module.
    """
    import importlib.util

    with _process_state(module, args, os.getcwd()):
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            found = None
        if found is None:
            raise SmdtrackError(f"no module {module!r} to run")
        return _run(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))


def _run(body: Callable[[], object]) -> Outcome:
    process = os.getpid()
    exit_code, status, interrupted = 0, "finished", False
    try:
        body()
    except SystemExit as stop:
        exit_code = _exit_code(stop)
        # A script that catches Ctrl-C itself conventionally exits with 130.
        status = {0: "finished", 130: "interrupted"}.get(exit_code, "failed")
    except KeyboardInterrupt:
        exit_code, status, interrupted = 130, "interrupted", True
        _print_as_python_would(*sys.exc_info())
    except BaseException:
        exit_code, status = 1, "failed"
        _print_as_python_would(*sys.exc_info())
    finally:
        _flush_stdout()
    return Outcome(exit_code, status, interrupted, forked=os.getpid() != process)


def _flush_stdout() -> None:
    """The script's words come before ours; where nobody listens any more, Python says so when it ends."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()


def _exit_code(stop: SystemExit) -> int:
    """What Python makes of SystemExit: None is 0, a number itself, anything else is printed and 1."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code
    print(stop.code, file=sys.stderr)
    return 1


def _print_as_python_would(
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    """Hands the exception to the excepthook, the script's own where it set one, from the script's first frame on."""
    launcher = {__file__, runpy.__file__, "<frozen runpy>"}
    while trace is not None and trace.tb_frame.f_code.co_filename in launcher:
        trace = trace.tb_next
    if kind is not None and error is not None:
        sys.excepthook(kind, error.with_traceback(trace), trace)


@contextmanager
def _process_state(script: str, args: Sequence[str], first_path: str) -> Iterator[None]:
    """`sys.argv` and `sys.path[0]` as Python sets them for a script, and as they were afterwards."""
    argv, path = sys.argv, sys.path[:]
    sys.argv = [script, *args]
    if path:
        sys.path[0] = first_path
    else:
        sys.path.insert(0, first_path)
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
