"""What `smdtrack audit` prints for people and writes for spreadsheets."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from smdtrack.cli._audit_work import Failure
from smdtrack.invariance import VERDICTS, Audit, Weight
from smdtrack.invariance.evidence import DOUBLE
from smdtrack.names import did_you_mean, stage_of
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


def _by_stage(weights: Sequence[Weight]) -> dict[str, list[Weight]]:
    stages: dict[str, list[Weight]] = {}
    for weight in weights:
        stages.setdefault(stage_of(weight.name), []).append(weight)
    return stages


def _share(weights: Sequence[Weight], total: int) -> float:
    return sum(weight.size for weight in weights if weight.verdict == "invariant") / total if total else 0.0


def headline(audit: Audit) -> str:
    """Returns one line about a whole model."""
    counts = Counter(weight.verdict for weight in audit.weights)
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    share = _share(audit.weights, audit.parameters)
    size = "no forward pass" if audit.input_size is None else "x".join(map(str, audit.input_size))
    return (
        f"{audit.model}: {share:.1%} of {audit.parameters:,} parameters scale-invariant; tensors: {verdicts}; "
        f"{size}, {audit.seconds:.1f} s"
    )


def print_stages(console: Console, audit: Audit) -> None:
    """Prints one row per stage."""
    title = f"{escape(audit.model)}: scale-invariant parameters by stage"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("stage", no_wrap=True)
    for heading in ("size", "share", *VERDICTS):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("cause")
    for stage, weights in _by_stage(audit.weights).items():
        counts = Counter(weight.verdict for weight in weights)
        size = sum(weight.size for weight in weights)
        causes = sorted({weight.cause for weight in weights if weight.cause is not None})
        cells = [f"{counts[verdict]}" if counts[verdict] else "" for verdict in VERDICTS]
        table.add_row(escape(stage), f"{size:,}", f"{_share(weights, size):.1%}", *cells, ", ".join(causes))
    console.print(table)
    console.print(headline(audit), markup=False, highlight=False, soft_wrap=True)
    tensor, by_filter = audit.certificate["tensor"], audit.certificate["filter"]
    if tensor is not None:
        parts = [f"{tensor:.1e} with a factor per tensor"]
        parts += [f"{by_filter:.1e} with a factor per filter"] if by_filter is not None else []
        console.print(
            f"certificate: scaling all of them at once changes the outputs by {', '.join(parts)}", soft_wrap=True
        )
    console.print("--verdict invariant lists the tensors, --explain NAME shows the evidence for one", soft_wrap=True)


def print_weights(console: Console, audit: Audit, verdicts: Sequence[str]) -> None:
    """Prints one row per tensor that has one of the verdicts, in the order of the stages."""
    if not any(weight.verdict in verdicts for weight in audit.weights):
        console.print(f"{audit.model} has no tensor that is {' or '.join(verdicts)}", markup=False)
        console.print(headline(audit), markup=False, highlight=False, soft_wrap=True)
        return
    table = Table(title=f"{escape(audit.model)}: {', '.join(verdicts)}", title_justify="left", box=SIMPLE)
    table.add_column("tensor", overflow="fold")
    for heading in ("shape", "verdict", "cause", "norm", "scope", "cosine"):
        table.add_column(heading, overflow="fold")
    for weights in _by_stage([weight for weight in audit.weights if weight.verdict in verdicts]).values():
        for weight in weights:
            scope = f"filter, dim {weight.filter_dim}" if weight.scope == "filter" else weight.scope or ""
            cosine = "" if weight.cosine is None else f"{weight.cosine:.1e}"
            shape = "x".join(map(str, weight.shape)) or "scalar"
            cells = (weight.name, shape, weight.verdict, weight.cause or "", weight.norm or "", scope, cosine)
            table.add_row(*(escape(cell) for cell in cells))
    console.print(table)
    console.print(headline(audit), markup=False, highlight=False, soft_wrap=True)


_EVIDENCE = (
    (
        "cosines",
        "gradient at two generic points: |<w, g>| / (||w|| ||g||)"
        f" (invariant below {DOUBLE.cosine:.0e}, not above {DOUBLE.radial_cosine:.0e})",
    ),
    ("energy", f"||w|| ||g|| relative to the largest of all tensors (no gradient below {DOUBLE.zero_energy:.0e})"),
    ("slice_cosines", "the same cosine for the worst slice along a dimension"),
    ("proposal", "what the gradients propose"),
    ("unused_deviation", "change of the outputs when all tensors without a gradient get other values"),
    ("changes", "change of the outputs when it alone is changed"),
    (
        "group_deviation",
        f"change of the outputs when all invariant tensors are scaled at once (up to {DOUBLE.unchanged:.0e})",
    ),
    ("filter_deviation", "the same with a factor per filter"),
    (
        "constant_variance_cosine",
        "cosine with the variance of batch norm held constant (small if batch norm is not the cause)",
    ),
    ("constant_variance_energy", "||w|| ||g|| then"),
    ("gradient_is_wrong", "autograd's radial derivative is not the derivative of the function"),
)


def found_weight(audit: Audit, name: str) -> Weight:
    """Returns the record of one parameter.

    Raises:
        SmdtrackError: No parameter has that name; the message lists similar names.
    """
    names = [weight.name for weight in audit.weights]
    if name not in names:
        hint = did_you_mean(name, names) or "--verdict sensitive --verdict invariant lists names"
        raise SmdtrackError(f"{audit.model} has no parameter {name!r}; {hint}")
    return audit[name]


def print_evidence(console: Console, weight: Weight) -> None:
    """Prints the evidence for one tensor."""
    said = [weight.verdict, f"by {weight.cause}" if weight.cause else "", f"({weight.norm})" if weight.norm else ""]
    scope = f"per filter along dim {weight.filter_dim}" if weight.scope == "filter" else ""
    scope = "only as a whole" if weight.scope == "tensor" else scope
    heading = f"{weight.name} {list(weight.shape)}: {' '.join(filter(None, [*said, scope]))}"
    console.print(heading, markup=False, soft_wrap=True)
    for key, meaning in _EVIDENCE:
        value = weight.evidence.get(key)
        if value is not None and value is not False and value != {}:
            console.print(f"  {meaning}: {_plain(value)}", markup=False, highlight=False, soft_wrap=True)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2e}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    return str(value)


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
    """Adds one model's row, so that a killed census loses nothing."""
    if isinstance(result, Failure):
        row = [result.name, *[""] * (len(CSV_COLUMNS) - 2), result.reason]
    else:
        counts = Counter(weight.verdict for weight in result.weights)
        by_batch = sum(w.size for w in result.weights if w.verdict == "invariant" and w.cause == "batch_norm")
        certificate = [result.certificate["tensor"], result.certificate["filter"]]
        row = [
            result.model,
            "x".join(map(str, result.input_size or ())),
            str(result.parameters),
            str(result.invariant_parameters),
            str(by_batch),
            str(len(result.weights)),
            *(str(counts[verdict]) for verdict in VERDICTS),
            *("" if value is None else f"{value:.2e}" for value in certificate),
            str(result.seconds),
            "",
        ]
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(row)
