"""model.yaml: the one file a user writes, as a Request."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from planner.errors import InputError
from planner.files import read_text
from planner.goal import Goal, Workload
from planner.quantities import byte_count, second_count
from planner.request import Calibration, Request, Verification
from planner.serde import build
from planner.source import Source
from planner.yaml_text import Plain, parse


@dataclass(frozen=True, slots=True)
class Model:
    """The fields of a model.yaml; its schema is planner/model@1."""

    source: Source
    workload: Workload = field(default_factory=Workload)
    goal: Goal = field(default_factory=Goal)
    calibration: Calibration = field(default_factory=Calibration)
    verification: Verification = field(default_factory=Verification)


def load_request(path: Path) -> Request:
    """The request a model.yaml makes; paths in it are relative to the file."""
    return parse_request(read_text(path), path.stem, path.parent, str(path))


def parse_request(text: str, name: str, base: Path, where: str) -> Request:
    """The request of a model.yaml's text.

    >>> text = '''
    ... schema: planner/model@1
    ... source: {gguf: models/small.gguf}
    ... goal: {minimise: decode_s, limits: {memory_bytes: 1.5 GiB, ttft_s: 200 ms}}
    ... '''
    >>> request = parse_request(text, "small", Path("/home"), "small.yaml")
    >>> request.source.gguf, request.goal.limits.memory_bytes, request.goal.limits.ttft_s
    ('/home/models/small.gguf', 1610612736, 0.2)
    """
    data = parse(text, where)
    _count_limits(data, where)
    model = build(data, Model, where)
    return Request(
        name=name,
        source=_located(model.source, base),
        workload=model.workload,
        goal=model.goal,
        calibration=replace(model.calibration, text=_under(base, model.calibration.text)),
        verification=replace(model.verification, text=_under(base, model.verification.text)),
    )


def _count_limits(data: Plain, where: str) -> None:
    """Turn amounts with units into numbers, in place, by the unit that ends the limit's name."""
    goal = data.get("goal") if isinstance(data, dict) else None
    limits = goal.get("limits") if isinstance(goal, dict) else None
    if not isinstance(limits, dict):
        return
    for name, value in limits.items():
        try:
            if name.endswith("_bytes") and isinstance(value, str):
                limits[name] = byte_count(value)
            elif name.endswith("_bytes") and isinstance(value, float) and value.is_integer():
                limits[name] = int(value)
            elif name.endswith("_s") and isinstance(value, str):
                limits[name] = second_count(value)
        except InputError as error:
            raise InputError(f"{where}: $.goal.limits.{name}: {error}") from error


def _under(base: Path, path: Path | None) -> Path | None:
    return None if path is None else base / path.expanduser()


def _located(source: Source, base: Path) -> Source:
    """The source with its path made independent of the current directory's yaml; a package has none."""
    paths = {f.name: getattr(source, f.name) for f in fields(source) if f.name != "package"}
    return replace(source, **{name: str(_under(base, Path(path))) for name, path in paths.items() if path is not None})
