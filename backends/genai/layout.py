"""What a plan becomes for onnxruntime-genai: the graph, and genai_config.json."""

from collections.abc import Mapping, Sequence

from backends.genai.graph import GenaiGraph
from backends.onnxruntime import layout, runner
from backends.onnxruntime.families import family_of, rotary_tables, settings
from planner.errors import InputError
from planner.executor import KvStatics, Weights
from planner.plan import Plan
from planner.space import Full, KvChoice, KvSite
from planner.spec import LayerSpec, ModelSpec

CONFIG = "genai_config.json"

SLACK = 1
"""Slots of a ring that genai_config.json tells apart from its window. With none told the generator doubles the ring;
what each token sees is the graph's own `local_window_size`, so that one of the window's slots can be called slack."""


def windows(plan: Plan, spec: ModelSpec) -> tuple[int, ...]:
    """The length of each layer's ring of slots, 0 where it keeps every token; all rings have one length.

    The window that a layer was trained with is a ring as well.
    """
    chosen = dict(plan.kv)
    found = tuple(window(index, layer, chosen, plan) for index, layer in enumerate(spec.layers))
    lengths = sorted({length for length in found if length})
    if len(lengths) > 1:
        raise InputError(
            f"windows: found {', '.join(map(str, lengths))} tokens; onnxruntime-genai has rings of one length"
        )
    return found


def window(index: int, layer: LayerSpec, chosen: Mapping[KvSite, KvChoice], plan: Plan) -> int:
    """The ring of one layer, whose heads are cached alike."""
    choices = {chosen[KvSite(index, head)] for head in range(layer.kv_heads)}
    (choice,) = choices if len(choices) == 1 else (None,)
    if choice is None:
        raise InputError(
            f"layer {index}: its heads are cached in {len(choices)} ways; onnxruntime-genai has one a layer"
        )
    if isinstance(choice.span, Full):
        return layer.window or 0
    if choice.sinks:
        raise InputError(f"layer {index}: {choice.sinks} protected tokens beside a window; rings keep the newest alone")
    tokens = choice.span.tokens(plan.workload.longest_tokens)
    if tokens <= SLACK:
        raise InputError(f"layer {index}: a window of {tokens} token; onnxruntime-genai has rings of more")
    return tokens if layer.window is None else min(tokens, layer.window)


def graph(plan: Plan, spec: ModelSpec, weights: Weights, statics: Mapping[KvSite, KvStatics]) -> GenaiGraph:
    """The graph of a plan, ready to be written."""
    found = rotary_tables(weights.config, spec.max_positions)
    distinct = list({id(table): table for table in found}.values())
    numbers = [next(i for i, each in enumerate(distinct) if each is table) for table in found]
    formats = {site.tensor: choice.format for site, choice in plan.weights}
    return GenaiGraph(
        family_of(weights.config),
        layout.shapes(plan, spec, statics, numbers),
        distinct,
        layout.PlannedParameters(weights, formats),
        "lm_head.weight" if "lm_head.weight" in weights.names() else "model.embed_tokens.weight",
        windows=windows(plan, spec),
    )


def genai_config(plan: Plan, spec: ModelSpec, config_json: str, stop: Sequence[int]) -> dict[str, object]:
    """genai_config.json: the names the graph has, the rings, and greedy search over the plan's longest context.

    A longer context than the plan's would grow caches that it did not count; `max_length` bounds them. There is no
    `chunk_size`: with one, a ring has room for a chunk beside its window. Prompts are appended in chunks instead.
    """
    config, layer = settings(config_json), spec.layers[0]
    rings = windows(plan, spec)
    decoder: dict[str, object] = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": runner.GRAPH,
        "head_size": layer.head_dim,
        "hidden_size": spec.hidden_size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": layer.q_heads,
        "num_hidden_layers": len(spec.layers),
        "num_key_value_heads": layer.kv_heads,
    }
    if any(rings):
        decoder["sliding_window"] = {
            "window_size": max(rings) - SLACK,
            "slide_key_value_cache": False,
            "slide_inputs": False,
            "layers": [index for index, length in enumerate(rings) if length],
            "cache_slack": SLACK,
        }
    begin = config.bos_token_id
    return {
        "model": {
            **({} if begin is None else {"bos_token_id": begin}),
            "eos_token_id": list(stop),
            "pad_token_id": stop[0] if config.pad_token_id is None else config.pad_token_id,
            "context_length": spec.max_positions,
            "decoder": decoder,
            "type": spec.family,
            "vocab_size": spec.vocab_size,
        },
        "search": {
            "do_sample": False,
            "max_length": plan.workload.longest_tokens,
            "past_present_share_buffer": True,
        },
    }


def refusal(spec: ModelSpec) -> str:
    """Why a model's shapes have no place in genai_config.json, which tells those of one layer for all; or nothing."""
    shapes = {(layer.q_heads, layer.kv_heads, layer.head_dim) for layer in spec.layers}
    if len(shapes) > 1:
        return f"its layers have heads of {len(shapes)} shapes, and genai_config.json tells one"
    return ""
