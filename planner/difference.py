"""What differs between two plans: what was asked, what they cost, and what each site got."""

from dataclasses import dataclass, fields

from planner.explain import asked, figure, phrase, table
from planner.plan import Costs, Plan
from planner.space import Site
from planner.yaml_text import Plain


@dataclass(frozen=True, slots=True)
class Difference:
    """Two plans side by side."""

    a: Plan
    b: Plan

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that got something else, or that only one of the plans has."""
        a, b = self.a.chosen, self.b.chosen
        return tuple(site for site in {**a, **b} if a.get(site) != b.get(site))

    def got(self, plan: Plan, site: Site) -> str:
        choice = plan.chosen.get(site)
        return "no such site" if choice is None else phrase(choice)

    def as_json(self) -> dict[str, Plain]:
        sites: list[Plain] = [{"site": str(s), "a": self.got(self.a, s), "b": self.got(self.b, s)} for s in self.sites]
        asks: list[Plain] = [{"what": what, "a": a, "b": b} for what, a, b in self._asked()]
        return {"asked": asks, "costs": [{"what": w, "a": a, "b": b} for w, a, b in self._costs()], "sites": sites}

    def as_text(self) -> str:
        lines = [f"{what}: {a} -> {b}" for what, a, b in self._asked()]
        costs = self._costs()
        if costs:
            lines += table([["", "a", "b"], *map(list, costs)])
        lines += [f"{site}: {self.got(self.a, site)} -> {self.got(self.b, site)}" for site in self.sites]
        return "\n".join(lines) if lines else "the plans are the same"

    def _asked(self) -> list[tuple[str, str, str]]:
        made = [
            (own.name, str(getattr(self.a.provenance, own.name)), str(getattr(self.b.provenance, own.name)))
            for own in fields(self.a.provenance)
        ]
        asks = [
            ("name", self.a.name, self.b.name),
            ("goal", asked(self.a), asked(self.b)),
            ("workload", str(self.a.workload), str(self.b.workload)),
        ]
        return [row for row in (*asks, *made) if row[1] != row[2]]

    def _costs(self) -> list[tuple[str, str, str]]:
        rows = []
        for when in ("predicted", "measured"):
            a, b = getattr(self.a, when), getattr(self.b, when)
            for own in fields(Costs):
                if own.name != "source":
                    left, right = (figure(None if c is None else getattr(c, own.name)) for c in (a, b))
                    if left != right:
                        rows.append((f"{when} {own.name}", left, right))
        return rows
