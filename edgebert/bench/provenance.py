"""Where a result comes from: machine, state of the machine before and after, versions, commit, command."""

from __future__ import annotations

import hashlib
import os
import platform
import re
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
CLOCK_LIMIT = 0.1  # share by which the speed of a CPU may change
IDLE_LIMIT = 0.1  # share of a CPU that a contender may use while it waits
BUSY_SECONDS = 0.5  # over which to see how busy the CPUs are; the system counts hundredths
_CLOCK_BYTES = bytes(1 << 20)


class Recorder:
    """Notes the state of the machine when made, at each `watch_clock`, and when asked to describe the run.

    Args:
        root: of the checkout that was measured; None where there is none.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root
        self._started = time.time()
        self.others_busy = measure_busy()
        self._load_before = load_average()
        self._begun = time.time()
        self._ticks_before = _read_ticks()
        self._own_before = _own_seconds()
        self._throttled_before = throttled_periods()
        self._hot_before = hot_periods()
        self._clocks: list[float] = []
        self.watch_clock()

    def watch_clock(self) -> None:
        """Note how fast a CPU is now: the best time of a few milliseconds' fixed work."""
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            hashlib.sha256(_CLOCK_BYTES)
            times.append(time.perf_counter() - begun)
        self._clocks.append(min(times))

    def describe(self, command: Sequence[str], packages: Mapping[str, str | None]) -> dict[str, Any]:
        """Everything as plain values for JSON; `command` is written as words, without the folders of files.

        CPU time of child processes counts as this process's own once they have ended. For a run shorter than
        BUSY_SECONDS, what others used is taken from the measurement before the run.
        """
        self.watch_clock()
        load_before, load_after = self._load_before, load_average()
        throttled = throttled_periods() - self._throttled_before
        hot = hot_periods() - self._hot_before
        ticks = _read_ticks()
        steal = _share(self._ticks_before, ticks, "steal")
        others = self.others_busy
        if (elapsed := time.time() - self._begun) >= BUSY_SECONDS:
            own = (_own_seconds() - self._own_before) / elapsed / (os.cpu_count() or 1)
            others = max(0.0, 1.0 - _share(self._ticks_before, ticks, "idle", default=1.0) - steal - own)
        slowdown = max(self._clocks) / min(self._clocks) - 1.0
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
            "packages": {**packages, "edgebert": edgebert.__version__},
            "load_average": {"before": load_before, "after": load_after},
            "others_busy_before": round(self.others_busy, 3),
            "others_busy": round(others, 3),
            "steal": round(steal, 4),
            "throttled_periods": throttled,
            "hot_periods": hot,
            "clock_change": round(slowdown, 3),
            "warnings": find_warnings(max(self.others_busy, others), steal, throttled, governor(), hot, slowdown),
        }

    def _git(self, *arguments: str) -> str | None:
        if self._root is None:
            return None
        done = subprocess.run(["git", *arguments], cwd=self._root, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None


def _without_folder(word: str) -> str:
    name, equals, value = word.rpartition("=")
    return f"{name}{equals}{Path(value).name or value}"


def find_warnings(
    others_busy: float, steal: float, throttled: int, scaling: str | None, hot: int = 0, slowdown: float = 0.0
) -> list[str]:
    """Reasons to doubt these numbers, one sentence each."""
    warnings = []
    if others_busy > BUSY_LIMIT:
        warnings.append(f"other processes used {others_busy:.0%} of the CPUs: run on a quiet machine")
    if steal > BUSY_LIMIT:
        warnings.append(f"the hypervisor took {steal:.0%} of the CPU time away: the machine is shared")
    if throttled:
        warnings.append(
            f"the cgroup's quota stopped this process {throttled} times: raise the quota or use fewer threads"
        )
    if scaling not in (None, "performance"):
        warnings.append(f"the frequency governor is {scaling!r}: clocks change with load; set it to 'performance'")
    if hot:
        warnings.append(f"the CPU slowed down {hot} times because it was hot: cool it, or measure for a shorter time")
    if slowdown > CLOCK_LIMIT:
        warnings.append(
            f"the same work took a CPU up to {slowdown:.0%} longer during the run: its clock changed, or others used it"
        )
    return warnings


def find_spinning(idle_cpus: Mapping[str, float]) -> list[str]:
    """A sentence for each contender that used too much CPU while others had their turn, given its share by name."""
    return [
        f"{name} used {idle:.0%} of a CPU while others had their turn: its threads spin, and could not be stopped"
        for name, idle in idle_cpus.items()
        if idle > IDLE_LIMIT
    ]


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


def measure_busy() -> float:
    """Share of all CPU time that was used while this process slept; 0 where the system does not tell."""
    before = _read_ticks()
    time.sleep(BUSY_SECONDS)
    return 1.0 - _share(before, _read_ticks(), "idle", default=1.0)


def throttled_periods() -> int:
    """Periods in which this process's cgroup was stopped for using up its quota, so far."""
    group = next((line[3:] for line in _read(Path("/proc/self/cgroup")).splitlines() if line.startswith("0::")), "")
    for line in _read(Path("/sys/fs/cgroup" + group.rstrip("/")) / "cpu.stat").splitlines():
        if line.startswith("nr_throttled "):
            return int(line.split()[1])
    return 0


def hot_periods() -> int:
    """How often the CPUs have slowed down because of heat, so far; 0 where the system does not tell."""
    files = _CPU_FOLDER.glob("cpu*/thermal_throttle/core_throttle_count")
    return sum(int(_read(file) or 0) for file in files)


class Rapl:
    """Energy counters of the processor packages, where the system lets this process read them.

    Args:
        folder: of the powercap interface of Linux.
    """

    def __init__(self, folder: Path = Path("/sys/class/powercap")) -> None:
        packages = [path for path in sorted(folder.glob("intel-rapl:*")) if re.fullmatch(r"intel-rapl:\d+", path.name)]
        self._packages = [path for path in packages if _read(path / "energy_uj").strip()]
        self._last = [self._read(path) for path in self._packages]

    @property
    def is_readable(self) -> bool:
        """Whether there is any."""
        return bool(self._packages)

    def take(self) -> float:
        """Joules that all packages have used since the last call, or since this was made."""
        now = [self._read(path) for path in self._packages]
        ranges = [int(_read(path / "max_energy_range_uj") or 0) for path in self._packages]  # where it starts again
        used = sum(b - a if b >= a else b - a + most for a, b, most in zip(self._last, now, ranges, strict=True))
        self._last = now
        return used / 1e6

    @staticmethod
    def _read(path: Path) -> int:
        return int(_read(path / "energy_uj"))


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


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
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
