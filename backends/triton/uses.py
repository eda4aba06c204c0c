"""Which kernels a plan uses, at which shapes: attention of all heads, products of the matrices that are packed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from backends.triton.search import Use, use
from planner.formats import has_minimum, slots
from planner.goal import Workload
from planner.plan import Plan
from planner.space import KvChoice, KvSite, WeightChoice, WeightSite
from planner.spec import ModelSpec, TensorSpec

Phase = Literal["decode", "prefill"]


@dataclass(frozen=True, slots=True)
class PlannedUse:
    """One use with what it serves: matrices by name, or `layer N kv heads ...`."""

    use: Use
    phase: Phase
    serves: tuple[str, ...]


def planned_uses(plan: Plan, spec: ModelSpec, multiprocessors: int) -> tuple[PlannedUse, ...]:
    """The uses of a plan at its longest context and whole batch, equal ones once.

    multiprocessors  of the target, over which decode attention spreads its work
    """
    found: dict[tuple[Use, Phase], list[str]] = {}
    for phase, each, served in (*_attention(plan, spec, multiprocessors), *_products(plan, spec)):
        found.setdefault((each, phase), []).append(served)
    return tuple(PlannedUse(each, phase, tuple(served)) for (each, phase), served in found.items())


def _attention(plan: Plan, spec: ModelSpec, multiprocessors: int) -> Iterator[tuple[Phase, Use, str]]:
    """Attention and new tokens stored: the heads of a layer that are stored at the same bits run in one launch."""
    work, chosen = plan.workload, dict(plan.kv)
    chunk, past = last_chunk(work)
    for index, layer in enumerate(spec.layers):
        classes: dict[tuple[int, int], list[tuple[int, KvChoice]]] = {}
        for head in range(layer.kv_heads):
            choice = chosen[KvSite(index, head)]
            classes.setdefault((int(choice.k.bits), int(choice.v.bits)), []).append((head, choice))
        for (k_bits, v_bits), heads in classes.items():
            held = [slots(choice, layer, work.longest_tokens) for _, choice in heads]
            sinks, coded = tuple(s for s, _ in held), tuple(c for _, c in held)
            served = f"layer {index} kv heads {', '.join(str(head) for head, _ in heads)}"
            stored: dict[str, object] = {
                "head_dim": layer.head_dim,
                "group": layer.group,
                "k_bits": k_bits,
                "v_bits": v_bits,
            }
            decode: dict[str, object] = stored | {
                "heads": len(heads),
                "sinks": sinks * work.batch,
                "slots": coded * work.batch,
                "multiprocessors": multiprocessors,
            }
            yield "decode", use("decode_attention", decode), served
            chunks = {"past": (past,) * work.batch, "lengths": (chunk,) * work.batch}
            yield "prefill", use("prefill_attention", stored | {"sinks": sinks, "slots": coded} | chunks), served
            # Keys come turned to their positions: what attention in transformers is given.
            rings = {"heads": len(heads), "rings": coded * work.batch, "sinks": sinks * work.batch, "rope": 0}
            width = {name: stored[name] for name in ("head_dim", "k_bits", "v_bits")}
            steps: tuple[tuple[Phase, int, int], ...] = (
                ("decode", work.longest_tokens - 1, 1),
                ("prefill", past, chunk),
            )
            for phase, seen, new in steps:
                tokens = {"seen": (seen,) * work.batch, "counts": (new,) * work.batch}
                yield phase, use("kv_append", width | rings | tokens), served


def last_chunk(work: Workload) -> tuple[int, int]:
    """(tokens of a prompt's last whole chunk, tokens read before it) at the longest context.

    >>> last_chunk(Workload(context_tokens=(2048,), new_tokens=128, prefill_chunk_tokens=256))
    (256, 1664)
    """
    prompt = work.longest_tokens - work.new_tokens
    chunk = min(work.prefill_chunk_tokens, prompt)
    return chunk, prompt - chunk


def _products(plan: Plan, spec: ModelSpec) -> Iterator[tuple[Phase, Use, str]]:
    """Products with the matrices that are packed; those of floats are torch's own. A head reads last tokens only."""
    chosen, work = dict(plan.weights), plan.workload
    chunk, _ = last_chunk(work)
    for tensor in spec.tensors:
        choice = chosen.get(WeightSite(tensor.layer, tensor.name))
        packed = None if choice is None else packing(choice, tensor)
        if packed is None or not tensor.active:
            continue
        rows: list[tuple[Phase, int]] = [("decode", work.batch)]
        if tensor.layer >= 0:
            rows.append(("prefill", work.batch * chunk))
        for phase, tokens in rows:
            # Of experts each sees its share of the tokens.
            m = max(1, round(tokens * tensor.active)) if tensor.count > 1 else tokens
            shape = {"m": m, "n": tensor.rows, "k": tensor.cols, **packed}
            yield phase, use("dequant_matmul", shape), tensor.name


def packing(choice: WeightChoice, tensor: TensorSpec) -> dict[str, int | None] | None:
    """Bits, group and offset as the product's kernel takes them; None where the matrix is not packed.

    A GGUF grid without minimums is symmetric: its smallest code stands for minus half the range.
    """
    form, native = choice.format, tensor.native
    if form.scheme == "grouped":
        return {"bits": int(form.bits), "group": form.group, "offset": None}
    if form.scheme != "native" or native is None:
        return None
    offset = None if has_minimum(tensor) else -(2 ** (int(native.bits) - 1))
    return {"bits": int(native.bits), "group": native.group, "offset": offset}
