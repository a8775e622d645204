"""Audits timm models by name: one in this process, several in a worker process, whose death the command survives."""

import contextlib
import ctypes
import gc
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process

from smdtrack.invariance import Audit, audit
from smdtrack.notices import SmdtrackError, reason_of


@dataclass(frozen=True)
class Request:
    """Name and options of one audit, which can be sent to another process."""

    name: str
    pretrained: bool = False
    checkpoint: str | None = None
    num_classes: int | None = None
    input_size: tuple[int, ...] | None = None
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True)
class Failure:
    """A model that could not be audited, and why, in one line."""

    name: str
    reason: str


def audited(request: Request, progress: Callable[[str], None] | None = None) -> Audit:
    """Builds and audits one model.

    Args:
        request: Which model, and how.
        progress: Is called with the name of each phase of the audit.

    Raises:
        SmdtrackError: The model is unknown or too large, or a checkpoint or an input does not fit it.
    """
    import torch

    from smdtrack.cli import _zoo as zoo
    from smdtrack.invariance.gradient_evidence import is_out_of_memory

    place = zoo.checked_device(request.device)
    zoo.check_memory(request.name, place)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(request.seed)
            model = zoo.create(
                request.name,
                pretrained=request.pretrained,
                checkpoint=request.checkpoint,
                num_classes=request.num_classes,
                input_size=request.input_size,
            )
            return audit(
                model,
                input_size=request.input_size,
                seed=request.seed,
                name=request.name,
                device=request.device,
                progress=progress,
            )
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise SmdtrackError(f"{request.name}: out of memory on {request.device}") from error
        raise


def _attempt(request: Request) -> Audit | Failure:
    """Returns the audit of one model, or a `Failure` if anything goes wrong."""
    try:
        return audited(request)
    except Exception as error:
        return Failure(request.name, reason_of(error).removeprefix(f"{request.name}: "))
    finally:
        return_memory()


def return_memory() -> None:
    """Returns freed memory to the system: glibc keeps it otherwise, and the next model would seem not to fit."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _prepare_worker() -> None:
    """Prepares a worker: if memory runs out the kernel ends it first, and it ends together with its parent."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """Ends the worker when its parent is gone: a killed command cannot tell it, and a large model takes minutes."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def audited_all(requests: Iterable[Request]) -> Iterator[Audit | Failure]:
    """Audits one model after another in a worker process, and starts a new worker if one dies."""
    pool: ProcessPoolExecutor | None = None
    try:
        for request in requests:
            if pool is None:
                pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_prepare_worker)
            try:
                yield pool.submit(_attempt, request).result()
            except BrokenProcessPool:
                pool.shutdown(wait=False)
                pool = None
                yield Failure(request.name, "the process died, most likely out of memory")
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
