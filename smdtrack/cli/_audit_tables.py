"""What `smdtrack audit` prints for people."""

from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from smdtrack.cli import _audit_words as words
from smdtrack.invariance import VERDICTS, Audit, Weight
from smdtrack.names import did_you_mean, stage_of
from smdtrack.notices import SmdtrackError


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
    """Prints one row per stage, and what the words in it mean."""
    title = f"{escape(audit.model)}: scale-invariant parameters by stage"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("stage", no_wrap=True)
    for heading in ("size", "share", *VERDICTS):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("cause")
    for stage, weights in _by_stage(audit.weights).items():
        counts = Counter(weight.verdict for weight in weights)
        size = sum(weight.size for weight in weights)
        causes = sorted({words.cause_in_words(weight) for weight in weights} - {""})
        cells = [f"{counts[verdict]}" if counts[verdict] else "" for verdict in VERDICTS]
        table.add_row(escape(stage), f"{size:,}", f"{_share(weights, size):.1%}", *cells, ", ".join(causes))
    console.print(table)
    _print_footer(console, audit, VERDICTS)
    tensor = audit.certificate["tensor"]
    if tensor is not None:
        _print(console, f"check: scaling all invariant weights at once changes the output by {tensor:.1e}")
        _print(console, "--verdict invariant lists the tensors, --explain NAME shows the evidence for one")
    else:
        _print(console, _nothing_invariant(audit))


def _nothing_invariant(audit: Audit) -> str:
    return (
        f"No weight of {audit.model} is scale-invariant: scaling any of them changes the output. Theory gives an angle "
        "per step for scale-invariant weights only. For other matrices the angle can be measured, but its line is an "
        "approximation."
    )


def print_weights(console: Console, audit: Audit, verdicts: Sequence[str]) -> None:
    """Prints one row per tensor that has one of the verdicts, in the order of the stages."""
    if not any(weight.verdict in verdicts for weight in audit.weights):
        _print(console, f"{audit.model} has no tensor that is {' or '.join(verdicts)}")
        _print(console, headline(audit))
        return
    table = Table(title=f"{escape(audit.model)}: {', '.join(verdicts)}", title_justify="left", box=SIMPLE)
    table.add_column("tensor", overflow="fold")
    for heading in ("shape", "verdict", "cause", "norm", "scope", "cosine", "decayed"):
        table.add_column(heading, overflow="fold")
    for weights in _by_stage([weight for weight in audit.weights if weight.verdict in verdicts]).values():
        for weight in weights:
            scope = f"filter, dim {weight.filter_dim}" if weight.scope == "filter" else weight.scope or ""
            cosine = "" if weight.cosine is None else f"{weight.cosine:.1e}"
            shape = "x".join(map(str, weight.shape)) or "scalar"
            cause = words.cause_in_words(weight)
            decayed = "yes" if weight.decayed else "no"
            cells = (weight.name, shape, weight.verdict, cause, weight.norm or "", scope, cosine, decayed)
            table.add_row(*(escape(cell) for cell in cells))
    console.print(table)
    _print_footer(console, audit, verdicts)


def _print_footer(console: Console, audit: Audit, verdicts: Sequence[str]) -> None:
    for line in words.legend(audit.weights, verdicts):
        _print(console, f"  {line}")
    _print(console, headline(audit))
    for note in audit.notes:
        _print(console, f"note: {note}")


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


def print_evidence(console: Console, audit: Audit, weight: Weight) -> None:
    """Prints the verdict on one tensor in sentences, then the numbers behind it."""
    for sentence in words.sentences(weight):
        _print(console, sentence)
    lines = words.numbers(weight, audit.precision)
    if not lines:
        _print(console, "Decided from the modules alone: none of them normalises anything.")
    for line in lines:
        _print(console, f"  {line}")
    for note in audit.notes:
        _print(console, f"note: {note}")


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
