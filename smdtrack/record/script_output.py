"""What a timm training script leaves in its own output folder: `args.yaml` and `summary.csv`."""

import csv
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smdtrack.notices import first_line
from smdtrack.record.opened_run import Setting

#: timm's train.py writes below this folder unless `--output` is given.
_DEFAULT_OUTPUT = Path("output/train")
#: The output folder is made shortly before the first optimizer step, while data and model load.
_SECONDS_BEFORE = 600.0
_SECONDS_AFTER = 5.0
#: A recipe has a few kilobytes; anything above this is not one.
_LARGEST_BYTES = 1_000_000


@dataclass(frozen=True)
class ScriptOutput:
    """The script's settings and last metrics; `notes` says what could not be read."""

    settings: Mapping[str, Setting] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def script_output(command: object, record: Path, created: float, ended: float | None) -> ScriptOutput:
    """Returns what the script wrote beside its training.

    The folder is found by the command line's `--output` and by its time: `args.yaml` is written once, shortly before
    the first step. If nothing is found, the settings are the options of the command line.

    Args:
        command: The script's command line; not a string if it is not known.
        record: Folder of the local record. Relative paths are tried from the folders above it.
        created: Start of the record, in seconds since the epoch.
        ended: End of the record; None if it has none.
    """
    words = _words(command)
    settings: dict[str, Setting] = _flags(words)
    found = _output_folder(words, record.absolute(), created)
    if found is None:
        return ScriptOutput(settings)
    notes: list[str] = []
    metrics: dict[str, float] = {}
    try:
        settings = {**settings, **_yaml(found / "args.yaml")}
        if (found / "summary.csv").exists():
            metrics = _last_row(found / "summary.csv")
    except Exception as error:
        notes.append(f"the script's output in {found} could not be read ({first_line(error)})")
    return ScriptOutput(settings, metrics, tuple(notes))


def command_settings(command: object) -> dict[str, Setting]:
    """Returns the options of a script's command line, by timm's names."""
    return _flags(_words(command))


def _words(command: object) -> list[str]:
    try:
        return shlex.split(command) if isinstance(command, str) else []
    except ValueError:
        return []


def _flags(words: list[str]) -> dict[str, Setting]:
    """The options `--name value` and `--name=value` of a command line, by timm's names."""
    found: dict[str, Setting] = {}
    for index, word in enumerate(words):
        if not word.startswith("--") or word == "--":
            continue
        name, sign, value = word[2:].partition("=")
        following = words[index + 1] if index + 1 < len(words) else "--"
        if not sign:
            value = "true" if following.startswith("--") else following
        found[name.replace("-", "_")] = plain(value)
    return found


def _output_folder(words: list[str], record: Path, created: float) -> Path | None:
    given = _flags(words).get("output")
    output = Path(str(given)) if given else _DEFAULT_OUTPUT
    best: tuple[float, Path] | None = None
    for above in (record.parent.parent, record.parent):
        for file in (above / output).glob("*/args.yaml"):
            before = created - file.stat().st_mtime
            if -_SECONDS_AFTER <= before <= _SECONDS_BEFORE and (best is None or before < best[0]):
                best = (before, file.parent)
    return best[1] if best is not None else None


def _yaml(path: Path) -> dict[str, Setting]:
    import yaml

    if path.stat().st_size > _LARGEST_BYTES:
        raise ValueError(f"{path.name} is larger than {_LARGEST_BYTES} bytes")
    document: Any = yaml.safe_load(path.read_text())
    if not isinstance(document, dict):
        raise ValueError(f"{path.name} is no list of settings")
    return {str(key): setting(value) for key, value in document.items() if value not in (None, "", [], {})}


def _last_row(path: Path) -> dict[str, float]:
    """The last row of a table of numbers; a row that was half written is left out."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return next(filter(None, map(_numbers, reversed(rows))), {})


def _numbers(row: Mapping[str | None, Any]) -> dict[str, float]:
    try:
        return {key: float(value) for key, value in row.items() if key}
    except (TypeError, ValueError):
        return {}


def plain(text: str) -> Setting:
    """Returns a command-line or tracker value as the number or truth value that it spells, else the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = float(text)
    except ValueError:
        return text
    return int(text) if text.strip().lstrip("+-").isdigit() else value


def setting(value: object) -> Setting:
    """Returns a value as a setting: lists and other objects become text."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return str(value)
