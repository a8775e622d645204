"""One way in to a run, wherever it is: a local record, MLflow, or W&B's offline folder."""

from pathlib import Path

from smdtrack.names import did_you_mean
from smdtrack.notices import SmdtrackError
from smdtrack.record.local_source import find_run, open_local
from smdtrack.record.mlflow_source import PREFIX as MLFLOW
from smdtrack.record.mlflow_source import open_mlflow
from smdtrack.record.opened_run import OpenedRun
from smdtrack.record.store import DEFAULT_FOLDER
from smdtrack.record.wandb_source import open_wandb, wandb_log

_SCHEMES = ("mlflow", "wandb")


def open_run(text: str, *, folder: str | Path = DEFAULT_FOLDER, tracking_uri: str | None = None) -> OpenedRun:
    """Reads the run that a text names.

    Args:
        text: A local record's folder, an unambiguous part of its name, `last` or `last~N`; `mlflow:RUN_ID` or
            `mlflow:EXPERIMENT/NAME`; or the folder of an offline W&B run.
        folder: Where the local records are.
        tracking_uri: Of MLflow; by default the one that MLflow itself would use here.

    Raises:
        SmdtrackError: If there is no such run, it cannot be read, or it has no data of smdtrack.
    """
    if text.startswith(MLFLOW):
        return open_mlflow(text, tracking_uri)
    scheme, colon, rest = text.partition(":")
    path = Path(rest if scheme == "wandb" and colon else text)
    if wandb_log(path) is not None:
        return open_wandb(path)
    if scheme == "wandb" and colon:
        raise SmdtrackError(f"{rest} is no folder of an offline W&B run: no run-<id>.wandb in it")
    if colon and not path.exists() and did_you_mean(scheme, _SCHEMES):
        raise SmdtrackError(f"no source {scheme!r} in {text!r}; {did_you_mean(scheme, _SCHEMES)}")
    return open_local(find_run(text, Path(folder)))
