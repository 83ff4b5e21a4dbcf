"""What this process may use of the machine: its CPUs' name, instruction sets, affinity and cgroup quota."""

from __future__ import annotations

import math
import os
import platform
import sys
from pathlib import Path, PurePosixPath

_CGROUP = Path("/sys/fs/cgroup")


def cpu_name() -> str:
    """The CPU's own name where the system tells it, else its architecture."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Feature flags as Linux spells them; empty where the system does not tell."""
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features")).split())


def affinity_size() -> int:
    """CPUs in this process's affinity mask; all, where processes have none."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    if sys.platform == "win32":
        import ctypes

        mine, all_ = ctypes.c_size_t(), ctypes.c_size_t()
        kernel32 = ctypes.WinDLL("kernel32")
        kernel32.GetCurrentProcess.restype = ctypes.c_void_p
        process = ctypes.c_void_p(kernel32.GetCurrentProcess())
        if kernel32.GetProcessAffinityMask(process, ctypes.byref(mine), ctypes.byref(all_)) and mine.value:
            return mine.value.bit_count()
    return os.cpu_count() or 1


def cgroup_quota() -> float | None:
    """CPUs' worth of time that this process's cgroup and its parents allow; None where there is no limit."""
    quotas = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        for group in (PurePosixPath(path.lstrip("/")), *PurePosixPath(path.lstrip("/")).parents):
            if not controllers:  # version 2
                fields = _read(_CGROUP / group / "cpu.max").split()
            elif "cpu" in controllers.split(","):  # version 1
                folder = _CGROUP / "cpu" / group
                fields = (_read(folder / "cpu.cfs_quota_us") + " " + _read(folder / "cpu.cfs_period_us")).split()
            else:
                continue
            if len(fields) == 2 and all(field.isdigit() for field in fields) and int(fields[1]):
                quotas.append(int(fields[0]) / int(fields[1]))
    return min(quotas, default=None)


def usable_cpus() -> int:
    """CPUs of the affinity mask, cut to the cgroup quota rounded up, at least 1."""
    quota = cgroup_quota()
    count = affinity_size()
    return max(1, count if quota is None else min(count, math.ceil(quota)))


def _cpuinfo(key: str) -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
