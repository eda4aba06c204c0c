"""The laws of products, prefill, pages, centroids and bundled neurons hold in Triton's interpreter.

It must be chosen before a kernel is imported, so each file of laws runs in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LAWS = Path(__file__).parent / "kernels"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("laws", ["matmul", "prefill", "pages", "ffn"])
def test_laws_hold_in_the_interpreter(laws: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(LAWS / f"laws_{laws}.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
