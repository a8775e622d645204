"""W&B: rows into the script's own run, or an offline run of ours; theory keys without panels of their own."""

import math
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from smdtrack.notices import first_line, notify
from smdtrack.record.run import FAMILIES, Point, RunInfo
from smdtrack.record.summary import Summary, WeightSummary
from smdtrack.sinks.wandb_steps import StepWatch

DEFAULT_PROJECT = "smdtrack"
STEP_KEY = "smd/step"
SUMMARY_KEY = "smdtrack/summary"
VERDICT_KEY = "smdtrack/verdict"
#: Points kept for a run that the script has not opened yet, or that must wait; the local record has them all.
MAX_HELD_POINTS = 300_000

# Hidden means: logged, and no panel of its own; a person adds it to the measured panel.
_HIDDEN_FAMILIES = frozenset({"angle_pred", "angle_eq", "norm_eq"})
_EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 255}


class WandbSink:
    """Sends a run to W&B: a row per sampled step, on a step axis of its own (`smd/step`).

    The script's own `wandb.run` is taken when it appears: scripts call `wandb.init` after model and optimizer exist.
    Without one, an offline run is opened that does not disturb a later `wandb.init`. Where a run of ours goes on with
    its record, W&B keeps a second folder of the same run: `wandb sync` joins them, in the order of their times.

    `run.log` gets neither `step=`, which would be refused or move the script's counter far ahead, nor `commit=False`,
    which would fold rows into one. Each of our rows still moves the counter by one, so a script that logs with
    `step=` of its own would lose rows: there ours wait until the end (see `StepWatch`).

    Args:
        project: Of a run that we open; else WANDB_PROJECT, else smdtrack.
        attach_only: Never open a run: keep what is owed until the script has one, and stay silent if it never has.
    """

    name = "wandb"

    def __init__(self, project: str | None = None, attach_only: bool = False) -> None:
        self._project = project
        self._attach_only = attach_only
        self._folder = Path.cwd()
        self._info: RunInfo | None = None
        self._run: Any = None
        self._owned = False
        self._ended = False
        self._steps: StepWatch | None = None
        self._defined: set[str] = set()
        self._rows: dict[int, dict[str, float]] = {}
        self._held = 0
        self._dropped = False
        self._last_step: dict[str, int] = {}
        self._reached = 0
        self._earlier_folders: list[str] = []

    def note_script_run(self) -> None:
        """Remembers the script's run, if it has one already, and the working directory."""
        self._folder = Path.cwd()
        self._take(_scripts_run())

    def start(self, info: RunInfo) -> None:
        """Attaches to the script's run or opens one; sets the axes. With `attach_only` and no run, waits for one.

        Raises:
            RuntimeError: If W&B refuses, in one line.
        """
        self._info = info
        with _one_line():
            self._attach()
            if self._run is None and not self._attach_only:
                self._run, self._owned = self._open_run(info), True
            self._prepare()

    def write(self, points: Sequence[Point]) -> None:
        """Logs a row per step; keeps the points while there is no run, or the script's own rows come first.

        Raises:
            RuntimeError: If the script has ended its run, or W&B refuses, in one line.
        """
        for point in points:
            # A call that failed half way is repeated with all its points: what is held or sent is not taken again.
            if math.isfinite(point.value) and point.step > self._last_step.get(point.key, -1):
                self._rows.setdefault(point.step, {})[point.key] = point.value
                self._last_step[point.key] = point.step
                self._held += 1
        with _one_line():
            self._attach()
            self._prepare()
            if self._run is not None and (self._steps is None or self._steps.may_log):
                self._send()
        self._drop_oldest()

    def finish(self, info: RunInfo, summary: Summary | None, status: str) -> None:
        """Logs what is owed, the verdict and the table, and ends the run if it is ours.

        Raises:
            RuntimeError: If the script has ended its run, or W&B refuses, in one line.
        """
        with _one_line():
            self._attach()
            self._prepare()
            if self._run is None or self._ended:
                return
            self._send()
            if summary is not None:
                self._log_summary(summary)
            if self._steps is not None:
                self._steps.detach()
            if self._owned:
                self._run.finish(exit_code=_EXIT_CODES.get(status, 1))
            self._ended = True

    def destination(self) -> Mapping[str, Any]:
        """Returns what names the run for W&B; nothing while there is none."""
        run = self._run
        if run is None:
            return {}
        where = {"entity": run.entity, "project": run.project, "run_id": run.id, "owned": self._owned}
        if run.offline:
            where["folder"] = str(_sync_folder(run))
            where["earlier_folders"] = self._earlier_folders
        else:
            where["url"] = run.url
        return {key: value for key, value in where.items() if value}

    def complete_up_to(self) -> int | None:
        """W&B is asked for nothing that it has: rows go to it as they go to the local record."""
        return None

    def how_to_open(self) -> Sequence[str]:
        """Returns the address of the run, or the command that sends an offline run to W&B."""
        run = self._run
        if run is None:
            return ()
        if run.offline:
            return (f"wandb sync {shlex.join([*self._earlier_folders, str(_sync_folder(run))])}",)
        return (run.url,) if run.url else ()

    def _attach(self) -> None:
        if self._run is None:
            self._take(_scripts_run())

    def _take(self, run: Any) -> None:
        if run is not None:
            self._run, self._steps = run, StepWatch(run)

    def _open_run(self, info: RunInfo) -> Any:
        import wandb

        project = self._project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT
        same: dict[str, Any] = {}
        earlier = info.earlier.sinks.get(self.name, {}) if info.earlier is not None else {}
        if earlier.get("owned") and earlier.get("run_id"):
            project = earlier.get("project") or project
            same = {"id": earlier["run_id"], "resume": "allow"}
            self._earlier_folders = [
                *earlier.get("earlier_folders", ()),
                *([earlier["folder"]] if "folder" in earlier else ()),
            ]
        return wandb.init(
            project=project,
            name=info.name,
            **same,
            dir=str(self._folder),
            mode="offline",
            reinit="create_new",
            config=dict(info.params),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )

    def _prepare(self) -> None:
        """Sets the axes and notes the parameters, once there is a run."""
        if self._run is None or self._info is None or self._defined:
            return
        if not self._owned:
            if self._info.steps_before and getattr(self._run, "resumed", False):
                # The script goes on in its run: W&B tells up to which step that has our rows.
                self._reached = int(self._run.summary.get(STEP_KEY) or 0)
            self._run.config.update({"smdtrack": dict(self._info.params)}, allow_val_change=True)
        self._run.config.update({"smdtrack_record": str(self._info.folder)}, allow_val_change=True)
        self._run.define_metric(STEP_KEY, hidden=True)
        self._run.define_metric("smd/theory", step_metric=STEP_KEY, hidden=True)
        for family in ("smd", *FAMILIES):
            self._define(family)

    def _define(self, family: str) -> None:
        if family not in self._defined:
            self._run.define_metric(f"{family}/*", step_metric=STEP_KEY, hidden=family in _HIDDEN_FAMILIES)
            self._defined.add(family)

    def _send(self) -> None:
        if self._rows and getattr(self._run, "_is_finished", False):
            raise RuntimeError(
                f"the script has ended its W&B run before {self._held} points were sent; the local record has them"
            )
        for step in sorted(self._rows):
            row = self._rows[step]
            if step > self._reached:
                for key in row:
                    self._define(key.partition("/")[0])
                self._log({STEP_KEY: step, **row})
            self._held -= len(row)
            del self._rows[step]

    def _log(self, row: Mapping[str, Any]) -> None:
        if self._steps is None:
            self._run.log(row)
            return
        with self._steps.ours():
            self._run.log(row)

    def _log_summary(self, summary: Summary) -> None:
        import wandb

        columns = [field.name for field in fields(WeightSummary)]
        rows = [list(asdict(weight).values()) for weight in summary.weights]
        self._log({SUMMARY_KEY: wandb.Table(columns=columns, data=rows)})
        self._run.summary[VERDICT_KEY] = summary.verdict

    def _drop_oldest(self) -> None:
        if self._held <= MAX_HELD_POINTS:
            return
        if self._run is not None and not self._dropped:
            notify("too much is waiting for the script's W&B run: the oldest points stay in the local record only")
            self._dropped = True
        for step in sorted(self._rows):
            if self._held <= MAX_HELD_POINTS:
                break
            self._held -= len(self._rows.pop(step))


def _scripts_run() -> Any:
    """Returns the script's open run; does not import W&B for it."""
    return getattr(sys.modules.get("wandb"), "run", None)


def _sync_folder(run: Any) -> Path:
    """Returns the folder of an offline run, which holds `files/` and the log of its records."""
    return Path(run.dir).parent


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"W&B: {first_line(error)}") from error
