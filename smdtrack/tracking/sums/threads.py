"""Work that several threads take from one heap, so that one that comes late costs nothing.

After an optimizer's step the threads of OpenMP still wait busily for more, so that ours may get no processor for a
while: shares that were dealt out beforehand would then be waited for.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

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


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MOST_THREADS - 1, thread_name_prefix="smdtrack-sums")


# A forked child has the pool but not its threads, and would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
