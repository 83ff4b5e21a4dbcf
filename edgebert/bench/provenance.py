"""Where a result comes from: machine, state of the machine before and after, versions, commit, command."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import edgebert
from edgebert.backends import cpus

_CPU_FOLDER = Path("/sys/devices/system/cpu")
_ISA_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
BUSY_LIMIT = 0.05  # share of all CPUs that others may use before a result is doubted


class Recorder:
    """Notes the state of the machine when made, and again when asked to describe the run.

    Args:
        root: of the checkout that was measured; None where there is none.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root
        self._started = time.time()
        self.others_busy = measure_busy()
        self._load_before = load_average()
        self._ticks_before = _read_ticks()
        self._throttled_before = throttled_periods()

    def describe(self, command: Sequence[str], packages: Mapping[str, str | None]) -> dict[str, Any]:
        """Everything as plain values for JSON; `command` is written as words, without the folders of files."""
        load_before, load_after = self._load_before, load_average()
        throttled = throttled_periods() - self._throttled_before
        steal = _share(self._ticks_before, _read_ticks(), "steal")
        return {
            "command": shlex.join(_without_folder(word) for word in command),
            "date": datetime.fromtimestamp(self._started, UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - self._started, 1),
            "commit": self._git("rev-parse", "HEAD"),
            "uncommitted_changes": bool(self._git("status", "--porcelain", "--untracked-files=no")),
            "cpu": cpus.cpu_name(),
            "isa": [flag for flag in _ISA_FLAGS if flag in cpus.cpu_flags()],
            "cpus": os.cpu_count(),
            "affinity": affinity(),
            "cgroup_quota": cpus.cgroup_quota(),
            "governor": governor(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "packages": {"edgebert": edgebert.__version__, **packages},
            "load_average": {"before": load_before, "after": load_after},
            "others_busy_before": round(self.others_busy, 3),
            "steal": round(steal, 4),
            "throttled_periods": throttled,
            "warnings": find_warnings(self.others_busy, steal, throttled, governor()),
        }

    def _git(self, *arguments: str) -> str | None:
        if self._root is None:
            return None
        done = subprocess.run(["git", *arguments], cwd=self._root, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None


def _without_folder(word: str) -> str:
    name, equals, value = word.rpartition("=")
    return f"{name}{equals}{Path(value).name or value}"


def find_warnings(others_busy: float, steal: float, throttled: int, scaling: str | None) -> list[str]:
    """What makes these numbers lie, one sentence each."""
    warnings = []
    if others_busy > BUSY_LIMIT:
        warnings.append(f"other processes used {others_busy:.0%} of the CPUs before the start: run on a quiet machine")
    if steal > BUSY_LIMIT:
        warnings.append(f"the hypervisor took {steal:.0%} of the CPU time away: the machine is shared")
    if throttled:
        warnings.append(
            f"the cgroup's quota stopped this process {throttled} times: raise the quota or use fewer threads"
        )
    if scaling not in (None, "performance"):
        warnings.append(f"the frequency governor is {scaling!r}: clocks change with load; set it to 'performance'")
    return warnings


def affinity() -> list[int]:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def governor() -> str | None:
    """The frequency governor of the first CPU, or None where the system does not tell (most virtual machines)."""
    return _read(_CPU_FOLDER / "cpu0" / "cpufreq" / "scaling_governor").strip() or None


def load_average() -> list[float]:
    """Of 1, 5 and 15 minutes; [] where there is none."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []


def measure_busy(seconds: float = 0.5) -> float:
    """Share of all CPU time that was used while this process slept; 0 where the system does not tell."""
    before = _read_ticks()
    time.sleep(seconds)
    return 1.0 - _share(before, _read_ticks(), "idle", default=1.0)


def throttled_periods() -> int:
    """Periods in which this process's cgroup was stopped for using up its quota, so far."""
    group = next((line[3:] for line in _read(Path("/proc/self/cgroup")).splitlines() if line.startswith("0::")), "")
    for line in _read(Path("/sys/fs/cgroup" + group.rstrip("/")) / "cpu.stat").splitlines():
        if line.startswith("nr_throttled "):
            return int(line.split()[1])
    return 0


def _read_ticks() -> dict[str, int]:
    """Clock ticks of all CPUs together since the start of the system: idle (waiting included), steal, total."""
    fields = _read(Path("/proc/stat")).partition("\n")[0].split()[1:9]
    if len(fields) < 8:
        return {}
    ticks = [int(field) for field in fields]  # user, nice, system, idle, iowait, irq, softirq, steal
    return {"idle": ticks[3] + ticks[4], "steal": ticks[7], "total": sum(ticks)}


def _share(before: Mapping[str, int], after: Mapping[str, int], name: str, default: float = 0.0) -> float:
    total = after.get("total", 0) - before.get("total", 0)
    return (after[name] - before[name]) / total if total > 0 else default


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
