"""A plan run on kernels in Triton's interpreter, beside the physical torch runtime.

    python benchmarks/kernel_decode.py OUT --float16
    python benchmarks/kernel_decode.py OUT --products --new-tokens 2 --prompt-tokens 32

OUT is what `planner compile examples/smollm2.yaml --target a100 -o OUT` wrote. Keys and values are as planned,
with --float16 unquantised in its spans: then both runtimes have to say the same tokens. The prompt is read and tokens
are decoded by the attention kernels, with --products by those of the packed matrices too. Many seconds a token, and
minutes with products: every program of every launch is interpreted.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

PROMPT = "The river ran past the old mill, and the miller counted sacks of flour until the light was gone. "


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=320)
    parser.add_argument("--chunk-tokens", type=int, default=256)
    parser.add_argument("--context-tokens", type=int, help="what spans are laid out for; what is read, if not given")
    parser.add_argument("--float16", action="store_true", help="keep keys and values unquantised, in the plan's spans")
    parser.add_argument("--products", action="store_true", help="multiply by packed matrices with kernels, too")
    options = parser.parse_args()
    os.environ["TRITON_INTERPRET"] = "1"  # before a kernel is imported

    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    from backends.transformers import runner
    from backends.triton.integration import on_device

    runner.checked(options.artefact)
    config, kv, weights = (json.loads((options.artefact / name).read_text()) for name in runner.JSON_FILES)
    if options.float16:
        for entry in (entry for layer in kv["layers"] for entry in layer):
            entry["k_bits"] = entry["v_bits"] = 16
    tensors = load_file(options.artefact / runner.WEIGHTS_FILE)
    plain = runner.PlannedModel(runner.build(config, weights, tensors), kv, tensors)
    prompt = (AutoTokenizer.from_pretrained(options.artefact)(PROMPT * 256).input_ids)[: options.prompt_tokens]
    context = options.context_tokens or len(prompt) + options.new_tokens

    told: list[tuple[list[int], torch.Tensor]] = []
    for name in ("torch", "kernels"):
        model = plain
        if name == "kernels":
            model = on_device(plain, torch.device("cpu"), torch.float32, options.products)
        began, said, seen = time.perf_counter(), list[int](), list[torch.Tensor]()
        cache = model.cache(1, context)
        logits = model.prefill(cache, [prompt], options.chunk_tokens)
        read = time.perf_counter() - began
        print(f"{name}: {len(prompt)} tokens read in {read:.0f} s; says", end="", flush=True)
        for _ in range(options.new_tokens):
            said.append(int(logits.argmax()))
            print(f" {said[-1]}", end="", flush=True)
            seen.append(logits)
            logits = model.logits(model.step(cache, logits.argmax(-1)[:, None])[:, -1])
        told.append((said, torch.cat(seen)))
        print(f"; {options.new_tokens} tokens in {time.perf_counter() - began - read:.0f} s", flush=True)
    same = sum(a == b for a, b in zip(told[0][0], told[1][0], strict=True))
    farthest = float((told[0][1] - told[1][1]).abs().max())
    rows = [each.log_softmax(-1) for _, each in told]
    kl = float((rows[0].exp() * (rows[0] - rows[1])).sum(-1).mean())
    print(f"{same} of {options.new_tokens} tokens the same; logits differ by at most {farthest:.2g}, KL {kl:.2g}")
    return 0 if same == options.new_tokens or not options.float16 else 1


if __name__ == "__main__":
    sys.exit(main())
