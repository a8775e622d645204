"""`smdtrack show`: one run in the terminal."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smdtrack.cli._runs import RUN_HELP, check_globs, open_runs, print_table, source_options
from smdtrack.cli._runs import as_json as dump

if TYPE_CHECKING:
    from rich.console import Console

    from smdtrack.report.diagnosis import Diagnosis
    from smdtrack.report.facts import RunFacts


@click.command(
    epilog=f"{RUN_HELP}\n\nExample:  smdtrack show last", context_settings={"help_option_names": ["-h", "--help"]}
)
@source_options
@click.option("--weights", "globs", multiple=True, metavar="GLOB", help="Show only weights that match; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.argument("run")
def command(run: str, folder: Path, tracking_uri: str | None, globs: tuple[str, ...], as_json: bool) -> None:
    """Show RUN's table and verdict, the reasons behind it and what to do. The run may still be going on."""
    from smdtrack.report.diagnosis import diagnose
    from smdtrack.report.facts import facts_of

    ((letter, opened),) = open_runs([run], folder, tracking_uri)
    check_globs(globs, opened.run.info.weights)
    facts = facts_of(opened, letter, globs)
    diagnosis = diagnose(facts)
    if as_json:
        click.echo(dump(_document(facts, diagnosis)))
        return
    from smdtrack.cli._runs import console

    _print(facts, diagnosis, console())


def _document(facts: "RunFacts", diagnosis: "Diagnosis") -> dict[str, Any]:
    document = asdict(facts)
    del document["letter"], document["weights"]
    document["verdict"] = diagnosis.verdict
    document["causes"] = [asdict(cause) for cause in diagnosis.causes]
    return document


def _print(facts: "RunFacts", diagnosis: "Diagnosis", console: "Console") -> None:
    from rich.text import Text

    from smdtrack.cli._summary import summary_table

    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(facts.created))
    console.print(Text(f"{facts.name}  {facts.status}", style="bold"))
    said = [
        facts.source,
        f"started {started}",
        f"{facts.samples} samples, steps {facts.first_step} to {facts.last_step}",
    ]
    said += [f"{name} {facts.settings[name]}" for name in _SHOWN if name in facts.settings]
    console.print(Text("  ".join(said)), soft_wrap=True)
    for note in facts.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)
    if facts.summary is not None:
        console.print()
        print_table(console, summary_table(facts.summary))
    console.print()
    console.print(Text(diagnosis.verdict, style="bold"), soft_wrap=True)
    for cause in diagnosis.causes:
        console.print(Text(f"why: {cause.why}"), soft_wrap=True)
        if cause.action:
            console.print(Text(f"     what to do: {cause.action}"), soft_wrap=True)
    if facts.metrics:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in facts.metrics.items())
        console.print(Text(f"the script's own metrics: {shown}"), soft_wrap=True)
    console.print(Text(f"read from: {facts.place}"), soft_wrap=True)


_SHOWN = ("model", "optimizer", "lr", "weight_decay", "momentum", "batch_size", "epochs", "sched")
