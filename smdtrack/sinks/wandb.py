"""W&B: sends a run's rows when the script ends its own W&B run, or as an offline run after the training."""

import atexit
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from smdtrack.notices import notify, one_line
from smdtrack.record.reader import read_run
from smdtrack.record.run import FAMILIES, Point, Run, RunInfo, samples_between
from smdtrack.record.summary import Summary, WeightSummary, summarize
from smdtrack.sinks.errors import PermanentSinkError
from smdtrack.sinks.sink_delivery import points_to_send

DEFAULT_PROJECT = "smdtrack"
STEP_KEY = "smd/step"
SUMMARY_KEY = "smdtrack/summary"
VERDICT_KEY = "smdtrack/verdict"
#: Seconds that the end of a script's W&B run waits until everything measured so far is in the local record.
FLUSH_SECONDS = 10.0

# Hidden: logged, but without a panel of its own. A person adds it to the panel of the measured value.
_HIDDEN_FAMILIES = frozenset({"angle_pred", "angle_eq", "norm_eq"})
_EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 255, "killed": 255}


class WandbSink:
    """Sends a run to W&B: one row per sampled step, on a step axis of its own, `smd/step`.

    During the training nothing is sent. Each row of `run.log` moves the run's step counter, so that rows among the
    script's own would change the steps of these, and W&B drops a row whose `step=` lies before the counter. Instead all
    rows are read from the local record and logged at once, just before the script ends its W&B run, or before the
    process ends if the script does not end it. If the script never had a W&B run, an offline run is written after the
    training, so that it can never stand in the way of the script's `wandb.init`. `wandb sync` uploads it.

    Args:
        project: Project of an offline run that this sink writes; by default WANDB_PROJECT, else smdtrack.
        attach_only: Never write a run of its own; do nothing if the script has none.
    """

    name = "wandb"

    def __init__(self, project: str | None = None, attach_only: bool = False) -> None:
        self._project = project
        self._attach_only = attach_only
        self._folder = Path.cwd()
        self._info: RunInfo | None = None
        self._run: Any = None
        self._owned = False
        self._complete = False
        self._last_sent = 0
        self._earlier_folders: list[str] = []
        self._restored: Mapping[str, Any] | None = None
        self._called_before_finish = False
        self._flush: Callable[[float], bool] = lambda timeout: True

    def note_script_run(self) -> None:
        """Remembers the script's run, if it has one already, and the working directory."""
        self._folder = Path.cwd()
        self._join_script_run()

    def use_flush(self, flush: Callable[[float], bool]) -> None:
        """Takes a function that waits, at most for some seconds, until all that was measured is in the local record."""
        self._flush = flush

    def start(self, info: RunInfo) -> None:
        """Joins the script's run if there is one."""
        self._info = info
        self._join_script_run()

    def write(self, points: Sequence[Point]) -> None:
        """Joins the script's run if it has appeared. The points wait in the local record."""
        self._join_script_run()

    def finish(self, info: RunInfo, summary: Summary | None, status: str) -> None:
        """Writes an offline run of this sink's own. The rows of the script's run wait until the script ends it.

        Raises:
            RuntimeError: If W&B refuses, in one line.
        """
        self._info = info
        self._join_script_run()
        if self._run is None and self._attach_only:
            return
        with _one_line_errors():
            run = read_run(info.folder)
            if self._run is not None and not self._owned:
                self._finish_in_script_run(run, summary)
            elif not self._complete:
                self._write_own_run(run, summary, status)

    def complete_up_to(self) -> int | None:
        """Returns None: rows are read from the local record when they are sent."""
        return None

    def destination(self) -> Mapping[str, Any]:
        """Returns what names the run for W&B; nothing while there is none."""
        run = self._run
        if run is None and self._restored:
            return self._restored
        if run is None:
            return {} if self._attach_only else {"owned": True, "directory": str(self._folder)}
        destination = {"entity": run.entity, "project": run.project, "run_id": run.id, "owned": self._owned}
        destination |= {"complete": self._complete, "directory": str(self._folder)}
        if run.offline:
            destination |= {"folder": str(_sync_folder(run)), "earlier_folders": self._earlier_folders}
        else:
            destination["url"] = run.url
        return {key: value for key, value in destination.items() if value}

    def how_to_open(self) -> Sequence[str]:
        """Returns the address of the run, or the command that sends an offline run to W&B."""
        run = self._run
        if run is None:
            return ()
        if run.offline:
            return (f"wandb sync {shlex.join([*self._earlier_folders, str(_sync_folder(run))])}",)
        return (run.url,) if run.url else ()

    def restore(self, destination: Mapping[str, Any]) -> None:
        """Takes over what `destination` returned, to write the offline run that a killed training could not write."""
        self._restored = destination
        self._folder = Path(destination.get("directory") or Path.cwd())
        self._complete = bool(destination.get("complete"))

    def find(self, info: RunInfo) -> bool:
        """Returns whether W&B has all rows.

        Raises:
            PermanentSinkError: If the rows belong into the script's own run.
        """
        restored = self._restored or {}
        if restored.get("run_id") and not restored.get("owned") and not self._complete:
            raise PermanentSinkError(
                f"the rows for the script's own W&B run {restored['run_id']} can only be sent while the script runs"
            )
        return self._complete

    def unsent(self, points: Sequence[Point]) -> list[Point]:
        """Returns the points, or nothing if W&B has all rows."""
        return [] if self._complete else list(points)

    def _join_script_run(self) -> None:
        run = getattr(sys.modules.get("wandb"), "run", None)  # W&B is not imported for it
        if self._run is not None or run is None or getattr(run, "_is_finished", False):
            return
        self._run, self._owned = run, False
        self._called_before_finish = _call_before_finish(run, self._script_run_ends)

    def _script_run_ends(self) -> None:
        """Runs on the script's thread, in its `finish`; whatever fails here must not reach the script."""
        try:
            if self._info is None or self._complete:
                return
            self._flush(FLUSH_SECONDS)
            run = read_run(self._info.folder)
            self._log_run(run, summarize(run))
            self._complete = run.status != "running"
        except Exception as error:
            notify(f"W&B did not get all rows: {one_line(error)}; the local record has them")

    def _finish_in_script_run(self, run: Run, summary: Summary | None) -> None:
        if not getattr(self._run, "_is_finished", False):
            if self._called_before_finish:
                # Scripts may log more after the training. W&B registered its end earlier, so that ours runs before it.
                atexit.register(self._script_run_ends)
            else:
                self._log_run(run, summary)
                self._complete = True
            return
        later = int((run.steps > self._last_sent).sum())
        if later:
            notify(f"the script ended its W&B run before {later} samples were taken; the local record has them")
        self._complete = True

    def _log_run(self, run: Run, summary: Summary | None) -> None:
        """Logs the rows that were not logged yet, and the summary, into the present run."""
        assert self._info is not None
        if self._last_sent == 0:
            self._define_metrics(self._info, run)
        rows: dict[int, dict[str, float]] = {}
        # All samples, so that the same points of the reference lines are chosen in every call.
        for point in points_to_send(samples_between(run, after=-1), self._info):
            if point.step > self._last_sent:
                rows.setdefault(point.step, {})[point.key] = point.value
        # A row that the script has not committed yet would be merged with our first one: the next step ends it.
        options: dict[str, Any] = {} if self._owned else {"step": int(self._run.step) + 1, "commit": True}
        for step in sorted(rows):
            self._run.log({STEP_KEY: step, **rows[step]}, **options)
            self._last_sent, options = step, {}
        if summary is not None:
            self._log_summary(summary)

    def _write_own_run(self, run: Run, summary: Summary | None, status: str) -> None:
        assert self._info is not None
        if self._run is None:
            self._run, self._owned = self._open_run(self._info), True
        self._log_run(run, summary)
        self._complete = True
        self._run.finish(exit_code=_EXIT_CODES.get(status, 1))

    def _open_run(self, info: RunInfo) -> Any:
        import wandb

        project = self._project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT
        same_run: dict[str, Any] = {}
        earlier = info.earlier.sinks.get(self.name, {}) if info.earlier is not None else {}
        if info.earlier is not None and earlier.get("owned") and earlier.get("complete") and "folder" in earlier:
            # The earlier part of a resumed run is in a folder that is complete: the rest goes into a second one.
            project = earlier.get("project") or project
            same_run = {"id": earlier["run_id"], "resume": "allow"}
            self._earlier_folders = [*earlier.get("earlier_folders", ()), earlier["folder"]]
            self._last_sent = info.earlier.last_step
        return wandb.init(
            project=project,
            name=info.name,
            **same_run,
            dir=str(self._folder),
            mode="offline",
            reinit="create_new",
            config=dict(info.params),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )

    def _define_metrics(self, info: RunInfo, run: Run) -> None:
        if not self._owned:
            if info.steps_before and getattr(self._run, "resumed", False):
                # The script continues its own W&B run, which has the rows up to this step.
                self._last_sent = int(self._run.summary.get(STEP_KEY) or 0)
            self._run.config.update({"smdtrack": dict(info.params)}, allow_val_change=True)
        self._run.config.update({"smdtrack_record": str(info.folder)}, allow_val_change=True)
        self._run.define_metric(STEP_KEY, hidden=True)
        self._run.define_metric("smd/theory", step_metric=STEP_KEY, hidden=True)
        for family in dict.fromkeys(("smd", *FAMILIES, *run.values)):
            self._run.define_metric(f"{family}/*", step_metric=STEP_KEY, hidden=family in _HIDDEN_FAMILIES)

    def _log_summary(self, summary: Summary) -> None:
        import wandb

        columns = [field.name for field in fields(WeightSummary)]
        rows = [list(asdict(weight).values()) for weight in summary.weights]
        self._run.log({SUMMARY_KEY: wandb.Table(columns=columns, data=rows)})
        self._run.summary[VERDICT_KEY] = summary.verdict


def _call_before_finish(run: Any, function: Callable[[], None]) -> bool:
    """Lets W&B call a function at the beginning of a run's `finish`, in whatever way the script ends the run.

    W&B's hooks for this are not documented. Returns False if they are missing: then the rows are logged when the
    tracking ends, and a script that has ended its run before gets a notice.
    """
    try:
        from wandb.sdk.wandb_run import TeardownHook, TeardownStage

        run._teardown_hooks.append(TeardownHook(function, TeardownStage.EARLY))
    except (ImportError, AttributeError):
        return False
    return True


def _sync_folder(run: Any) -> Path:
    """Returns the folder of an offline run, which holds `files/` and the log of its records."""
    return Path(run.dir).parent


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"W&B: {one_line(error)}") from error
