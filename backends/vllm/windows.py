"""The windows of a plan as vLLM is told of them: by config.json where it has one length, by a plugin where more."""

from collections.abc import Sequence
from pathlib import Path

from backends.vllm.families import Family
from planner.errors import InputError
from planner.executor import Artifact
from planner.plan import Plan
from planner.space import Full, KvChoice, KvSite
from planner.spec import ModelSpec

PLUGIN = Path(__file__).with_name("plan_windows.py")
PLUGIN_NAME = "plan_windows"
PLANNED_ARCHITECTURE = "PlannedWindowsForCausalLM"
PLUGIN_FOLDER = "plugin"


def layer_choices(plan: Plan, spec: ModelSpec) -> list[KvChoice]:
    """What all heads of each layer share; InputError where they differ."""
    chosen = dict(plan.kv)
    found = []
    for index, layer in enumerate(spec.layers):
        choices = {chosen[KvSite(index, head)] for head in range(layer.kv_heads)}
        if len(choices) > 1:
            raise InputError(f"layer {index}: {len(choices)} kinds of KV heads; vllm caches all heads of a layer alike")
        (choice,) = choices
        if choice.sinks and not isinstance(choice.span, Full):
            raise InputError(f"layer {index}: {choice.sinks} protected tokens; vllm keeps none beside a window")
        found.append(choice)
    return found


def windows(plan: Plan, spec: ModelSpec) -> list[int | None]:
    """Tokens that each layer attends to, the newest included; None where it attends to all.

    A window that grows with the context is as long as it gets.
    """
    found: list[int | None] = []
    for choice, layer in zip(layer_choices(plan, spec), spec.layers, strict=True):
        span = choice.span
        planned = None if isinstance(span, Full) else span.tokens(plan.workload.longest_tokens)
        found.append(min((w for w in (planned, layer.window) if w is not None), default=None))
    return found


def settings(found: Sequence[int | None], family: Family) -> dict[str, object]:
    """The entries of config.json that say the windows.

    >>> from backends.vllm.families import FAMILIES
    >>> settings([None, 64], FAMILIES["llama"])
    {'layer_types': ['full_attention', 'sliding_attention'], 'sliding_window': 64}
    >>> settings([8, 64], FAMILIES["llama"])
    {'architectures': ['PlannedWindowsForCausalLM'], 'plan_windows': [8, 64]}
    """
    lengths = {window for window in found if window is not None}
    if not lengths:
        return {}
    if not family.windowed_by_layer:
        raise InputError(f"config.json: vllm's {family.architecture} cannot be given windows layer by layer")
    if len(lengths) == 1:
        kinds = ["full_attention" if window is None else "sliding_attention" for window in found]
        return {"layer_types": kinds, "sliding_window": lengths.pop()}
    return {"architectures": [PLANNED_ARCHITECTURE], "plan_windows": [window or 0 for window in found]}


def plugin(found: Sequence[int | None]) -> tuple[Artifact, ...]:
    """The package that vLLM finds on PYTHONPATH and that gives layers windows of their own; nothing where none is
    needed."""
    if len({window for window in found if window is not None}) < 2:
        return ()
    about = f"{PLUGIN_FOLDER}/{PLUGIN_NAME}-1.dist-info"
    return (
        Artifact(f"{PLUGIN_FOLDER}/{PLUGIN_NAME}.py", PLUGIN.read_bytes()),
        Artifact(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {PLUGIN_NAME}\nVersion: 1\n".encode()),
        Artifact(
            f"{about}/entry_points.txt",
            f"[vllm.general_plugins]\n{PLUGIN_NAME} = {PLUGIN_NAME}:register\n".encode(),
        ),
    )
