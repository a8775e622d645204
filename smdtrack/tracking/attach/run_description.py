"""Describes a run when it starts: its weights with their lines, and its parameters."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from smdtrack.notices import SmdtrackError
from smdtrack.optimizers import group_indices, numbers_of
from smdtrack.record.reader import read_run, read_sinks
from smdtrack.record.run import Earlier, RunInfo, TrackedWeight
from smdtrack.record.store import new_run_folder
from smdtrack.theory import Family
from smdtrack.tracking.attach.options import Options
from smdtrack.tracking.attach.weight_selection import Selection

_SHOWN_HYPER_PARAMETERS = ("lr", "weight_decay", "momentum", "dampening", "nesterov", "betas", "beta1", "eps")


def describe_run(optimizer: Optimizer, family: Family, selection: Selection, options: Options) -> RunInfo:
    """Makes the run's folder, or opens that of the run to continue, and returns the run's description.

    Raises:
        SmdtrackError: If the folder cannot be written, or the run to continue tracks other weights.
    """
    name = options.name or selection.model_name
    weights = _weights(optimizer, family, selection)
    params = _params(optimizer, weights, selection, options)
    if options.resume_run is None:
        run_id, folder = new_run_folder(Path(options.folder).absolute(), name)
        return RunInfo(run_id, f"{name}-{run_id}", folder, time.time(), weights, params)
    run = read_run(Path(options.resume_run).absolute())
    there, here = [weight.name for weight in run.info.weights], [weight.name for weight in weights]
    if there != here:
        other = next((name for name in [*there, *here] if (name in there) != (name in here)), "their order")
        raise SmdtrackError(f"cannot continue {options.resume_run}: it tracks other weights ({other})")
    earlier = Earlier(int(run.steps[-1]) if len(run.steps) else 0, read_sinks(run.info.folder))
    return RunInfo(run.info.id, run.info.name, run.info.folder, run.info.created, weights, params, earlier=earlier)


def _weights(optimizer: Optimizer, family: Family, selection: Selection) -> tuple[TrackedWeight, ...]:
    groups = [numbers_of(group) for group in optimizer.param_groups]
    weights = []
    for chosen, index in zip(selection.weights, group_indices(optimizer, selection.parameters), strict=True):
        line = family.describe(groups[index or 0], chosen.shape)
        weights.append(
            TrackedWeight(
                name=chosen.name,
                key=chosen.key,
                shape=chosen.shape,
                group=index or 0,
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
    optimizer: Optimizer,
    weights: Sequence[TrackedWeight],
    selection: Selection,
    options: Options,
) -> dict[str, str | int | float | bool]:
    held = [index is not None for index in group_indices(optimizer, selection.parameters)]
    first = numbers_of(optimizer.param_groups[weights[held.index(True)].group])
    return {
        "model": selection.model_name,
        "optimizer": type(optimizer).__name__,
        **{key: value for key, value in _shown(first).items() if key in _SHOWN_HYPER_PARAMETERS},
        "line_kind": ", ".join(sorted({weight.line_kind for weight in weights})),
        "line_source": "; ".join(sorted({weight.line_source for weight in weights if weight.line_source})),
        "weights_tracked": sum(held),
        "share_of_parameters": round(selection.share_of_parameters, 4),
        **options.params,
    }


def _shown(group: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    found: dict[str, str | int | float | bool] = {}
    for key, value in group.items():
        if isinstance(value, (bool, int, float, str)):
            found[key] = value
        elif isinstance(value, tuple):
            found[key] = " ".join(map(str, value))
    return found
