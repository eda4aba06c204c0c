"""The kernels of an artefact timed on a GPU, beside what else computes the same.

    planner compile examples/smollm2-a100.yaml --target a100 -o out
    python benchmarks/gpu.py out --results out-gpu.json

Needs a GPU of the target's kind, torch and triton. Each kernel of the plan runs at the plan's shapes with every variant
that was kept; the fastest is told beside its prediction and beside

    decode, prefill   scaled_dot_product_attention, FlexAttention and, where flash-attn is installed, FlashAttention,
                      over float16 caches of the same slots (FlashAttention has no sinks: its window is as long as both)
    products          torch's product with the float16 matrix
    append            float16 keys and values written to the same slots

Seconds are medians of triton.testing.do_bench, which empties the L2 cache between runs.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

Call = Callable[[], Tensor | None]
Contestant = tuple[str, Call]
"""A name, and a call that computes what the kernel does; the kernel's variants come first."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--results", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    if not (options.directory / "kernels" / "layers.json").is_file():
        print(
            f"{options.directory}: holds no kernels; compile for a GPU target, such as --target a100", file=sys.stderr
        )
        return 1
    if not torch.cuda.is_available():
        print(
            "this benchmark needs a GPU, and torch sees none here; what the kernels are predicted to take is in"
            f" {options.directory / 'kernels' / 'resources.json'}, and planner check runs them without one",
            file=sys.stderr,
        )
        return 1
    from triton.testing import do_bench

    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; microseconds")
    rows = []
    for use in planned(options.directory):
        timed = {name: do_bench(call, return_mode="median") / 1e3 for name, call in contestants(use, device)}
        predicted = use["predicted_s"]
        rows.append({"module": use["module"], "shape": use["shape"], "predicted_s": predicted, "measured_s": timed})
        fastest = min((name for name in timed if name.startswith("kernel")), key=timed.__getitem__)
        others = ", ".join(f"{name} {s * 1e6:.1f}" for name, s in timed.items() if not name.startswith("kernel"))
        print(f"{use['module']} {json.dumps(use['shape'])}")
        print(f"  {fastest} {timed[fastest] * 1e6:.1f}, predicted {predicted * 1e6:.1f}; {others}", flush=True)
    if options.results is not None:
        options.results.write_text(json.dumps({"gpu": torch.cuda.get_device_name(), "rows": rows}, indent=1) + "\n")
    return 0


def planned(directory: Path) -> Iterator[dict[str, object]]:
    """The plan's uses that have a kernel, each with the module of its kernel and what was predicted."""
    sys.path.insert(0, str(directory.resolve()))
    kernels = directory / "kernels"
    resources = json.loads((kernels / "resources.json").read_text(encoding="utf-8"))["kernels"]
    predicted = {_key(each): each["kept"][0]["predicted_s"] for each in resources if each["kept"]}
    for use in json.loads((kernels / "layers.json").read_text(encoding="utf-8"))["uses"]:
        if use["variants"]:
            yield use | {"predicted_s": predicted[_key(use)]}


def _key(entry: dict[str, object]) -> str:
    return json.dumps([entry["module"], entry["shape"]], sort_keys=True)


def contestants(use: dict[str, object], device: torch.device) -> Iterator[Contestant]:
    """The kernel with each of its variants, then what else computes the same."""
    module = importlib.import_module(f"kernels.{use['module']}")
    spell = importlib.import_module("kernels.planned").variant_of
    tuples = importlib.import_module("kernels.checking").tuples
    shape = module.Shape(**tuples(use["shape"]))
    variants = [spell(entry) for entry in use["variants"]]
    yield from MAKERS[str(use["module"])](module, shape, variants, device)


def moved(value: object, device: torch.device) -> object:
    """Tensors, and the tensors of tuples and dataclasses, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(moved(each, device) for each in value)
    if is_dataclass(value):
        return replace(value, **{f.name: moved(getattr(value, f.name), device) for f in fields(value) if f.init})
    return value


# --- what each kernel is timed beside -----------------------------------------------------------


def products(module: ModuleType, shape: object, variants: list[object], device: torch.device) -> Iterator[Contestant]:
    """The dequantising product beside torch's with the same matrix in float16."""
    args = moved(module.inputs(shape, torch.float16, 0), device)
    for variant in variants:
        yield f"kernel {variant}", lambda variant=variant: module.dequant_matmul(*args, variant=variant)
    x, codes, scale, minimum, offset = args
    identity = torch.eye(shape.k, dtype=torch.float64, device=device)
    matrix = module.reference(identity, codes, scale, minimum, offset).T.half().contiguous()
    yield "torch float16", lambda: functional.linear(x, matrix)


def decode(module: ModuleType, shape: object, variants: list[object], device: torch.device) -> Iterator[Contestant]:
    """Decode attention beside attention over float16 caches padded to the longest."""
    q, k, v, table = moved(module.inputs(shape, torch.float16, 0), device)
    scale = shape.head_dim**-0.5
    for variant in variants:
        work = moved(module.schedule(shape, shape.programs(variant)), device)

        def run(variant: object = variant, work: object = work) -> Tensor:
            return module.decode_attention(q, k, v, work, scale, shape.sink_weight, table, shape.page, variant)

        yield f"kernel {variant}", run
    held = torch.tensor([s + c for s, c in zip(shape.sinks, shape.slots, strict=True)], device=device)
    longest = max(int(held.max()), 1)
    keys, values = (torch.zeros(len(held), 1, longest, shape.head_dim, dtype=q.dtype, device=device) for _ in range(2))
    work = module.schedule(shape, 1)
    for record, (_, _, sinks, slots, row, sink_row, _, head) in enumerate(work.records.tolist()):
        for into, stored in ((keys, k), (values, v)):
            rows = row + torch.arange(slots, device=device)
            both = torch.cat([stored.sinks[sink_row : sink_row + sinks].double(), stored.vectors(rows, head)])
            into[record, 0, : sinks + slots] = both.to(q.dtype)
    queries = q[:, :, None].transpose(1, 2)  # the group is what a pair's queries are
    live = torch.arange(longest, device=device) < held[:, None]

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return j < held[b]

    yield from _attention(
        queries, keys, values, live[:, None, None], visible, scale, (len(held), 1, shape.group, longest)
    )
    if find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_with_kvcache

        flash = [x.transpose(1, 2).contiguous() for x in (q[:, :, None], keys, values)]
        lengths = held.int()
        yield (
            "FlashAttention float16",
            lambda: flash_attn_with_kvcache(*flash, cache_seqlens=lengths, softmax_scale=scale)[:, 0],
        )


def prefill(module: ModuleType, shape: object, variants: list[object], device: torch.device) -> Iterator[Contestant]:
    """Chunked prefill beside attention over float16 caches of all tokens under the same mask."""
    scale, most = shape.head_dim**-0.5, max(shape.sinks)
    records, rows, pages = module.records_of(shape)
    made = torch.Generator().manual_seed(0)
    sink_rows = max(1, len(shape.past) * len(shape.sinks) * most)
    k, v = (module.example(bits, rows, sink_rows, shape, torch.float16, made) for bits in (shape.k_bits, shape.v_bits))
    table = torch.randperm(pages, generator=made).int() if shape.page else None
    q = torch.randn(len(shape.past), len(shape.sinks), shape.group, shape.tokens, shape.head_dim, generator=made).half()
    q, k, v, records, table = moved((q, k, replace(v, mean=None), records, table), device)
    for variant in variants:

        def run(variant: object = variant) -> Tensor:
            return module.prefill_attention(q, k, v, records, scale, most, table, shape.page, variant)

        yield f"kernel {variant}", run
    past, tokens, heads = shape.past[0], shape.tokens, len(shape.sinks)
    batch, total = len(shape.past), shape.past[0] + shape.tokens
    if len(set(shape.past)) > 1 or len(set(shape.lengths)) > 1:
        return  # sequences of different lengths would be padded, and compare nothing
    keys, values = (torch.randn(batch, heads, total, shape.head_dim, device=device).half() for _ in range(2))
    sinks, slots = (torch.tensor(each, device=device) for each in (shape.sinks, shape.slots))

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        now, head = past + i % tokens, h
        return (j <= now) & ((j < sinks[head]) | (j > now - slots[head]))

    every = [torch.arange(n, device=device) for n in (1, heads, shape.group * tokens, total)]
    mask = visible(*(x.view([-1 if at == d else 1 for d in range(4)]) for at, x in enumerate(every)))
    queries = q.flatten(2, 3)
    yield from _attention(queries, keys, values, mask, visible, scale, (batch, heads, shape.group * tokens, total))
    if find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_func

        # One window for all heads, and no sinks: it does less where heads differ.
        window = max(s + c for s, c in zip(shape.sinks, shape.slots, strict=True))
        flash = [x.transpose(1, 2).contiguous() for x in (q.flatten(1, 2), keys, values)]
        yield (
            "FlashAttention float16",
            lambda: flash_attn_func(*flash, softmax_scale=scale, causal=True, window_size=(window - 1, 0)),
        )


def _attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    visible: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    scale: float,
    sizes: tuple[int, int, int, int],
) -> Iterator[Contestant]:
    """torch's two attentions over [batch, heads, tokens, head_dim] under one mask."""
    batch, heads, rows, columns = sizes
    yield (
        "SDPA float16",
        lambda: functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale),
    )
    blocks = create_block_mask(visible, batch, heads, rows, columns, device=str(queries.device))
    # Not fused, FlexAttention is an oracle on a CPU and nothing to be timed.
    flex = torch.compile(flex_attention) if queries.is_cuda else flex_attention
    yield "FlexAttention float16", lambda: flex(queries, keys, values, block_mask=blocks, scale=scale)


def append(module: ModuleType, shape: object, variants: list[object], device: torch.device) -> Iterator[Contestant]:
    """New tokens coded and stored beside float16 ones stored as they are."""
    k, v, k_store, v_store, regions, table = moved(module.inputs(shape, torch.float16, 0), device)
    seen, counts = (torch.tensor(each, dtype=torch.int32, device=device) for each in (shape.seen, shape.counts))
    angles = moved(module.rotary(shape), device) if shape.rope else None
    stores, rest = (k_store, v_store), (regions, seen, counts, any(shape.sinks), angles, table, shape.page)
    for variant in variants:
        yield f"kernel {variant}", lambda variant=variant: module.kv_append(k, v, *stores, *rest, variant)
    room = max(shape.rings, default=1) or 1
    pool = torch.zeros(2, *k.shape[:2], room, k.shape[3], dtype=k.dtype, device=device)
    newest = min(shape.tokens, room)
    at = torch.arange(newest, device=device)

    def store() -> None:
        pool[0].index_copy_(2, at, k[:, :, -newest:])
        pool[1].index_copy_(2, at, v[:, :, -newest:])

    yield "torch float16", store


MAKERS = {"dequant_matmul": products, "decode_attention": decode, "prefill_attention": prefill, "kv_append": append}

if __name__ == "__main__":
    raise SystemExit(main())
