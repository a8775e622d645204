"""Where a run's points go besides the local record: MLflow, W&B, memory, and sinks of other packages."""

from collections.abc import Sequence
from importlib.metadata import entry_points

from smdtrack.names import did_you_mean
from smdtrack.notices import SmdtrackError, one_line
from smdtrack.sinks.protocol import Sink

#: `local` is the local record, which is always written: given alone, it means no tracker.
SINK_NAMES = ("mlflow", "wandb", "local")
#: Group of the entry points by which other packages register their sinks.
ENTRY_POINT_GROUP = "smdtrack.sinks"


def sink_names() -> tuple[str, ...]:
    """Returns the names of all sinks: those of this package and those that installed packages register."""
    registered = sorted(point.name for point in entry_points(group=ENTRY_POINT_GROUP))
    return (*SINK_NAMES, *(name for name in registered if name not in SINK_NAMES))


def check_sink_names(sinks: Sequence[str | Sink]) -> None:
    """Checks the sinks that are given by name.

    Raises:
        SmdtrackError: If one is unknown.
    """
    for name in sinks:
        if isinstance(name, str) and name not in SINK_NAMES:
            names = sink_names()
            if name not in names:
                near = did_you_mean(name, names)
                raise SmdtrackError(f"no sink {name!r}{f' ({near})' if near else ''}; there are {', '.join(names)}")


def make_sink(name: str) -> Sink | None:
    """Makes a sink of its name; None for `local`.

    Raises:
        SmdtrackError: If the name is unknown, or the package that registers it fails.
    """
    if name == "local":
        return None
    if name == "mlflow":
        from smdtrack.sinks.mlflow import MLflowSink

        return MLflowSink()
    if name == "wandb":
        from smdtrack.sinks.wandb import WandbSink

        return WandbSink()
    check_sink_names([name])
    point = next(iter(entry_points(group=ENTRY_POINT_GROUP, name=name)))
    try:
        sink: Sink = point.load()()
    except Exception as error:
        raise SmdtrackError(f"the sink {name!r} of {point.value} cannot be made: {one_line(error)}") from error
    return sink


def make_sinks(sinks: Sequence[str | Sink] | None) -> list[Sink]:
    """Makes sinks of their names; objects are taken as they are.

    None is the default: MLflow, and the script's own W&B run if it has one.

    Raises:
        SmdtrackError: If a name is unknown.
    """
    if sinks is None:
        from smdtrack.sinks.mlflow import MLflowSink
        from smdtrack.sinks.wandb import WandbSink

        return [MLflowSink(), WandbSink(attach_only=True)]
    check_sink_names(sinks)
    made = [make_sink(sink) if isinstance(sink, str) else sink for sink in dict.fromkeys(sinks)]
    return [sink for sink in made if sink is not None]
