"""Runs work on several threads, each of which takes the next piece until none is left.

After an optimizer's step, torch's OpenMP threads spin for a while, waiting for more work, and other threads would have
to wait for a processor. So compiled work runs on torch's own threads, through `GOMP_parallel` of their library, if that
is available. Otherwise it runs on a thread pool.
"""

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

#: Largest number of threads of the pool. The memory's bandwidth is used up with these.
MAX_THREADS = 4
#: Number of elements from which on a second thread saves more time than it takes to wake it.
MIN_ELEMENTS = 200_000


def run_on_threads(work: Callable[[], None], elements: int) -> None:
    """Calls `work` on as many threads of the pool as torch may use; each call does what the others have left.

    Args:
        work: Takes pieces of work until none is left. It must release the GIL while it works, as numpy does.
        elements: Number of elements to sum over; small work stays on the calling thread.
    """
    threads = min(torch.get_num_threads(), MAX_THREADS) if elements >= MIN_ELEMENTS else 1
    others = [_pool().submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for other in others:
            # A call that has not started yet would find no work left.
            if not other.cancel():
                other.result()


def run_compiled_on_threads(work: Any, job: ctypes.Structure, elements: int) -> None:
    """Calls a C function on several threads, with one job that they share.

    Args:
        work: `void work(struct job *)`.
        job: The job.
        elements: Number of elements to sum over; small work stays on the calling thread.
    """
    # As many threads as torch itself uses: for a smaller team, OpenMP would end the other threads and start them again.
    threads, parallel = torch.get_num_threads(), _openmp_parallel()
    if threads > 1 and elements >= MIN_ELEMENTS and parallel is not None:
        parallel(ctypes.cast(work, ctypes.c_void_p), ctypes.addressof(job), threads, 0)
    else:
        run_on_threads(lambda: work(ctypes.addressof(job)), elements)


_is_forked_child = False


@functools.cache
def _openmp_parallel() -> Any:
    """Returns `GOMP_parallel` of torch's library; None if it is missing, or in a forked child, which has no threads."""
    if _is_forked_child:
        return None
    try:
        entry = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    entry.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    entry.restype = None
    return entry


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MAX_THREADS - 1, thread_name_prefix="smdtrack-sums")


def _forget_threads_after_fork() -> None:
    """Forgets both kinds of threads in a forked child: they do not exist there, and it would wait for them for ever."""
    global _is_forked_child
    _is_forked_child = True
    _pool.cache_clear()
    _openmp_parallel.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads_after_fork)
