"""Shows the progress of a training: one line per epoch, and a progress bar if stderr is a terminal."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Display:
    """Shows one run. The lines go to stdout. The bar goes to stderr, and only to a terminal."""

    def __init__(self, epochs: int, batches: int, first_epoch: int = 0, enabled: bool = True) -> None:
        self.enabled = enabled
        self.epochs = epochs
        self.accuracy = ""
        self.started = time.monotonic()
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not (enabled and console.is_terminal),
        )
        self.task = self.bar.add_task("", total=epochs * batches, completed=first_epoch * batches, numbers="")

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    @property
    def is_live(self) -> bool:
        """Whether there is a progress bar."""
        return not self.bar.disable

    def advance(self) -> None:
        """Moves the bar on by one batch."""
        self.bar.advance(self.task)

    def show(self, epoch: int, loss: float, lr: float) -> None:
        """Writes the epoch, the loss and the learning rate beside the bar."""
        self.bar.update(
            self.task,
            description=f"epoch {epoch + 1}/{self.epochs}",
            numbers=f"loss {loss:.3f}{self.accuracy}  lr {lr:.2g}",
        )

    def end_epoch(self, epoch: int, train: dict[str, float], held_out: dict[str, float] | None, lr: float) -> None:
        """Prints the line of an epoch."""
        if not self.enabled:
            return
        self.accuracy = f"  accuracy {held_out['top1']:.2f} %" if held_out else ""
        width = len(str(self.epochs))
        print(
            f"epoch {epoch + 1:{width}}/{self.epochs}  loss {train['loss']:.4f}{self.accuracy}  lr {lr:.3g}"
            f"  {time.monotonic() - self.started:.0f} s",
            flush=True,
        )
