"""The best few variants of every kernel a plan uses: all are compiled for the target, dropped or ranked, and kept."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import cast

from backends.triton import sources
from backends.triton.chips import chip
from backends.triton.crew import Crew, Job, WorkerBroke
from backends.triton.predicted import Gpu, Work, seconds, waves
from backends.triton.report import Dropped, Resources
from backends.triton.store import LAYOUT, CompiledKernel, Store
from planner.errors import InputError
from planner.executor import Progress
from planner.files import read_text, write_text
from planner.serde import build, dump_json

COMPILER = Job("backends.triton.worker", Path(__file__).resolve().parents[2])

KEPT_VARIANTS = 4
"""Kept for a choice by timing on the first run where a GPU is present."""

ALIKE = 1.1
"""Predictions within this factor are not told apart: they are off by more than that."""


@dataclass(frozen=True, slots=True)
class Use:
    """One kernel module at one shape: `shape` is the JSON object of the fields of its Shape, keys sorted."""

    module: str
    shape: str


def use(module: str, shape: Mapping[str, object]) -> Use:
    """A use, its shape spelled in one way.

    >>> use("product", {"b": 1, "a": (2, 3)})
    Use(module='product', shape='{"a": [2, 3], "b": 1}')
    """
    return Use(module, json.dumps(shape, sort_keys=True))


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run a kernel, as the kernels' own Variant."""

    tiles: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int

    def __str__(self) -> str:
        tiles = " ".join(f"{name}={size}" for name, size in self.tiles)
        return f"{tiles} warps={self.num_warps} stages={self.num_stages}"


@dataclass(frozen=True, slots=True)
class KeptLaunch:
    """One kernel of a variant: types and constants it was compiled for, its grid, work and resources.

    `key` names its binary in the store, `waves` the rounds in which the target runs its programs.
    """

    kernel: str
    key: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, str]
    entry: str
    work: Work
    resources: Resources
    waves: int
    predicted_s: float


@dataclass(frozen=True, slots=True)
class KeptVariant:
    """A variant that runs on the target without spills, and how long it is predicted to take."""

    variant: Variant
    predicted_s: float
    launches: tuple[KeptLaunch, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """What it is compiled to."""
        return tuple(launch.key for launch in self.launches)


@dataclass(frozen=True, slots=True)
class DroppedVariant:
    """A variant that does not run on the target, or not well, and why."""

    variant: Variant
    kernel: str
    reason: str


@dataclass(frozen=True, slots=True)
class FoundKernel:
    """The best variants of a use for a target, best first, of `ranked` that run there well.

    None is kept where all were dropped, or the module has no kernel for the shape (`refused`).
    """

    module: str
    shape: str
    chip: str
    kept: tuple[KeptVariant, ...]
    ranked: int
    dropped: tuple[DroppedVariant, ...]
    refused: str = ""

    @property
    def without(self) -> str:
        """Why no variant is kept, or nothing."""
        if self.kept:
            return ""
        return self.refused or "; ".join(dict.fromkeys(each.reason for each in self.dropped))


@dataclass(frozen=True, slots=True)
class _Spelled:
    """One launch of a variant before it is compiled: `at` is its place in the variant."""

    at: int
    kernel: str
    key: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, str]
    work: Work


@dataclass(frozen=True, slots=True)
class _Space:
    """A use's variants with their launches, or why there are none."""

    variants: tuple[tuple[Variant, tuple[_Spelled, ...]], ...]
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Search:
    """Searches for one target, kept under a directory; `folder` holds the kernel modules."""

    gpu: Gpu
    directory: Path
    folder: Path = sources.KERNELS

    @property
    def store(self) -> Store:
        """Where the compiled kernels are kept."""
        return Store(self.directory / "compiled")

    def run(self, uses: Sequence[Use], progress: Progress) -> dict[Use, FoundKernel]:
        """The best variants of every use. What was found before with the same sources, compiler and target is read.

        Of what was found but whose binaries are gone only the best are compiled again.
        """
        check_compiler()
        found = {each: kept for each in dict.fromkeys(uses) if (kept := self._kept(each)) is not None}
        left = [each for each in dict.fromkeys(uses) if each not in found]
        if left:
            with Crew(COMPILER) as crew:
                spaces = self._spaces(crew, left, progress)
                self._compile(crew, spaces, {}, progress)
            for each in left:
                found[each] = self._ranked(each, spaces[each])
                write_text(dump_json(found[each]), self._path(each))
        # Only now: which variants are shared depends on all uses together.
        chosen = shared({each: found[each] for each in dict.fromkeys(uses)})
        lost = {each: gone for each, kept in chosen.items() if (gone := self._gone(kept))}
        if lost:
            with Crew(COMPILER) as crew:
                self._compile(crew, self._spaces(crew, list(lost), progress), lost, progress)
        return chosen

    def _gone(self, found: FoundKernel) -> frozenset[str]:
        """Keys of the best variant whose binaries are not in the store."""
        launches = (launch for each in found.kept[:1] for launch in each.launches)
        return frozenset(launch.key for launch in launches if self.store.binary(launch.key) is None)

    def _spaces(self, crew: Crew, uses: Sequence[Use], progress: Progress) -> dict[Use, _Space]:
        requests = [self._request("spell", each) for each in uses]
        replies = crew.ask_all(requests, lambda done: progress("kernel variants", done, len(requests)))
        return {each: _space(_answered(reply)) for each, reply in zip(uses, replies, strict=True)}

    def _compile(
        self, crew: Crew, spaces: Mapping[Use, _Space], lost: Mapping[Use, frozenset[str]], progress: Progress
    ) -> None:
        """Compile what the store has not, each key once; of some uses only the keys that are lost."""
        wanted: dict[str, dict[str, object]] = {}
        for each, space in spaces.items():
            for number, (_, launches) in enumerate(space.variants):
                for launch in launches:
                    if launch.key in wanted or (each in lost and launch.key not in lost[each]):
                        continue
                    if self.store.record(launch.key) is None:
                        place = {"variant": number, "launch": launch.at, "key": launch.key}
                        wanted[launch.key] = self._request("compile", each) | place
        stage = f"kernels compiled for {self.gpu.name}"
        replies = crew.ask_all(list(wanted.values()), lambda done: progress(stage, done, len(wanted)))
        for key, reply in zip(wanted, replies, strict=True):
            if isinstance(reply, WorkerBroke) and reply.crashed:
                self.store.keep(key, Dropped(f"the compiler {reply.reason}"))
            else:
                _answered(reply)

    def _ranked(self, use: Use, space: _Space) -> FoundKernel:
        kept: list[KeptVariant] = []
        dropped: list[DroppedVariant] = []
        for variant, launches in space.variants:
            records = [self._record(launch.key) for launch in launches]
            reason = next(
                ((launch.kernel, r.dropped.reason) for launch, r in zip(launches, records, strict=True) if r.dropped),
                None,
            )
            if reason is not None:
                dropped.append(DroppedVariant(variant, *reason))
                continue
            priced = tuple(self._priced(variant, pair) for pair in zip(launches, records, strict=True))
            kept.append(KeptVariant(variant, sum(each.predicted_s for each in priced), priced))
        kept.sort(key=lambda each: each.predicted_s)  # stable: what is predicted alike stays in the module's order
        best = tuple(kept[:KEPT_VARIANTS])
        return FoundKernel(use.module, use.shape, self.gpu.architecture, best, len(kept), tuple(dropped), space.refused)

    def _priced(self, variant: Variant, pair: tuple[_Spelled, CompiledKernel]) -> KeptLaunch:
        launch, record = pair
        if record.resources is None:
            raise InputError(f"{self.directory}: the record of {launch.kernel} is not whole; remove the directory")
        warp_size = chip(self.gpu.architecture).warp_size
        return KeptLaunch(
            launch.kernel,
            launch.key,
            launch.signature,
            launch.constexprs,
            record.entry,
            launch.work,
            record.resources,
            waves(launch.work, record.resources, self.gpu),
            seconds(launch.work, record.resources, variant.num_stages, warp_size, self.gpu),
        )

    def _record(self, key: str) -> CompiledKernel:
        record = self.store.record(key)
        if record is None:
            raise InputError(f"{self.directory}: a compiled kernel vanished while it was used; run again")
        return record

    def _request(self, do: str, use: Use) -> dict[str, object]:
        return {
            "do": do,
            "folder": str(self.folder),
            "module": use.module,
            "shape": json.loads(use.shape),
            "chip": self.gpu.architecture,
            "store": str(self.store.directory),
        }

    def _path(self, use: Use) -> Path:
        """Where the result of a search is kept: by all that decides it."""
        parts = [LAYOUT, KEPT_VARIANTS, use.module, use.shape, sources.source_sha256(self.folder, use.module)]
        text = json.dumps([*parts, repr(self.gpu), _compiler(), _code_sha256()])
        return self.directory / "found" / f"{hashlib.sha256(text.encode()).hexdigest()}.json"

    def _kept(self, use: Use) -> FoundKernel | None:
        """What an earlier search found."""
        path = self._path(use)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            return None
        try:
            return build(json.loads(read_text(path)), FoundKernel, str(path))
        except (InputError, ValueError):
            return None


def shared(found: Mapping[Use, FoundKernel]) -> dict[Use, FoundKernel]:
    """The same with fewer kernels: of variants that are predicted alike each use has the one first that most uses have.

    A kernel that serves many layers is compiled and loaded once.
    """
    left, result = {each: _alike(kernel) for each, kernel in found.items() if kernel.kept}, dict(found)
    while left:
        wanted = Counter(keys for variants in left.values() for keys in variants)
        keys = max(wanted, key=wanted.__getitem__)  # of equals the first: the better predicted, and the same each time
        for each in [each for each, variants in left.items() if keys in variants]:
            first, kernel = left.pop(each)[keys], found[each]
            result[each] = replace(kernel, kept=(first, *(other for other in kernel.kept if other is not first)))
    return result if len(_chosen(result)) < len(_chosen(found)) else dict(found)  # greedy covers can be larger


def _alike(kernel: FoundKernel) -> dict[tuple[str, ...], KeptVariant]:
    """Variants predicted as good as the best, by what they are compiled to; of the same kernel the best predicted."""
    found: dict[tuple[str, ...], KeptVariant] = {}
    for variant in kernel.kept:
        if variant.predicted_s <= ALIKE * kernel.kept[0].predicted_s:
            found.setdefault(variant.keys, variant)
    return found


def _chosen(found: Mapping[Use, FoundKernel]) -> set[str]:
    """Keys of the best variants."""
    return {key for kernel in found.values() for best in kernel.kept[:1] for key in best.keys}


def check_compiler() -> None:
    """InputError where Triton is not installed: it ships for Linux only."""
    from importlib.util import find_spec

    if find_spec("triton") is None:
        raise InputError("kernels are compiled by triton, which is not installed here; pip install triton (Linux only)")


def _answered(reply: list[object] | WorkerBroke) -> list[object]:
    if isinstance(reply, WorkerBroke):
        raise reply
    return reply


def _space(reply: list[object]) -> _Space:
    """A use's variants from a worker's reply."""
    entries = [cast(Mapping[str, object], entry) for entry in reply]
    if entries and "refused" in entries[0]:
        return _Space((), str(entries[0]["refused"]))
    return _Space(tuple(_variant(entry) for entry in entries))


def _variant(entry: Mapping[str, object]) -> tuple[Variant, tuple[_Spelled, ...]]:
    """A variant and its launches from a worker's reply."""
    told = cast(Mapping[str, object], entry["variant"])
    tiles = tuple((str(name), int(size)) for name, size in cast(Sequence[tuple[str, int]], told["tiles"]))
    variant = Variant(tiles, cast(int, told["num_warps"]), cast(int, told["num_stages"]))
    launches = cast(Sequence[Mapping[str, object]], entry["launches"])
    return variant, tuple(_launch(at, launch) for at, launch in enumerate(launches))


def _launch(at: int, told: Mapping[str, object]) -> _Spelled:
    signature, constants = cast(Mapping[str, str], told["signature"]), cast(Mapping[str, str], told["constexprs"])
    programs, read, written, flop = (
        cast(int, told[name]) for name in ("programs", "bytes_read", "bytes_written", "flop")
    )
    work = Work(programs, read, written, flop)
    return _Spelled(at, str(told["kernel"]), str(told["key"]), signature, constants, work)


@lru_cache
def _compiler() -> str:
    return version("triton")


@lru_cache
def _code_sha256() -> str:
    """Sha256 of the code that drops and ranks."""
    here = Path(__file__).parent
    content = b"".join((here / f"{name}.py").read_bytes() for name in ("chips", "predicted", "report", "search"))
    return hashlib.sha256(content).hexdigest()
