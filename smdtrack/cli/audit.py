"""`smdtrack audit`: which weights of timm models are scale-invariant, why, and at what scope."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from smdtrack.cli import _audit_csv, _audit_words
from smdtrack.cli import _audit_tables as tables
from smdtrack.cli._audit_work import Failure, Request, audited, audited_all
from smdtrack.cli._zoo import checked_device, model_names, read_checkpoint
from smdtrack.invariance import VERDICTS, Audit

#: Columns of a table in a file or a pipe.
_PIPE_WIDTH = 1000


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--checkpoint",
    metavar="FILE",
    help="Weights to load: safetensors, or a PyTorch checkpoint.",
)
@click.option("--pretrained", is_flag=True, help="Load timm's pretrained weights.")
@click.option(
    "--input-size",
    type=click.IntRange(1),
    nargs=3,
    metavar="C H W",
    help="Input size; by default usual sizes are tried.",
)
@click.option("--num-classes", type=click.IntRange(0), help="Size of the classifier.")
@click.option("--device", default="cpu", show_default=True, help="Where to compute.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all random draws.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document; a list for several models.")
@click.option("--csv", "csv_file", metavar="FILE", help="Append one row per model; skip models that have a row.")
@click.option(
    "--verdict", "verdicts", type=click.Choice(VERDICTS), multiple=True, help="List tensors with this verdict."
)
@click.option("--explain", "explained", metavar="NAME", multiple=True, help="Explain the verdict on one parameter.")
def command(
    models: tuple[str, ...],
    checkpoint: str | None,
    pretrained: bool,
    input_size: tuple[int, int, int] | None,
    num_classes: int | None,
    device: str,
    seed: int,
    as_json: bool,
    csv_file: str | None,
    verdicts: tuple[str, ...],
    explained: tuple[str, ...],
) -> None:
    """Decide for every parameter of timm models whether it is scale-invariant.

    A parameter is `invariant` if scaling it by a positive factor leaves the function unchanged. It is `degenerate` if
    only the signs of its elements matter (a filter with one tap), `unused` if the output does not depend on it, and
    `sensitive` otherwise.

    \b
    Examples:
      smdtrack audit resnet50
      smdtrack audit resnet50 --explain layer1.0.conv1.weight
      smdtrack audit mobilenetv3_small_100 --verdict invariant --verdict unused
      smdtrack audit 'resnet*' 'regnet*' --csv census.csv
    """
    names = model_names(models)
    checked_device(device)
    several = len(names) > 1 or any(sign in pattern for pattern in models for sign in "*?[")
    if several and (checkpoint or explained):
        raise click.UsageError(f"--checkpoint and --explain take one model, not {len(names)}.")
    if checkpoint is not None:
        read_checkpoint(checkpoint)
    requests = [Request(name, pretrained, checkpoint, num_classes, input_size or None, device, seed) for name in names]
    if several:
        results = _several(requests, None if csv_file is None else Path(csv_file), quiet=as_json)
    else:
        done = _audit_csv.csv_done(Path(csv_file)) if csv_file else set()
        with _stderr().status(f"auditing {names[0]}") as status:
            results = [audited(requests[0], lambda phase: status.update(f"auditing {names[0]}: {phase}"))]
        if csv_file and names[0] not in done:
            _audit_csv.append_csv(Path(csv_file), results[0])
    if as_json:
        documents = [_document(result, verdicts, explained) for result in results]
        click.echo(json.dumps(documents if several else documents[0]))
    else:
        _print(results, several, verdicts, explained)
    if any(isinstance(result, Failure) for result in results):
        sys.exit(1)


def _several(requests: Sequence[Request], csv_file: Path | None, quiet: bool) -> list[Audit | Failure]:
    """Audits one model after another and prints a line for each; skips models that the CSV file already has."""
    done = _audit_csv.csv_done(csv_file) if csv_file is not None else set()
    waiting = [request for request in requests if request.name not in done]
    if len(waiting) < len(requests):
        click.echo(f"{len(requests) - len(waiting)} of {len(requests)} models are in {csv_file} already", err=True)
    results: list[Audit | Failure] = []
    failures = 0
    with _progress() as progress:
        task = progress.add_task("", total=len(waiting), name=waiting[0].name if waiting else "")
        for index, result in enumerate(audited_all(waiting), 1):
            failed = isinstance(result, Failure)
            failures += failed
            if csv_file is not None:
                _audit_csv.append_csv(csv_file, result)
            line = f"{result.name}: {result.reason}" if isinstance(result, Failure) else tables.headline(result)
            _say(progress, f"[{index}/{len(waiting)}] {line}", err=quiet or failed)
            results.append(result)
            progress.update(task, completed=index, name=waiting[index].name if index < len(waiting) else "")
    click.echo(f"{len(results) - failures} models audited, {failures} failed", err=True)
    return results


def _stderr() -> Console:
    return Console(stderr=True)


def _progress() -> Progress:
    """Returns a progress bar that is shown on a terminal only and erased at the end."""
    console = _stderr()
    name = TextColumn("{task.fields[name]}")
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), name)
    return Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _say(progress: Progress, line: str, err: bool) -> None:
    """Prints a line: above the progress bar if both are on one terminal, else to stdout or stderr."""
    if not progress.disable and (err or sys.stdout.isatty()):
        progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        click.echo(line, err=err)


def _document(result: Audit | Failure, verdicts: Sequence[str], explained: Sequence[str]) -> dict[str, Any]:
    if isinstance(result, Failure):
        return {"model": result.name, "error": result.reason}
    document = result.to_json()
    if explained:
        weights = [tables.found_weight(result, name) for name in explained]
        document["weights"] = [
            {**weight.to_json(), "explanation": _audit_words.sentences(weight), "evidence": dict(weight.evidence)}
            for weight in weights
        ]
    elif verdicts:
        document["weights"] = [weight for weight in document["weights"] if weight["verdict"] in verdicts]
    return document


def _print(
    results: Sequence[Audit | Failure], several: bool, verdicts: Sequence[str], explained: Sequence[str]
) -> None:
    # Rich folds to 80 columns in a file or a pipe; there, names must stay whole.
    console = Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)
    for result in results:
        if isinstance(result, Failure):
            continue
        if explained:
            for name in explained:
                tables.print_evidence(console, result, tables.found_weight(result, name))
        elif verdicts:
            tables.print_weights(console, result, verdicts)
        elif not several:
            tables.print_stages(console, result)
