"""What each version of onnxruntime-genai carries.

Its generator makes the caches itself: one type for all layers, and rings of one length for the layers it is told of
(genai_config.json, model.decoder.sliding_window). A ring keeps the newest tokens and nothing else, so protected tokens
have no place beside it.
"""

from importlib.util import find_spec

from planner.executor import Capabilities
from planner.formats import BLOCK_BITS, STATIC_BITS, block, static
from planner.space import FLOAT32, WeightFormat

MODULE = "onnxruntime_genai"

VERSIONS = tuple(
    Capabilities(
        runtime="onnxruntime-genai",
        version=version,
        kv_formats=(FLOAT32, *(static(bits) for bits in reversed(STATIC_BITS))),
        weight_formats=(WeightFormat(32), *(block(bits) for bits in reversed(BLOCK_BITS))),
        window_page_tokens=1,
        classes_per_layer=1,
        executes_here=find_spec(MODULE) is not None,
        kv_alike=True,
        native="exact",
        unrounded=(4,),
        spans="model",
        elastic=False,
        sinks=False,
        kv_one="model",
    )
    for version in ("0.18.0",)
)
"""Versions whose generator was looked at, oldest first."""
