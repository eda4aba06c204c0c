"""Worker processes that answer requests side by side; a broken one is replaced, an interrupted crew ends at once."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import cast

ROOT = Path(__file__).resolve().parents[2]
"""The directory that holds the `backends` package."""

MOST_WORKERS = 16
"""Each holds torch and a compiler, about a gigabyte."""

Reply = list[object]


class WorkerBroke(Exception):
    """A worker ended without an answer: by a signal (below 0), or with an error of ours."""

    def __init__(self, code: int, told: str) -> None:
        super().__init__(f"a kernel worker ended with code {code}: {told}")
        self.code = code


class Worker:
    """One process, started when it is first asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._told = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by end()

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
            code = process.wait()
            self._told.seek(0)
            told = self._told.read().strip()
            self.end()
            raise WorkerBroke(code, told)
        return cast(Reply, json.loads(line))

    def _start(self) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
        # One thread each: the crew is what runs in parallel.
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._told = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by end()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "backends.triton.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._told,
            text=True,
            env=environment,
        )
        return self._process

    def end(self) -> None:
        """Kill the process; nothing it was writing is half there, for it renames what it wrote."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None
            self._told.close()


class Crew:
    """As many workers as this process may use cores; a context that ends them all."""

    def __init__(self) -> None:
        self._count = min(len(os.sched_getaffinity(0)), MOST_WORKERS)
        self._workers = [Worker() for _ in range(self._count)]
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(self._count)

    def ask_all(self, requests: Sequence[object], done: Callable[[int], None]) -> list[Reply | WorkerBroke]:
        """The replies in the order of the requests; `done` is told how many there are, as they come."""
        futures = [self._threads.submit(self._ask, request) for request in requests]
        for count, _ in enumerate(as_completed(futures), 1):
            done(count)
        return [_reply(future) for future in futures]

    def _ask(self, request: object) -> Reply:
        worker = self._idle.get()
        try:
            return worker.ask(request)
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


def _reply(future: "Future[Reply]") -> Reply | WorkerBroke:
    """A reply; a crash of the compiler is one too, an error of ours is raised."""
    try:
        return future.result()
    except WorkerBroke as broke:
        if broke.code >= 0:
            raise
        return broke
