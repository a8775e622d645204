"""The settings of runs, and which of them differ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from smdtrack.record.opened_run import OpenedRun, Setting

#: What describes the record or the place of a run and not the training.
_NOT_SETTINGS = frozenset(
    {
        "checkpoint_hist",
        "command",
        "config",
        "data_dir",
        "device",
        "experiment",
        "line_kind",
        "line_source",
        "local_rank",
        "log_interval",
        "log_wandb",
        "name",
        "output",
        "pin_mem",
        "rank",
        "recovery_interval",
        "resumed_from",
        "save_images",
        "share_of_parameters",
        "weights_tracked",
        "workers",
        "world_size",
    }
)
#: The same setting under timm's name and under torch's.
_SAME = {"opt": "optimizer", "opt_eps": "eps", "opt_betas": "betas"}


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same in all runs; `values` has one entry a run, None where the run does not say it."""

    name: str
    values: tuple[Setting | None, ...]


@dataclass(frozen=True)
class SettingsCompared:
    """Which settings differ.

    Attributes:
        differing: Known for all runs and not equal.
        equal: Number of settings that are the same in all runs.
        known_for_some: Names of settings that some of the runs do not say.
    """

    differing: tuple[Difference, ...]
    equal: int
    known_for_some: tuple[str, ...]


def settings_of(params: Mapping[str, Setting], script: Mapping[str, Setting]) -> dict[str, Setting]:
    """Merges what smdtrack saw of the optimizer with what the script says of itself.

    The script's learning rate is the one that the recipe names; smdtrack's may be the first of a warm-up.
    """
    merged = {_SAME.get(key, key): value for key, value in script.items() if key not in _NOT_SETTINGS}
    seen = {key: value for key, value in params.items() if key not in _NOT_SETTINGS}
    recipe_lr = merged.get("lr")
    merged.update(seen)
    if isinstance(recipe_lr, (int, float)) and not isinstance(recipe_lr, bool):
        merged["lr"] = recipe_lr
    return merged


def compare_settings(runs: Sequence[Mapping[str, Setting]]) -> SettingsCompared:
    """Returns which settings differ between the runs."""
    names = list(dict.fromkeys(name for run in runs for name in run))
    differing, equal, some = [], 0, []
    for name in names:
        values = tuple(run.get(name) for run in runs)
        if any(value is None for value in values):
            some.append(name)
        elif all(same(value, values[0]) for value in values):
            equal += 1
        else:
            differing.append(Difference(name, values))
    return SettingsCompared(tuple(differing), equal, tuple(some))


def same(one: Setting | None, other: Setting | None) -> bool:
    """Whether two settings are the same: numbers by value, everything else by its text."""
    if _is_number(one) and _is_number(other):
        return math.isclose(float(one), float(other), rel_tol=1e-9)  # type: ignore[arg-type]
    return str(one).strip().lower() == str(other).strip().lower()


def number(settings: Mapping[str, Setting], name: str) -> float | None:
    """Returns a setting as a number; None if it is none."""
    value = settings.get(name)
    return float(value) if _is_number(value) else None  # type: ignore[arg-type]


def steps_per_epoch(opened: OpenedRun) -> float | None:
    """Returns how many optimizer steps an epoch has; None if the run does not say it.

    Given by a parameter `steps_per_epoch`, else estimated for a run that ended: its last sampled step over the epochs
    that its metrics or settings name. The estimate is low by less than the distance of two samples.
    """
    given = number(opened.run.info.params, "steps_per_epoch") or number(opened.settings, "steps_per_epoch")
    if given:
        return given
    if not len(opened.run.steps):
        return None
    last = float(opened.run.steps[-1])
    if opened.run.status == "finished":
        epochs = number(opened.settings, "epochs")
        if "epoch" in opened.metrics:
            epochs = opened.metrics["epoch"] + 1
        return last / epochs if epochs else None
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
