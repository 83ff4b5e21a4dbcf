"""What this process may use of the machine: its CPUs' name, instruction sets, affinity and cgroup quota."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path, PurePosixPath

_CGROUP = Path("/sys/fs/cgroup")


def cpu_name() -> str:
    """The CPU's own name where the system tells it, else its architecture."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Feature flags as Linux spells them; empty where the system does not tell."""
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features")).split())


def affinity_size() -> int:
    """CPUs in this process's affinity mask."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
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
        return path.read_text()
    except OSError:
        return ""
