"""Asked of vLLM in its own interpreter: `python inside.py check|score DIRECTORY`, an answer in JSON as the last line.

`check` parses serve.yaml with vLLM's own parser and builds its engine's configuration from it. `score` reads JSON from
standard input, `{"prompts": [[token, ...], ...], "new_tokens": 0}`, runs the engine, and answers with the natural
logarithm of the probability of each prompt's tokens after its first, greedy tokens, and where more than one is asked
the seconds of each after the first. This file needs vLLM alone.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ANSWER = "answer: "
SCORED_CACHE_BYTES = 2**29


def parsed(directory: Path) -> Any:
    """serve.yaml as vLLM's own parser reads it; it exits where there is an option it does not know."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    os.chdir(directory)
    parser = make_arg_parser(FlexibleArgumentParser())
    arguments = parser.parse_args(["--config", "serve.yaml"])
    validate_parsed_serve_args(arguments)
    return arguments


def check(directory: Path) -> dict[str, object]:
    """What vLLM makes of the arguments."""
    import vllm
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    config = AsyncEngineArgs.from_cli_args(parsed(directory)).create_engine_config()
    offload = config.offload_config.uva
    return {
        "version": vllm.__version__,
        "platform": vllm.platforms.current_platform.device_type,
        "architecture": config.model_config.architecture,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "quantization": config.model_config.quantization,
        "max_model_len": config.model_config.max_model_len,
        "cache_dtype": config.cache_config.cache_dtype,
        "skipped": list(config.cache_config.kv_cache_dtype_skip_layers),
        "chunked_prefill": config.scheduler_config.enable_chunked_prefill,
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "offload_gb": offload.cpu_offload_gb,
        "offload_params": sorted(offload.cpu_offload_params),
    }


def needs_avx512(directory: Path, cache_type: str) -> str:
    """What of a directory its CPU build computes with AVX-512 alone, or nothing."""
    if cache_type.startswith("fp8"):
        return "fp8 caches"
    config = json.loads((directory / "config.json").read_text())
    groups = config.get("quantization_config", {}).get("config_groups", {}).values()
    return "four-bit products" if any(group["weights"]["num_bits"] == 4 for group in groups) else ""


def score(directory: Path) -> dict[str, object]:
    """Log-probabilities and greedy tokens of the prompts on standard input."""
    import torch
    import vllm
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    asked = json.loads(sys.stdin.read())
    arguments = EngineArgs.from_cli_args(parsed(directory))
    needs = needs_avx512(directory, arguments.kv_cache_dtype)
    if needs and current_platform.is_cpu() and not torch.cpu._is_avx512_supported():
        sys.exit(f"{needs} of vllm {vllm.__version__} need AVX-512 on an x86 CPU, which this machine has not")
    # One process that compiles nothing: the same numbers, sooner for the few prompts that are asked here.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    arguments.distributed_executor_backend = "uni"
    arguments.enforce_eager = True
    arguments.kv_cache_memory_bytes = SCORED_CACHE_BYTES
    engine = LLM(**{name: getattr(arguments, name) for name in vars(arguments)})
    sampling = SamplingParams(
        temperature=0, max_tokens=max(asked["new_tokens"], 1), prompt_logprobs=0, ignore_eos=True, detokenize=False
    )
    prompts = [TokensPrompt(prompt_token_ids=tokens) for tokens in asked["prompts"]]
    scores, tokens = [], []
    for prompt, output in zip(asked["prompts"], engine.generate(prompts, sampling, use_tqdm=False), strict=True):
        found = zip(prompt[1:], output.prompt_logprobs[1:], strict=True)
        scores.append([entry[token].logprob for token, entry in found])
        tokens.append(list(output.outputs[0].token_ids)[: asked["new_tokens"]])
    decode_s = decode_seconds(engine, asked["prompts"][0], asked["new_tokens"])
    return {"scores": scores, "tokens": tokens, "decode_s": decode_s}


def decode_seconds(engine: Any, longest: list[int], new_tokens: int) -> float | None:
    """Seconds of a token after the first, the last of them where `longest` ends; None where there is none."""
    if not 2 <= new_tokens < len(longest):
        return None
    from vllm import SamplingParams, TokensPrompt

    prompt = TokensPrompt(prompt_token_ids=longest[:-new_tokens])  # the context may have no room beyond it

    def taken(tokens: int) -> float:
        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        engine.generate([prompt], sampling, use_tqdm=False)
        return time.perf_counter() - start

    taken(1)
    return (taken(new_tokens) - taken(1)) / (new_tokens - 1)


if __name__ == "__main__":
    print(ANSWER + json.dumps({"check": check, "score": score}[sys.argv[1]](Path(sys.argv[2]))), flush=True)
