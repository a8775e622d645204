"""The tracker runs that the script itself has open."""

import sys
from contextlib import suppress
from typing import Any


def open_runs() -> dict[str, str]:
    """Returns the ids of the script's open MLflow and W&B runs, by the library's name. Imports neither library."""
    found: dict[str, str] = {}
    for library, run_id in (("mlflow", _mlflow_run), ("wandb", _wandb_run)):
        module = sys.modules.get(library)
        with suppress(Exception):  # the library is just being imported
            if module is not None and (id_of_run := run_id(module)):
                found[library] = id_of_run
    return found


def a_run_ended(before: dict[str, str], now: dict[str, str]) -> bool:
    """Returns whether one of the runs that were open before is not any more."""
    return any(now.get(library) != run_id for library, run_id in before.items())


def _mlflow_run(mlflow: Any) -> str | None:
    run = mlflow.active_run()
    return None if run is None else str(run.info.run_id)


def _wandb_run(wandb: Any) -> str | None:
    return None if wandb.run is None else str(wandb.run.id)
