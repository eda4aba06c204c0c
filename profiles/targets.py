"""Machines nobody here owns: data-sheet targets as YAML, each figure beside its source.

A target file is a document `planner/target@1`. A figure is `{value: 2.039e12, source: sheet}`, in the unit its key
ends in, and its source is one of those the file lists under `sources`. Throughputs are dense, never with sparsity. GPU
memory is the data sheet's figure in decimal gigabytes: boards carry binary ones, and the difference of 7 % is what
driver, context and fragmentation take. Links count one direction.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from planner.errors import InputError
from planner.files import read_text
from planner.hardware import HardwareProfile, MemoryTier
from planner.operators.sheet import GpuSheet
from planner.serde import build, schema
from planner.yaml_text import parse
from profiles.silicon.priced_gpu import gpu_operators

DIRECTORY = Path(__file__).parent / "targets"


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and the name of its source."""

    value: float
    source: str

    def __post_init__(self) -> None:
        # 80000000000 and 80e9 are one figure, and so one identity.
        object.__setattr__(self, "value", float(self.value))


@dataclass(frozen=True, slots=True)
class Curve:
    """(block bytes, bytes per second) points and the name of their source."""

    value: tuple[tuple[int, float], ...]
    source: str


@dataclass(frozen=True, slots=True)
class TargetTier:
    """One memory of a target, as its file gives it."""

    name: Literal["hbm", "dram", "flash"]
    capacity_bytes: Figure
    read_bytes_per_s: Figure
    read_curve: Curve | None = None


@dataclass(frozen=True, slots=True)
class Throughput:
    """Dense matrix throughput by type."""

    fp32: Figure | None = None
    fp16: Figure | None = None
    bf16: Figure | None = None
    fp8: Figure | None = None
    int8: Figure | None = None


@dataclass(frozen=True, slots=True)
class Chip:
    """What operator times depend on beside throughput and memory, GPUs only: see planner.operators.sheet."""

    architecture: str
    sm_count: Figure
    boost_hz: Figure
    l2_bytes: Figure
    shared_bytes_per_sm: Figure
    link_bytes_per_s: Figure


@dataclass(frozen=True, slots=True)
class Target:
    """A target file. `sources` maps the short names that figures give to what they stand for.

    The error of a GPU whose `chip` is described is that of its operator models, unless the file gives one.
    """

    title: str
    kind: Literal["cpu", "gpu"]
    float_bits: Literal[16, 32]
    tiers: tuple[TargetTier, ...]
    matmul_flop_per_s: Throughput
    layer_overhead_s: Figure
    step_overhead_s: Figure
    kernel_overhead_s: Figure
    efficiency: Figure
    sources: Mapping[str, str]
    date: str
    error: Figure | None = None
    notes: tuple[str, ...] = ()
    chip: Chip | None = None


def targets() -> tuple[str, ...]:
    """The names of the targets that come with the planner, in alphabetical order.

    >>> "a100" in targets()
    True
    """
    return tuple(sorted(path.stem for path in DIRECTORY.glob("*.yaml")))


def target(name: str) -> HardwareProfile:
    """The target of that name, or of a user's own YAML file; InputError with the nearest known name.

    >>> target("h100").fastest.read_bytes_per_s
    3350000000000.0
    """
    return hardware_profile_from_yaml(_path(name))


def _path(name: str) -> Path:
    if name in targets():
        return DIRECTORY / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    near = get_close_matches(name.lower(), targets(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(
        f"unknown target {name!r}; {hint}known: {', '.join(targets())}; or give 'local', or a target's YAML file"
    )


def hardware_profile_from_yaml(path: Path) -> HardwareProfile:
    """The profile in a file: a target with sources, or one that was measured and dumped."""
    data = parse(read_text(path), str(path))
    if isinstance(data, dict) and str(data.get("schema")).startswith(schema(HardwareProfile).partition("@")[0]):
        return build(data, HardwareProfile, str(path))
    return _profile(build(data, Target, str(path)), path)


def _document(path: Path) -> Target:
    return build(parse(read_text(path), str(path)), Target, str(path))


def gpu_sheet(name: str) -> GpuSheet:
    """The data sheet of a GPU target, or of a user's own target file; InputError where it has no `chip`.

    >>> gpu_sheet("a100").sm_count
    108
    """
    path = _path(name)
    return _sheet(_document(path), path)


def _sheet(document: Target, path: Path) -> GpuSheet:
    if document.chip is None:
        raise InputError(f"{path}: $.chip: is missing; operator times are predicted for GPUs whose chip is described")
    tiers = {tier.name: tier for tier in document.tiers}
    if not {"hbm", "dram"} <= set(tiers):
        raise InputError(f"{path}: $.tiers: found {', '.join(tiers)}; a GPU has hbm, and dram behind its link")
    return GpuSheet(
        name=path.stem,
        architecture=document.chip.architecture,
        sm_count=int(document.chip.sm_count.value),
        boost_hz=document.chip.boost_hz.value,
        l2_bytes=int(document.chip.l2_bytes.value),
        shared_bytes_per_sm=int(document.chip.shared_bytes_per_sm.value),
        memory_bytes_per_s=tiers["hbm"].read_bytes_per_s.value,
        memory_bytes=int(tiers["hbm"].capacity_bytes.value),
        flop_per_s=_rates(document),
        link_bytes_per_s=document.chip.link_bytes_per_s.value,
        pcie_bytes_per_s=tiers["dram"].read_bytes_per_s.value,
    )


def _rates(document: Target) -> tuple[tuple[str, float], ...]:
    rates = ((f.name, getattr(document.matmul_flop_per_s, f.name)) for f in fields(Throughput))
    return tuple((name, figure.value) for name, figure in rates if figure is not None)


def _profile(document: Target, path: Path) -> HardwareProfile:
    cited = tuple(_figures(document))
    for key, source in cited:
        if source not in document.sources:
            near = get_close_matches(source, document.sources, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"listed: {', '.join(document.sources) or 'none'}"
            raise InputError(f"{path}: $.{key}.source: {source!r} is not listed under sources; {hint}")
    unused = set(document.sources) - {source for _, source in cited}
    if unused:
        raise InputError(f"{path}: $.sources.{min(unused)}: no figure cites it; cite it or drop it")
    try:
        profile = HardwareProfile(
            name=path.stem,
            kind=document.kind,
            float_bits=document.float_bits,
            tiers=tuple(_tier(tier) for tier in document.tiers),
            matmul_flop_per_s=_rates(document),
            layer_overhead_s=document.layer_overhead_s.value,
            step_overhead_s=document.step_overhead_s.value,
            kernel_overhead_s=document.kernel_overhead_s.value,
            provenance="datasheet",
            error=0.0 if document.error is None else document.error.value,
            sources=tuple(f"{key}: {document.sources[source]}" for key, source in cited),
            date=document.date,
            notes=(document.title, *document.notes),
            efficiency=document.efficiency.value,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if document.chip is None:
        if document.error is None:
            raise InputError(f"{path}: $.error: is missing; without a chip nothing says how far predictions are off")
        return profile
    priced = gpu_operators(_sheet(document, path))
    error_known = priced.error if document.error is None else document.error.value
    return replace(profile, operators=priced.operators, error=error_known)


def _tier(tier: TargetTier) -> MemoryTier:
    capacity = tier.capacity_bytes.value
    if not capacity.is_integer():
        raise InputError(f"tier {tier.name}: capacity_bytes: found {capacity}; must be a whole number of bytes")
    curve = tuple((block, float(rate)) for block, rate in tier.read_curve.value) if tier.read_curve else ()
    return MemoryTier(tier.name, int(capacity), tier.read_bytes_per_s.value, curve)


def _figures(document: Target) -> Iterator[tuple[str, str]]:
    """(place in the file, source) of every figure."""
    chip = () if document.chip is None else (document.chip,)
    parts = (document, document.matmul_flop_per_s, *document.tiers, *chip)
    for part in parts:
        match part:
            case TargetTier():
                within = f"tiers.{part.name}."
            case Throughput():
                within = "matmul_flop_per_s."
            case Chip():
                within = "chip."
            case _:
                within = ""
        for field in fields(part):
            value = getattr(part, field.name)
            if isinstance(value, Figure | Curve):
                yield within + field.name, value.source
