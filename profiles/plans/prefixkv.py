"""PrefixKV's plans: `prefixkv_<model>_<ratio>.json`, the share of tokens that each layer forgets.

PrefixKV (Wang et al., https://arxiv.org/abs/2412.03409; plans in confs/ of its repository). The file holds one share
for each layer; all heads of a layer keep the same tokens. Every layer rounding for itself misses the total by some
tokens, so here the shares of the longest context are apportioned: whole tokens by the largest remainder, as many in all
as the file keeps, rounded up.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path

from planner.goal import Workload
from planner.published import Published, Rule
from planner.spec import ModelSpec
from profiles.plans import reading

SINKS = 1
RECENCY = (
    "PrefixKV keeps the tokens of a layer that got most attention when the prompt was read; here as many stay, and they"
    " are the newest"
)


@dataclass(frozen=True, slots=True)
class PrefixKv:
    """A plan file of PrefixKV."""

    path: Path

    def read(self, spec: ModelSpec, workload: Workload) -> Published:
        """The plan for a model of these shapes, its tokens whole at the longest context."""
        text, digest = reading.text_and_sha256(self.path)
        where = str(self.path)
        rows = reading.items(reading.parse_json(text, where), where)
        reading.check_layers(len(rows), spec, where)
        kept = [1.0 - reading.number(row, 0.0, 1.0, f"{where}: [{index}]") for index, row in enumerate(rows)]
        context = workload.longest_tokens
        # A protected token and the newest one stay in any layer.
        tokens = [max(share, SINKS + 1) for share in apportioned(kept, context)]
        rules = tuple(
            (Rule(((whole - share * context, share), (SINKS + 1, 0.0))),) * layer.q_heads
            for whole, share, layer in zip(tokens, kept, spec.layers, strict=True)
        )
        return Published("prefixkv", self.path.name, digest, "layers", rules, SINKS, notes=(RECENCY,))


def apportioned(shares: list[float], context_tokens: int) -> list[int]:
    """Whole tokens of a context for each share of it, together what the shares are together, rounded up.

    >>> apportioned([0.25, 0.25, 0.75], 10), apportioned([1.0, 0.0], 10)
    ([3, 3, 7], [10, 0])
    """
    exact = [Fraction(share) * context_tokens for share in shares]
    whole = [int(tokens) for tokens in exact]
    left = ceil(sum(exact)) - sum(whole)
    largest = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
    for index in largest[:left]:
        whole[index] += 1
    return whole
