"""Which of the script's own metrics are worth showing."""

from collections.abc import Mapping, Sequence

#: Progress and settings, not results.
_NOT_RESULTS = frozenset({"epoch", "step", "lr", "learning_rate", "time"})
#: Results on data that was held out say more than those of the training.
_HELD_OUT = ("eval", "val", "test")


def shown_metrics(runs: Sequence[Mapping[str, float]], most: int = 2) -> list[str]:
    """Returns the names of metrics that all runs have: those on held-out data first, the quality before the loss."""
    names = [name for name in runs[0] if name not in _NOT_RESULTS and all(name in run for run in runs)]
    return sorted(names, key=lambda name: (not name.startswith(_HELD_OUT), "loss" in name))[:most]
