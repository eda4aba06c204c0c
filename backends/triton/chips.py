"""What a GPU's multiprocessor holds at once: the limits that decide which programs fit, and how many together.

Sources: CUDA C++ Programming Guide, technical specifications per compute capability, and NVIDIA's occupancy rules
(cuda_occupancy.h: registers are given to whole warps in units of 256, warps in fours for the four partitions of a
multiprocessor); AMD Instinct MI300 (CDNA 3) and CDNA 4 Instruction Set Architecture guides, and the LLVM AMDGPU usage
guide (512 vector registers for each lane of a SIMD, given in units of 8, at most 8 waves of a SIMD, 4 SIMDs a unit);
PTX ISA, tcgen05: 512 columns of tensor memory a multiprocessor.
"""

from dataclasses import dataclass

from planner.errors import InputError


@dataclass(frozen=True, slots=True)
class Chip:
    """One architecture as triton.compile names it, and a multiprocessor's (compute unit's) limits.

    registers            registers of a SIMD for each lane of a warp, all partitions together
    register_unit        registers for each lane that a warp is given at a time
    shared_per_program   most shared memory of one program; `shared_reserved` more is taken for each by the system
    """

    name: str
    backend: str
    arch: int | str
    warp_size: int
    registers: int
    register_unit: int
    warps: int
    programs: int
    partitions: int
    shared_bytes: int
    shared_per_program: int
    shared_reserved: int
    shared_unit: int
    tensor_columns: int = 0


def _nvidia(capability: int, warps: int, programs: int, shared_kib: int, tensor_columns: int = 0) -> Chip:
    """An NVIDIA chip: 65,536 registers a multiprocessor (2,048 for each lane), 1 KiB reserved for each program."""
    return Chip(
        name=f"sm_{capability}",
        backend="cuda",
        arch=capability,
        warp_size=32,
        registers=2048,
        register_unit=8,
        warps=warps,
        programs=programs,
        partitions=4,
        shared_bytes=shared_kib * 1024,
        shared_per_program=(shared_kib - 1) * 1024,
        shared_reserved=1024,
        shared_unit=128,
        tensor_columns=tensor_columns,
    )


def _amd(name: str, shared_kib: int) -> Chip:
    """A CDNA chip: 4 SIMDs of 512 registers a lane and 8 waves each."""
    return Chip(
        name=name,
        backend="hip",
        arch=name,
        warp_size=64,
        registers=2048,
        register_unit=8,
        warps=32,
        programs=32,
        partitions=4,
        shared_bytes=shared_kib * 1024,
        shared_per_program=shared_kib * 1024,
        shared_reserved=0,
        shared_unit=512,
    )


CHIPS = {
    chip.name: chip
    for chip in (
        _nvidia(80, warps=64, programs=32, shared_kib=164),
        _nvidia(86, warps=48, programs=16, shared_kib=100),
        _nvidia(89, warps=48, programs=24, shared_kib=100),
        _nvidia(90, warps=64, programs=32, shared_kib=228),
        _nvidia(100, warps=64, programs=32, shared_kib=228, tensor_columns=512),
        _amd("gfx942", shared_kib=64),
        _amd("gfx950", shared_kib=160),
    )
}


def chip(architecture: str) -> Chip:
    """The chip of an architecture; InputError where its limits are not known here.

    >>> chip("sm_80").shared_per_program
    166912
    """
    if architecture not in CHIPS:
        raise InputError(f"kernels are compiled for {', '.join(CHIPS)}; found architecture {architecture!r}")
    return CHIPS[architecture]


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Programs that a multiprocessor holds at once, what keeps it from more, and the share of its warps they fill."""

    programs: int
    limit: str
    share: float


def occupancy(chip: Chip, warps: int, registers: int, shared_bytes: int, tensor_columns: int = 0) -> Occupancy:
    """How many programs of so many warps run at once, at so many registers a thread and bytes of shared memory.

    >>> occupancy(CHIPS["sm_80"], 4, 128, 0)
    Occupancy(programs=4, limit='registers', share=0.25)
    >>> occupancy(CHIPS["sm_80"], 4, 32, 100_000)
    Occupancy(programs=1, limit='shared memory', share=0.0625)
    """
    each = _up(max(registers, 1), chip.register_unit)
    warps_by_registers = chip.partitions * min(chip.registers // chip.partitions // each, chip.warps // chip.partitions)
    shared = _up(shared_bytes + chip.shared_reserved, chip.shared_unit)
    limits = (
        (chip.warps // warps, "warps"),
        (warps_by_registers // warps, "registers"),
        (chip.shared_bytes // shared if shared else chip.programs, "shared memory"),
        (chip.programs, "programs"),
        (chip.tensor_columns // tensor_columns if tensor_columns else chip.programs, "tensor memory"),
    )
    programs, limit = min(limits, key=lambda pair: pair[0])
    return Occupancy(programs, limit, programs * warps / chip.warps)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
