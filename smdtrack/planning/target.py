"""What a translation of a recipe is asked for."""

from dataclasses import dataclass, field
from typing import Any, Literal

Match = Literal["epoch", "step", "k-steps"]

#: Learning rate for a translation from normalised updates to SGD, where only lr x weight decay is determined.
SGD_LEARNING_RATE = 0.1


@dataclass(frozen=True)
class Target:
    """What is asked for.

    Attributes:
        opt: timm's name of the optimizer; None keeps it.
        batch_factor: new batch over old batch.
        step_factor: old steps per epoch over new steps per epoch.
        epochs: new number of epochs; None keeps it.
        match: what stays the same if a step covers another number of images. "epoch": the decay per epoch. "step": the
            angle of one step. "k-steps": the angle of one new step is that of k old ones.
        growth: measured squared angle over `step_factor` steps over that of one step, for "k-steps"; None assumes
            gradients uncorrelated in time.
        lr: learning rate that the translated recipe shall have; None for the one that keeps the equilibrium norm.
        settings: further settings of the new optimizer, by their names in `Recipe`.
    """

    opt: str | None = None
    batch_factor: float = 1.0
    step_factor: float = 1.0
    epochs: int | None = None
    match: Match = "epoch"
    growth: float | None = None
    lr: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
