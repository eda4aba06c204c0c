"""Whether what a kernel gave is what its reference gives, within what its inputs' type allows."""

from collections.abc import Iterable
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from backends.kernels.checking import LIMITS, error


class Checked(Protocol):
    got: Tensor
    wanted: Tensor


def agree(checks: Iterable[Checked], dtype: torch.dtype) -> None:
    """Floats within the norm-wise limit of their type, integers bit for bit."""
    for check in checks:
        if check.wanted.is_floating_point():
            assert error(check.got, check.wanted) <= LIMITS[str(dtype).removeprefix("torch.")]
        else:
            assert torch.equal(check.got, check.wanted)


def cases(module: ModuleType) -> list[tuple[object, torch.dtype]]:
    """The hostile shapes of a module, in both types by turns."""
    kinds = (torch.float16, torch.bfloat16)
    return [(shape, kinds[i % 2]) for i, shape in enumerate(module.hostile())]
