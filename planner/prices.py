"""A space priced in the three currencies: one row per resource, one column per candidate.

The solver sees nothing but this table; what the rows mean stays here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost import Cost, candidate_cost, constant_cost
from planner.goal import Goal, Objective, Workload
from planner.hardware import HardwareProfile
from planner.loss import LossModel
from planner.space import Choice, Site, Space
from planner.spec import ModelSpec

LOSS = "loss_nats"


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Usage of every candidate (site-major, in the space's order), what is used anyway, and the limits.

    `minimise` are the rows whose largest total is the objective: one row, or the serial stages that overlap in a step.
    """

    sites: tuple[Site, ...]
    groups: tuple[int, ...]
    rows: tuple[str, ...]
    usage: NDArray[np.float64]
    constant: NDArray[np.float64]
    limits: NDArray[np.float64]
    minimise: tuple[int, ...]
