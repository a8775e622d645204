"""Work that several threads take from one heap, so that one that comes late costs nothing.

After an optimizer's step the threads of torch's OpenMP wait busily for more work, and threads of our own would have to
wait for a processor: compiled work goes to torch's own threads, where their library has the usual entry.
"""

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

#: More threads than these find the memory's bandwidth taken.
MOST_THREADS = 4
#: Elements below which it does not pay to wake another thread.
WORTH_THREADS = 200_000


def together(work: Callable[[], None], elements: int) -> None:
    """Calls `work` on as many threads as torch may use; each call takes what is left until nothing is.

    Args:
        work: Must let other threads run while it works (numpy and compiled passes do).
        elements: How much there is to do.
    """
    threads = min(torch.get_num_threads(), MOST_THREADS) if elements >= WORTH_THREADS else 1
    others = [_pool().submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for other in others:
            # One that has not begun would find nothing left to do.
            if not other.cancel():
                other.result()


def together_compiled(work: Any, job: ctypes.Structure, elements: int) -> None:
    """Calls a C function of a job on several threads likewise.

    Args:
        work: `void work(struct job *)`.
        job: What all calls share.
        elements: How much there is to do.
    """
    # As many as torch itself uses: for a smaller team the library would end the others, and start them anew.
    threads, parallel = torch.get_num_threads(), _parallel()
    if threads > 1 and elements >= WORTH_THREADS and parallel is not None:
        parallel(ctypes.cast(work, ctypes.c_void_p), ctypes.addressof(job), threads, 0)
    else:
        together(lambda: work(ctypes.addressof(job)), elements)


_forked = False


@functools.cache
def _parallel() -> Any:
    """The entry of torch's OpenMP library; None where there is none, or where its threads are a parent's."""
    if _forked:
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
    return ThreadPoolExecutor(MOST_THREADS - 1, thread_name_prefix="smdtrack-sums")


def _after_fork() -> None:
    """A forked child has neither pool's threads, and would wait for them for ever."""
    global _forked
    _forked = True
    _pool.cache_clear()
    _parallel.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
