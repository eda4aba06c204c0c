"""Emitted directories checked and run by vLLM itself, in the interpreter that PLANNER_VLLM_PYTHON names or PATH has.

vLLM needs versions of torch and transformers of its own, so it is never imported here: backends/vllm/inside.py is run
with its interpreter and answers in JSON.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from backends.artefacts import json_bytes
from backends.vllm.capabilities import CPU_CACHE_TYPES, VERSIONS
from backends.vllm.windows import PLUGIN_FOLDER
from planner.errors import InputError
from planner.executor import of_version
from planner.mismatch import shown
from planner.serde import build, schema
from planner.yaml_text import parse

PYTHON_VARIABLE = "PLANNER_VLLM_PYTHON"
INSIDE = Path(__file__).with_name("inside.py")
ANSWER = "answer: "
SECONDS = 3600
QUIET = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_INT4_W4A8": "0"}


@dataclass(frozen=True, slots=True)
class Configured:
    """What vLLM makes of a directory's arguments, by its own configuration's names."""

    version: str
    platform: str
    architecture: str
    dtype: str
    quantization: str | None
    max_model_len: int
    cache_dtype: str
    skipped: tuple[str, ...]
    chunked_prefill: bool
    max_num_batched_tokens: int
    offload_gb: float
    offload_params: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """Of each prompt: natural log-probabilities of its tokens after the first, and the greedy tokens that follow.

    `decode_s` is the seconds of a token after the first, the last at the first prompt's length, compiling nothing; None
    where none was asked.
    """

    scores: tuple[tuple[float, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    decode_s: float | None


def interpreter() -> Path:
    """The Python that has vLLM: $PLANNER_VLLM_PYTHON, or the one that the `vllm` on PATH lies beside."""
    given = os.environ.get(PYTHON_VARIABLE)
    if given:
        if not Path(given).is_file():
            raise InputError(f"{PYTHON_VARIABLE}: {given} is no file; name the python that has vllm installed")
        return Path(given)
    command = shutil.which("vllm")
    beside = None if command is None else Path(command).with_name("python")
    if beside is None or not beside.is_file():
        raise InputError(f"vllm is not installed here: set {PYTHON_VARIABLE} to the python of a place that has it")
    return beside


def check(directory: Path) -> Configured:
    """serve.yaml parsed and its engine configured by vLLM's own code; InputError where vLLM or our table refuses it.

    The table is asked too because vLLM takes cache types on a CPU that its attention there does not read.
    """
    told = _asked("check", Configured, directory, b"")
    of_version(VERSIONS, told.version)
    if told.platform == "cpu" and told.cache_dtype not in CPU_CACHE_TYPES:
        raise InputError(
            f"{directory}: kv-cache-dtype: vllm {told.version} takes {told.cache_dtype} on a CPU and does not read it"
            f" there; known: {', '.join(CPU_CACHE_TYPES)}"
        )
    return told


def score(directory: Path, prompts: Sequence[Sequence[int]], new_tokens: int = 0) -> Scored:
    """Prompts run by vLLM's own engine on an emitted directory."""
    asked = json_bytes({"prompts": [list(prompt) for prompt in prompts], "new_tokens": new_tokens})
    return _asked("score", Scored, directory, asked)


T = TypeVar("T", Configured, Scored)


def _asked(what: str, kind: type[T], directory: Path, given: bytes) -> T:
    """The answer of inside.py; InputError with vLLM's last words where it gave none."""
    place = directory.resolve()
    path = os.pathsep.join(filter(None, (str(place / PLUGIN_FOLDER), os.environ.get("PYTHONPATH"))))
    command = [str(interpreter()), str(INSIDE), what, str(place)]
    environment = os.environ | QUIET | {"PYTHONPATH": path}
    try:
        run = subprocess.run(command, input=given, env=environment, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{directory}: vllm did not answer within {SECONDS} seconds") from error
    answers = [line for line in run.stdout.decode(errors="replace").splitlines() if line.startswith(ANSWER)]
    if run.returncode or not answers:
        said = [line for line in run.stderr.decode(errors="replace").splitlines() if line.strip()]
        raise InputError(f"{directory}: vllm refuses it: {said[-1].strip() if said else 'it said nothing'}")
    answer = parse(answers[-1].removeprefix(ANSWER), "vllm")
    if not isinstance(answer, dict):
        raise InputError(f"{directory}: vllm answered {shown(answer)}")
    return build({"schema": schema(kind), **answer}, kind, f"{directory}: vllm's answer")
