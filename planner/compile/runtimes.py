"""The runtimes that plans are emitted for: which one a compilation takes, and the parts of each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from planner.errors import InputError
from planner.executor import Capabilities, Executor, RuntimeProbe, Session, Weights, of_version
from planner.mismatch import did_you_mean
from planner.spec import ModelSpec

if TYPE_CHECKING:
    from planner.hardware import HardwareProfile


@dataclass(frozen=True, slots=True)
class Runtime:
    """One runtime's parts.

    `reply` takes an artefact, a prompt, how many tokens to generate and in which chunks to read. `uncompressed` is an
    artefact's own weights under a cache that keeps everything. `refuses` says why a model (its config.json) cannot be
    run, or nothing.
    """

    capabilities: Capabilities
    executor: Callable[[Weights, ModelSpec], Executor]
    probe: Callable[[], RuntimeProbe]
    load: Callable[[Path], Session]
    uncompressed: Callable[[Path], Session]
    reply: Callable[[Path, str, int, int], Iterator[str]]
    refuses: Callable[[str], str]
    cpu_only: bool = False


def _onnxruntime(version: str | None) -> Runtime:
    from backends.onnxruntime import executor, families, probe, uncompressed

    return Runtime(
        of_version((executor.CAPABILITIES,), version),
        executor.OnnxRuntimeExecutor,
        probe.GraphProbe,
        executor.load,
        uncompressed.uncompressed,
        executor.reply,
        families.refusal,
        cpu_only=True,
    )


def _transformers(version: str | None) -> Runtime:
    from backends.transformers import executor, probe, uncompressed

    return Runtime(
        of_version((executor.CAPABILITIES,), version),
        executor.TransformersExecutor,
        probe.RunnerProbe,
        executor.load,
        uncompressed.uncompressed,
        executor.reply,
        lambda config: "",
    )


def _vllm(version: str | None) -> Runtime:
    from backends.vllm import capabilities, executor, families

    return Runtime(
        of_version(capabilities.VERSIONS, version),
        executor.VllmExecutor,
        executor.probe,
        executor.load,
        executor.load,
        executor.reply,
        families.refusal,
    )


def _llamacpp(version: str | None) -> Runtime:
    from backends.llamacpp import architecture, executor, probe

    return Runtime(
        of_version((executor.CAPABILITIES,), version),
        executor.LlamaCppExecutor,
        probe.LlamaCppProbe,
        executor.load,
        executor.uncompressed,
        executor.reply,
        architecture.refusal,
    )


def _genai(version: str | None) -> Runtime:
    from backends.genai import capabilities, executor
    from backends.onnxruntime import families, probe

    return Runtime(
        of_version(capabilities.VERSIONS, version),
        executor.GenaiExecutor,
        probe.GraphProbe,
        executor.load,
        executor.uncompressed,
        executor.reply,
        families.refusal,
        cpu_only=True,
    )


def _written(module: str, executor: str, versions: str = "VERSIONS") -> Callable[[str | None], Runtime]:
    """A runtime that plans are written for from what is known of it, around vLLM's checkpoint, and that is not here."""

    def make(version: str | None) -> Runtime:
        from backends.vllm import executor as vllm
        from backends.vllm import families

        found = import_module(module)
        return Runtime(
            of_version(getattr(found, versions), version),
            getattr(found, executor),
            vllm.probe,
            vllm.load,
            vllm.load,
            vllm.reply,
            families.refusal,
        )

    return make


RUNTIMES: dict[str, Callable[[str | None], Runtime]] = {
    "onnxruntime": _onnxruntime,
    "onnxruntime-genai": _genai,
    "transformers": _transformers,
    "vllm": _vllm,
    "llamacpp": _llamacpp,
    "sglang": _written("backends.sglang.executor", "SglangExecutor"),
    "tensorrt-llm": _written("backends.tensorrt_llm.executor", "TensorRtLlmExecutor"),
    "openvino": _written("backends.openvino.executor", "OpenVinoExecutor"),
    "lmcache": _written("backends.lmcache.executor", "LmcacheExecutor"),
    "kserve": _written("backends.kubernetes.executor", "KserveExecutor", "KSERVE"),
    "dynamo": _written("backends.kubernetes.executor", "DynamoExecutor", "DYNAMO"),
    "compose": _written("backends.compose.executor", "ComposeExecutor"),
}
"""Each takes a version that it knows, or None for the newest."""


def runtime(name: str, asked_by: str = "--backend") -> Runtime:
    """The runtime of a name, or of `name@version`; what asked for it is named where there is none."""
    known, _, version = name.partition("@")
    if known not in RUNTIMES:
        raise InputError(f"{asked_by}: unknown runtime {known!r}{did_you_mean(known, tuple(RUNTIMES))}")
    return RUNTIMES[known](version or None)


def choose(backend: str | None, machine: "str | HardwareProfile", config: str) -> tuple[str, tuple[str, ...]]:
    """The runtime for a machine (`local`, or a target's profile) and a model, and what to tell about the choice.

    On a CPU that is ONNX Runtime, and transformers for a family it has no graph for; on a GPU transformers.
    """
    gpu = not isinstance(machine, str) and machine.kind == "gpu"
    if backend is not None:
        parts = runtime(backend)
        why = "its graphs are for CPUs, and the target is a GPU" if gpu and parts.cpu_only else parts.refuses(config)
        if why:
            raise InputError(f"--backend {backend}: {why}; give --backend transformers")
        return backend, ()
    if gpu:
        return "transformers", ()
    why = runtime("onnxruntime").refuses(config)
    return ("transformers", (f"planned for transformers: {why}",)) if why else ("onnxruntime", ())
