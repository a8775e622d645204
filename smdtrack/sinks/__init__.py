"""Where points go besides the local record."""

from collections.abc import Sequence

from smdtrack.names import did_you_mean
from smdtrack.notices import SmdtrackError
from smdtrack.sinks.protocol import Sink

SINK_NAMES = ("mlflow", "wandb", "local")


def check_sink_names(sinks: Sequence[str | Sink]) -> None:
    """Checks the sinks given by name.

    Raises:
        SmdtrackError: If one is unknown.
    """
    for name in sinks:
        if isinstance(name, str) and name not in SINK_NAMES:
            near = did_you_mean(name, SINK_NAMES)
            raise SmdtrackError(f"no sink {name!r}{f' ({near})' if near else ''}; there are {', '.join(SINK_NAMES)}")


def make_sinks(sinks: Sequence[str | Sink] | None) -> list[Sink]:
    """Makes sinks of their names; objects are taken as they are.

    None is the default: MLflow, and the script's own W&B run where it has one. `local` is the local record, which is
    always written: alone it means no tracker.

    Raises:
        SmdtrackError: If a name is unknown.
    """
    from smdtrack.sinks.mlflow import MLflowSink
    from smdtrack.sinks.wandb import WandbSink

    if sinks is None:
        return [MLflowSink(), WandbSink(attach_only=True)]
    check_sink_names(sinks)
    made: list[Sink] = []
    for sink in dict.fromkeys(sinks):
        if not isinstance(sink, str):
            made.append(sink)
        elif sink == "mlflow":
            made.append(MLflowSink())
        elif sink == "wandb":
            made.append(WandbSink())
    return made
