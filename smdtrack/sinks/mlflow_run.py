"""Which MLflow run a record goes to: how it is found again, and how a new one is made."""

import getpass
import sys
from typing import Any

from smdtrack.record.run import RunInfo
from smdtrack.sinks.errors import PermanentSinkError
from smdtrack.sinks.mlflow_client import is_missing

DEFAULT_EXPERIMENT = "smdtrack"
#: Tag with the id of the record, by which its run is found again.
ID_TAG = "smdtrack.id"


def get_run(client: Any, run_id: str) -> Any:
    """Returns the run with this id; None if there is none or it was deleted."""
    try:
        run = client.get_run(run_id)
    except Exception as error:
        if is_missing(error):
            return None
        raise
    return None if run.info.lifecycle_stage == "deleted" else run


def find_run(client: Any, experiment_id: str, record_id: str) -> Any:
    """Returns the run that was made for this record; None if there is none."""
    found = client.search_runs([experiment_id], f"tags.`{ID_TAG}` = '{record_id}'", max_results=1)
    return found[0] if found else None


def create_run(client: Any, experiment_id: str, info: RunInfo) -> Any:
    """Makes a run for a record."""
    tags = {
        ID_TAG: info.id,
        "mlflow.source.name": sys.argv[0] if sys.argv else "",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
    }
    return client.create_run(experiment_id, start_time=int(info.created * 1000), tags=tags, run_name=info.name)


def find_experiment(client: Any, name: str | None, experiment_id: str | None) -> str | None:
    """Returns the id of an experiment; None if it does not exist.

    Args:
        client: MLflow's client.
        name: Its name. Without a name and an id, it is the default experiment, `smdtrack`.
        experiment_id: Its id, if there is no name.

    Raises:
        PermanentSinkError: If it is deleted, or there is none with this id.
    """
    if name is None and experiment_id is not None:
        return str(client.get_experiment(experiment_id).experiment_id)
    name = name or DEFAULT_EXPERIMENT
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return None
    if experiment.lifecycle_stage == "deleted":
        raise PermanentSinkError(f"the experiment {name!r} is deleted; restore it or name another")
    return str(experiment.experiment_id)


def make_experiment(client: Any, name: str | None) -> str:
    """Makes an experiment and returns its id."""
    name = name or DEFAULT_EXPERIMENT
    try:
        return str(client.create_experiment(name))
    except Exception:
        # Another process may have made it in between. If it has not, our own error says why it could not be made.
        found = find_experiment(client, name, None)
        if found is None:
            raise
        return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return "unknown"
