"""Worker processes that answer requests side by side; a broken one is replaced, an interrupted crew ends at once."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import TextIO, cast

MOST_WORKERS = 16
"""Each holds torch and a compiler, about a gigabyte."""

Reply = list[object]
"""What a worker answers: always a list."""


class WorkerBroke(Exception):
    """A worker ended without an answer: crashed by a signal, or with an error that it told on its error stream."""

    def __init__(self, code: int, told: str) -> None:
        super().__init__(f"a kernel worker ended with code {code}: {told}")
        self.code = code
        self.told = told

    @property
    def crashed(self) -> bool:
        """Whether a signal ended it."""
        return self.code < 0

    @property
    def reason(self) -> str:
        """One line."""
        return f"crashed with signal {-self.code}" if self.crashed else self.told.splitlines()[-1]


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker runs: `python -m module arguments` with modules found under `path`, and these variables set."""

    module: str
    path: Path
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


class Worker:
    """One process, started when it is first asked."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._process: subprocess.Popen[str] | None = None
        self._told: TextIO | None = None

    def ask(self, request: object) -> Reply:
        """The reply to one request; WorkerBroke where the process ended instead: the next request starts another."""
        process = self._process or self._start()
        stdin, stdout = process.stdin, process.stdout
        if stdin is None or stdout is None:
            raise TypeError("a worker has pipes")
        line = ""
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            pass
        if not line.endswith("\n"):
            raise WorkerBroke(process.wait(), self._last_words())
        return cast(Reply, json.loads(line))

    def _start(self) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
        # One thread each: the crew is what runs in parallel. An artefact is left as it is.
        environment |= {"PYTHONPATH": str(self._job.path), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self._told = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by end()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", self._job.module, *self._job.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._told,
            text=True,
            env=environment | dict(self._job.environment),
        )
        return self._process

    def _last_words(self) -> str:
        """What the process told on its error stream before it ended; the worker is ended with it."""
        told = ""
        if self._told is not None:
            self._told.seek(0)
            told = self._told.read().strip()
        self.end()
        return told

    def end(self) -> None:
        """Kill the process; nothing it was writing is half there, for it renames what it wrote."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None
        if self._told is not None:
            self._told.close()
            self._told = None


class Crew:
    """As many workers as this process may use cores; a context that ends them all."""

    def __init__(self, job: Job) -> None:
        self._count = min(len(os.sched_getaffinity(0)), MOST_WORKERS)
        self._workers = [Worker(job) for _ in range(self._count)]
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(self._count)

    def ask_all(self, requests: Sequence[object], done: Callable[[int], None]) -> list[Reply | WorkerBroke]:
        """The replies in the order of the requests, or how a worker ended at one; `done` is told how many there are."""
        futures = [self._threads.submit(self._ask, request) for request in requests]
        for count, _ in enumerate(as_completed(futures), 1):
            done(count)
        return [future.result() for future in futures]

    def _ask(self, request: object) -> Reply | WorkerBroke:
        worker = self._idle.get()
        try:
            return worker.ask(request)
        except WorkerBroke as broke:
            return broke
        finally:
            self._idle.put(worker)

    def __enter__(self) -> "Crew":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.end()
        self._threads.shutdown()
