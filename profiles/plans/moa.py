"""MoA's plans: `moa_alpha_beta.json`, a rule alpha + beta * N for every query head.

MoA (Fu et al., https://arxiv.org/abs/2406.14909; plans in examples/ of its repository). The file holds `alphas` and
`betas`, both [layers][query heads]. Of a context of N tokens, prompt and generated ones together, a head keeps
alpha + beta * N, in blocks of 64 and no fewer than 128, of which the first 64 tokens are protected: so its cache is
sized, and the mask it was searched with keeps one block more. Query heads of a group share what is stored, so on a
model with fewer KV heads a KV head keeps what the largest rule of its group asks for; MoA has such models turned into
ones without groups, which stores every key and value several times.
"""

from dataclasses import dataclass
from pathlib import Path

from planner.errors import InputError
from planner.goal import Workload
from planner.published import Published, Rule
from planner.spec import ModelSpec
from profiles.plans import reading

SINKS = 64
BLOCK = 64
LEAST_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Moa:
    """A plan file of MoA."""

    path: Path

    def read(self, spec: ModelSpec, workload: Workload) -> Published:
        """The plan for a model of these shapes; whatever the workload, for the rules grow with the context."""
        text, digest = reading.text_and_sha256(self.path)
        where = str(self.path)
        fields = reading.record(reading.parse_json(text, where), ("alphas", "betas"), where)
        alphas = values(fields["alphas"], -reading.MOST_TOKENS, reading.MOST_TOKENS, spec, f"{where}: alphas")
        betas = values(fields["betas"], 0.0, 1.0, spec, f"{where}: betas")
        rules = tuple(
            tuple(Rule(((alpha, beta), (LEAST_TOKENS, 0.0)), BLOCK) for alpha, beta in zip(*pair, strict=True))
            for pair in zip(alphas, betas, strict=True)
        )
        return Published("moa", self.path.name, digest, "query heads", rules, SINKS)


def values(value: object, least: float, most: float, spec: ModelSpec, where: str) -> list[list[float]]:
    """A number of the range for every query head of every layer."""
    rows = reading.items(value, where)
    reading.check_layers(len(rows), spec, where)
    found = []
    for index, (row, layer) in enumerate(zip(rows, spec.layers, strict=True)):
        heads = reading.items(row, f"{where}[{index}]")
        if len(heads) == layer.kv_heads < layer.q_heads:
            raise InputError(
                f"{where}[{index}]: found {len(heads)} values, one for each KV head; needs one for each of the"
                f" {layer.q_heads} query heads, as MoA publishes them"
            )
        reading.check_heads(len(heads), layer.q_heads, "query", f"{where}[{index}]")
        found.append([reading.number(head, least, most, f"{where}[{index}][{i}]") for i, head in enumerate(heads)])
    return found
