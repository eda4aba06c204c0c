"""DuoAttention's plans: `full_attention_heads.tsv`, a trained gate for every KV head; LServe's have the same format.

DuoAttention (Xiao et al., https://arxiv.org/abs/2410.10819; attn_patterns/ of its repository) and LServe
(https://arxiv.org/abs/2502.14866). Lines are layers, tab-separated values KV heads. The heads with the lowest gates
stream: they keep their first tokens and the newest ones; the others keep every token. Which share of them streams is
chosen at deployment (half in the paper where query heads share KV heads, three quarters where not), and `config.json`
beside the file says how many tokens a streaming head keeps. Equal gates are told apart by their place, where the
published code adds noise without a seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from planner.errors import InputError
from planner.goal import Workload
from planner.published import EVERY_TOKEN, Published, Rule
from planner.spec import ModelSpec
from profiles.plans import reading

CONFIG = "config.json"
LEAST_GATE, MOST_GATE = -0.05, 1.05
"""Training clamps a gate before it is used and not before it is saved: the last step may lie a little outside."""

NEAR = 0.01
"""Gates that are as close to the cut as this are told apart by noise."""

DENSE_CHUNK = "DuoAttention reads the first chunk of a prompt with every head full; here windows bind from the start"


@dataclass(frozen=True, slots=True)
class Duo:
    """A plan file of DuoAttention or LServe, and how it is deployed: the share of heads that stream, and the protected
    and newest tokens these keep (as config.json beside the file says, where None)."""

    path: Path
    sparsity: float = 0.5
    sinks: int | None = None
    recent: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity <= 1:
            raise InputError(f"sparsity: found {self.sparsity}; needs a share of the heads from 0 to 1")
        for name, value, least in (("sinks", self.sinks, 0), ("recent", self.recent, 1)):
            if value is not None and not least <= value <= reading.MOST_TOKENS:
                raise InputError(f"{name}: found {value}; needs {least} to {reading.MOST_TOKENS} tokens")

    def read(self, spec: ModelSpec, workload: Workload) -> Published:
        """The plan for a model of these shapes, whatever the workload."""
        text, digest = reading.text_and_sha256(self.path)
        gates = parsed(text, spec, str(self.path))
        sinks, recent = self.kept()
        cut, streaming = cut_at(gates, self.sparsity)
        short = Rule(((sinks + recent, 0.0),))
        rules = tuple(
            tuple(short if (i, q // layer.group) in streaming else EVERY_TOKEN for q in range(layer.q_heads))
            for i, layer in enumerate(spec.layers)
        )
        near = sum(abs(gate - cut) < NEAR for row in gates for gate in row)
        told = f"{len(streaming)} of {sum(map(len, gates))} KV heads stream; the cut is at a gate of {cut:.3f}"
        noise = f"{near} gates lie within {NEAR} of it, which training does not tell apart"
        options = (f"sparsity={self.sparsity:g}", f"sinks={sinks}", f"recent={recent}")
        notes = (f"{told}, and {noise}", DENSE_CHUNK)
        return Published("duo", self.path.name, digest, "KV heads", rules, sinks, options, notes)

    def kept(self) -> tuple[int, int]:
        """Protected and newest tokens of a streaming head."""
        if self.sinks is not None and self.recent is not None:
            return self.sinks, self.recent
        beside = self.path.with_name(CONFIG)
        if not beside.is_file():
            raise InputError(f"{beside}: is not there to say what streaming heads keep; give --sinks and --recent")
        value = reading.parse_json(reading.text_and_sha256(beside)[0], str(beside))
        if not isinstance(value, dict):
            raise InputError(f"{beside}: holds no object; give --sinks and --recent")
        sinks = tokens(value, "sink_size", 0, str(beside)) if self.sinks is None else self.sinks
        recent = tokens(value, "recent_size", 1, str(beside)) if self.recent is None else self.recent
        return sinks, recent


def tokens(fields: Mapping[str, object], name: str, least: int, where: str) -> int:
    """A whole number of tokens among a config's fields."""
    value = reading.number(fields.get(name), least, reading.MOST_TOKENS, f"{where}: {name}")
    if value != int(value):
        raise InputError(f"{where}: {name}: found {value:g}; needs a whole number of tokens")
    return int(value)


def parsed(text: str, spec: ModelSpec, where: str) -> list[list[float]]:
    """The gates [layers][KV heads] between 0 and 1."""
    lines = text.rstrip("\r\n").splitlines()
    reading.check_layers(len(lines), spec, where)
    gates = []
    for index, (line, layer) in enumerate(zip(lines, spec.layers, strict=True)):
        cells = line.split("\t")
        reading.check_heads(len(cells), layer.kv_heads, "KV", f"{where}: line {index + 1}")
        gates.append([gate(cell, f"{where}: line {index + 1}, value {i + 1}") for i, cell in enumerate(cells)])
    return gates


def gate(cell: str, where: str) -> float:
    """The gate that a cell holds, clipped to 0 and 1."""
    try:
        value: object = float(cell)
    except ValueError:
        value = cell
    return min(max(reading.number(value, LEAST_GATE, MOST_GATE, where), 0.0), 1.0)


def cut_at(gates: Sequence[Sequence[float]], sparsity: float) -> tuple[float, set[tuple[int, int]]]:
    """The lowest gate of a full head (1 where there is none), and the (layer, KV head) that stream.

    As many stream as lie below the quantile, by numpy's linear rule, that the published code cuts at.

    >>> cut_at([[0.9, 0.1], [0.5, 0.5]], 0.5)
    (0.5, {(0, 1), (1, 0)})
    """
    order = sorted((value, i, j) for i, row in enumerate(gates) for j, value in enumerate(row))
    count = len(order) if sparsity == 1 else ceil(round((len(order) - 1) * sparsity, 9))
    cut = order[count][0] if count < len(order) else 1.0
    return cut, {(i, j) for _, i, j in order[:count]}
