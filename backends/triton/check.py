"""Every kernel of an artefact run in Triton's interpreter against its reference, over its plan's and hostile shapes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from backends.triton.crew import Crew, Job, WorkerBroke
from backends.triton.emit import FOLDER
from planner.executor import Progress

Case = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Counted:
    """What one launch moved in the interpreter, in bytes of 32-byte sectors, beside what it must at least.

    read_by_program  every sector once for each program that loads it: a program's own cache holds what it has touched
    balance          largest over mean bytes that a program loads
    """

    kernel: str
    programs: int
    needed_read: int
    read: int
    read_by_program: int
    read_requested: int
    needed_written: int
    written: int
    balance: float


@dataclass(frozen=True, slots=True)
class Checked:
    """One case: a kernel module at a shape, with a variant, for inputs of a type. `failed` says why it did not run."""

    module: str
    shape: Mapping[str, object]
    variant: Mapping[str, object]
    dtype: str
    planned: bool
    error: float
    limit: float
    wrong_bits: int
    launches: tuple[Counted, ...]
    failed: str = ""

    @property
    def right(self) -> bool:
        """Whether it ran and agrees with its reference."""
        return not self.failed and self.error <= self.limit and not self.wrong_bits


def check_kernels(directory: Path, quick: bool, progress: Progress) -> tuple[Checked, ...]:
    """The cases of the kernels under a directory, each run in a process of its own kind.

    With `quick` each module's smallest shape of the plan, and its hostile shapes for one type.
    """
    job = Job(f"{FOLDER}.checking", directory, ("--serve",), {"TRITON_INTERPRET": "1"})
    with Crew(job) as crew:
        names = [str(name) for name in _answered(crew.ask_all([{"do": "modules"}], _silent)[0])]
        asked = [{"do": "planned"}, *({"do": "hostile", "module": name} for name in names)]
        first, *rest = (_cases(reply) for reply in crew.ask_all(asked, _silent))
        planned = smallest(first) if quick else first
        hostile = [case for cases in rest for case in cases if not quick or case["dtype"] == "float16"]
        cases = [*planned, *hostile]
        requests = [{"do": "run", **case} for case in cases]
        replies = crew.ask_all(requests, lambda done: progress("kernels checked", done, len(requests)))
    return tuple(
        _checked(case, number < len(planned), reply)
        for number, (case, reply) in enumerate(zip(cases, replies, strict=True))
    )


def smallest(cases: Sequence[Case]) -> list[Case]:
    """Of each module's cases the one with the least work.

    >>> smallest([{"module": "a", "flop": 3}, {"module": "b", "flop": 2}, {"module": "a", "flop": 1}])
    [{'module': 'a', 'flop': 1}, {'module': 'b', 'flop': 2}]
    """
    found: dict[object, Case] = {}
    for case in cases:
        held = found.get(case["module"])
        if held is None or cast(int, case["flop"]) < cast(int, held["flop"]):
            found[case["module"]] = case
    return list(found.values())


def _silent(done: int) -> None:
    """Progress of what takes no time."""


def _answered(reply: list[object] | WorkerBroke) -> list[object]:
    if isinstance(reply, WorkerBroke):
        raise reply
    return reply


def _cases(reply: list[object] | WorkerBroke) -> list[Case]:
    return [cast(Case, case) for case in _answered(reply)]


def _checked(case: Case, planned: bool, reply: list[object] | WorkerBroke) -> Checked:
    """One case's outcome; a kernel that raises ends its process, and that is its outcome."""
    shape, variant = cast(Mapping[str, object], case["shape"]), cast(Mapping[str, object], case["variant"])
    module, dtype = str(case["module"]), str(case["dtype"])
    if isinstance(reply, WorkerBroke):
        return Checked(module, shape, variant, dtype, planned, 0.0, 0.0, 0, (), failed=reply.reason)
    (told,) = cast(list[Mapping[str, object]], reply)
    error, limit, bits = float(str(told["error"])), float(str(told["limit"])), cast(int, told["wrong_bits"])
    return Checked(module, shape, variant, dtype, planned, error, limit, bits, tuple(_launches(told)))


def _launches(told: Mapping[str, object]) -> Sequence[Counted]:
    """The launches that the kernel says it needs, each with the first of its name that was counted."""
    needed = cast(Sequence[Mapping[str, object]], told["needed"])
    counted = cast(Sequence[Mapping[str, object]], told["launches"])
    found = []
    for launch in needed:
        ran = next((each for each in counted if each["kernel"] == launch["kernel"]), None)
        if ran is not None:
            numbers = {name: value for name, value in ran.items() if name != "kernel"}
            needs = {"needed_read": launch["bytes_read"], "needed_written": launch["bytes_written"]}
            found.append(Counted(kernel=str(launch["kernel"]), **cast(dict[str, int], {**needs, **numbers})))
    return found


def shape_text(shape: Mapping[str, object]) -> str:
    """A shape in one line.

    >>> shape_text({"m": 1, "slots": [3, 4]})
    'm=1 slots=[3, 4]'
    """
    return " ".join(f"{name}={json.dumps(value)}" for name, value in shape.items())
