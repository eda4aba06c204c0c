"""What every kernel module offers, so that all of them are compiled, searched, checked and counted by the same code.

A kernel module has

    Shape                        frozen dataclass of sizes, bits and lengths: what a plan fixes
    reference(...)               plain torch, float64 where it computes
    the @triton.jit kernels, and a launcher named after the idea (torch in, torch out, an optional Variant)
    variants(shape)              tuple[Variant, ...]: the ways to run it that are worth compiling
    launches(shape, variant)     tuple[Launch, ...]: the kernels a call of the launcher starts, in order
    hostile()                    tuple[Shape, ...]: edge cases that must hold whatever the plan
    check(shape, variant, dtype, seed)
                                 tuple[Check, ...]: inputs made from the seed, run by the launcher and by the reference
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Variant:
    """One way to run a kernel: its tile sizes by name, warps of a program, and stages of the software pipeline.

    >>> Variant((("BLOCK_N", 64),), num_warps=4, num_stages=2).tile("BLOCK_N")
    64
    """

    tiles: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int

    def tile(self, name: str) -> int:
        """A tile size; KeyError where the variant has none of that name."""
        return dict(self.tiles)[name]


@dataclass(frozen=True)
class Launch:
    """One kernel as triton.compile takes it, its grid, and what it needs at least.

    kernel         a @triton.jit function
    signature      type of every argument by name, in order ("*fp16", "i32", "constexpr")
    constexprs     value of every argument whose type is "constexpr"
    divisible      pointer and integer arguments that are multiples of 16
    programs       programs of the whole grid
    bytes_read     bytes of distinct 32-byte sectors that must be loaded
    bytes_written  bytes stored
    flop           multiplications and additions
    """

    kernel: object
    signature: dict[str, str]
    constexprs: dict[str, object]
    divisible: tuple[str, ...]
    programs: int
    bytes_read: int
    bytes_written: int
    flop: int


@dataclass(frozen=True)
class Check:
    """What must agree: the launcher's tensor and the reference's (float64; integer tensors bit for bit)."""

    got: torch.Tensor
    wanted: torch.Tensor
