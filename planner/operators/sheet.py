"""What a GPU's data sheet says, as far as operator times depend on it."""

from dataclasses import dataclass

from planner.errors import InputError


@dataclass(frozen=True, slots=True)
class GpuSheet:
    """One GPU by its data sheet; nothing here is measured.

    `flop_per_s` holds pairs of a type (`fp16`, `bf16`, `fp8`, `int8`, `fp32`) and its dense tensor throughput, never
    with sparsity. `link_bytes_per_s` is one direction to the other GPUs of the node together, 0 where there is none.
    """

    name: str
    architecture: str
    sm_count: int
    boost_hz: float
    l2_bytes: int
    shared_bytes_per_sm: int
    memory_bytes_per_s: float
    memory_bytes: int
    flop_per_s: tuple[tuple[str, float], ...]
    link_bytes_per_s: float
    pcie_bytes_per_s: float

    def rate(self, kind: str) -> float:
        """Dense tensor throughput of a type; InputError where the sheet has none."""
        rates = dict(self.flop_per_s)
        if kind not in rates:
            raise InputError(f"{self.name}: no throughput for {kind}; its sheet has {', '.join(rates)}")
        return rates[kind]
