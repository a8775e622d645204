"""W&B's offline runs, read by W&B's own command `wandb leet inspect`."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from smdtrack.notices import SmdtrackError, first_line
from smdtrack.record.opened_run import OpenedRun, Setting
from smdtrack.record.script_output import command_settings, setting
from smdtrack.record.series_source import Series, TrackerRun, is_ours, read_table, run_of

_STEP = "smd/step"
_VERDICT = "smdtrack/verdict"
_TABLE_PATH = "smdtrack/summary.path"
_RECORD = "smdtrack_record"
#: Configuration of smdtrack in a script's own run; in a run that smdtrack opened it is the whole configuration.
_NESTED = "smdtrack"
_STATUS = {0: "finished", 255: "interrupted"}
#: A run of 20,000 rows is read in a minute; longer than this the reader hangs.
_SECONDS = 600


def wandb_log(path: Path) -> Path | None:
    """Returns the log of an offline run's folder, or None if the folder is not one."""
    if path.suffix == ".wandb" and path.is_file():
        return path
    logs = sorted(path.glob("run-*.wandb")) if path.is_dir() else []
    return logs[0] if logs else None


def open_wandb(path: Path) -> OpenedRun:
    """Reads an offline run.

    Args:
        path: The run's folder (`offline-run-...`), or the `.wandb` file in it.

    Raises:
        SmdtrackError: If the run cannot be read, or has no data of smdtrack.
    """
    log = wandb_log(path)
    if log is None:
        raise SmdtrackError(f"{path} is no folder of an offline W&B run: no run-<id>.wandb in it")
    contents = _Contents(log)
    series = {key: _series(points) for key, points in contents.points.items()}
    own = _NESTED not in contents.config
    params = contents.config if own else dict(contents.config[_NESTED])
    settings = command_settings(params.get("command")) if own else contents.config
    tracked = TrackerRun(
        id=contents.id or log.stem.removeprefix("run-"),
        name=contents.name or log.stem,
        place=str(log.parent),
        created=contents.created,
        status="running" if contents.exit_code is None else _STATUS.get(contents.exit_code, "failed"),
        series=series,
        params=_settings(params),
        table=read_table(log.parent / "files" / contents.table) if contents.table else None,
        verdict=contents.verdict,
    )
    run = run_of(tracked)
    notes = ["W&B has no shapes and no memory of the weights, and reference lines only where they moved"]
    if tracked.table is None:
        notes.append("the run has no summary table: it is running, or it ended without one")
    if contents.exit_code is None:
        notes.append("the file has no exit record: the run is running or was killed")
    if contents.damaged:
        notes.append(f"the file ends in a damaged record ({contents.damaged})")
    names = [weight.key for weight in run.info.weights]
    metrics = {key: value for key, value in contents.last.items() if not is_ours(key, names)}
    return OpenedRun(run, "W&B offline", str(log.parent), contents.ended, _settings(settings), metrics, tuple(notes))


class _Contents:
    """What the records of a log add up to."""

    def __init__(self, log: Path) -> None:
        self.id = self.name = ""
        self.created = 0.0
        self.ended: float | None = None
        self.config: dict[str, Any] = {}
        self.points: dict[str, dict[int, tuple[float, float]]] = {}
        self.last: dict[str, float] = {}
        self.table: str | None = None
        self.verdict: str | None = None
        self.exit_code: int | None = None
        self.damaged: str | None = None
        for record in self._records(log):
            kind = record.get("type", "")
            reader = getattr(self, f"_read_{kind}", None)
            if reader is not None:
                reader(record.get(kind) or {})

    def _records(self, log: Path) -> Iterator[dict[str, Any]]:
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SmdtrackError(f"W&B's reader failed on {log}: {first_line(error)}") from error
        lines = done.stdout.splitlines()
        if done.returncode:
            said = first_line(ValueError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no reason"))
            if "No such command" in done.stderr:
                raise SmdtrackError(
                    "this version of wandb cannot read offline runs (no `wandb leet inspect`): upgrade it"
                )
            if not lines:
                raise SmdtrackError(f"W&B's reader failed on {log}: {said}")
            self.damaged = said
        for line in lines:
            record = _parsed(line)
            if record is None:
                self.damaged = "a line of the reader's output is cut off"
            else:
                yield record

    def _read_run(self, run: Mapping[str, Any]) -> None:
        self.id = run.get("run_id", "")
        self.name = run.get("display_name", "")
        self.created = _seconds(run.get("start_time"))
        self._read_config(run.get("config") or {})

    def _read_config(self, config: Mapping[str, Any]) -> None:
        for key, value in (config.get("update") or {}).items():
            outer, _, inner = key.partition(".")
            if outer == _NESTED and inner:
                self.config.setdefault(_NESTED, {})[inner] = value
            elif key not in ("_wandb", _RECORD):
                self.config[key] = value

    def _read_history(self, history: Mapping[str, Any]) -> None:
        row = history.get("item") or {}
        time = float(row.get("_timestamp", np.nan))
        self.ended = time
        self.table = row.get(_TABLE_PATH, self.table)
        step = row.get(_STEP)
        for key, value in row.items():
            if key.startswith("_") or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if step is not None:
                self.points.setdefault(key, {})[int(step)] = (float(value), time)
            elif not key.startswith(_NESTED):
                self.last[key] = float(value)

    def _read_summary(self, summary: Mapping[str, Any]) -> None:
        self.verdict = (summary.get("update") or {}).get(_VERDICT, self.verdict)

    def _read_exit(self, exit_record: Mapping[str, Any]) -> None:
        self.exit_code = int(exit_record.get("exit_code", 0))


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _series(points: Mapping[int, tuple[float, float]]) -> Series:
    steps = sorted(points)
    return Series(
        np.array(steps, dtype=np.int64),
        np.array([points[step][0] for step in steps], dtype=np.float64),
        np.array([points[step][1] for step in steps], dtype=np.float64),
    )


def _settings(config: Mapping[str, Any]) -> dict[str, Setting]:
    return {key: setting(value) for key, value in config.items() if not key.startswith("_") and key != _NESTED}


def _seconds(text: object) -> float:
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0
