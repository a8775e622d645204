"""Runs in MLflow, read by MLflow's own client."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from smdtrack.names import did_you_mean
from smdtrack.notices import SmdtrackError, first_line
from smdtrack.record.addresses import without_secrets
from smdtrack.record.opened_run import OpenedRun, Setting
from smdtrack.record.script_output import command_settings, plain
from smdtrack.record.series_source import Series, TrackerRun, is_ours, read_table, run_of

PREFIX = "mlflow:"
_TABLE = "smdtrack/summary.json"
_STATUS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}
#: Parameters that smdtrack logs; in a script's own run they carry the prefix `smd/`.
_PARAM_PREFIX = "smd/"
_OWN_TAG = "smdtrack.id"
#: A server is asked for several series at a time: each request waits for its answer.
_THREADS = 8
#: MLflow's own defaults retry a dead server for minutes.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
_QUIET = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
_SQLITE = "sqlite:///"
_MOST_NAMES = 200


def open_mlflow(address: str, tracking_uri: str | None = None) -> OpenedRun:
    """Reads a run from MLflow.

    Args:
        address: `mlflow:RUN_ID`, or `mlflow:EXPERIMENT/NAME` for the newest run of that name.
        tracking_uri: Of the server or the store; by default the one that MLflow itself would use here.

    Raises:
        SmdtrackError: If the store cannot be reached, has no such run, or the run has no data of smdtrack.
    """
    wanted = address.removeprefix(PREFIX)
    if not wanted:
        raise SmdtrackError(f"{address!r} names no run: write mlflow:RUN_ID or mlflow:EXPERIMENT/NAME")
    with _short_patience():
        import mlflow

        uri = tracking_uri or mlflow.get_tracking_uri()
        _check_local_store(uri)
        try:
            client = mlflow.MlflowClient(tracking_uri=uri)
            run = _find(client, wanted, uri)
            return _read(client, run, uri)
        except SmdtrackError:
            raise
        except Exception as error:
            raise SmdtrackError(_cannot_read(uri, error)) from error


def _cannot_read(uri: str, error: Exception) -> str:
    said = first_line(error).replace(uri, without_secrets(uri))
    if "Max retries exceeded" in said or "Connection" in said:
        return f"no MLflow server answers at {without_secrets(uri)}"
    return f"MLflow at {without_secrets(uri)} cannot be read: {said}"


def _check_local_store(uri: str) -> None:
    """MLflow makes a store that does not exist; reading must not leave an empty one behind."""
    if uri.startswith(_SQLITE) and ":memory:" not in uri:
        path = Path(uri.removeprefix(_SQLITE).partition("?")[0])
        if not path.is_file():
            raise SmdtrackError(f"there is no MLflow store {path}: give the tracking URI of the server or the store")


def _find(client: Any, wanted: str, uri: str) -> Any:
    from mlflow.exceptions import MlflowException

    experiment, slash, name = wanted.rpartition("/")
    if slash:
        return _find_by_name(client, experiment, name, uri)
    try:
        return client.get_run(wanted)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise SmdtrackError(
            f"MLflow at {without_secrets(uri)} has no run {wanted!r}; a name is written as mlflow:EXPERIMENT/NAME"
        ) from error


def _find_by_name(client: Any, experiment: str, name: str, uri: str) -> Any:
    found = client.get_experiment_by_name(experiment)
    if found is None:
        names = [entry.name for entry in client.search_experiments(max_results=_MOST_NAMES)]
        hint = did_you_mean(experiment, names) or f"there are {', '.join(names)}"
        raise SmdtrackError(f"MLflow at {without_secrets(uri)} has no experiment {experiment!r}; {hint}")
    runs = client.search_runs([found.experiment_id], max_results=_MOST_NAMES)  # newest first
    for run in runs:
        if run.info.run_name == name:
            return run
    hint = did_you_mean(name, [run.info.run_name for run in runs])
    raise SmdtrackError(f"experiment {experiment!r} has no run called {name!r}" + (f"; {hint}" if hint else ""))


def _read(client: Any, run: Any, uri: str) -> OpenedRun:
    run_id = run.info.run_id
    keys = list(run.data.metrics)
    weights = {key.partition("/")[2] for key in keys if key.startswith("angle/")}
    ours = [key for key in keys if is_ours(key, list(weights))]
    with ThreadPoolExecutor(_THREADS if urlsplit(uri).scheme.startswith("http") else 1) as pool:
        histories = list(pool.map(lambda key: client.get_metric_history(run_id, key), ours))
    series = {key: _series(history) for key, history in zip(ours, histories, strict=True)}
    own = _OWN_TAG in run.data.tags
    params, settings = _params(run.data.params, own)
    place = f"{PREFIX}{run_id} at {without_secrets(uri)}"
    status = _STATUS.get(run.info.status, "running")
    table = _table(client, run_id)
    opened = run_of(
        TrackerRun(
            id=run_id,
            name=run.info.run_name or run_id,
            place=place,
            created=run.info.start_time / 1000,
            status=status,
            series=series,
            params=params,
            table=table,
            verdict=run.data.tags.get("smdtrack.verdict"),
        )
    )
    notes = ["MLflow has no shapes and no memory of the weights, and reference lines only where they moved"]
    if table is None:
        notes.append("the run has no summary table: it is running, or it ended without one")
    ended = run.info.end_time / 1000 if run.info.end_time else None
    metrics = {key: float(value) for key, value in run.data.metrics.items() if key not in series}
    return OpenedRun(opened, "MLflow", place, ended, settings, metrics, tuple(notes))


def _series(history: Any) -> Series:
    """Sorted by step; of a point that was sent twice the later one is kept."""
    points = {point.step: point for point in sorted(history, key=lambda point: (point.step, point.timestamp))}
    return Series(
        np.array(list(points), dtype=np.int64),
        np.array([point.value for point in points.values()], dtype=np.float64),
        np.array([point.timestamp / 1000 for point in points.values()], dtype=np.float64),
    )


def _params(logged: Mapping[str, str], own: bool) -> tuple[dict[str, Setting], dict[str, Setting]]:
    """The parameters of smdtrack, and those of the script."""
    if own:
        params = {key: plain(value) for key, value in logged.items()}
        return params, command_settings(params.get("command"))
    ours = {
        key.removeprefix(_PARAM_PREFIX): plain(value) for key, value in logged.items() if key.startswith(_PARAM_PREFIX)
    }
    theirs = {key: plain(value) for key, value in logged.items() if not key.startswith(_PARAM_PREFIX)}
    return ours, theirs


def _table(client: Any, run_id: str) -> dict[str, Any] | None:
    folder, _, _ = _TABLE.rpartition("/")
    if not any(file.path == _TABLE for file in client.list_artifacts(run_id, folder)):
        return None
    with tempfile.TemporaryDirectory() as scratch:
        return read_table(Path(client.download_artifacts(run_id, _TABLE, scratch)))


@contextmanager
def _short_patience() -> Iterator[None]:
    """Lets MLflow give up on a dead server after seconds; settings of the person's own win."""
    new = {key: value for key, value in (_PATIENCE | _QUIET).items() if key not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for key in new:
            os.environ.pop(key, None)
