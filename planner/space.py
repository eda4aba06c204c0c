"""The intermediate representation: sites, the candidates offered at each, and the relations between sites.

    Space = sites x candidates + constraints
    Plan  = a Space with one candidate per site (planner.plan adds provenance and costs)

Passes map a space to a space: `widen` offers more, `narrow` drops. Nothing here knows a price.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from planner.errors import InvalidSpace

# --- sites: where one decision is taken ---------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class KvSite:
    """The cache of one KV head. Its query heads share it, so their losses add before anything is solved."""

    layer: int
    kv_head: int

    def __str__(self) -> str:
        return f"layer {self.layer} kv head {self.kv_head}"


@dataclass(frozen=True, slots=True, order=True)
class WeightSite:
    """One weight matrix, by its name in the checkpoint; `layer` is -1 for the embedding and the head."""

    layer: int
    tensor: str

    def __str__(self) -> str:
        return self.tensor


Site = KvSite | WeightSite

# --- candidates: one setting of one site --------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class Full:
    """Every token stays in the cache."""


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """The newest alpha + beta * context tokens stay, and the protected sinks (MoA's elastic rule)."""

    alpha: int
    beta: float = 0.0

    def tokens(self, context_tokens: int) -> int:
        """Slots of the window at a context length.

        >>> Window(64, 0.125).tokens(1024), Window(64).tokens(10)
        (192, 10)
        """
        return min(context_tokens, max(1, round(self.alpha + self.beta * context_tokens)))


Span = Full | Window


@dataclass(frozen=True, slots=True, order=True)
class KvFormat:
    """How keys or values are stored, token by token.

    `float` at 16 or 32 bits is the number itself. Below that a token's vector of one head is coded by itself, with no
    group over tokens and so no unquantised remainder: `scheme` names the code, which a runtime defines and prices.
    planner.formats tells what each scheme is.
    """

    bits: float
    scheme: str = "float"


FLOAT16 = KvFormat(16)
FLOAT32 = KvFormat(32)


Tier = tuple[tuple[str, float], ...]
"""(memory tier, share of the bytes) pairs whose shares sum to 1, fastest tier first."""


class HashedOnce:
    """Room for a hash: a candidate is looked up far more often than it is made, and hashing it takes a microsecond."""

    __slots__ = ("_hash",)
    _hash: int


@dataclass(frozen=True, slots=True, order=True)
class KvChoice(HashedOnce):
    """One KV head's cache: which tokens stay, at how many bits keys and values, in which memory.

    The first `sinks` tokens are protected: always kept, as float16 (float32 where the format is).
    """

    span: Span
    k: KvFormat
    v: KvFormat
    sinks: int
    tier: Tier

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            value = hash((self.span, self.k, self.v, self.sinks, self.tier))
            object.__setattr__(self, "_hash", value)
            return value


GgmlScheme = Literal[
    "bf16", "q8_0", "q6_K", "q5_1", "q5_0", "q5_K", "q4_1", "q4_0", "iq4_nl", "q4_K", "iq4_xs", "q3_K", "q2_K"
]


@dataclass(frozen=True, slots=True, order=True)
class WeightFormat:
    """How a matrix is stored: `float` at 16 or 32 bits, as the source has it, or rounded.

    `native` is the source's grid as it is, `exact` its codes at a width the runtime has with float32 scales, where
    products may round their inputs; `unrounded` is the same where they do not. A `grouped` matrix has `bits`-bit codes
    with one float16 scale and minimum for each `group` inputs of a row; a `block` matrix one float32 scale and no
    minimum. `ct` are compressed-tensors' symmetric integers, a scale for each group, or for each row where `group` is
    0; `fp8` is e4m3 with a float32 scale for each row. The others are ggml's types of that name, in blocks of `group`.
    """

    bits: float
    scheme: Literal["float", "native", "exact", "unrounded", "grouped", "block", "ct", "fp8", GgmlScheme] = "float"
    group: int = 0

    @property
    def as_source(self) -> bool:
        """Whether it holds the numbers that the source has on its grid, and no others."""
        return self.scheme in ("native", "exact", "unrounded")


@dataclass(frozen=True, slots=True, order=True)
class WeightChoice:
    """One matrix's storage format and the memory it lives in."""

    format: WeightFormat
    tier: Tier


Choice = KvChoice | WeightChoice

# --- constraints: what single candidates cannot say ---------------------------------------------

Attribute = Literal["span", "window", "k", "v", "coded", "format", "tier", "kernel"]


def attribute(choice: Choice, name: Attribute) -> object:
    """The value two choices must share for a constraint on `name`; `kernel` is all that makes a kernel class.

    `window` and `coded` have no value, None, where every token stays and where keys and values are floats.
    """
    if isinstance(choice, KvChoice):
        match name:
            case "span":
                return choice.span
            case "window":
                return None if isinstance(choice.span, Full) else choice.span
            case "coded":
                return None if choice.k.scheme == choice.v.scheme == "float" else (choice.k, choice.v)
            case "k":
                return choice.k
            case "v":
                return choice.v
            case "kernel":
                return (choice.span, choice.k, choice.v, choice.sinks)
            case "tier":
                return choice.tier
            case "format":
                return None
    match name:
        case "format" | "kernel":
            return choice.format
        case "tier":
            return choice.tier
        case _:
            return None


@dataclass(frozen=True, slots=True)
class AtMostDistinct:
    """The sites together use at most `most` different values of an attribute (kernel classes of a layer).

    No value counts as none: at most one `window` lets every layer be windowed or full.
    """

    sites: tuple[Site, ...]
    attribute: Attribute
    most: int


@dataclass(frozen=True, slots=True)
class Same:
    """The sites agree on an attribute (q, k and v share a weight format where a runtime fuses them)."""

    sites: tuple[Site, ...]
    attribute: Attribute


@dataclass(frozen=True, slots=True)
class Requires:
    """Where `site` takes one of `choices`, `other` takes one of `other_choices`."""

    site: Site
    choices: frozenset[Choice]
    other: Site
    other_choices: frozenset[Choice]


Constraint = AtMostDistinct | Same | Requires

# --- the space ----------------------------------------------------------------------------------

Chosen = Mapping[Site, Choice]


@dataclass(frozen=True, slots=True)
class Space:
    """Every site with the candidates offered for it, the one it started from first."""

    candidates: Mapping[Site, tuple[Choice, ...]]
    constraints: tuple[Constraint, ...] = ()

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(self.candidates)

    @property
    def size(self) -> int:
        """Candidates over all sites."""
        return sum(len(choices) for choices in self.candidates.values())

    def widen(self, variants: Callable[[Site, Choice], Iterable[Choice]], everywhere: bool = False) -> "Space":
        """Offer every variant of every candidate, and keep every candidate.

        A pass sets its own axis absolutely, whatever the candidate it starts from had there; then widening commutes,
        repeats freely and never worsens the optimum. Candidates are kept in one order, so equal sets are equal spaces.
        `everywhere` says that a candidate's variants are the same at every site: those offered the same are asked once.
        """

        # Sites are offered much the same, and ordering is what takes time: each set of candidates is ordered once.
        ordered: dict[tuple[Choice, frozenset[Choice]], tuple[Choice, ...]] = {}
        alike: dict[int, tuple[Choice, ...]] = {}
        spelled: dict[Choice, str] = {}

        def place(choice: Choice) -> str:
            found = spelled.get(choice)
            if found is None:
                found = spelled[choice] = repr(choice)
            return found

        def widened(site: Site, choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
            if everywhere and id(choices) in alike:
                return alike[id(choices)]
            every = frozenset({variant for choice in choices for variant in variants(site, choice)}.union(choices))
            key = choices[0], every
            if key not in ordered:
                ordered[key] = (choices[0], *sorted(every - {choices[0]}, key=place))
            alike[id(choices)] = ordered[key]
            return ordered[key]

        return Space({site: widened(site, choices) for site, choices in self.candidates.items()}, self.constraints)

    def narrow(self, keep: Callable[[Site, tuple[Choice, ...]], tuple[Choice, ...]]) -> "Space":
        """Keep, site by site, what `keep` returns of its candidates."""
        return Space({site: keep(site, choices) for site, choices in self.candidates.items()}, self.constraints)

    def constrain(self, *constraints: Constraint) -> "Space":
        """Add relations between sites; one that is there already is not added twice."""
        new = tuple(c for c in constraints if c not in self.constraints)
        return Space(self.candidates, self.constraints + new)

    def choose(self, chosen: Chosen) -> "Space":
        """The space in which every site has the one candidate of `chosen`."""
        return Space({site: (chosen[site],) for site in self.candidates}, self.constraints)

    @property
    def chosen(self) -> dict[Site, Choice]:
        """The one candidate of every site; InvalidSpace where a site still has several."""
        for site, choices in self.candidates.items():
            if len(choices) != 1:
                raise InvalidSpace(f"{site} has {len(choices)} candidates where a plan needs one")
        return {site: choices[0] for site, choices in self.candidates.items()}


C = TypeVar("C", bound=Constraint)


def violated(chosen: Chosen, constraints: Iterable[C]) -> C | None:
    """The first constraint that a full choice breaks, or None."""
    for constraint in constraints:
        match constraint:
            case AtMostDistinct(sites, name, most):
                if len({attribute(chosen[s], name) for s in sites} - {None}) > most:
                    return constraint
            case Same(sites, name):
                if len({attribute(chosen[s], name) for s in sites}) > 1:
                    return constraint
            case Requires(site, choices, other, other_choices):
                if chosen[site] in choices and chosen[other] not in other_choices:
                    return constraint
    return None


def check(space: Space, after: str) -> None:
    """Raise InvalidSpace, naming the pass, where a space breaks the rules of the representation."""
    alike: set[tuple[type, int]] = set()
    for site, choices in space.candidates.items():
        if not choices:
            raise InvalidSpace(f"{after}: {site} is left with no candidate")
        if (type(site), id(choices)) in alike:  # sites often share one tuple of candidates
            continue
        alike.add((type(site), id(choices)))
        if len(set(choices)) != len(choices):
            raise InvalidSpace(f"{after}: {site} offers the same candidate twice")
        wanted = KvChoice if isinstance(site, KvSite) else WeightChoice
        for choice in choices:
            if not isinstance(choice, wanted):
                raise InvalidSpace(f"{after}: {site} offers {choice}, which is no {wanted.__name__}")
        for tier in dict.fromkeys([choice.tier for choice in choices]):
            if abs(sum(share for _, share in tier) - 1) > 1e-9:
                raise InvalidSpace(f"{after}: the tier shares of {site} sum to {sum(s for _, s in tier)}, not 1")
    known = set(space.candidates)
    for constraint in space.constraints:
        named = (constraint.site, constraint.other) if isinstance(constraint, Requires) else constraint.sites
        for site in named:
            if site not in known:
                raise InvalidSpace(f"{after}: a constraint names {site}, which is no site of this space")
