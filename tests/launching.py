"""Runs a script with its optimizers tracked, as `smdtrack run` does, and returns how it ended."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from smdtrack.launch import run_module, run_script
from smdtrack.tracking import Options, Tracker
from smdtrack.tracking.attach.instrumentation import Announce, Instrumentation


@dataclass(frozen=True)
class Launched:
    exit_code: int
    interrupted: bool
    trackers: tuple[Tracker, ...]
    optimizers: int


def launch(
    script: str, args: Sequence[str], options: Options, announce: Announce | None = None, module: bool = False
) -> Launched:
    argv, path, main = sys.argv, sys.path[:], sys.modules["__main__"]
    instrumentation = Instrumentation(options, announce)
    status = "failed"
    try:
        outcome = (run_module if module else run_script)(script, args)
        status = outcome.status
    finally:
        sys.argv, sys.path[:], sys.modules["__main__"] = argv, path, main
        instrumentation.stop(status)
    trackers = () if outcome.forked else tuple(instrumentation.trackers)
    return Launched(outcome.exit_code, outcome.interrupted, trackers, instrumentation.optimizers)
