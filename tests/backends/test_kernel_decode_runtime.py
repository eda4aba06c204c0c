"""The planned model on kernels inside transformers, and kernels as torch operators."""

import subprocess
import sys
from pathlib import Path

from backends.triton.emit import RUN, run_files
from backends.triton.sources import KERNELS
from planner import artefact
from planner.executor import Artifact
from planner.formats import grouped, rotated
from planner.space import FLOAT32, Full, Window
from tests.backends.interpreted import ENVIRONMENT, told
from tests.backends.oracle import choice, subject

STEPS = """
import json, sys, torch
from pathlib import Path
from backends.triton.integration import KernelLinear, on_device
from planner.formats import grouped, rotated
from planner.space import FLOAT16, FLOAT32, Full, WeightFormat, Window
from tests.backends.oracle import choice, subject, tokens_of

torch.set_num_threads(1)
llama = subject(Path(sys.argv[1]))
def told(form, other, weights, dtype):
    kinds = {0: choice(Full(), form), 1: choice(Window(16), form, sinks=0), 2: choice(Window(6), other, sinks=4)}
    plan = llama.plan(lambda site: kinds[(site.layer + site.kv_head) % 3], lambda name: weights)
    prompts, lines = [tokens_of(14), tokens_of(26, seed=1)], []
    for kernels in (False, True):
        model = llama.open(plan)
        model = on_device(model, torch.device("cpu"), dtype) if kernels else model
        cache = model.cache(2, 32)
        logits = model.prefill(cache, prompts, 16)  # more than one ring holds
        tokens, rows = [], []
        for _ in range(3):
            tokens.append(logits.argmax(-1).tolist())
            rows.append(logits)
            logits = model.logits(model.step(cache, logits.argmax(-1)[:, None])[:, -1])
        products = sum(isinstance(module, KernelLinear) for module in model.model.modules())
        lines.append((tokens, torch.stack(rows), cache.bytes, products))
    (tokens, rows, held, none), (others, other_rows, other_held, products) = lines
    away = float((rows - other_rows).abs().max() / rows.abs().max())
    return {"same": tokens == others, "away": away, "held": held == other_held, "products": [none, products]}
float32 = told(FLOAT32, FLOAT32, grouped(4), torch.float32)
print(json.dumps([float32, told(FLOAT16, rotated(8), WeightFormat(16), torch.float16)]))
"""


def test_the_model_on_kernels_says_what_the_physical_runtime_says(tiny_llama: Path) -> None:
    """Batch of two lengths, a window that wraps, a chunk past a ring, sinks beside codes, packed matrices.

    With everything in float32 the tokens are the same; float16 and 8-bit codes flip a rounding here and there.
    """
    exact, halved = told(STEPS, str(tiny_llama))
    assert exact["same"] and exact["held"] and exact["products"] == [0, 3 * 7 + 1]
    assert exact["away"] < 1e-4
    assert halved["away"] < 0.1 and halved["held"] and halved["products"] == [0, 0]


def test_an_artefact_runs_on_its_kernels_without_this_project(tiny_llama: Path, tmp_path: Path) -> None:
    """Half of the cache is a window of 4-bit codes, the matrices are 4-bit codes."""
    llama = subject(tiny_llama)
    window, full = choice(Window(8), rotated(4)), choice(Full(), FLOAT32)
    plan = llama.plan(lambda site: window if site.kv_head else full, lambda _: grouped(4))
    kernels = [Artifact(f"kernels/{path.name}", path) for path in KERNELS.glob("*.py")]
    files = [*llama.executor.emit(plan, llama.spec), *kernels, *run_files()]
    out = tmp_path / "out"
    artefact.write(out, files, artefact.Header("transformers", "1", "0" * 64, "test"))
    asked = ["--prompt", "Good morning.", "--max-new-tokens", "4", "--raw"]
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}

    def said(script: str, **changed: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(out / script), *asked]
        return subprocess.run(command, env=environment | changed, cwd=tmp_path, capture_output=True, text=True)

    plain, fast = said("runner.py"), said(RUN)
    assert fast.returncode == 0, fast.stderr
    assert fast.stdout == plain.stdout and plain.stdout.strip()
    refused = said(RUN, TRITON_INTERPRET="0")
    assert refused.returncode == 1 and "runner.py runs the same plan" in refused.stderr
    (out / "kernels" / "rotated.py").write_text("what is this")
    damaged = said(RUN)
    assert (damaged.returncode, damaged.stdout) == (1, "")
    assert (
        damaged.stderr.startswith("Error: ")
        and "rotated.py: differs" in damaged.stderr
        and damaged.stderr.count("\n") == 1
    )


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
