"""Each kernel of each instruction set against the roof measured beside it, on one thread.

Builds the native benchmarks with CMake. Times are of the thread alone (its CPU clock), the shortest of many runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import ROOT, write_result
from edgebert.backends.cpus import usable_cpus
from edgebert.bench.provenance import Recorder
from edgebert.bench.roof import Roof, measure_roof, roof_of, take_higher


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder to build in")
    parser.add_argument("--out", type=Path, help="write JSON here instead of printing it")
    args = parser.parse_args()

    programs = build_native(args.work / "native")
    recorder = Recorder(ROOT)
    threads = sorted({1, usable_cpus()})
    before = measure_roof(programs / "edgebert_roof", threads)
    done = subprocess.run([programs / "edgebert_kernels"], capture_output=True, text=True, check=True)
    roof = take_higher(before, measure_roof(programs / "edgebert_roof", threads))
    result = {
        "provenance": recorder.describe(["python", "-m", "benchmarks.kernels", *sys.argv[1:]], {}),
        "roof": roof,
        "kernels": [add_rates(json.loads(line), roof) for line in done.stdout.splitlines()],
    }
    write_result(args.out, result)
    return 0


def build_native(folder: Path) -> Path:
    """Build `edgebert_roof` and `edgebert_kernels`; the folder they are in."""
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(folder), "-DEDGEBERT_BENCHMARKS=ON"],
        [
            "cmake",
            "--build",
            str(folder),
            "--target",
            "edgebert_roof",
            "edgebert_kernels",
            "--parallel",
            str(usable_cpus()),
        ],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"building the native benchmarks failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return folder


def add_rates(row: dict[str, Any], roof: Roof) -> dict[str, Any]:
    """The row with "gops" and "share" of its instruction set's roof, or with "gb_per_s"."""
    if "gop" not in row:
        return {**row, "gb_per_s": round(row["mb"] / row["us"] * 1e3, 1)}
    rate = row["gop"] / row["us"] * 1e6
    limit = roof_of(roof, 1, row["precision"], row["isa"])
    assert limit is not None
    return {**row, "gops": round(rate, 1), "share": round(rate / limit, 3)}


if __name__ == "__main__":
    raise SystemExit(main())
