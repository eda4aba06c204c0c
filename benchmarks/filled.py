"""The seconds of a decode step on a cache that counts as full without a prompt being read."""

import statistics
import time

import numpy as np

from backends.onnxruntime.executor import OnnxRuntimeSession

STEPS = 8


def step_seconds(session: OnnxRuntimeSession, context: int) -> float:
    """Median seconds of the last decode steps of a context."""
    cache = session.model.cache(1, context)
    read = context - STEPS
    cache.tokens[0] = [0] * read
    for slots in cache.slots:
        sinks = min(slots.sinks, read)
        slots.append(0, np.concatenate([np.arange(sinks), np.arange(sinks, read)[-slots.window :]]))
    taken = []
    for _ in range(STEPS):
        start = time.perf_counter()
        session.model.step(cache, [0])
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
