"""What the system says of this machine: processor, caches, memory, and how busy others keep it."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped,unused-ignore]

FEATURES = Path("/proc/cpuinfo")
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, slots=True)
class CpuSeconds:
    """What all CPUs together had and spent since the system started, and what this process spent of it."""

    passed_s: float
    busy_s: float
    own_s: float

    def others_share(self, later: "CpuSeconds") -> float:
        """Of all the CPUs' time until `later`, the share that others took: processes, and other virtual machines.

        >>> CpuSeconds(10, 4, 1).others_share(CpuSeconds(20, 9, 3))
        0.3
        """
        passed = later.passed_s - self.passed_s
        others = (later.busy_s - self.busy_s) - (later.own_s - self.own_s)
        return round(min(max(others / passed, 0.0), 1.0), 3) if passed > 0 else 0.0


def cpu_seconds() -> CpuSeconds:
    """The count now."""
    # Time of guests is within that of user and nice.
    spent = {name: s for name, s in psutil.cpu_times()._asdict().items() if not name.startswith("guest")}
    own = psutil.Process().cpu_times()
    passed = sum(spent.values())
    return CpuSeconds(passed, passed - spent["idle"] - spent.get("iowait", 0.0), own.user + own.system)


def usable_cpus() -> int:
    """CPUs that this process may run on.

    >>> usable_cpus() >= 1
    True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_average() -> float:
    """Of the last minute; 0 where the system keeps none."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0


def available_bytes() -> int:
    """Memory a new process can use, under its container's limit where there is one."""
    available = int(psutil.virtual_memory().available)
    for path in CGROUP_LIMITS:
        text = path.read_text().strip() if path.is_file() else "max"
        if text.isdigit():
            available = min(available, int(text))
    return available


def last_cache_bytes() -> int:
    """Size of the last cache level, 32 MiB where the system does not say.

    >>> last_cache_bytes() > 0
    True
    """
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * 1024)
    return max(sizes, default=32 * 2**20)


def cpu_flags() -> frozenset[str]:
    """Instruction sets the CPU lists, empty where the system does not say."""
    return frozenset(f"{_cpuinfo('flags')} {_cpuinfo('Features')}".split())


def cpu_name() -> str:
    """The CPU's name as the system gives it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    if FEATURES.is_file():
        for line in FEATURES.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""
