"""MLflow: sends a run's points in batches to the script's active run or to one of its own, with a view and a table."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from smdtrack.notices import notify, one_line
from smdtrack.record.run import Point, RunInfo
from smdtrack.record.summary import Summary, WeightSummary
from smdtrack.sinks import mlflow_view
from smdtrack.sinks.errors import PermanentSinkError
from smdtrack.sinks.mlflow_address import (
    absolute_uri,
    check_reachable,
    default_uri,
    environment,
    open_hints,
    with_credentials,
    without_secrets,
)
from smdtrack.sinks.mlflow_client import one_line_errors, open_client
from smdtrack.sinks.mlflow_names import MAX_VALUE, METRICS_PER_CALL, PARAMS_PER_CALL, safe_key
from smdtrack.sinks.mlflow_run import create_run, find_experiment, find_run, get_run, make_experiment

SUMMARY_FILE = "smdtrack/summary.json"

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED", "killed": "KILLED"}


class MLflowSink:
    """Sends a run to MLflow. It uses a client of its own, so that nothing that the script has set is changed.

    The run is the one that is active in the script, else the one that MLFLOW_RUN_ID names, else a new one. A new run is
    made in the experiment given here, else in the one that the script has set, else in the one that
    MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID names, else in `smdtrack`. The store is the one given here, else the
    script's or MLFLOW_TRACKING_URI, else `mlflow.db` in the working directory. A resumed run continues the run that
    this sink made for it. No step is sent twice.

    Args:
        tracking_uri: Address of a server or a store. If the script's active run is elsewhere, it is not used.
        experiment: Name of the experiment for a new run.
        view: Whether the experiment gets the saved view.
    """

    name = "mlflow"

    def __init__(self, tracking_uri: str | None = None, experiment: str | None = None, view: bool = True) -> None:
        self._given_uri = tracking_uri
        self._experiment_name = experiment
        self._view = view
        self._uri = ""
        self._uri_is_default = False
        self._client: Any = None
        self._run_id: str | None = None
        self._experiment_id: str | None = None
        self._owned = False
        self._restored = False
        self._joined = False
        self._views: list[str] = []
        self._last_step: dict[str, int] = {}
        self._metric_keys: dict[str, str] = {}
        self._logged_params: frozenset[str] = frozenset()

    def note_script_run(self) -> None:
        """Remembers the script's store, experiment and active run. MLflow knows the active run of this thread only."""
        mlflow = sys.modules.get("mlflow")
        set_uri = environment("MLFLOW_TRACKING_URI")
        if mlflow is not None and mlflow.tracking.is_tracking_uri_set():
            set_uri = mlflow.get_tracking_uri()
        script_uri = absolute_uri(set_uri) if set_uri else default_uri()
        self._uri = absolute_uri(self._given_uri) if self._given_uri else script_uri
        self._uri_is_default = not self._given_uri and not set_uri
        if mlflow is not None and self._uri == script_uri:
            run = mlflow.active_run()
            if run is not None:
                self._run_id, self._experiment_id = run.info.run_id, run.info.experiment_id
                return
            if self._experiment_name is None:
                self._experiment_id = getattr(mlflow.tracking.fluent, "_active_experiment_id", None)
        self._run_id = environment("MLFLOW_RUN_ID")
        if self._run_id is None and self._experiment_id is None and self._experiment_name is None:
            self._experiment_name = environment("MLFLOW_EXPERIMENT_NAME")
            self._experiment_id = environment("MLFLOW_EXPERIMENT_ID") if self._experiment_name is None else None

    def restore(self, destination: Mapping[str, Any]) -> None:
        """Takes over what `destination` returned, instead of `note_script_run`, to deliver a stored record."""
        uri = destination.get("tracking_uri")
        self._uri = with_credentials(str(uri)) if uri else default_uri()
        self._experiment_name = destination.get("experiment")
        self._experiment_id = destination.get("experiment_id")
        self._run_id = destination.get("run_id")
        self._owned = bool(destination.get("owned"))
        self._restored = True

    def find(self, info: RunInfo) -> bool:
        """Connects and looks for the run without changing anything. Returns whether there is one.

        Afterwards `unsent` knows what the run has already.

        Raises:
            RuntimeError: If MLflow cannot be reached or refuses, in one line that names the store.
        """
        with one_line_errors(self._uri):
            self._connect()
            run = get_run(self._client, self._run_id) if self._run_id is not None else None
            if run is None and self._run_id is not None and not self._owned:
                raise PermanentSinkError(f"the MLflow run {self._run_id} is not in {without_secrets(self._uri)}")
            if run is None:
                experiment_id = self._experiment_id
                if self._run_id is None:
                    experiment_id = find_experiment(self._client, self._experiment_name, self._experiment_id)
                run = find_run(self._client, experiment_id, info.id) if experiment_id is not None else None
                self._owned = self._owned or run is not None
            if run is None:
                return False
            self._run_id, self._experiment_id = run.info.run_id, run.info.experiment_id
            # A script may log several trainings into one run: those are not earlier parts of each other.
            if self._owned or self._restored or info.earlier is not None or info.steps_before:
                self._learn(run)
        return True

    def start(self, info: RunInfo) -> None:
        """Opens or joins a run; logs parameters, tags and the saved view.

        Raises:
            RuntimeError: If MLflow cannot be reached or refuses, in one line that names the store.
        """
        if not self._joined:
            self._use_run_of_the_earlier_part(info)
            wanted = self._run_id
            found = self.find(info)
            with one_line_errors(self._uri):
                if found and self._owned and not self._restored:
                    self._client.update_run(self._run_id, status="RUNNING")
                elif not found:
                    if wanted is not None:
                        place = without_secrets(self._uri)
                        notify(f"{info.folder} is sent to a new MLflow run: {wanted} is not in {place}")
                    self._make_run(info)
            self._joined = True
        with one_line_errors(self._uri):
            self._log_params(info)
        self._write_view(info)

    def unsent(self, points: Sequence[Point]) -> list[Point]:
        """Returns those of the points that are finite and, for their key, newer than what the run has."""
        return [
            point
            for point in points
            if math.isfinite(point.value) and point.step > self._last_step.get(self._metric_key(point.key), -1)
        ]

    def write(self, points: Sequence[Point]) -> None:
        """Sends the unsent ones of the points.

        Raises:
            RuntimeError: If MLflow cannot be reached or refuses, in one line that names the store.
        """
        from mlflow.entities import Metric

        # A call that failed half way is repeated with all its points: those that arrived are left out.
        unsent = self.unsent(points)
        with one_line_errors(self._uri):
            if unsent:
                check_reachable(self._uri)
            for start in range(0, len(unsent), METRICS_PER_CALL):
                chunk = unsent[start : start + METRICS_PER_CALL]
                metrics = [Metric(self._metric_key(p.key), p.value, int(p.time * 1000), p.step) for p in chunk]
                self._client.log_batch(self._run_id, metrics=metrics)
                for point in chunk:
                    self._last_step[self._metric_key(point.key)] = point.step

    def finish(self, info: RunInfo, summary: Summary | None, status: str) -> None:
        """Logs the verdict and the table, and ends the run if it is this sink's own. May be repeated.

        Raises:
            RuntimeError: If MLflow cannot be reached or refuses, in one line that names the store.
        """
        with one_line_errors(self._uri):
            check_reachable(self._uri)
            if summary is not None:
                self._client.set_tag(self._run_id, "smdtrack.verdict", summary.verdict[:MAX_VALUE])
                if self._owned:
                    self._client.set_tag(self._run_id, "mlflow.note.content", summary.verdict)
            # Before the table: if artifacts cannot be written, the run must still be ended.
            if self._owned and self._client.get_run(self._run_id).info.status != _STATUS.get(status, "RUNNING"):
                self._client.set_terminated(self._run_id, _STATUS.get(status, "RUNNING"))
            if summary is not None:
                self._log_table(summary)

    def complete_up_to(self) -> int | None:
        """Returns the step before the newest one, which may be incomplete; None in a script's run without an angle."""
        angles = [step for key, step in self._last_step.items() if key.startswith("angle/")]
        return max(angles) - 1 if angles else 0 if self._owned else None

    def destination(self) -> Mapping[str, Any]:
        """Returns the run, its experiment, the store's address without secrets, and the keys of the saved views."""
        return {
            "run_id": self._run_id,
            "owned": self._owned,
            "experiment": self._experiment_name,
            "experiment_id": self._experiment_id,
            "tracking_uri": without_secrets(self._uri),
            "views": list(self._views),
        }

    def how_to_open(self) -> Sequence[str]:
        """Returns the command that serves a local store, if it is one, and the address of the view."""
        if self._experiment_id is None:
            return ()
        return open_hints(self._uri, self._experiment_id, self._views[0] if self._views else None)

    def _connect(self) -> None:
        check_reachable(self._uri)
        if self._client is None:
            self._client = open_client(self._uri)

    def _use_run_of_the_earlier_part(self, info: RunInfo) -> None:
        """Continues the run that was made for the earlier part of a resumed run, unless the script has a run itself."""
        earlier = info.earlier.sinks.get(self.name) if info.earlier is not None else None
        if not earlier or self._run_id is not None:
            return
        if self._uri_is_default:
            self._uri = earlier.get("tracking_uri") or self._uri
        if earlier.get("owned"):
            self._run_id, self._owned = earlier.get("run_id"), True

    def _make_run(self, info: RunInfo) -> None:
        experiment_id = find_experiment(self._client, self._experiment_name, self._experiment_id)
        self._experiment_id = experiment_id or make_experiment(self._client, self._experiment_name)
        run = create_run(self._client, self._experiment_id, info)
        self._run_id, self._owned = run.info.run_id, True

    def _learn(self, run: Any) -> None:
        """Notes which steps the run has, by metric, and which parameters: neither is sent again."""
        self._logged_params = frozenset(run.data.params)
        for metric in run.to_proto().data.metrics:
            self._last_step[metric.key] = max(metric.step, self._last_step.get(metric.key, -1))

    def _log_params(self, info: RunInfo) -> None:
        from mlflow.entities import Param, RunTag

        # A parameter can be set once: in a script's run the plain names are left to the script.
        prefix = "" if self._owned else "smd/"
        named = {safe_key(prefix + key): str(value)[:MAX_VALUE] for key, value in info.params.items()}
        params = [Param(key, value) for key, value in named.items() if key not in self._logged_params]
        tags = [RunTag("smdtrack.record", str(info.folder)), RunTag("smdtrack.weights", str(len(info.weights)))]
        for start in range(0, len(params), PARAMS_PER_CALL):
            self._client.log_batch(self._run_id, params=params[start : start + PARAMS_PER_CALL])
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
            notify(f"the saved MLflow view could not be written, the metrics are: {one_line(error)}")

    def _log_table(self, summary: Summary) -> None:
        """Logs the summary as MLflow's `log_table` does, except that a repeated call replaces the table."""
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
