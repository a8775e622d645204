"""`run.json`, the head of a record: what is known of the run, its status, its summary, and its trackers."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from smdtrack.notices import SmdtrackError
from smdtrack.record.run import RunInfo, TrackedWeight

RUN_FILE = "run.json"
#: Version 1 had other names for two keys of samples and one field of the summary; `read_head` and `read_run` translate.
SCHEMA_VERSION = 2
#: A head is some hundred bytes per weight; a larger file is not one of ours.
_MOST_BYTES = 64 * 2**20
_SUMMARY_FIELDS_SINCE_VERSION_1 = {"eq_ratio": "angle_ratio"}
_WEIGHT_FIELDS = frozenset(entry.name for entry in fields(TrackedWeight))


@dataclass(frozen=True)
class Head:
    """The content of `run.json`.

    Attributes:
        info: What was known of the run when it started.
        status: As in `Run`.
        ended: Seconds since the epoch; None while the run has no recorded end.
        summary: The stored summary; None while the run has no recorded end.
        sinks: By a sink's name, what it needs to find its run again.
        process: The process that records the run, as `process_identity` gives it; empty in older records.
        samples: Number of samples; None while the run has no recorded end.
        schema: Version of the names in the record's files.
    """

    info: RunInfo
    status: str
    ended: float | None = None
    summary: Mapping[str, Any] | None = None
    sinks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    process: Mapping[str, Any] = field(default_factory=dict)
    samples: int | None = None
    schema: int = SCHEMA_VERSION


def read_head(folder: Path) -> Head:
    """Reads the head of a record.

    Raises:
        SmdtrackError: If the folder is no run, its head is damaged, or a newer version wrote it.
    """
    path = folder / RUN_FILE
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"larger than {_MOST_BYTES} bytes")
        head = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise SmdtrackError(f"{folder} is not a run's folder: no readable {RUN_FILE} in it") from error
    if not isinstance(head, dict):
        raise SmdtrackError(f"{folder} is not a run's folder: {RUN_FILE} does not describe a run")
    version = head.get("schema")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise SmdtrackError(f"{folder} is not a run's folder: {RUN_FILE} has the schema version {version!r}")
    if version > SCHEMA_VERSION:
        raise SmdtrackError(
            f"{folder} was written by a newer smdtrack (schema version {version}, this one reads up to"
            f" {SCHEMA_VERSION}): upgrade smdtrack to read it"
        )
    try:
        return _checked(head, folder, version)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise SmdtrackError(f"{folder}: {RUN_FILE} is damaged ({reason})") from error


def head_as_json(head: Head) -> dict[str, Any]:
    """Returns the head as `run.json` stores it. The folder is left out, so that a record can be moved."""
    info = asdict(head.info)
    del info["folder"], info["earlier"], info["steps_before"]
    return {
        "schema": SCHEMA_VERSION,
        **info,
        "status": head.status,
        "ended": head.ended,
        "samples": head.samples,
        "sinks": {name: dict(place) for name, place in head.sinks.items()},
        "process": dict(head.process),
        "summary": head.summary,
    }


def write_head(head: Head) -> None:
    """Replaces `run.json` at once, so that a reader sees the old head or the new one."""
    path = head.info.folder / RUN_FILE
    partial = path.with_name(RUN_FILE + ".partial")
    partial.write_text(json.dumps(head_as_json(head), indent=1) + "\n")
    partial.replace(path)


def _checked(head: Mapping[str, Any], folder: Path, version: int) -> Head:
    created = head["created"]
    if not isinstance(created, (int, float)) or not math.isfinite(created):
        raise ValueError(f"created is {created!r}, not a time")
    if not isinstance(head["weights"], list):
        raise ValueError("weights is not a list")
    info = RunInfo(
        id=_text(head, "id"),
        name=_text(head, "name"),
        folder=folder,
        created=float(created),
        weights=tuple(_weight(weight) for weight in head["weights"]),
        params=_mapping(head, "params"),
    )
    summary = head.get("summary")
    if summary is not None:
        summary = _mapping(head, "summary")
        if version == 1 and isinstance(summary.get("weights"), list):
            summary["weights"] = [_renamed(row) for row in summary["weights"]]
    ended = head.get("ended")
    if ended is not None and not (isinstance(ended, (int, float)) and math.isfinite(ended)):
        raise ValueError(f"ended is {ended!r}, not a time")
    return Head(
        info=info,
        status=_text(head, "status"),
        ended=ended,
        summary=summary,
        sinks=_mapping(head, "sinks") if "sinks" in head else {},
        process=_mapping(head, "process") if "process" in head else {},
        samples=head.get("samples"),
        schema=version,
    )


def _weight(stored: Any) -> TrackedWeight:
    if not isinstance(stored, dict) or not isinstance(stored.get("shape"), list):
        raise ValueError("a weight is not described by its name, key and shape")
    known = {key: value for key, value in stored.items() if key in _WEIGHT_FIELDS}
    return TrackedWeight(**{**known, "shape": tuple(int(size) for size in stored["shape"])})


def _renamed(row: Mapping[str, Any]) -> dict[str, Any]:
    return {_SUMMARY_FIELDS_SINCE_VERSION_1.get(key, key): value for key, value in row.items()}


def _text(head: Mapping[str, Any], key: str) -> str:
    value = head[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is not text")
    return value


def _mapping(head: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = head[key]
    if not isinstance(value, dict):
        raise ValueError(f"{key} is not a table of names and values")
    return value
