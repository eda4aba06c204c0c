"""Decode steps on kernels inside transformers, and kernels as torch operators."""

from pathlib import Path

from tests.backends.interpreted import told

STEPS = """
import json, sys, torch
from pathlib import Path
from backends.triton.integration import KernelModel, on_device
from planner.formats import rotated
from planner.space import FLOAT16, FLOAT32, Full, Window
from tests.backends.oracle import choice, subject, tokens_of

torch.set_num_threads(1)
llama = subject(Path(sys.argv[1]))
def told(form, other):
    kinds = {0: choice(Full(), form), 1: choice(Window(16), form, sinks=0), 2: choice(Window(24), other, sinks=4)}
    plan = llama.plan(lambda site: kinds[(site.layer + site.kv_head) % 3])
    prompts, lines = [tokens_of(14), tokens_of(26, seed=1)], []
    for kernels in (False, True):
        model = llama.open(plan)
        model = on_device(model, torch.device("cpu")) if kernels else model
        cache = model.cache(2, 32)
        logits = model.prefill(cache, prompts, 8)
        tokens, rows = [], []
        for _ in range(4):
            tokens.append(logits.argmax(-1).tolist())
            rows.append(logits)
            logits = model.logits(model.step(cache, logits.argmax(-1)[:, None])[:, -1])
        lines.append((tokens, torch.stack(rows), cache.bytes, isinstance(model, KernelModel)))
        model.model.set_attn_implementation("planned")
    (tokens, rows, held, _), (others, other_rows, other_held, on_kernels) = lines
    away = float((rows - other_rows).abs().max() / rows.abs().max())
    return [tokens == others, away, held == other_held, on_kernels]
print(json.dumps([told(FLOAT32, FLOAT32), told(FLOAT16, rotated(8))]))
"""


def test_decode_steps_say_what_the_physical_runtime_says(tiny_llama: Path) -> None:
    """Batch of two lengths, a window that wraps, sinks beside codes; 8 bits flip a rounding here and there."""
    exact, coded = told(STEPS, str(tiny_llama))
    same, away, held, on_kernels = exact
    assert same and held and on_kernels
    assert away < 1e-4
    assert coded[1] < 0.1 and coded[2]


OPERATORS = """
import json, torch
from torch.library import opcheck
from backends.kernels import decode_attention as da, kv_append as ka, operators

shape = da.hostile()[0]
q, k, v, _ = da.inputs(shape, torch.float16, 0)
work = da.schedule(shape, 2)
(k_written, k_statics), (v_written, v_statics) = operators.listed(k), operators.listed(v)
rest = (work.records, work.starts, None, 0.125, shape.k_bits, shape.v_bits, shape.sink_weight, 0)
arguments = (q, k_written, v_written, k_statics, v_statics, *rest)
passed = opcheck(torch.ops.planned.decode_attention.default, arguments, test_utils=("test_schema", "test_faketensor"))

class Attend(torch.nn.Module):
    def forward(self, q):
        return torch.ops.planned.decode_attention(q, *arguments[1:]) + 1

exported = torch.export.export(Attend(), (q,))
alike = torch.equal(exported.module()(q), da.decode_attention(q, k, v, work, 0.125, shape.sink_weight) + 1)

small = ka.hostile()[0]
new_k, new_v, k, v, regions, _ = ka.inputs(small, torch.float32, 0)
(k_written, k_statics), (v_written, v_statics) = operators.listed(k), operators.listed(v)
seen, counts = (torch.tensor(each, dtype=torch.int32) for each in (small.seen, small.counts))
cos, sin = ka.rotary(small)
arguments = (new_k, new_v, k_written, v_written, k_statics, v_statics, regions, seen, counts, cos, sin, None)
arguments = (*arguments, small.k_bits, small.v_bits, True, 0)
wrote = opcheck(torch.ops.planned.kv_append.default, arguments, test_utils=("test_schema", "test_faketensor"))
print(json.dumps([passed, alike, wrote]))
"""


def test_operators_trace_and_export() -> None:
    passed, alike, wrote = told(OPERATORS)
    assert set(passed.values()) == set(wrote.values()) == {"SUCCESS"}
    assert alike
