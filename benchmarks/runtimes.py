"""One plan for each runtime that is not ours, run by the runtime itself and by the reference in its numbers.

    python benchmarks/runtimes.py examples/smollm2.yaml --results out/runtimes

Each is compiled for 512 tokens on a small calibration. The runtime loads the directory that was written and reads
prompts of the verification text; so does transformers in float32, which rounds weights, inputs, keys and values as the
runtime does: what is compared is the mean natural logarithm of the probability of every token after the first. Bytes
of weights are those that the plan predicts, and those of the tensors in the file. Each runtime is kept in the results
directory as it is done. vLLM runs in the environment that PLANNER_VLLM_PYTHON names, without compiling its steps.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from gguf import GGUFReader
from numpy.typing import NDArray
from safetensors import safe_open

from backends.transformers.modeling_plan import from_pretrained
from backends.transformers.oracle import Oracle
from backends.vllm import validate
from planner import api, artefact
from planner.compile.prepare import ANY_CPU, Prepared, prepare
from planner.compile.runtimes import runtime
from planner.config import load_request
from planner.errors import PlannerError
from planner.explain import phrase, table
from planner.files import write_text
from planner.goal import Goal, Limits, Workload
from planner.plan import Plan
from planner.progress import ProgressLine
from planner.request import Calibration, Request, Verification
from planner.verify import quartiles

CONTEXT_TOKENS, NEW_TOKENS, DECODED = 512, 32, 17
ROUNDED_INPUTS_NATS, NATS = 0.03, 0.01

WINDOWS_ALONE = (
    "uniform-kv,pyramid-kv,prefix-kv,streaming-heads,elastic-windows,weight-bits{bits=8,16},"
    "kv-bits{k_bits=16;v_bits=16},legalise,prune-dominated,assign"
)
"""What vLLM's CPU build runs without AVX-512: neither four-bit products nor fp8 caches."""

Prompts = Sequence[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Ran:
    """What a runtime made of an artefact: log-probabilities of each prompt's tokens after its first, seconds of a step,
    and the bytes of weights in its file."""

    scores: tuple[NDArray[np.float32], ...]
    decode_s: float
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Contestant:
    """A runtime: how much of what a plan for it may take, the passes that offer, and how it is run.

    `rounds_inputs` is where products round what they multiply with, which no two programs do alike.
    """

    limits: Limits
    run: Callable[[Path, Prompts], Ran]
    rounds_inputs: bool
    passes: str | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--runtimes", nargs="+", choices=tuple(RUNTIMES), default=tuple(RUNTIMES))
    parser.add_argument("--documents", type=int, default=2, help="prompts of the verification text")
    parser.add_argument("--results", type=Path, default=Path("out/runtimes"))
    options = parser.parse_args()
    request = replace(
        load_request(options.model),
        workload=Workload((CONTEXT_TOKENS,), new_tokens=NEW_TOKENS),
        calibration=Calibration(documents=1, draws=1),
        verification=Verification(documents=options.documents, recall=0),
    )
    options.results.mkdir(parents=True, exist_ok=True)
    lines = [["", "runtime", "reference", "apart", "at most", "weight bytes: plan", "file", "ms/token", "plan"]]
    with ProgressLine() as progress:
        for name in options.runtimes:
            kept = options.results / f"{name}.json"
            if not kept.is_file():
                write_text(json.dumps(cell(name, request, options.results / name, progress), indent=1), kept)
            lines.append(told(name, json.loads(kept.read_text())))
    print("\n".join(table(lines)))


def cell(name: str, request: Request, out: Path, progress: ProgressLine) -> dict[str, object]:
    """One runtime: its artefact compiled if need be, run, and run again by the reference."""
    asked = RUNTIMES[name]
    request = replace(request, goal=Goal("loss_nats", asked.limits))
    if not (out / artefact.MANIFEST).is_file():
        api.compile(request, out=out, target=ANY_CPU, passes=asked.passes, backend=name, progress=progress)
    prepared, plan = prepare(request, ANY_CPU, 0, progress, name), artefact.read_plan(out)
    if prepared.exam is None or plan.predicted is None:
        raise PlannerError(f"{request.name}: has no weights to run")
    # A prompt is one token shorter than the context: vLLM reads none without room for one to follow it.
    prompts = tuple(document[:-1] for document in prepared.exam.documents)
    ran, wanted = asked.run(out, prompts), reference(prepared, plan, prompts)
    found = {"runtime": ran.scores, "reference": wanted}
    return {
        **{kind: float(np.concatenate(scores).mean()) for kind, scores in found.items()},
        "tokens": sum(map(len, ran.scores)),
        "within": ROUNDED_INPUTS_NATS if asked.rounds_inputs else NATS,
        "predicted_bytes": plan.predicted.weight_bytes,
        "weight_bytes": ran.weight_bytes,
        "decode_s": ran.decode_s,
        "plan": ", ".join(dict.fromkeys(phrase(choice) for choice in plan.chosen.values())),
    }


def reference(prepared: Prepared, plan: Plan, prompts: Prompts) -> tuple[NDArray[np.float32], ...]:
    """The plan in the runtime's numbers, by transformers in float32."""
    if prepared.profile is None:
        raise PlannerError(f"{prepared.request.name}: has no profile")
    oracle = Oracle(prepared.executor, prepared.weights, prepared.checkpoint.spec)
    session = oracle.open(plan, prepared.profile.statics)
    return tuple(of_tokens(session.score(prompt, 0, 256), prompt) for prompt in prompts)


def of_tokens(rows: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float32]:
    """Log-probabilities of the tokens after the first, out of those [tokens, vocab] of all that could follow each."""
    found: NDArray[np.float32] = rows[np.arange(len(tokens) - 1), tokens[1:]]
    return found


def in_process(name: str, bytes_of: Callable[[Path], int]) -> Callable[[Path, Prompts], Ran]:
    """A runtime that its backend loads into this process."""

    def run(out: Path, prompts: Prompts) -> Ran:
        session = runtime(name).load(out)
        scores = tuple(of_tokens(session.score(prompt, 0, 256), prompt) for prompt in prompts)
        timing = session.time(prompts[0][:-DECODED], DECODED, 256)
        return Ran(scores, quartiles(timing.decode_s[1:]).value, bytes_of(out))

    return run


def generate(out: Path, prompts: Prompts) -> Ran:
    """transformers' own forward and `generate` over the plan's cache."""
    model, scores = from_pretrained(out), []
    with torch.inference_mode():
        for prompt in prompts:
            rows = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
            scores.append(of_tokens(rows.numpy(), prompt))
        start = torch.tensor([prompts[0][:-DECODED]])
        generate_ = cast(Callable[..., object], model.generate)
        first, all_of_them = (seconds(partial(generate_, start, **GREEDY, max_new_tokens=n)) for n in (1, DECODED))
    size = tensor_bytes(out / "weights.safetensors", besides="kv.")
    return Ran(tuple(scores), (all_of_them - first) / (DECODED - 1), size)


GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def vllm(out: Path, prompts: Prompts) -> Ran:
    """vLLM's engine in its own interpreter."""
    found = validate.score(out, prompts, DECODED)
    scores = tuple(np.asarray(each, np.float32) for each in found.scores)
    if found.decode_s is None:
        raise PlannerError(f"{out}: vllm generated nothing to time")
    return Ran(scores, found.decode_s, tensor_bytes(out / "model.safetensors"))


def tensor_bytes(path: Path, besides: str | None = None) -> int:
    """Bytes of the tensors in a safetensors file, but for those whose names begin so."""
    total = 0
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118  it is no mapping
            if besides is None or not name.startswith(besides):
                total += file.get_tensor(name).nbytes
    return total


def gguf_bytes(out: Path) -> int:
    return sum(int(tensor.n_bytes) for tensor in GGUFReader(out / "model.gguf").tensors)


def onnx_bytes(out: Path) -> int:
    from backends.genai.executor import counted

    return counted(out)[0]


def told(name: str, found: dict[str, float | str]) -> list[str]:
    """A runtime's line of the table."""
    apart = abs(float(found["runtime"]) - float(found["reference"]))
    return [
        name,
        f"{found['runtime']:.4f}",
        f"{found['reference']:.4f}",
        f"{apart:.4f}",
        f"{found['within']:g}",
        f"{found['predicted_bytes']:,}",
        f"{found['weight_bytes']:,}",
        f"{float(found['decode_s']) * 1e3:.1f}",
        str(found["plan"]),
    ]


def has_avx512() -> bool:
    flags = Path("/proc/cpuinfo")
    return not flags.is_file() or "avx512f" in flags.read_text()


MB = 10**6

RUNTIMES = {
    "llamacpp": Contestant(
        Limits(weight_bytes=80 * MB, kv_share=0.6), in_process("llamacpp", gguf_bytes), rounds_inputs=True
    ),
    "onnxruntime-genai": Contestant(
        Limits(weight_bytes=105 * MB, kv_share=0.6), in_process("onnxruntime-genai", onnx_bytes), rounds_inputs=True
    ),
    "transformers": Contestant(Limits(weight_bytes=80 * MB, kv_share=0.2), generate, rounds_inputs=False),
    "vllm": Contestant(
        Limits(weight_bytes=180 * MB, kv_share=0.8),
        vllm,
        rounds_inputs=True,
        passes=None if has_avx512() else WINDOWS_ALONE,
    ),
}
"""Every runtime, with limits that leave a plan of several kinds."""


if __name__ == "__main__":
    main()
