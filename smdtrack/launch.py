"""Runs a training script or module in this process exactly as `python SCRIPT` or `python -m MODULE` would."""

import builtins
import importlib.util
import io
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType

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
    main = _become(script, args, str(path.resolve().parent))
    return _run(lambda: _execute(os.path.abspath(script), main))


def run_module(module: str, args: Sequence[str]) -> Outcome:
    """Runs a module as `python -m MODULE ARGS...` would.

    Raises:
        SmdtrackError: If there is no such module.
    """
    _become(module, args, os.getcwd())
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise SmdtrackError(f"no module {module!r} to run")
    # The function that `python -m` itself calls: unlike runpy.run_module it leaves `__main__` in place afterwards.
    return _run(lambda: runpy._run_module_as_main(module))  # type: ignore[attr-defined]


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
        _print_exception(*sys.exc_info())
    except BaseException:
        exit_code, status = 1, "failed"
        _print_exception(*sys.exc_info())
    finally:
        _flush_stdout()
    return Outcome(exit_code, status, interrupted, forked=os.getpid() != process)


def _flush_stdout() -> None:
    """Writes out what the script printed before smdtrack prints its summary.

    If nobody reads stdout any more, the interpreter reports that when it ends.
    """
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()


def _exit_code(stop: SystemExit) -> int:
    """Returns Python's exit code for SystemExit: 0 for None, a number itself. Prints any other code; that gives 1."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code
    print(stop.code, file=sys.stderr)
    return 1


def _print_exception(
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    """Calls `sys.excepthook`, which the script may have replaced, with the traceback from the script's first frame."""
    launcher = {__file__, runpy.__file__, "<frozen runpy>"}
    while trace is not None and trace.tb_frame.f_code.co_filename in launcher:
        trace = trace.tb_next
    if kind is not None and error is not None:
        sys.excepthook(kind, error.with_traceback(trace), trace)


def _become(script: str, args: Sequence[str], first_path: str) -> ModuleType:
    """Makes this process that of a script: sets `sys.argv`, `sys.path[0]` and an empty module `__main__`.

    They stay after the script has ended, as in a process of Python's own: `atexit` handlers and threads use them.
    """
    sys.argv = [script, *args]
    if sys.path:
        sys.path[0] = first_path
    else:
        sys.path.insert(0, first_path)
    main = ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    return main


def _execute(path: str, main: ModuleType) -> None:
    """Executes a file in the module `__main__`, with the module attributes that Python sets for a script."""
    main.__file__ = path
    main.__loader__ = SourceFileLoader("__main__", path)
    main.__dict__["__cached__"] = None
    main.__annotations__ = {}
    with io.open_code(path) as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, main.__dict__)
