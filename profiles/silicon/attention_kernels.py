"""Which attention kernels a framework runs on which GPUs, before any fit."""

from planner.operators.attention import Append, AttentionModel, DecodeKernel, Form, PrefillKernel, Serves
from planner.operators.attention_work import Schedule

# Architectures whose attention is FlashAttention 2.
BEFORE_HOPPER = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_89")
# Where a fit starts, and what a parameter is that the rows say nothing about: round figures of such kernels.
_APPEND = Append(token_s=5e-9, narrow=1.2, traffic=1.0)


def attention_kernels(framework: str, architecture: str) -> AttentionModel:
    """The kernels of vllm, sglang or trtllm on an architecture (`sm_90`); of any other framework, vllm's.

    >>> [kernel.name for kernel in attention_kernels("vllm", "sm_80").decode]
    ['fa2', 'fa2-8']
    """
    old = architecture in BEFORE_HOPPER
    if framework == "trtllm":
        return AttentionModel(
            decodes_single_tokens=False,
            decode=(
                _decode("xqa", "fill", 16, "packed-heads", resident=3),
                _decode("xqa-8", "fill", 8, "packed-heads", resident=3),
                _decode("mmha", "fill-heads", 16, resident=2),
                _decode("mmha-8", "fill-heads", 8, resident=2),
            ),
            prefill=_prefills("fmha", "fa2", ((16, 16), (8, 16), (8, 8))),
        )
    if framework == "sglang" and old:
        return AttentionModel(
            decodes_single_tokens=False,
            decode=(_decode("flash", "fa3", 16), _decode("flash-8", "fa3", 8)),
            prefill=_prefills("flash", "fa3", ((16, 16), (8, 16), (8, 8))),
        )
    if framework == "sglang":
        wide: Form = "over-256-or-windowed"
        return AttentionModel(
            decodes_single_tokens=False,
            decode=(
                _decode("triton", "fa2", 16, wide, resident=2),
                _decode("triton-8", "fa3-static", 8, wide),
                _decode("fa3", "fa3-static", 16),
                _decode("fa3-8", "fa3-static", 8),
            ),
            prefill=(
                *_prefills("triton", "fa2", ((8, 16),), wide),
                *_prefills("triton", "fa3-static", ((16, 16), (8, 8)), wide),
                *_prefills("fa3", "fa3", ((16, 16), (8, 16), (8, 8))),
            ),
        )
    if old:
        return AttentionModel(
            decodes_single_tokens=True,
            decode=(_decode("fa2", "fa2", 16, resident=2), _decode("fa2-8", "fa2", 8, resident=2)),
            prefill=_prefills("fa2", "fa2", ((16, 16), (8, 16), (8, 8))),
        )
    return AttentionModel(
        decodes_single_tokens=True,
        decode=(_decode("fa4", "fa3", 16, "over-256"), _decode("fa3", "fa3", 16), _decode("fa3-8", "fa3", 8)),
        prefill=(
            *_prefills("fa4", "fa3", ((16, 16),), "over-256"),
            *_prefills("fa3", "fa3", ((16, 16), (8, 16), (8, 8))),
        ),
    )


def _decode(name: str, schedule: Schedule, kv_bits: int, form: Form = "any", resident: int = 1) -> DecodeKernel:
    return DecodeKernel(
        name=name,
        serves=Serves(form, kv_bits=kv_bits),
        schedule=schedule,
        resident=resident,
        append=_APPEND,
        launch_s=9e-6,
        extra_launch_s=3e-6,
        sequence_s=3e-9,
        split_sequence_s=8e-9,
        item_cycles=2000,
        item_cycles_per_dim=8,
        row_cycles_per_dim=0.1,
        key_cycles=10,
        key_cycles_per_dim=0.1,
        key_cycles_per_row=0.01,
        alone=1.0,
        partial_s_per_dim=3e-11,
        memory_share=0.9,
        l2_rate=3.0,
        l2_share=0.7,
        l2_sharpness=6.0,
        overlap=2.0,
    )


def _prefills(
    name: str, schedule: Schedule, types: tuple[tuple[int, int], ...], form: Form = "any"
) -> tuple[PrefillKernel, ...]:
    """A kernel for every pair of types, of the cache and of the products."""
    return tuple(
        PrefillKernel(
            name=name if (kv_bits, compute_bits) == (16, 16) else f"{name}-{kv_bits}-{compute_bits}",
            serves=Serves(form, kv_bits, compute_bits),
            schedule=schedule,
            append=_APPEND,
            launch_s=9e-6,
            extra_launch_s=3e-6,
            sequence_s=3e-9,
            token_s=3e-10,
            item_cycles=3000,
            row_cycles_per_dim=0.1,
            tensor_share=0.7,
            softmax_cycles=0.03,
            small_tile=1.0,
            serial=1.2,
            tail=0.4,
            alone=1.1,
            partial_traffic=0.5,
            memory_share=0.9,
            overlap=1.3,
            throttle=0.05,
            throttle_s=3e-3,
        )
        for kv_bits, compute_bits in types
    )
