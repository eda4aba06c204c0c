"""Read an artefact back into a plan: ours by the document it carries, another's by what its files say."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from planner import artefact
from planner.compile.priced import planner_version
from planner.errors import InputError
from planner.explain import phrase
from planner.formats import head_bytes, weight_bytes
from planner.goal import Goal, Workload
from planner.plan import Costs, Plan, Provenance
from planner.report import Row, costs_table, plan_json
from planner.serde import dump_file
from planner.space import Full, KvChoice, WeightChoice

if TYPE_CHECKING:
    from profiles.plans.stored import Stored

HERE = (("memory", 1.0),)
LONGEST_TOKENS = 2048
"""The context that a plan is written for where its files name none."""


@dataclass(frozen=True, slots=True)
class InspectReport:
    """A plan read back: of which runtime, from what, and where it was written, if anywhere."""

    plan: Plan
    what: str
    file_bytes: int
    out: str = ""

    def as_json(self) -> dict[str, object]:
        return {
            "what": self.what,
            "runtime": self.plan.provenance.backend,
            "file_bytes": self.file_bytes,
            "out": self.out or None,
            "kv": dict(self._kv()),
            "weights": dict(self._weights()),
            "planned": plan_json(self.plan),
        }

    def _kv(self) -> Mapping[str, int]:
        return Counter(phrase(choice) for _, choice in self.plan.kv)

    def _weights(self) -> Mapping[str, int]:
        return Counter(phrase(choice) for _, choice in self.plan.weights)

    def as_text(self) -> str:
        made_for = self.plan.provenance.backend
        lines = [f"{self.what} for {made_for}: {len(self.plan.kv)} KV heads, {len(self.plan.weights)} matrices"]
        lines += [f"  {count:>5} heads     {told}" for told, count in self._kv().items()]
        lines += [f"  {count:>5} matrices  {told}" for told, count in self._weights().items()]
        lines += ["", *costs_table((Row("plan", self.plan),)), f"files: {self.file_bytes:,} bytes"]
        return "\n".join([*lines, *([f"wrote {self.out}"] if self.out else [])])


def inspect_path(path: Path, out: Path | None) -> InspectReport:
    """The plan behind a directory or a file, also written as a document where asked."""
    report = found(path)
    if out is None:
        return report
    dump_file(report.plan, out)
    return InspectReport(report.plan, report.what, report.file_bytes, str(out))


def found(path: Path) -> InspectReport:
    """The plan behind a path; InputError where it holds none that can be read."""
    if not path.exists():
        raise InputError(f"{path}: does not exist; give an artefact, a GGUF file or a compressed-tensors directory")
    if path.is_dir() and (path / artefact.MANIFEST).is_file():
        files = artefact.intact(path)
        size = sum((path / name).stat().st_size for name in files.files)
        return InspectReport(artefact.read_plan(path), "an artefact of planner", size)

    from profiles.plans.stored import read_compressed_tensors, read_gguf

    if path.is_file():
        return as_plan(read_gguf(path), path.stem)
    if (path / "config.json").is_file():
        return as_plan(read_compressed_tensors(path), path.resolve().name)
    raise InputError(f"{path}: holds neither {artefact.MANIFEST} nor config.json; give an artefact or a checkpoint")


def as_plan(stored: "Stored", name: str) -> InspectReport:
    """A plan document of what some files say; what they do not say is as in the dense plan."""
    spec = stored.spec
    longest = min(LONGEST_TOKENS, spec.max_positions)
    kv = tuple((site, KvChoice(Full(), stored.cache, stored.cache, 0, HERE)) for site in spec.kv_sites)
    weights = tuple((site, WeightChoice(stored.formats[site.tensor], HERE)) for site in spec.weight_sites)
    cached = sum(head_bytes(choice, spec.layers[site.layer], longest) for site, choice in kv)
    held = sum(weight_bytes(tensor, stored.formats[tensor.name]) for tensor in spec.tensors) + spec.other_bytes
    plan = Plan(
        name=name,
        workload=Workload((longest,), new_tokens=min(128, longest // 2)),
        goal=Goal(),
        provenance=Provenance(spec.weights_sha256, "", "", "none", stored.runtime, (), 0, planner_version()),
        kv=kv,
        weights=weights,
        constraints=(),
        solver=None,
        predicted=Costs(
            source=f"bytes of the formats in {stored.what}",
            kv_bytes=cached,
            weight_bytes=held,
            memory_bytes=cached + held,
            loss_nats=None,
            decode_s=None,
            ttft_s=None,
        ),
    )
    return InspectReport(plan, stored.what, stored.file_bytes)
