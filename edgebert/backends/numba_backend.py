"""The numba backend: the C++ engine's algorithms compiled by Numba on the spot, where no compiled wheel fits."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgebert
from edgebert.artifact.reader import read_artifact
from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Backend, Outputs
from edgebert.backends.cpus import usable_cpus
from edgebert.batch import PackedBatch
from edgebert.errors import BackendUnavailableError

_INSTALL = "install edgebert[numba]"
_NUMBA = "0.68"  # LLVM changes the signatures of the instructions that the kernels name from one release to the next

_SLICE_TOKENS = 96  # tokens of short sequences that run on one thread together


class NumbaBackend(Backend):
    """A model in kernels that Numba compiled; runs on one model take turns."""

    name = "numba"
    device = "cpu"

    def __init__(self, spec: EncoderSpec, tensors: Mapping[str, NDArray[Any]], threads: int) -> None:
        import numba

        from edgebert.backends import numba_cpu_ops, numba_cpu_vectors

        self.spec = spec
        self.threads = threads
        isa = numba_cpu_vectors.ISA.name
        self.detail = f"numba {numba.__version__}, {isa}, {threads} thread{'s' if threads > 1 else ''}"
        self._ops = numba_cpu_ops
        self._tensors = tensors
        self._weights = numba_cpu_ops.WeightStore()
        self._workspaces: dict[tuple[str, ...], _Workspace] = {}
        self._team = _Team(threads)
        self._lock = threading.Lock()
        self._workspace(spec.outputs)  # packs the weights, and refuses what cannot run
        _run_program()

    def _workspace(self, outputs: tuple[str, ...]) -> _Workspace:
        if outputs not in self._workspaces:
            program = self._ops.record_program(self.spec, self._tensors, outputs, self._weights)
            self._workspaces[outputs] = _Workspace(program, self.threads)
        return self._workspaces[outputs]

    def _run(self, batch: PackedBatch, outputs: Sequence[str]) -> Outputs:
        results = {name: np.empty(self._shape(batch, name), np.float32) for name in outputs}
        ids = np.empty((3, batch.total_tokens), np.int32)
        ids[0] = batch.input_ids
        ids[1] = batch.token_type_ids if self.spec.has_token_types else 0
        ids[2] = batch.position_ids()
        ids[2] += self.spec.position_offset
        cu_seqlens = np.array(batch.cu_seqlens, np.int32)
        addresses = np.array([result.ctypes.data for result in results.values()], np.int64)
        with self._lock:
            workspace = self._workspace(tuple(results))
            slices = self._plan(batch, workspace)
            program = workspace.program
            control = _aligned_zeros(64 * (2 + 2 * program.num_steps))
            self._team.run(
                control,
                program.instructions,
                program.segments,
                program.buffers,
                workspace.bases,
                workspace.scratch,
                program.lookups,
                ids,
                cu_seqlens,
                addresses,
                slices,
            )
        return results

    def _plan(self, batch: PackedBatch, workspace: _Workspace) -> NDArray[np.int64]:
        """Slices for the threads, equally many each, then what is left as one slice for the team; room for them all."""
        slices = [(first, last - first) for first, last in batch.split(_SLICE_TOKENS)]
        alone = len(slices) // self.threads * self.threads
        rest = slices[alone][0] if alone < len(slices) else batch.num_sequences
        slices[alone:] = [(rest, batch.num_sequences - rest)]
        tokens = [int(batch.cu_seqlens[first + count] - batch.cu_seqlens[first]) for first, count in slices]
        workspace.reserve(
            batch.max_seqlen,
            team=(tokens[-1], slices[-1][1]),
            alone=(max(tokens[:-1], default=0), max((count for _, count in slices[:-1]), default=0)),
        )
        return np.array(slices, np.int64)


class _Workspace:
    """A program and the memory it runs in: one set of buffers for the team, one for each thread alone; it only grows."""

    def __init__(self, program: Any, threads: int) -> None:
        self.program = program
        self._threads = threads
        self._sizes = (0, 0, 0, 0, 0)
        self._memory: list[NDArray[np.uint8]] = []
        self.bases = np.zeros((1 + threads, len(program.buffers)), np.int64)
        self.scratch = np.zeros((1 + threads, threads), np.int64)

    def reserve(self, max_seqlen: int, team: tuple[int, int], alone: tuple[int, int]) -> None:
        """Room for slices of that many (tokens, sequences)."""
        sizes = tuple(map(max, self._sizes, (max_seqlen, *team, *alone)))
        if sizes == self._sizes:
            return
        self._sizes = sizes
        self._memory.clear()
        max_seqlen, *rows = sizes
        for index in range(1 + self._threads):
            threads = self._threads if index == 0 else 1
            self._place(index, threads, max_seqlen, *(rows[:2] if index == 0 else rows[2:]))

    def _place(self, index: int, threads: int, max_seqlen: int, tokens: int, sequences: int) -> None:
        program = self.program
        shared = np.where(program.is_token_rows, tokens, sequences)
        rows = np.where(program.buffers["is_local"], threads * program.block_rows, shared)
        buffer_bytes = (rows + self.program.slack_rows) * program.buffers["stride"]
        length, head_dim = -(-max_seqlen // 64) * 64, -(-program.head_dim // 64) * 64
        scratch_bytes = 4 * (length + 64) * (head_dim + 16)
        ends = np.cumsum([*buffer_bytes, *[scratch_bytes] * threads])
        self._memory.append(memory := _aligned_empty(int(ends[-1])))
        starts = memory.ctypes.data + ends - [*buffer_bytes, *[scratch_bytes] * threads]
        self.bases[index] = starts[: len(buffer_bytes)]
        self.scratch[index, :threads] = starts[len(buffer_bytes) :]


class _Team:
    """Threads that run a program together with the one that asks; started at the first run, anew in a forked child."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._queues: list[SimpleQueue[Any]] = []
        self._pid = 0

    def run(self, control: NDArray[np.uint8], *arguments: Any) -> None:
        """Run `run_program` on every thread of the team; those that come too late find its gate closed."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._queues = [SimpleQueue() for _ in range(1, self._threads)]
            for rank, queue in enumerate(self._queues, 1):
                threading.Thread(target=_work, args=(rank, self._threads, queue), daemon=True).start()
        for queue in self._queues:
            queue.put((control, arguments))
        _run_program()(0, self._threads, control.ctypes.data, *arguments)

    def __del__(self) -> None:
        for queue in self._queues:
            queue.put(None)


def _work(rank: int, threads: int, queue: SimpleQueue[Any]) -> None:
    run_program = _run_program()
    while (item := queue.get()) is not None:
        control, arguments = item
        run_program(rank, threads, control.ctypes.data, *arguments)
        del item, control, arguments


def _aligned_empty(size: int) -> NDArray[np.uint8]:
    """Bytes that begin at a cache line."""
    memory = np.empty(size + 64, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : first + size]


def _aligned_zeros(size: int) -> NDArray[np.uint8]:
    memory = _aligned_empty(size)
    memory[:] = 0
    return memory


@cache
def _run_program() -> Any:
    """The compiled entry point, from Numba's cache on disk if this CPU, Numba and these sources made it before."""
    from edgebert.backends import numba_cpu_kernels, numba_cpu_vectors

    sources = [Path(str(module.__file__)).read_bytes() for module in (numba_cpu_kernels, numba_cpu_vectors)]
    key = hashlib.sha256(b"".join([edgebert.__version__.encode(), *sources])).hexdigest()
    return numba_cpu_kernels.make_run_program(key)


def unavailable_reason() -> str | None:
    """Why Numba cannot be used here, or None if it can."""
    try:
        import numba
    except ImportError as error:
        return f"numba cannot be imported ({error}): {_INSTALL}"
    if not numba.__version__.startswith(f"{_NUMBA}."):
        return f"numba {numba.__version__} is installed, the kernels need {_NUMBA}: {_INSTALL}"
    return None


def load(path: str | Path | bytes, device: str = "cpu", threads: int | None = None) -> Backend:
    """Load a file, verified; the first time on a machine this compiles the kernels.

    Raises:
        ModelFormatError: the file is missing, damaged or changed.
        UnsupportedModelError: the file asks for something that these kernels do not run.
        BackendUnavailableError: Numba is missing.
    """
    reason = unavailable_reason()
    if reason is not None:
        raise BackendUnavailableError(f"backend numba is not available: {reason}")
    artifact = read_artifact(path)
    return NumbaBackend(artifact.spec, artifact.tensors, threads or usable_cpus())
