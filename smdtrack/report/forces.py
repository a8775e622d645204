"""The two forces on a weight's norm, and the memory of its updates, under the names of every version of the record."""

from smdtrack.record.run import Floats, Run

#: The memory R of the line. Before measured memory was recorded, it was called `memory`.
_LINE_MEMORY, _MEASURED = "line_memory", "memory"


def line_memory(run: Run) -> Floats | None:
    """Returns the memory R of each weight's line, (T, W); None if the source does not have it."""
    if _LINE_MEMORY in run.values:
        return run.values[_LINE_MEMORY]
    return None if _has_measured_memory(run) else run.values.get(_MEASURED)


def measured_memory(run: Run) -> Floats | None:
    """Returns the measured memory of the updates over that of white gradients, (T, W); None if it was not measured."""
    return run.values.get(_MEASURED) if _has_measured_memory(run) else None


def growth_and_decay(run: Run) -> tuple[Floats, Floats] | None:
    """Returns by what share of itself a squared norm grows and shrinks per step, each (T, W); None if not known.

    If they were not measured, they follow from the theory: `||w||^2` grows by `R Delta^2` and shrinks by
    `R Delta_eq^2 = 2 gamma`.
    """
    if "growth" in run.values and "decay" in run.values:
        return run.values["growth"], run.values["decay"]
    memory = line_memory(run)
    if memory is None or "angle" not in run.values or "angle_eq" not in run.values:
        return None
    return run.values["angle"] ** 2 * memory, run.values["angle_eq"] ** 2 * memory


def _has_measured_memory(run: Run) -> bool:
    # Trackers get the measured memory only, together with the forces.
    return _MEASURED in run.values and (_LINE_MEMORY in run.values or "growth" in run.values)
