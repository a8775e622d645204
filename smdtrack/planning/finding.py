"""One thing in a recipe that is likely to surprise."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """Something in a recipe that is likely to surprise.

    Attributes:
        code: a short name for programs, such as "short-stage".
        level: "warning" if the training will hardly do what the recipe says; "note" for what is good to know.
        message: one sentence.
        change: what would change it; code in backticks. None if nothing is to be changed.
    """

    code: str
    level: Literal["warning", "note"]
    message: str
    change: str | None = None
