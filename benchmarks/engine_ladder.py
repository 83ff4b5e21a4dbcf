"""What each optimisation of the native engine gained: the engine as it was at its commits, all timed in one run.

    python -m benchmarks.engine_ladder --source FOLDER --work DIR --out benchmarks/results/engine_ladder.json

Builds the library of every revision below under DIR (a full clone is needed), runs it under today's Python package in a
process of its own, checks its embeddings and times all rungs in turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ROOT, write_result
from benchmarks.peers import describe_timing
from benchmarks.render import render_engine_ladder
from benchmarks.shapes import MINILM, Texts, draw_lengths
from edgebert.backends.cpus import usable_cpus
from edgebert.bench.harness import Budget, Worker, measure, prepare
from edgebert.bench.peers import make_peer
from edgebert.bench.peers.base import ModelFiles
from edgebert.bench.provenance import Recorder, affinity


@dataclass(frozen=True)
class Rung:
    """A step of the ladder: what is new in it, the revision that has it, what it runs, an instruction set forced."""

    title: str
    revision: str = "HEAD"
    peer: str = "edgebert-int8"
    isa: str = "avx512_vnni"


RUNGS = (
    Rung("fp32, plain C++", peer="edgebert-fp32", isa="baseline"),
    Rung("AVX2 and FMA", peer="edgebert-fp32", isa="avx2"),
    Rung("AVX-512", peer="edgebert-fp32"),
    Rung("int8 by VNNI, a loop over layers of kernels", "579252d"),
    Rung("epilogue and softmax several vectors at a time", "5625c2d"),
    Rung("threads share out items, no barriers", "13f26a3"),
    Rung("rows in blocks from one attention to the next", "dbf7899"),
    Rung("blocks of 96 rows, workspaces made at once", "eb49ec1"),
    Rung("the next panel asked for ahead", "19620da"),
    Rung("blocks of like size for every thread", "d69cf02"),
    Rung("LayerNorm and codes of four rows at once", "6a3c285"),
    Rung("columns shared out for large layers alone", "fa5ae91"),
    Rung("attention in int8 too", "fa5ae91", peer="edgebert-attention-int8"),
)
LENGTHS = (16, 128)
STREAM = 128  # texts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_ladder", description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="the Hugging Face folder of all-MiniLM-L6-v2")
    parser.add_argument("--work", type=Path, required=True, help="a folder to build in")
    parser.add_argument("--out", type=Path, help="write JSON here instead of printing it")
    args = parser.parse_args()

    recorder = Recorder(ROOT)
    texts = Texts(args.source / "tokenizer.json")
    files = ModelFiles(args.source, args.work / MINILM.name)
    files.folder.mkdir(parents=True, exist_ok=True)
    libraries = {revision: build_library(revision, args.work) for revision in {rung.revision for rung in RUNGS}}
    workloads = {f"{length} tokens": texts.cut([length]) for length in LENGTHS}
    workloads["stream"] = texts.cut(draw_lengths(STREAM))
    results = [
        time_rungs(name, rows, threads, files, libraries)
        for threads in sorted({1, usable_cpus()})
        for name, rows in workloads.items()
    ]
    result = {
        "provenance": recorder.describe(["python", "-m", "benchmarks.engine_ladder", *sys.argv[1:]], {}),
        "rungs": [vars(rung) for rung in RUNGS],
        "ladder": results,
    }
    write_result(args.out, result)
    for table in render_engine_ladder(result).values():
        print(table)
    return 0


def build_library(revision: str, work: Path) -> Path:
    """The native library of a revision, built under `work`."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", revision], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    folder = work / f"engine-{commit}"
    library = folder / "build" / "libedgebert.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(
            ["git", "archive", commit, "CMakeLists.txt", "kernels"], cwd=ROOT, capture_output=True, check=True
        )
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        for command in (
            ["cmake", "-S", folder, "-B", library.parent],
            ["cmake", "--build", library.parent, "--target", "edgebert", "--parallel", str(usable_cpus())],
        ):
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return library


def time_rungs(
    name: str, rows: list[list[int]], threads: int, files: ModelFiles, libraries: dict[str, Path]
) -> dict[str, Any]:
    """Every rung on one workload: checked against the last fp32 one, then timed in turns."""
    workers = [
        Worker(
            rung.peer,
            files,
            cpus=affinity()[:threads],
            environment={"EDGEBERT_LIBRARY": str(libraries[rung.revision]), "EDGEBERT_FORCE_ISA": rung.isa},
        )
        for rung in RUNGS
    ]
    try:
        for worker, rung in zip(workers, RUNGS, strict=True):
            if not make_peer(rung.peer, files).path.exists():
                worker.build([])
            worker.load(threads, {})
        reference = [np.array(row, np.float32) for row in workers[2].bind("reference", rows, len(rows))]
        ready = [
            prepare(rung.title, worker, name, rows, len(rows), reference, make_peer(rung.peer, files).precision)
            for rung, worker in zip(RUNGS, workers, strict=True)
        ]
        timings = [describe_timing(timing) for timing in measure(ready, Budget())]
    finally:
        for worker in workers:
            worker.close()
    return {"name": name, "threads": threads, "texts": len(rows), "tokens": sum(map(len, rows)), "rungs": timings}


if __name__ == "__main__":
    raise SystemExit(main())
