"""Document types whose fields changed: their versions, and how an old document becomes a newer one."""

from collections.abc import Callable, Mapping

from planner.yaml_text import Plain

Upgrade = Callable[[dict[str, Plain]], dict[str, Plain]]


def hardware_profile_1_to_2(data: dict[str, Plain]) -> dict[str, Plain]:
    """Attention became a curve over the cache's length, by head size; before, both were 2,048 slots and 64 numbers.

    >>> old = {"schema": "planner/hardware-profile@1", "attention_times": [{"bits": 8, "decode_s": 2e-10}]}
    >>> hardware_profile_1_to_2(old)["attention_times"]
    [{'bits': 8, 'head_dim': 64, 'decode': [[2048, 2e-10]]}]
    """
    times = data.get("attention_times", [])
    lifted = [_attention(each) for each in times] if isinstance(times, list) else times
    return {**data, "schema": "planner/hardware-profile@2", "attention_times": lifted}


def _attention(data: Plain) -> Plain:
    """One width's times as curves of one point; what is no mapping stays, for the reader to refuse."""
    if not isinstance(data, dict):
        return data
    now: dict[str, Plain] = {name: value for name, value in data.items() if name not in ("decode_s", "prefill_s")}
    now["head_dim"] = 64
    for name in ("decode", "prefill"):
        if f"{name}_s" in data:
            now[name] = [[2048, data[f"{name}_s"]]]
    return now


VERSIONS: Mapping[str, int] = {"hardware-profile": 2}
"""The version of each type whose fields changed; all others are at 1."""

UPGRADES: Mapping[str, Upgrade] = {"planner/hardware-profile@1": hardware_profile_1_to_2}
"""By an old document's schema, what lifts it to the next."""
