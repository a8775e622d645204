"""How a script counts its W&B steps, watched: whether rows of ours may stand between the script's own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StepWatch:
    """Watches a script's `run.log` calls, and changes nothing in them.

    W&B refuses a row whose `step=` lies behind the run's counter, and every row without one moves the counter. Were
    ours written at once, a script that logs with `step=epoch` would lose all of its rows. So ours wait for the
    script's first row: if it has no `step=`, they may be logged from then on; if it has one, they wait until the end.

    A later version of W&B may route `run.log` in another way; then no call is seen and all rows wait until the end.
    """

    def __init__(self, run: Any) -> None:
        self._run = run
        self._ours = threading.local()
        self._calls = 0
        self._explicit = False
        self._original = run._log
        run._log = self._watched

    @property
    def may_log(self) -> bool:
        """Whether a row of ours would cost the script none of its own."""
        return self._calls > 0 and not self._explicit

    @contextmanager
    def ours(self) -> Iterator[None]:
        """Marks this thread's calls as ours."""
        self._ours.now = True
        try:
            yield
        finally:
            self._ours.now = False

    def detach(self) -> None:
        """Takes the watch off the run."""
        if self._run.__dict__.get("_log") == self._watched:
            del self._run._log

    def _watched(self, data: Any, step: int | None = None, commit: bool | None = None) -> Any:
        if not getattr(self._ours, "now", False):
            self._explicit = self._explicit or step is not None
            self._calls += 1
        return self._original(data, step=step, commit=commit)
