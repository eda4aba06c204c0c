"""Import a published plan: read it, fold it to KV heads, and price it for a model and a target; nothing is measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from planner.compile.prepare import known_target, measured_here, opened, shapes_only
from planner.compile.priced import priced_in
from planner.compile.runtimes import choose, runtime
from planner.executor import Progress
from planner.pipeline import PassContext, dense
from planner.plan import Plan
from planner.published import Published, PublishedFile, stored_density
from planner.report import Row, costs_table, plan_json
from planner.request import Request
from planner.serde import dump_file
from planner.space import Choice, KvChoice, Site, Space
from planner.spec import ModelSpec

if TYPE_CHECKING:
    from planner.hardware import HardwareProfile

METHODS = {"moa": "MoA", "prefixkv": "PrefixKV", "duo": "DuoAttention"}


@dataclass(frozen=True, slots=True)
class Density:
    """The share of the cache that is kept at a length: as published, for each query head by itself, and as it costs."""

    context_tokens: int
    published: float
    folded: float


@dataclass(frozen=True, slots=True)
class ImportReport:
    """An imported plan beside the dense one, what folding did to it, and what it does not carry over."""

    published: Published
    dense: Plan
    plan: Plan
    densities: tuple[Density, ...]
    mixed: int
    query_heads: int
    out: str

    @property
    def method(self) -> str:
        return METHODS[self.published.method]

    def as_json(self) -> dict[str, object]:
        return {
            "method": self.published.method,
            "file": self.published.file,
            "sha256": self.published.sha256,
            "out": self.out,
            "query_heads": self.query_heads,
            "kv_heads": len(self.plan.kv),
            "kv_heads_mixed": self.mixed,
            "density": [
                {"context_tokens": d.context_tokens, "published": d.published, "folded": d.folded}
                for d in self.densities
            ],
            "notes": list(self.published.notes),
            "dense": plan_json(self.dense),
            "planned": plan_json(self.plan),
        }

    def as_text(self) -> str:
        heads = len(self.plan.kv)
        lines = [
            f"{self.published.file}: a plan of {self.method} for {len(self.published.rules)} layers, told for"
            f" {self.published.told_for}; {self.query_heads} query heads share {heads} KV heads",
            *(
                f"density at {d.context_tokens:,} tokens: {d.published:.3f} as published, each query head by itself;"
                f" {d.folded:.3f} as it costs on KV heads"
                for d in self.densities
            ),
        ]
        if self.mixed:
            lines.append(
                f"{self.mixed} of {heads} KV heads have query heads that disagree; each keeps what the largest asks for"
            )
        lines += ["", *costs_table((Row("dense", self.dense), Row("imported", self.plan))), ""]
        lines += [f"note: {note}" for note in self.published.notes]
        return "\n".join([*lines, f"wrote {self.out}; run it with: planner compile MODEL.yaml --plan {self.out}"])


def import_published(
    request: Request, file: PublishedFile, *, target: str, out: Path, backend: str | None, progress: Progress
) -> ImportReport:
    """Fold a published plan for a request's model, price it on a target, and write it to `out`."""
    checkpoint = opened(request)
    published = file.read(checkpoint.spec, request.workload)
    ctx = unmeasured(request, checkpoint.spec, checkpoint.config, target, backend, progress)
    start = dense(ctx)
    plan = priced_in(
        ctx,
        f"{request.name} {published.method}",
        Space(imported(published, start, ctx)),
        passes=(published.spelled,),
    )
    spec, contexts = ctx.spec, ctx.workload.context_tokens
    report = ImportReport(
        published=published,
        dense=priced_in(ctx, f"{request.name} dense", start),
        plan=plan,
        densities=tuple(Density(n, published.density(spec, n), stored_density(plan.chosen, spec, n)) for n in contexts),
        mixed=published.mixed(spec, ctx.workload.longest_tokens),
        query_heads=sum(layer.q_heads for layer in spec.layers),
        out=str(out),
    )
    dump_file(plan, out)
    return report


def imported(published: Published, start: Space, ctx: PassContext) -> dict[Site, tuple[Choice, ...]]:
    """The candidates of a space with the published spans in the place of its own; formats and tiers stay."""
    contexts = ctx.workload.context_tokens
    found = dict(start.candidates)
    for site, rules in published.groups(ctx.spec):
        (choice,) = start.candidates[site]
        if isinstance(choice, KvChoice):
            found[site] = (published.choice(rules, ctx.spec.layers[site.layer], contexts, choice),)
    return found


def unmeasured(
    request: Request, spec: ModelSpec, config: str, target: str, backend: str | None, progress: Progress
) -> PassContext:
    """A context without prices of losses, for a plan that no runtime has to carry yet."""
    named: HardwareProfile | None = None if target == "local" else known_target(target)
    name, _ = choose(backend, "local" if named is None else named, config)
    machine = measured_here(name, progress) if named is None else named
    capabilities = shapes_only(runtime(name).capabilities)
    return PassContext(spec, request.workload, request.goal, machine, capabilities, None)
