"""The laws of products, prefill, pages, centroids and bundled neurons hold in Triton's interpreter.

It must be chosen before a kernel is imported, so they run in a process of their own; one, for importing takes longest.
"""

import os
import subprocess
import sys
from pathlib import Path

LAWS = Path(__file__).parent / "kernels"
ROOT = Path(__file__).parents[2]


def test_laws_and_examples_hold_in_the_interpreter() -> None:
    laws = [LAWS / f"laws_{name}.py" for name in ("matmul", "prefill", "pages", "ffn")]
    examples = [ROOT / "backends/kernels" / f"{name}.py" for name in ("prefill_attention", "page_scores", "centroids")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, [*laws, *examples])]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
