"""One launch compiled for a chip, with no driver and no GPU: its binary, its assembly and what it takes of a chip."""

import contextlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as triton_compile
from triton.errors import TritonError

from backends.triton.chips import Chip, occupancy
from backends.triton.report import Dropped, Resources, amdgcn_report, ptxas_report

if TYPE_CHECKING:
    from backends.kernels.contract import Launch, Variant


@dataclass(frozen=True, slots=True)
class Binary:
    """A compiled kernel: the symbol it is launched by, the loadable binary (cubin, hsaco) and its assembly."""

    entry: str
    resources: Resources
    code: bytes
    assembly: str


def compiled(launch: "Launch", variant: "Variant", chip: Chip) -> Binary | Dropped:
    """The launch for a chip, or why it cannot run there well: it does not compile, spills, or takes too much memory."""
    names = list(launch.signature)
    source = ASTSource(
        fn=launch.kernel,
        signature=launch.signature,
        constexprs={(names.index(name),): value for name, value in launch.constexprs.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in launch.divisible},
    )
    # Fused multiply-add is the default of CUDA's and AMD's own compilers; Triton's default is about to change.
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, "enable_fp_fusion": True}
    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told), knobs.nvidia.scope():
            knobs.nvidia.dump_ptxas_log = True
            kernel = triton_compile(source, GPUTarget(chip.backend, chip.arch, chip.warp_size), options)
    except (TritonError, RuntimeError) as error:
        return Dropped(f"does not compile: {str(error).strip().splitlines()[-1]}")
    if chip.backend == "cuda":
        code, assembly = kernel.asm["cubin"], kernel.asm["ptx"]
        registers, spilled, static = ptxas_report(told.getvalue())
    else:
        code, assembly = kernel.asm["hsaco"], kernel.asm["amdgcn"]
        registers, spilled, static = amdgcn_report(assembly)
    shared = static + kernel.metadata.shared
    warps = kernel.metadata.num_warps
    if spilled:
        return Dropped(f"spills {spilled} bytes of a thread's registers")
    if shared > chip.shared_per_program:
        return Dropped(f"takes {shared} bytes of shared memory; {chip.name} has {chip.shared_per_program}")
    columns = kernel.metadata.tmem_size if chip.tensor_columns else 0
    fits = occupancy(chip, warps, registers, shared, columns)
    if not fits.programs:
        return Dropped(f"does not fit a multiprocessor of {chip.name}: too many {fits.limit}")
    return Binary(kernel.metadata.name, Resources(warps, registers, spilled, shared, fits), code, assembly)
