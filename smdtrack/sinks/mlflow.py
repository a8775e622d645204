"""MLflow: the script's own active run, or one of ours; points in batches, a saved view, a table at the end."""

import getpass
import logging
import math
import posixpath
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any

from smdtrack.notices import first_line, notify
from smdtrack.record.run import Point, RunInfo
from smdtrack.record.summary import Summary, WeightSummary
from smdtrack.sinks import mlflow_view
from smdtrack.sinks.mlflow_address import (
    absolute_uri,
    check_reachable,
    default_uri,
    environment,
    open_hints,
    without_secrets,
)

DEFAULT_EXPERIMENT = "smdtrack"
SUMMARY_FILE = "smdtrack/summary.json"

_MAX_KEY = 250
_MAX_VALUE = 500
_METRICS_PER_CALL = 1000
_PARAMS_PER_CALL = 100
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_REFUSED = re.compile(r"[^/\w.\- :]")


class MLflowSink:
    """Sends a run to MLflow, by a client of its own: nothing that the script has set is changed.

    Which run: the run that is active on the training thread, else the one that MLFLOW_RUN_ID names, else a new one in
    the experiment given here, set by the script, or named by MLFLOW_EXPERIMENT_NAME or _ID (default: smdtrack).
    Where: the URI given here, else the script's or MLFLOW_TRACKING_URI, else `mlflow.db` in the working directory.
    A run that goes on with its record goes on in its MLflow run too, if that was one of ours; no step is sent twice.

    Args:
        tracking_uri: Of a server or a store; given, a script's run that is active elsewhere is left alone.
        experiment: Name of the experiment for a new run.
        view: Whether the experiment gets the saved view.
    """

    name = "mlflow"

    def __init__(self, tracking_uri: str | None = None, experiment: str | None = None, view: bool = True) -> None:
        self._given_uri = tracking_uri
        self._given_experiment = experiment
        self._view = view
        self._uri = ""
        self._uri_is_default = False
        self._set_experiment_id: str | None = None
        self._client: Any = None
        self._run_id: str | None = None
        self._experiment_id: str | None = None
        self._owned = False
        self._create_tried = False
        self._views: list[str] = []
        self._last_step: dict[str, int] = {}
        self._metric_keys: dict[str, str] = {}
        self._params_there: frozenset[str] = frozenset()

    def note_script_run(self) -> None:
        """Remembers the script's store, experiment and active run: MLflow knows the latter on this thread only."""
        mlflow = sys.modules.get("mlflow")
        set_here = environment("MLFLOW_TRACKING_URI")
        if mlflow is not None and mlflow.tracking.is_tracking_uri_set():
            set_here = mlflow.get_tracking_uri()
        scripts_uri = absolute_uri(set_here) if set_here else default_uri()
        self._uri = absolute_uri(self._given_uri) if self._given_uri else scripts_uri
        self._uri_is_default = not self._given_uri and not set_here
        if mlflow is None or self._uri != scripts_uri:
            return
        self._set_experiment_id = getattr(mlflow.tracking.fluent, "_active_experiment_id", None)
        run = mlflow.active_run()
        if run is not None:
            self._run_id, self._experiment_id = run.info.run_id, run.info.experiment_id

    def start(self, info: RunInfo) -> None:
        """Opens or attaches to a run; logs parameters, tags and the saved view.

        Raises:
            RuntimeError: If MLflow cannot be reached or refuses, in one line that names the store.
        """
        earlier = info.earlier.sinks.get(self.name) if info.earlier is not None else None
        if earlier and self._uri_is_default and self._run_id is None:
            self._uri = earlier.get("tracking_uri") or self._uri
        with self._one_line():
            check_reachable(self._uri)
            self._open_client()
            if self._run_id is None and not (earlier and self._go_on(earlier, info)):
                self._open_run(info)
            elif self._experiment_id is None:
                self._experiment_id = self._client.get_run(self._run_id).info.experiment_id
            if info.earlier is not None or info.steps_before:
                self._learn_what_is_there()
            self._log_params(info)
        self._write_view(info)

    def write(self, points: Sequence[Point]) -> None:
        """Sends the points that are finite and newer, per key, than what has been sent.

        Raises:
            RuntimeError: If MLflow cannot be reached or refuses, in one line that names the store.
        """
        from mlflow.entities import Metric

        # A call that failed half way is repeated with all its points; what had arrived must not arrive twice.
        owed = [
            point
            for point in points
            if math.isfinite(point.value) and point.step > self._last_step.get(self._metric_key(point.key), -1)
        ]
        with self._one_line():
            if owed:
                check_reachable(self._uri)
            for start in range(0, len(owed), _METRICS_PER_CALL):
                chunk = owed[start : start + _METRICS_PER_CALL]
                metrics = [Metric(self._metric_key(p.key), p.value, int(p.time * 1000), p.step) for p in chunk]
                self._client.log_batch(self._run_id, metrics=metrics)
                for point in chunk:
                    self._last_step[self._metric_key(point.key)] = point.step

    def finish(self, info: RunInfo, summary: Summary | None, status: str) -> None:
        """Logs the verdict and the table, and ends the run if it is ours; all of it may be repeated.

        Raises:
            RuntimeError: If MLflow cannot be reached or refuses, in one line that names the store.
        """
        with self._one_line():
            check_reachable(self._uri)
            if summary is not None:
                self._client.set_tag(self._run_id, "smdtrack.verdict", summary.verdict[:_MAX_VALUE])
                if self._owned:
                    self._client.set_tag(self._run_id, "mlflow.note.content", summary.verdict)
            # Before the table: a folder for artifacts that cannot be written must not leave the run open.
            if self._owned and status in _STATUS:
                self._client.set_terminated(self._run_id, _STATUS[status])
            if summary is not None:
                self._log_table(summary)

    def complete_up_to(self) -> int | None:
        """Returns the step before the newest, which may be torn; None in a script's run that has no angle of ours."""
        angles = [step for key, step in self._last_step.items() if key.startswith("angle/")]
        return max(angles) - 1 if angles else 0 if self._owned else None

    def destination(self) -> Mapping[str, Any]:
        """Returns the run, its experiment, the store's address without secrets, and the keys of the saved views."""
        return {
            "run_id": self._run_id,
            "owned": self._owned,
            "experiment_id": self._experiment_id,
            "tracking_uri": without_secrets(self._uri),
            "views": list(self._views),
        }

    def how_to_open(self) -> Sequence[str]:
        """Returns the command that serves a local store and the address of the view."""
        if self._experiment_id is None:
            return ()
        return open_hints(self._uri, self._experiment_id, self._views[0] if self._views else None)

    def _open_client(self) -> None:
        if self._client is not None:
            return
        from mlflow import MlflowClient

        with _quiet_migrations():
            client = MlflowClient(tracking_uri=self._uri)
            client.search_experiments(max_results=1)
        # Ending a run on a server prints its address on stdout, which is the script's.
        client._tracking_client._log_url = lambda run_id: None
        self._client = client

    def _go_on(self, earlier: Mapping[str, Any], info: RunInfo) -> bool:
        """Takes up the run that was opened for the same record before; False if there is none, or not any more."""
        run_id = earlier.get("run_id")
        if not (earlier.get("owned") and run_id) or environment("MLFLOW_RUN_ID") is not None:
            return False
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = None
        if run is None or run.info.lifecycle_stage == "deleted":
            notify(f"{info.folder} goes on in a new MLflow run: {run_id} is not in {without_secrets(self._uri)}")
            return False
        self._client.update_run(run_id, status="RUNNING")
        self._run_id, self._experiment_id, self._owned = run_id, run.info.experiment_id, True
        return True

    def _learn_what_is_there(self) -> None:
        """Which steps the run has already, by metric, and which parameters: neither is sent again."""
        run = self._client.get_run(self._run_id)
        self._params_there = frozenset(run.data.params)
        for metric in run.to_proto().data.metrics:
            self._last_step[metric.key] = max(metric.step, self._last_step.get(metric.key, -1))

    def _open_run(self, info: RunInfo) -> None:
        run_id = environment("MLFLOW_RUN_ID")
        if run_id is not None:
            self._experiment_id = self._client.get_run(run_id).info.experiment_id
            self._run_id = run_id
            return
        self._experiment_id = self._experiment()
        if self._create_tried:
            # An answer may have been lost on its way although the run was made.
            found = self._client.search_runs([self._experiment_id], f"tags.`smdtrack.id` = '{info.id}'", max_results=1)
            if found:
                self._run_id, self._owned = found[0].info.run_id, True
                return
        self._create_tried = True
        tags = {
            "smdtrack.id": info.id,
            "mlflow.source.name": sys.argv[0] if sys.argv else "",
            "mlflow.source.type": "LOCAL",
            "mlflow.user": _user(),
        }
        run = self._client.create_run(
            self._experiment_id, start_time=int(info.created * 1000), tags=tags, run_name=info.name
        )
        self._run_id, self._owned = run.info.run_id, True

    def _experiment(self) -> str:
        """Returns the id of the experiment for a new run, made if it is missing."""
        name = self._given_experiment
        if name is None:
            if self._set_experiment_id is not None:
                return self._set_experiment_id
            name = environment("MLFLOW_EXPERIMENT_NAME")
        if name is None:
            given_id = environment("MLFLOW_EXPERIMENT_ID")
            if given_id is not None:
                return str(self._client.get_experiment(given_id).experiment_id)
            name = DEFAULT_EXPERIMENT
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self._client.create_experiment(name))
            except Exception:
                # Another process may have made it in between; if not, the reason is worth more than our guess.
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            raise RuntimeError(f"the experiment {name!r} is deleted; restore it or name another")
        return str(experiment.experiment_id)

    def _log_params(self, info: RunInfo) -> None:
        from mlflow.entities import Param, RunTag

        # A parameter can be set once: ours must not take the name that a script's own log_param will want.
        prefix = "" if self._owned else "smd/"
        named = {safe_key(prefix + key): str(value)[:_MAX_VALUE] for key, value in info.params.items()}
        params = [Param(key, value) for key, value in named.items() if key not in self._params_there]
        tags = [RunTag("smdtrack.record", str(info.folder)), RunTag("smdtrack.weights", str(len(info.weights)))]
        for start in range(0, len(params), _PARAMS_PER_CALL):
            self._client.log_batch(self._run_id, params=params[start : start + _PARAMS_PER_CALL])
        self._client.log_batch(self._run_id, tags=tags)

    def _write_view(self, info: RunInfo) -> None:
        if not self._view or self._views:
            return
        try:
            import mlflow

            layers = {safe_key(key): families for key, families in mlflow_view.layers_of(info.weights).items()}
            self._views = mlflow_view.write_views(self._client, str(self._experiment_id), layers, mlflow.__version__)
        except Exception as error:
            self._view = False
            notify(f"the saved MLflow view could not be written, the metrics are: {first_line(error)}")

    def _log_table(self, summary: Summary) -> None:
        """Logs the summary as MLflow's `log_table` does, but so that a repeated call does not append it again."""
        import json

        columns = [field.name for field in fields(WeightSummary)]
        rows = [list(asdict(weight).values()) for weight in summary.weights]
        self._client.log_dict(self._run_id, {"columns": columns, "data": rows}, SUMMARY_FILE)
        logged = json.loads(self._client.get_run(self._run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
        entry = {"path": SUMMARY_FILE, "type": "table"}
        if entry not in logged:
            self._client.set_tag(self._run_id, "mlflow.loggedArtifacts", json.dumps([*logged, entry]))

    def _metric_key(self, key: str) -> str:
        if key not in self._metric_keys:
            self._metric_keys[key] = safe_key(key)
        return self._metric_keys[key]

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except ConnectionError:
            raise
        except Exception as error:
            raise RuntimeError(f"MLflow at {without_secrets(self._uri)}: {first_line(error)}") from error


def safe_key(key: str) -> str:
    """Returns the key as MLflow takes it; a changed key ends with a checksum, so that no two become one.

    Letters, digits and `_ - . space : /` are allowed, in at most 250 characters that are no odd path.
    """
    safe = _REFUSED.sub("_", key)
    safe = posixpath.normpath(safe).lstrip("/")
    safe = "/".join("_" if part == ".." else part for part in safe.split("/"))
    if safe == key and len(key) <= _MAX_KEY:
        return key
    return f"{safe[: _MAX_KEY - 9]}-{zlib.crc32(key.encode()):08x}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return "unknown"


@contextmanager
def _quiet_migrations() -> Iterator[None]:
    """Keeps the lines that a new sqlite store's migrations log off the terminal; warnings still come through."""
    loggers = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "alembic")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logger.getEffectiveLevel(), logging.WARNING))
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
