"""Kernels in Triton's interpreter, which has to be chosen before Triton is imported: so in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}


def told(script: str, *arguments: str) -> Any:
    """What a script prints last, as JSON, when it is run in an interpreter's process."""
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


class Checking:
    """A process that checks and counts kernels."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def ask(self, **request: object) -> Sequence[Mapping[str, Any]]:
        """The reply to one request."""
        asked, replies = self.process.stdin, self.process.stdout
        assert asked is not None and replies is not None
        print(json.dumps(request), file=asked, flush=True)
        line = replies.readline()
        assert line, f"the process ended over {request}"
        reply: Sequence[Mapping[str, Any]] = json.loads(line)
        return reply

    def run(
        self, module: str, shape: Mapping[str, object], variant: Mapping[str, object], dtype: str
    ) -> Mapping[str, Any]:
        """A case: its error, and what its launches moved."""
        (found,) = self.ask(do="run", module=module, shape=shape, variant=variant, dtype=dtype)
        return found


@contextmanager
def checking() -> Iterator[Checking]:
    """A process for as long as it is needed."""
    command = [sys.executable, "-W", "ignore", "-m", "backends.kernels.checking", "--serve"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Checking(process)
        process.stdin.close()  # type: ignore[union-attr]
