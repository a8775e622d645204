"""Local records: the list of a folder's runs, and the run that a person means by a part of its name."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smdtrack.names import did_you_mean
from smdtrack.notices import SmdtrackError, reason_of
from smdtrack.record.opened_run import OpenedRun
from smdtrack.record.reader import read_run
from smdtrack.record.run import Run
from smdtrack.record.script_output import script_output
from smdtrack.record.store import RUN_FILE

#: A running training writes at least once in this many seconds, unless a sampled step takes longer.
SILENT_SECONDS = 600.0
_LAST = re.compile(r"last(?:~(\d+))?")
_MOST_NAMES = 5


@dataclass(frozen=True)
class RunHead:
    """What `run.json` says of a run, without its samples.

    Attributes:
        created, ended: Seconds since the epoch.
        status: As in `Run`; a run that was killed stays `running`.
        weights: Number of weights that the run measures.
        samples: Number of sampled steps; None if the record does not say it.
        verdict: Of the stored summary; None if there is none.
        damage: Why `run.json` could not be read; None if it could.
    """

    folder: Path
    id: str = ""
    name: str = ""
    created: float = 0.0
    ended: float | None = None
    status: str = "unreadable"
    params: Mapping[str, Any] | None = None
    weights: int = 0
    samples: int | None = None
    verdict: str | None = None
    damage: str | None = None


def run_heads(folder: Path) -> list[RunHead]:
    """Returns the heads of all runs in a folder, newest first. Reads no samples."""
    heads = [_head(path.parent) for path in folder.glob(f"*/{RUN_FILE}")]
    return sorted(heads, key=lambda head: (head.created, head.folder.name), reverse=True)


def find_run(text: str, folder: Path) -> Path:
    """Returns the folder of the run that a text names.

    Args:
        text: A run's folder, a part of its name that no other run has, `last`, or `last~N` for the N-th before it.
        folder: Where the runs are.

    Raises:
        SmdtrackError: If no run or more than one has that name; the message lists near names.
    """
    given = Path(text)
    if (given / RUN_FILE).is_file():
        return given
    names = sorted(path.parent.name for path in folder.glob(f"*/{RUN_FILE}"))
    if not names:
        raise SmdtrackError(f"no run {text!r}: {folder} has no runs")
    last = _LAST.fullmatch(text)
    if last:
        back = int(last[1] or 0)
        heads = run_heads(folder)
        if back >= len(heads):
            raise SmdtrackError(f"no run {text!r}: {folder} has {_count(len(heads), 'run')}")
        return heads[back].folder
    found = [name for name in names if name == text] or [name for name in names if text in name]
    if len(found) == 1:
        return folder / found[0]
    if found:
        shown = ", ".join(found[-_MOST_NAMES:]) + (", ..." if len(found) > _MOST_NAMES else "")
        raise SmdtrackError(f"{text!r} is a part of {len(found)} runs' names: {shown}")
    # People remember the part between the time and the id.
    parts = {part: name for name in names for part in (name, _middle(name))}
    near = did_you_mean(text, parts)
    hint = near or f"the newest is {run_heads(folder)[0].folder.name}"
    raise SmdtrackError(f"no run {text!r} in {folder}; {hint}")


def open_local(folder: Path) -> OpenedRun:
    """Reads a local record, with the script's settings and metrics if timm's output folder is found.

    Raises:
        SmdtrackError: If the folder is no run.
    """
    run = read_run(folder)
    head = _head(folder)
    notes = [*_state_of(run, folder)]
    output = script_output(run.info.params.get("command"), folder, head.created, head.ended)
    return OpenedRun(
        run, "local record", str(folder), head.ended, output.settings, output.metrics, (*notes, *output.notes)
    )


def seconds_silent(folder: Path) -> float:
    """Returns the seconds since a file of the record was written."""
    times = [file.stat().st_mtime for file in folder.iterdir()]
    return max(0.0, time.time() - max(times, default=0.0))


def _state_of(run: Run, folder: Path) -> list[str]:
    if run.status != "running":
        return []
    silent = seconds_silent(folder)
    if silent < SILENT_SECONDS:
        return ["the training is running: all samples written so far are shown, there is no final summary yet"]
    last = f"step {run.steps[-1]}" if len(run.steps) else "no step"
    return [f"the record has no end and nothing was written for {_duration(silent)}: killed; the last sample is {last}"]


def _head(folder: Path) -> RunHead:
    try:
        head = json.loads((folder / RUN_FILE).read_text())
        summary = head.get("summary") or {}
        return RunHead(
            folder=folder,
            id=str(head["id"]),
            name=str(head["name"]),
            created=float(head["created"]),
            ended=head.get("ended"),
            status=str(head["status"]),
            params=head["params"],
            weights=len(head["weights"]),
            samples=head.get("samples"),
            verdict=summary.get("verdict"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return RunHead(folder, name=folder.name, created=_made(folder), damage=reason_of(error))


def count_samples(folder: Path) -> int | None:
    """Returns the number of sampled steps of a record, read from its sample files; None if none can be read."""
    try:
        return len(np.unique(read_run(folder).steps))
    except SmdtrackError:
        return None


def _made(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _middle(name: str) -> str:
    return re.sub(r"^\d{8}-\d{6}-|-[0-9a-f]{8}$", "", name)


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
