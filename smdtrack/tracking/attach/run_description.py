"""Describes a run when it starts: its weights with their lines, and its parameters."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from smdtrack.notices import WrongOptionError
from smdtrack.optimizers import numbers_of
from smdtrack.record.reader import read_run, read_sinks
from smdtrack.record.run import Earlier, RunInfo, TrackedWeight
from smdtrack.record.store import new_run_folder
from smdtrack.theory import Family, identify
from smdtrack.tracking.attach.model_discovery import holders
from smdtrack.tracking.attach.options import Options
from smdtrack.tracking.attach.weight_selection import Selection

_SHOWN_HYPER_PARAMETERS = ("lr", "weight_decay", "momentum", "dampening", "nesterov", "betas", "beta1", "eps")


def describe_run(optimizers: Sequence[Optimizer], selection: Selection, options: Options) -> RunInfo:
    """Makes the run's folder, or opens that of the run to continue, and returns the run's description.

    Args:
        optimizers: Those that train the model. At least one holds a weight of the selection.
        selection: The weights to track.
        options: Of the tracker.

    Raises:
        SmdtrackError: If the folder cannot be written, or the run to continue tracks other weights.
    """
    name = options.name or selection.model_name
    held_by = holders(selection.parameters, optimizers)
    weights = _weights(held_by, selection)
    params = _params(held_by, weights, selection, options)
    if options.resume_run is None:
        run_id, folder = new_run_folder(Path(options.folder).absolute(), name)
        return RunInfo(run_id, f"{name}-{run_id}", folder, time.time(), weights, params)
    run = read_run(Path(options.resume_run).absolute())
    there, here = [weight.name for weight in run.info.weights], [weight.name for weight in weights]
    if there != here:
        other = next((name for name in [*there, *here] if (name in there) != (name in here)), "their order")
        raise WrongOptionError(f"cannot continue {options.resume_run}: it tracks other weights ({other})")
    earlier = Earlier(int(run.steps[-1]) if len(run.steps) else 0, read_sinks(run.info.folder))
    return RunInfo(run.info.id, run.info.name, run.info.folder, run.info.created, weights, params, earlier=earlier)


def _weights(held_by: Sequence[tuple[Optimizer, int] | None], selection: Selection) -> tuple[TrackedWeight, ...]:
    # A weight that no optimizer holds yet is described as if the first one held it, in its first group.
    usual = next(holder for holder in held_by if holder is not None)[0]
    families: dict[int, Family] = {}
    weights = []
    for chosen, holder in zip(selection.weights, held_by, strict=True):
        optimizer, index = holder or (usual, 0)
        family = families.setdefault(id(optimizer), identify(optimizer))
        line = family.describe(numbers_of(optimizer.param_groups[index]), chosen.shape)
        weights.append(
            TrackedWeight(
                name=chosen.name,
                key=chosen.key,
                shape=chosen.shape,
                group=index,
                scope=chosen.scope,
                filter_dim=chosen.filter_dim,
                norm=chosen.norm,
                line_kind=line.kind,
                line_formula=line.formula,
                line_source=line.source,
                line_reason=line.reason,
            )
        )
    return tuple(weights)


def _params(
    held_by: Sequence[tuple[Optimizer, int] | None],
    weights: Sequence[TrackedWeight],
    selection: Selection,
    options: Options,
) -> dict[str, str | int | float | bool]:
    held = [holder for holder in held_by if holder is not None]
    optimizer, index = held[0]
    first = numbers_of(optimizer.param_groups[index])
    return {
        "model": selection.model_name,
        "optimizer": ", ".join(dict.fromkeys(type(holder[0]).__name__ for holder in held)),
        **{key: value for key, value in _shown(first).items() if key in _SHOWN_HYPER_PARAMETERS},
        "line_kind": ", ".join(sorted({weight.line_kind for weight in weights})),
        "line_source": "; ".join(sorted({weight.line_source for weight in weights if weight.line_source})),
        "weights_tracked": len(held),
        "share_of_parameters": round(selection.share_of_parameters, 4),
        **{key: str(value) if isinstance(value, Path) else value for key, value in options.params.items()},
    }


def _shown(group: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    found: dict[str, str | int | float | bool] = {}
    for key, value in group.items():
        if isinstance(value, (bool, int, float, str)):
            found[key] = value
        elif isinstance(value, tuple):
            found[key] = " ".join(map(str, value))
    return found
