"""What a compiled kernel takes of a chip, read from the assembler's report, or why it is not kept."""

import re
from dataclasses import dataclass

from backends.triton.chips import Occupancy


@dataclass(frozen=True, slots=True)
class Resources:
    """What one program of a kernel takes, as the assembler reports it.

    registers      of a thread; on AMD vector and accumulation registers together
    spilled_bytes  a thread's registers stored to memory and loaded back
    shared_bytes   of a program, static and dynamic
    """

    warps: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    occupancy: Occupancy


@dataclass(frozen=True, slots=True)
class Dropped:
    """Why a launch is not kept."""

    reason: str


def ptxas_report(text: str) -> tuple[int, int, int]:
    """(registers, bytes spilled, bytes of static shared memory) as `ptxas -v` reports them.

    >>> ptxas_report('''ptxas info    : Compiling entry function 'k' for 'sm_80'
    ...     16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
    ... ptxas info    : Used 40 registers, used 1 barriers, 512 bytes smem, 400 bytes cmem[0]''')
    (40, 20, 512)
    """
    used = re.search(r"Used (\d+) registers", text)
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
    if used is None or spilled is None:
        raise ValueError(f"ptxas reported no registers or spills: {text!r}")
    static = re.search(r"(\d+) bytes smem", text)
    return int(used[1]), int(spilled[1]) + int(spilled[2]), int(static[1]) if static else 0


def amdgcn_report(text: str) -> tuple[int, int, int]:
    """(vector registers, bytes spilled, bytes of static shared memory) by the metadata of AMD's assembly.

    `.vgpr_count` counts accumulation registers too, where a kernel has some: the two share one file on CDNA. Scalar
    registers are spilled to lanes of vector registers, not to memory; what does go to memory is in the private segment.

    >>> amdgcn_report('''    .agpr_count:     4
    ...     .group_segment_fixed_size: 0
    ...     .private_segment_fixed_size: 12
    ...     .sgpr_spill_count: 11
    ...     .vgpr_count:     132
    ...     .vgpr_spill_count: 2''')
    (132, 12, 0)
    """

    def number(name: str) -> int:
        found = re.search(rf"^\s*\.{name}:\s*(\d+)", text, re.MULTILINE)
        if found is None:
            raise ValueError(f"the assembly names no .{name}")
        return int(found[1])

    spilled = max(4 * number("vgpr_spill_count"), number("private_segment_fixed_size"))
    return number("vgpr_count"), spilled, number("group_segment_fixed_size")
