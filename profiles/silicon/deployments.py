"""Measured deployments of whole models, read from a table laid out like NVIDIA aiconfigurator's silicon_sample.csv.

    system, backend, model_path, mode, isl, osl, gemm_quant_mode, batch_size, tp_size, pp_size, attention_dp_size,
    silicon_data_source, silicon_ttft_ms, silicon_tpot_ms

What a row leaves unsaid is taken from how its source deploys and loads a server:

- `silicon_concurrency=` in the source is the number of clients; without it `batch_size` is taken, and said to be.
- Deployments written by aiconfigurator's own generator give a step of vLLM or TensorRT-LLM room for a prompt, 1,500
  tokens and a batch of 128 (its rule files, `max_num_tokens`); SGLang keeps its default of 16,384 prompt tokens. Their
  clients send prompts of exactly one length. All others are taken for what InferenceMAX publishes: vLLM's benchmark
  with ten requests a client, lengths between 0.8 and 1 times the nominal (its README, `random_range_ratio`), and a step
  of 8,192 tokens.
- No `gemm_quant_mode` is the checkpoint's own bf16. TensorRT-LLM stores the cache in 8 bits where products are fp8.
"""

import csv
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

from planner.errors import InputError
from planner.files import read_text
from planner.operators.serving import Engine, Load
from profiles.silicon.dense_models import Published, published

ENGINES: Mapping[str, Engine] = {
    "vllm": Engine(token_budget=8192),
    "trtllm": Engine(token_budget=8192, reserves_output=True, fused_qk_norm=True),
    "sglang": Engine(token_budget=16384, mixed=False),
}
GENERATED = "aic-auto-gap-analysis"
GENERATED_ROOM = 1500 + 128
SPREAD = 0.2
KINDS = {"": "bf16", "bfloat16": "bf16", "float16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block"}
NEEDED = (
    *("backend", "model_path", "mode", "isl", "osl", "gemm_quant_mode", "batch_size", "tp_size"),
    *("silicon_data_source", "silicon_ttft_ms", "silicon_tpot_ms"),
)


@dataclass(frozen=True, slots=True)
class Deployment:
    """One measured deployment: what ran on how many GPUs under which load, and the two times it had.

    `system` is the name of a target, or empty where the table names none.
    """

    name: str
    system: str
    framework: str
    model: str
    published: Published
    kind: str
    kv_bits: int
    gpus: int
    engine: Engine
    load: Load
    stated_type: bool
    stated_load: bool
    ttft_s: float
    tpot_s: float


def read_deployments(path: Path) -> tuple[tuple[Deployment, ...], tuple[str, ...]]:
    """The deployments of dense models, not disaggregated, by tensor parallelism alone; and notes on rows left out.

    InputError where the file is no such table, a number is none, or nothing is left.
    """
    lines = csv.DictReader(StringIO(read_text(path)))
    missing = [column for column in NEEDED if column not in (lines.fieldnames or ())]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}; expected the columns of silicon_sample.csv")
    found: list[Deployment] = []
    left_out: Counter[str] = Counter()
    for number, line in enumerate(lines, start=2):
        reason = _unpriced(line)
        if reason:
            left_out[reason] += 1
        else:
            found.append(_deployment(line, f"{path}:{number}"))
    if not found:
        reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise InputError(f"{path}: no deployment of a dense model among its rows ({reasons or 'it has none'})")
    return tuple(found), tuple(f"{count} rows {reason}" for reason, count in left_out.most_common())


def _unpriced(line: Mapping[str, str]) -> str:
    """Why a row is not compared, or nothing."""
    if line["mode"] != "agg":
        return "that are not aggregated"
    if published(line["model_path"]) is None:
        return "of models that are not dense ones we know the shapes of"
    if line["backend"] not in ENGINES:
        return "of frameworks we know no engine of"
    if line["gemm_quant_mode"] not in KINDS:
        return f"of products in {line['gemm_quant_mode']}"
    if any(line.get(column) not in (None, "", "1", "1.0") for column in ("pp_size", "attention_dp_size")):
        return "with pipeline or attention data parallelism"
    return ""


def _deployment(line: Mapping[str, str], where: str) -> Deployment:
    model = published(line["model_path"])
    if model is None:
        raise InputError(f"{where}: unknown model {line['model_path']}")
    kind = KINDS[line["gemm_quant_mode"]]
    kind = model.fp8 if kind == "fp8" else kind
    source = line["silicon_data_source"]
    clients = re.search(r"silicon_concurrency=(\d+)", source)
    prompt, output = (_count(line, column, where) for column in ("isl", "osl"))
    engine = ENGINES[line["backend"]]
    if GENERATED in source and engine.mixed:
        engine = replace(engine, token_budget=prompt + GENERATED_ROOM)
    load = Load(
        concurrency=int(clients[1]) if clients else _count(line, "batch_size", where),
        prompt=prompt,
        output=output,
        spread=0.0 if GENERATED in source else SPREAD,
    )
    return Deployment(
        name=line.get("id") or where,
        system=_target(line.get("system") or ""),
        framework=line["backend"],
        model=line["model_path"].rsplit("/", 1)[-1],
        published=model,
        kind=kind,
        kv_bits=8 if line["backend"] == "trtllm" and kind != "bf16" else 16,
        gpus=_count(line, "tp_size", where),
        engine=engine,
        load=load,
        stated_type=line["gemm_quant_mode"] != "",
        stated_load=clients is not None,
        ttft_s=_number(line, "silicon_ttft_ms", where) * 1e-3,
        tpot_s=_number(line, "silicon_tpot_ms", where) * 1e-3,
    )


def _target(system: str) -> str:
    """Our name of a system: theirs without the board, SXM unless they say otherwise.

    >>> _target("h100_sxm"), _target("h100_pcie")
    ('h100', 'h100-pcie')
    """
    return system.lower().replace("_", "-").removesuffix("-sxm")


def _number(line: Mapping[str, str], column: str, where: str) -> float:
    try:
        number = float(line[column])
    except ValueError as error:
        raise InputError(f"{where}: {column}: expected a number, found {line[column]!r}") from error
    if not 0 < number < float("inf"):
        raise InputError(f"{where}: {column}: expected a number above 0, found {line[column]}")
    return number


def _count(line: Mapping[str, str], column: str, where: str) -> int:
    number = _number(line, column, where)
    if number != int(number):
        raise InputError(f"{where}: {column}: expected a whole number, found {line[column]}")
    return int(number)
