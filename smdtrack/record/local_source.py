"""Local records: the list of a folder's runs, and the run that a person means by a part of its name."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from smdtrack.names import did_you_mean
from smdtrack.notices import SmdtrackError
from smdtrack.record.head import RUN_FILE, read_head
from smdtrack.record.opened_run import OpenedRun
from smdtrack.record.process import is_alive
from smdtrack.record.reader import read_run
from smdtrack.record.run import Run
from smdtrack.record.sample_files import read_sample_file, sample_files
from smdtrack.record.script_output import script_output

#: A record that another host writes counts as killed after this many seconds without a new sample.
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
        process: Which process records the run.
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
    process: Mapping[str, Any] = field(default_factory=dict)
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
    notes = [*_missing(run, head), *run.damage]
    output = script_output(run.info.params.get("command"), folder, head.created, head.ended)
    return OpenedRun(
        replace(run, status=state_of(head)),
        "local record",
        str(folder),
        head.ended,
        output.settings,
        output.metrics,
        (*notes, *output.notes),
    )


def seconds_silent(folder: Path) -> float:
    """Returns the seconds since a file of the record was written."""
    times = [file.stat().st_mtime for file in folder.iterdir()]
    return max(0.0, time.time() - max(times, default=0.0))


def state_of(head: RunHead) -> str:
    """Returns the status, with `killed` for a run that has no recorded end and whose process is gone."""
    if head.status != "running":
        return head.status
    alive = is_alive(head.process)
    if alive is None:  # another host wrote it: judge by the files
        alive = seconds_silent(head.folder) < SILENT_SECONDS
    return "running" if alive else "killed"


def _missing(run: Run, head: RunHead) -> list[str]:
    last = f"the last sample is step {run.steps[-1]}" if len(run.steps) else "no step was sampled"
    if state_of(head) == "running":
        return ["the training is running: all samples written so far are shown, there is no final summary yet"]
    if head.status in ("running", "killed"):
        return [f"the record has no end, the training was killed: {last}"]
    return []


def _head(folder: Path) -> RunHead:
    try:
        head = read_head(folder)
    except SmdtrackError as error:
        return RunHead(folder, name=folder.name, created=_made(folder), damage=str(error))
    verdict = (head.summary or {}).get("verdict")
    return RunHead(
        folder=folder,
        id=head.info.id,
        name=head.info.name,
        created=head.info.created,
        ended=head.ended,
        status=head.status,
        params=head.info.params,
        weights=len(head.info.weights),
        samples=head.samples,
        verdict=verdict if isinstance(verdict, str) else None,
        process=head.process,
    )


def count_samples(folder: Path) -> int | None:
    """Returns the number of samples of a record whose head does not have it; None if its files cannot be read."""
    try:
        return sum(len(batch.steps) for path in sample_files(folder) for batch in read_sample_file(path, [], True))
    except OSError:
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
