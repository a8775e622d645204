"""The `smdtrack` command: one file per subcommand, imported when it is called."""

import importlib
import pkgutil
import sys
from typing import Any

import click

from smdtrack.names import did_you_mean
from smdtrack.notices import InterruptedRunError, SmdtrackError


class _Commands(click.Group):
    """Finds subcommands as modules of this package and imports them when they are called: `--help` stays fast."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Runs a command. After a script that Ctrl-C ended, the process ends in the same way."""
        try:
            return super().main(*args, **options)
        except InterruptedRunError:
            # Python runs the script's atexit handlers and then ends by SIGINT. The traceback was printed before.
            sys.excepthook = lambda *_: None
            raise KeyboardInterrupt from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = did_you_mean(args[0], self.list_commands(ctx), 1)
            message = (
                f"no command {args[0]!r}{f' ({near})' if near else ''}; there are {', '.join(self.list_commands(ctx))}"
            )
            raise click.UsageError(message, ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _SUMMARIES.get(name, "")) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        """Prints wrong usage as one line and exits with code 2, wherever it was detected."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx is not None else ctx.command_path
            click.echo(f"Error: {error.format_message()} (see {path} --help)", err=True)
        except SmdtrackError as error:
            click.echo(f"Error: {error}", err=True)
        raise click.exceptions.Exit(2)


# Kept here and not read from the commands, so that `smdtrack --help` does not import torch.
_SUMMARIES = {
    "audit": "Which weights of a model are scale-invariant, why, and at what scope.",
    "compare": "Runs side by side: how each weight's angle changed, and how theory says it must.",
    "demo": "Train a recipe that comes with the package, tracked.",
    "list": "The local runs, newest first.",
    "predict": "The equilibrium angle and time constant of a recipe, before training.",
    "report": "One self-contained page for one run or several.",
    "run": "Run an unmodified training script with its angular updates tracked.",
    "show": "One run in the terminal: table, verdict, reasons, what to do.",
    "sync": "Send to a tracker what it has not got of a local record.",
    "translate": "The same angular update under another optimizer, batch size or length.",
}


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="smdtrack")
def main() -> None:
    """Track how far scale-invariant weights turn per step, beside the line that theory predicts."""
