"""Notes in the record at which step the training saved a checkpoint."""

from collections.abc import Callable
from contextlib import suppress

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from smdtrack.optimizers import inner_optimizer


class CheckpointListener:
    """Calls back whenever an optimizer's `state_dict` is asked for: that is when a script saves a checkpoint.

    Args:
        on_checkpoint: Called before the state is returned; must not raise.
    """

    def __init__(self, on_checkpoint: Callable[[], None]) -> None:
        self._on_checkpoint = on_checkpoint
        self._handle: RemovableHandle | None = None

    def listen_to(self, optimizer: Optimizer) -> None:
        """Listens to this optimizer instead of the one before."""
        self.stop()
        hook: Callable[[Optimizer], None] = lambda _: self._on_checkpoint()  # noqa: E731
        with suppress(AttributeError):  # an optimizer whose constructor did not call that of Optimizer
            self._handle = inner_optimizer(optimizer).register_state_dict_pre_hook(hook)

    def stop(self) -> None:
        """Stops listening."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
