"""Why a plan is as it is, from the plan alone: what was asked, what it costs, what sites got, what more would buy."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import chain

from planner.errors import InputError
from planner.mismatch import did_you_mean
from planner.plan import Costs, Interval, Plan
from planner.serde import document
from planner.space import Choice, Full, KvChoice, KvFormat, KvSite, Requires, Site, WeightFormat
from planner.yaml_text import Plain

BOUGHT = {"_bytes": (1e6, "MB"), "_s": (1e-3, "ms"), "_nats": (1e-3, "milli-nat")}
"""How much of a limit is shown as bought, by the unit that ends its name."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A plan, and the sites to tell about; all of them if none is named."""

    plan: Plan
    sites: tuple[Site, ...]

    def as_json(self) -> dict[str, Plain]:
        body = document(self.plan)
        sites: list[Plain] = [{"site": str(s), "choice": phrase(self.plan.chosen[s])} for s in self.sites]
        kept = ("name", "workload", "goal", "provenance", "solver", "predicted", "measured")
        return {**{name: body[name] for name in kept}, "sites": sites}

    def as_text(self) -> str:
        chosen = self.plan.chosen
        if len(self.sites) < len(chosen):
            told = [(f"{site}: {phrase(chosen[site])}", *_relations(self.plan, site)) for site in self.sites]
            return "\n".join([*chain.from_iterable(told), *_bought(self.plan)])
        return "\n".join([*_asked(self.plan), "", *_costs(self.plan), "", *_groups(self.plan), "", *_bought(self.plan)])


def explain(plan: Plan, named: Iterable[str]) -> Explanation:
    """The explanation of a plan, or of those of its sites whose names contain one of `named`."""
    sites: dict[Site, None] = {}
    for part in named:
        matching = [site for site in plan.chosen if part in str(site)]
        if not matching:
            raise InputError(f"--site {part!r}: no such site in plan {plan.name}{_near(part, plan)}")
        sites |= dict.fromkeys(matching)
    return Explanation(plan, tuple(sites or plan.chosen))


def _near(part: str, plan: Plan) -> str:
    hint = did_you_mean(part, map(str, plan.chosen))
    return hint if "did you mean" in hint else f"; its sites are as {', '.join(map(str, list(plan.chosen)[:1]))}"


def phrase(choice: Choice) -> str:
    """A choice in one short phrase.

    >>> from planner.space import Window
    >>> dram = (("dram", 1.0),)
    >>> phrase(KvChoice(Window(64, 0.125), KvFormat(4, "rotated"), KvFormat(3, "rotated"), 4, dram))
    'newest 64 + 0.125 of context, 4 sinks, k 4-bit rotated, v 3-bit rotated, dram'
    """
    tiers = " + ".join(name if share == 1 else f"{share:.0%} {name}" for name, share in choice.tier)
    if not isinstance(choice, KvChoice):
        return f"{format_name(choice.format)}, {tiers}"
    span = choice.span
    kept = "every token" if isinstance(span, Full) else f"newest {span.alpha}"
    if not isinstance(span, Full) and span.beta:
        kept += f" + {span.beta:.4g} of context"
    return f"{kept}, {choice.sinks} sinks, k {format_name(choice.k)}, v {format_name(choice.v)}, {tiers}"


def format_name(form: KvFormat | WeightFormat) -> str:
    """A format as people read it.

    >>> format_name(WeightFormat(4, "grouped", 32)), format_name(KvFormat(3, "rotated"))
    ('4-bit grouped by 32', '3-bit rotated')
    """
    group = f" by {form.group}" if isinstance(form, WeightFormat) and form.scheme == "grouped" else ""
    return f"{form.bits:g}-bit {form.scheme}{group}"


def asked(plan: Plan) -> str:
    """The goal in one phrase."""
    limits = plan.goal.limits
    given = [(f.name, getattr(limits, f.name)) for f in fields(limits) if getattr(limits, f.name) is not None]
    within = ", ".join(f"{name} <= {value:,}" for name, value in given)
    return f"minimise {plan.goal.minimise}" + (f" within {within}" if within else "")


def _asked(plan: Plan) -> list[str]:
    load, made = plan.workload, plan.provenance
    return [
        f"{plan.name}: {asked(plan)}",
        f"for contexts of {', '.join(map(str, load.context_tokens))} tokens, {load.new_tokens} of them generated, "
        f"batch {load.batch}, on {made.target} by {made.backend}",
        f"passes {', '.join(made.passes)}; seed {made.seed}; planner {made.planner_version}",
    ]


def _costs(plan: Plan) -> list[str]:
    told = [("predicted", plan.predicted), ("measured", plan.measured)]
    given = [(name, costs) for name, costs in told if costs is not None]
    if not given:
        return ["no costs: the plan was neither priced nor run"]
    rows = [["", *(f"{name} ({costs.source})" for name, costs in given)]]
    for own in fields(Costs):
        values = [getattr(costs, own.name) for _, costs in given]
        if own.name != "source" and any(value is not None for value in values):
            rows.append([own.name, *map(figure, values)])
    return table(rows)


def figure(value: int | float | Interval | None) -> str:
    """A cost as a table shows it."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows: list[list[str]]) -> list[str]:
    """Rows as lines of aligned columns, the first to the left.

    >>> table([["", "a"], ["kv_bytes", "12"]])
    ['           a', 'kv_bytes  12']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return lines


def _groups(plan: Plan) -> list[str]:
    """Every setting in use and the sites that have it."""
    groups: dict[tuple[bool, str], list[Site]] = {}
    for site, choice in plan.chosen.items():
        groups.setdefault((isinstance(site, KvSite), phrase(choice)), []).append(site)
    lines = [f"{len(plan.kv)} KV heads and {len(plan.weights)} matrices in {len(groups)} settings:"]
    for (kv, setting), sites in sorted(groups.items(), key=lambda item: (not item[0][0], -len(item[1]), item[0][1])):
        lines.append(f"  {len(sites):4} {'heads' if kv else 'matrices'}: {setting}")
        lines.append(f"       {_listed(sites)}")
    return lines


def _listed(sites: list[Site]) -> str:
    """The sites in short: layer.head for heads, and not more than a line of names."""
    names = [f"{s.layer}.{s.kv_head}" if isinstance(s, KvSite) else s.tensor for s in sites]
    shown: list[str] = []
    for name in names:
        if sum(map(len, shown)) + 2 * len(shown) + len(name) > 90:
            return f"{', '.join(shown)} and {len(names) - len(shown)} more"
        shown.append(name)
    return ", ".join(shown)


def _relations(plan: Plan, site: Site) -> list[str]:
    """The relations that bind a site, each with what the other sites got."""
    lines = []
    for relation in plan.constraints:
        named = (relation.site, relation.other) if isinstance(relation, Requires) else relation.sites
        if site in named:
            others = "; ".join(f"{s}: {phrase(plan.chosen[s])}" for s in named if s != site)
            rule = type(relation).__name__ + ("" if isinstance(relation, Requires) else f" {relation.attribute}")
            lines.append(f"  bound by {rule} to {others or 'no other site'}")
    return lines


def _bought(plan: Plan) -> list[str]:
    """What the solver says about itself, and what one more unit of each binding limit would buy."""
    if plan.solver is None:
        return ["not solved: the choice was given"]
    lines = [f"solver: {plan.solver.status}, within {plan.solver.gap:.2%} of the best possible"]
    for limit, price in plan.solver.shadow_prices:
        amount, unit = next((v for ending, v in BOUGHT.items() if limit.endswith(ending)), (1.0, "unit"))
        lines.append(f"one more {unit} of {limit} would change {plan.goal.minimise} by {price * amount:+.3g}")
    return lines
