"""Everything one compilation is asked: the model, the workload, the goal, and the texts to measure on."""

from dataclasses import dataclass, field
from pathlib import Path

from planner.errors import InputError
from planner.goal import Goal, Workload
from planner.source import Source


@dataclass(frozen=True, slots=True)
class Calibration:
    """What prices are measured on: `documents` of a text, the shipped one if None, of 2,048 tokens or more; of shorter
    ones there are as many times more, up to four. `draws` labels are drawn at each of their scored positions.
    """

    text: Path | None = None
    documents: int = 3
    draws: int = 2

    def __post_init__(self) -> None:
        for name, value in (("documents", self.documents), ("draws", self.draws)):
            if value < 1:
                raise InputError(f"calibration.{name}: found {value}; must be at least 1")


@dataclass(frozen=True, slots=True)
class Verification:
    """What the artefact is proved on: `documents` of a text, the shipped one if None, that calibration never saw.

    `recall` prompts of each kind, passkeys and key-value pairs, hide a number at as many depths; 0 for none.
    """

    text: Path | None = None
    documents: int = 8
    recall: int = 5

    def __post_init__(self) -> None:
        if self.documents < 1:
            raise InputError(f"verification.documents: found {self.documents}; must be at least 1")
        if self.recall < 0:
            raise InputError(f"verification.recall: found {self.recall}; must be at least 0, which asks nothing")


@dataclass(frozen=True, slots=True)
class Request:
    """One compilation. `name` is what its plan is called: the stem of the model.yaml."""

    name: str
    source: Source
    workload: Workload = field(default_factory=Workload)
    goal: Goal = field(default_factory=Goal)
    calibration: Calibration = field(default_factory=Calibration)
    verification: Verification = field(default_factory=Verification)
