"""The CSV file that `smdtrack audit` appends to: one row per model."""

import csv
from collections import Counter
from pathlib import Path

from smdtrack.cli._audit_work import Failure
from smdtrack.invariance import VERDICTS, Audit
from smdtrack.notices import SmdtrackError

CSV_COLUMNS = (
    "model",
    "input_size",
    "parameters",
    "invariant_parameters",
    "batch_norm_parameters",
    "tensors",
    *VERDICTS,
    "certificate_tensor",
    "certificate_filter",
    "seconds",
    "error",
)


def csv_done(path: Path) -> set[str]:
    """Returns the models that a CSV file has a row for; writes the header of a new file.

    Raises:
        SmdtrackError: The file is something else, or cannot be written.
    """
    try:
        if not path.exists() or path.stat().st_size == 0:
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(CSV_COLUMNS)
            return set()
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        with path.open("a", encoding="utf-8"):
            pass
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SmdtrackError(f"cannot write the CSV file {path}: {error}") from error
    if tuple(rows[0]) != CSV_COLUMNS:
        raise SmdtrackError(f"{path} is not a CSV file of smdtrack audit; name a new file")
    # A row that a kill cut short has too few cells: that model is audited again.
    return {row[0] for row in rows[1:] if len(row) == len(CSV_COLUMNS)}


def append_csv(path: Path, result: Audit | Failure) -> None:
    """Appends one model's row. Each row is written at once, so that a killed command loses nothing."""
    if isinstance(result, Failure):
        row = [result.name, *[""] * (len(CSV_COLUMNS) - 2), result.reason]
    else:
        counts = Counter(weight.verdict for weight in result.weights)
        certificate = [result.certificate["tensor"], result.certificate["filter"]]
        row = [
            result.model,
            "x".join(map(str, result.input_size or ())),
            str(result.parameters),
            str(result.invariant_parameters),
            str(result.batch_norm_parameters),
            str(len(result.weights)),
            *(str(counts[verdict]) for verdict in VERDICTS),
            *("" if value is None else f"{value:.2e}" for value in certificate),
            str(result.seconds),
            "",
        ]
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(row)
