"""What each known version of vLLM carries, from its sources and from running it.

Of the cache types that its command line takes, its CPU attention lists fp8 alone; `int8_per_token_head` is accepted on
a CPU and then attended to as if it were something else, so no plan has it. Keys and values of more types than one are
for GPUs only (turboquant) and not offered either.
"""

from dataclasses import replace

from backends.vllm.families import FLOAT_ONLY, FUSED, family_of
from planner.executor import Capabilities
from planner.formats import FP8, integers
from planner.space import FLOAT16, WeightFormat

CPU_CACHE_TYPES = ("auto", "fp8", "fp8_e4m3", "fp8_e5m2")
"""Cache types that its CPU attention reads, of those its command line takes there."""

SIDE_MULTIPLE = 32
"""What its CPU product with four-bit matrices needs both sides of a matrix to be a multiple of."""

VERSIONS = (
    Capabilities(
        runtime="vllm",
        version="0.32.0",
        kv_formats=(FLOAT16, FP8),
        weight_formats=(WeightFormat(16), integers(8, 0), *(integers(4, group) for group in (32, 64, 128))),
        window_page_tokens=1,
        classes_per_layer=None,
        executes_here=False,
        kv_alike=True,
        native="none",
        spans="layer",
        elastic=False,
        sinks=False,
        kv_one="model or float",
        weight_sets=tuple(FUSED.values()),
        float_modules=FLOAT_ONLY,
        side_multiple=SIDE_MULTIPLE,
    ),
)


def capabilities(config: str) -> Capabilities:
    """What the newest known version carries of a model (its config.json): some families are given no windows."""
    newest = VERSIONS[-1]
    return newest if family_of(config).windowed_by_layer else replace(newest, spans="full")
