"""Predicting measured deployments, with the engine's constants fitted on the deployments of other models only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from planner.errors import InputError
from planner.operators.serving import Engine, Served, serve
from planner.operators.sheet import GpuSheet
from planner.operators.step import DenseModel, Operators, Step
from planner.operators.step_times import StepTimes
from profiles.silicon.deployments import Deployment

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Constants:
    """A framework's two engine constants for one model, and the deployments they come from."""

    framework: str
    model: str
    kernel_s: float
    sequence_s: float
    fitted_on: str


@dataclass(frozen=True, slots=True)
class Predicted:
    """Every deployment as served, in their order, and the constants it took; None where a request fits no cache."""

    served: tuple[Served | None, ...]
    constants: tuple[Constants, ...]


class Server:
    """Serves deployments on a GPU; the times of a step are kept for the next deployment that takes the same."""

    def __init__(self, sheet: GpuSheet, operators: Mapping[str, Operators]) -> None:
        self._sheet = sheet
        self._operators = operators
        self._times: dict[tuple[str, DenseModel, int, str, int, float], StepTimes] = {}

    def serve(self, deployment: Deployment, kernel_s: float, sequence_s: float) -> Served | None:
        """The deployment under its load; None where the weights leave no room for a request."""
        engine = replace(deployment.engine, kernel_s=kernel_s, sequence_s=sequence_s)
        kv_tokens = self.kv_tokens(deployment)
        if kv_tokens < deployment.load.prompt + deployment.load.output:
            return None
        shape = deployment.published.shape
        key = deployment.framework, shape, deployment.gpus, deployment.kind, deployment.kv_bits, kernel_s
        if key not in self._times:
            self._times[key] = StepTimes(self._step(deployment, engine))
        return serve(self._times[key], engine, deployment.load, kv_tokens)

    def kv_tokens(self, deployment: Deployment) -> int:
        """Tokens the cache holds beside the weights."""
        step = self._step(deployment, deployment.engine)
        room_bytes = deployment.engine.memory_share * self._sheet.memory_bytes - step.weight_bytes
        return int(room_bytes // step.kv_bytes_per_token)

    def _step(self, deployment: Deployment, engine: Engine) -> Step:
        shape = deployment.published.shape
        return Step(
            model=shape,
            operators=self._operators[deployment.framework],
            gpus=deployment.gpus,
            kind=deployment.kind,
            kv_bits=deployment.kv_bits,
            kernels=engine.kernels(shape.qk_norm),
            kernel_s=engine.kernel_s,
        )


def bare(sheet: GpuSheet, operators: Mapping[str, Operators], deployments: Sequence[Deployment]) -> Predicted:
    """Deployments by their operators alone: kernels start at once and the host costs nothing."""
    server = Server(sheet, operators)
    return Predicted(tuple(server.serve(deployment, 0.0, 0.0) for deployment in deployments), ())


def leave_one_model_out(
    sheet: GpuSheet, operators: Mapping[str, Operators], deployments: Sequence[Deployment]
) -> Predicted:
    """Every model with constants that its own deployments had no say in.

    They come from the framework's other models; where it has none, from other models under any framework; where there
    are none either, they are `Engine`'s defaults.
    """
    server = Server(sheet, operators)
    untouched = [server.serve(deployment, 0.0, 0.0) for deployment in deployments]
    usable = [_informative(server, deployment) for deployment in deployments]
    constants: dict[tuple[str, str], Constants] = {}
    for deployment in deployments:
        key = deployment.framework, deployment.model
        if key not in constants:
            others = [i for i, other in enumerate(deployments) if usable[i] and other.model != deployment.model]
            own = [i for i in others if deployments[i].framework == deployment.framework]
            constants[key] = _fitted(*key, deployments, untouched, own or others)
    found = []
    for deployment in deployments:
        chosen = constants[deployment.framework, deployment.model]
        found.append(server.serve(deployment, chosen.kernel_s, chosen.sequence_s))
    return Predicted(tuple(found), tuple(constants.values()))


def _informative(server: Server, deployment: Deployment) -> bool:
    """Whether the time per token is the engine's own: a stated load, and a cache that holds all of it."""
    load = deployment.load
    return deployment.stated_load and load.concurrency * (load.prompt + load.output) <= server.kv_tokens(deployment)


def _fitted(
    framework: str,
    model: str,
    deployments: Sequence[Deployment],
    untouched: Sequence[Served | None],
    rows: Sequence[int],
) -> Constants:
    """The constants with the least mean relative error of the time per token over the rows.

    A step takes its small kernels once and its host work once a sequence, so the time per token is linear in both.
    """
    chosen = [(deployments[row], served) for row in rows if (served := untouched[row]) is not None]
    if not chosen:
        default = Engine(1)
        return Constants(framework, model, default.kernel_s, default.sequence_s, "nothing: no other model")
    measured = np.array([deployment.tpot_s for deployment, _ in chosen])
    lacking = measured - np.array([served.tpot_s for _, served in chosen])
    kernels = [
        deployment.published.shape.layers * deployment.engine.kernels(deployment.published.shape.qk_norm)
        for deployment, _ in chosen
    ]
    sequences = [deployment.load.concurrency for deployment, _ in chosen]
    kernel_s, sequence_s = _least_error(np.array([kernels, sequences], np.float64).T, lacking, measured)
    names = sorted({f"{deployment.framework} {deployment.model}" for deployment, _ in chosen})
    return Constants(framework, model, kernel_s, sequence_s, f"{len(chosen)} rows of {', '.join(names)}")


def _least_error(columns: Floats, wanted: Floats, scale: Floats) -> tuple[float, float]:
    """The two coefficients, not below 0, with the least sum of |columns @ x - wanted| / scale: a linear programme."""
    rows = len(wanted)
    a = columns / scale[:, None] * 1e-6  # unknowns in microseconds, so that the solver sees numbers near 1
    b = wanted / scale
    above = np.hstack([a, -np.eye(rows)])
    below = np.hstack([-a, -np.eye(rows)])
    cost = np.concatenate([np.zeros(2), np.ones(rows)])
    solved = linprog(cost, A_ub=np.vstack([above, below]), b_ub=np.concatenate([b, -b]), method="highs")
    if solved.status != 0:
        raise InputError(f"the engine's constants could not be fitted: {solved.message}")
    return float(solved.x[0]) * 1e-6, float(solved.x[1]) * 1e-6
