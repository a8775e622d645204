"""Tracks the training in processes that a script starts by `torch.multiprocessing.spawn`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.multiprocessing

from smdtrack.tracking.attach.instrumentation import Announce, Instrumentation
from smdtrack.tracking.attach.options import Options
from smdtrack.tracking.attach.tracker import status_after

#: Called when a spawned process has ended its trackers, to print their summaries.
Report = Callable[[Instrumentation], None]


@dataclass(frozen=True)
class _Tracked:
    """The function that a spawned process runs, with its optimizers tracked. It is pickled to get there."""

    function: Callable[..., Any]
    options: Options
    announce: Announce
    report: Report

    def __call__(self, *args: Any) -> Any:
        instrumentation = Instrumentation(self.options, self.announce)
        failure: BaseException | None = None
        try:
            return self.function(*args)
        except BaseException as error:
            failure = error
            raise
        finally:
            instrumentation.stop(status_after(failure))
            self.report(instrumentation)


@contextmanager
def tracking_spawned_processes(options: Options, announce: Announce, report: Report) -> Iterator[list[int]]:
    """While the block runs, the processes that `torch.multiprocessing.spawn` starts are tracked, too.

    Args:
        options: Of the trackers.
        announce: As in `Instrumentation`; a function of a module, because it is pickled.
        report: Called at the end of each process; a function of a module.

    Yields:
        The number of processes of each call, filled while the script runs.
    """
    package: Any = torch.multiprocessing
    # The package's attribute `spawn` is the function of that name, not the module.
    module: Any = sys.modules["torch.multiprocessing.spawn"]
    original = module.start_processes
    started: list[int] = []

    def start_processes(fn: Callable[..., Any], args: Any = (), nprocs: int = 1, *rest: Any, **options_of: Any) -> Any:
        started.append(nprocs)
        return original(_Tracked(fn, options, announce, report), args, nprocs, *rest, **options_of)

    for place in (module, package):
        place.start_processes = start_processes
    try:
        yield started
    finally:
        for place in (module, package):
            place.start_processes = original
