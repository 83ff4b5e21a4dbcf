"""The numba backend: the C++ engine's algorithms compiled by Numba on the spot, where no compiled wheel fits."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.reader import Artifact
from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Backend, Outputs
from edgebert.backends.cpus import usable_cpus
from edgebert.batch import PackedBatch
from edgebert.errors import BackendUnavailableError

Array = NDArray[Any]

_INSTALL = "install edgebert[numba]"
_NUMBA = "0.68"  # LLVM changes the signatures of the instructions that the kernels name from one release to the next

THREAD_NAME = "edgebert-numba"
_SLICE_TOKENS = 96  # tokens of short sequences that run on one thread together


class NumbaBackend(Backend):
    """A model in kernels that Numba compiled. Runs take turns; a child may use it too, even one forked during a run."""

    name = "numba"
    device = "cpu"

    def __init__(self, spec: EncoderSpec, tensors: Mapping[str, NDArray[Any]], threads: int) -> None:
        import numba

        from edgebert.backends import numba_cpu_kernels, numba_cpu_ops, numba_cpu_vectors

        self.spec = spec
        self.threads = threads
        isa = numba_cpu_vectors.ISA.name
        self.detail = f"numba {numba.__version__}, {isa}, {threads} thread{'s' if threads > 1 else ''}"
        self._ops = numba_cpu_ops
        self._tensors = tensors
        self._weights = numba_cpu_ops.WeightStore()
        self._entry = numba_cpu_kernels.run_program()
        self._begin()
        self._workspace(spec.outputs)  # packs the weights and compiles the kernels they need
        _loaded.add(self)

    def _begin(self) -> None:
        """Make the state that runs change.

        A forked child makes it anew: threads of its parent may have left it half changed, and are not there to finish.
        """
        self._lock = threading.Lock()
        self._workspaces: dict[tuple[str, ...], _Workspace] = {}
        self._team = _Team(self.threads, self._entry)

    def _workspace(self, outputs: tuple[str, ...]) -> _Workspace:
        if outputs not in self._workspaces:
            program = self._ops.record_program(self.spec, self._tensors, outputs, self._weights)
            self._workspaces[outputs] = _Workspace(program, self.threads)
        return self._workspaces[outputs]

    def _run(self, batch: PackedBatch, outputs: Sequence[str]) -> Outputs:
        results = {name: np.empty(self._shape(batch, name), np.float32) for name in outputs}
        with self._lock:
            workspace = self._workspace(tuple(results))
            slices = self._plan(batch, workspace)
            run, ids = workspace.prepare(batch.cu_seqlens, slices, [result.ctypes.data for result in results.values()])
            ids[0] = batch.input_ids
            ids[1] = batch.token_type_ids if self.spec.has_token_types else 0
            ids[2] = batch.position_ids(self.spec.position_offset, self.spec.position_padding_id)
            self._team.run(run)
        return results

    def _plan(self, batch: PackedBatch, workspace: _Workspace) -> list[tuple[int, int]]:
        """Cut the batch into slices, and reserve memory for them.

        Each thread gets the same number of slices, to run alone; the last slice is the rest, which all threads share.
        """
        ranges = [(0, batch.num_sequences)] if batch.total_tokens <= _SLICE_TOKENS else batch.split(_SLICE_TOKENS)
        slices = [(first, last - first) for first, last in ranges]
        alone = len(slices) // self.threads * self.threads
        rest = slices[alone][0] if alone < len(slices) else batch.num_sequences
        slices[alone:] = [(rest, batch.num_sequences - rest)]
        tokens = [int(batch.cu_seqlens[first + count] - batch.cu_seqlens[first]) for first, count in slices]
        workspace.reserve(
            batch.total_tokens if batch.num_sequences == 1 else batch.max_seqlen,
            team=(tokens[-1], slices[-1][1]),
            alone=(max(tokens[:-1], default=0), max((count for _, count in slices[:-1]), default=0)),
        )
        return slices


_loaded: WeakSet[NumbaBackend] = WeakSet()


def _begin_in_child() -> None:
    for backend in _loaded:
        backend._begin()


if sys.platform != "win32":  # which does not fork
    os.register_at_fork(after_in_child=_begin_in_child)


class _Workspace:
    """A program and the memory it runs in: a set of buffers for the team, one for each thread alone; only grows."""

    def __init__(self, program: Any, threads: int) -> None:
        self._program = program
        self._threads = threads
        self._sizes: tuple[int, ...] = (0, 0, 0, 0, 0)
        self._memory: list[Array] = []
        self._bases = np.zeros((1 + threads, len(program.buffers)), np.int64)
        self._scratch = np.zeros((1 + threads, threads), np.int64)
        self._control_bytes = 64 * (2 + 2 * program.num_steps)
        fields = {name: getattr(program, name) for name in ("functions", "program", "segments", "buffers", "lookups")}
        fields |= {"bases": self._bases, "scratch": self._scratch}
        self._fields = {name: array.ctypes.data for name, array in fields.items()}
        self._fields |= {f"num_{name}": len(fields[name]) for name in ("segments", "buffers")}
        self._fields["threads"] = threads

    def prepare(
        self, cu_seqlens: Array, slices: list[tuple[int, int]], outputs: list[int]
    ) -> tuple[_Run, NDArray[np.int32]]:
        """A run in one piece of memory, as RUN in `numba_cpu_kernels` wants it, and its ids to fill in."""
        num_tokens = int(cu_seqlens[-1])
        names = self._program.run_fields
        sizes = (8 * len(names), self._control_bytes, 16 * len(slices), 8 * len(outputs), 4 * len(cu_seqlens))
        ends = list(itertools.accumulate(-(-size // 64) * 64 for size in (*sizes, 12 * num_tokens)))
        memory = _aligned(ends[-1])
        address = memory.ctypes.data
        parts = [
            memory[first : first + size] for first, size in zip([0, *ends], (*sizes, 12 * num_tokens), strict=False)
        ]
        fields = dict(self._fields, num_tokens=num_tokens, num_slices=len(slices))
        fields |= zip(
            ("control", "slices", "outputs", "cu_seqlens", "ids"), (address + end for end in ends), strict=False
        )
        parts[0].view(np.int64)[:] = [fields[name] for name in names]
        parts[1][:] = 0
        parts[2].view(np.int64).reshape(-1, 2)[:] = slices
        parts[3].view(np.int64)[:] = outputs
        parts[4].view(np.int32)[:] = cu_seqlens
        return _Run(address, memory), parts[5].view(np.int32).reshape(3, -1)

    def reserve(self, max_seqlen: int, team: tuple[int, int], alone: tuple[int, int]) -> None:
        """Room for slices of that many (tokens, sequences)."""
        sizes = tuple(map(max, self._sizes, (max_seqlen, *team, *alone)))
        if sizes == self._sizes:
            return
        self._sizes = sizes
        self._memory.clear()
        self._rotary_tables = self._program.reserve_positions(sizes[0])
        for index in range(1 + self._threads):
            rows = sizes[1:3] if index == 0 else sizes[3:5]
            self._place(index, self._threads if index == 0 else 1, sizes[0], *rows)

    def _place(self, index: int, threads: int, max_seqlen: int, tokens: int, sequences: int) -> None:
        program = self._program
        shared = np.where(program.is_token_rows, tokens, sequences)
        rows = np.where(program.buffers["is_local"], threads * program.block_rows, shared)
        sizes = [
            *((rows + program.slack_rows) * program.buffers["stride"]),
            *[program.scratch_bytes(max_seqlen)] * threads,
        ]
        starts = np.cumsum([0, *sizes])
        memory = _aligned(int(starts[-1]))
        self._memory.append(memory)
        self._bases[index] = memory.ctypes.data + starts[: len(rows)]
        self._scratch[index, :threads] = memory.ctypes.data + starts[len(rows) : -1]


class _Run(NamedTuple):
    address: int
    memory: Array  # what lies there


class _Team:
    """Threads that run a program together with the calling thread; started at the first run."""

    def __init__(self, threads: int, entry: Callable[[int, int], None]) -> None:
        self._threads = threads
        self._entry = entry
        self._queues: list[SimpleQueue[_Run | None]] = []

    def run(self, run: _Run) -> None:
        """Run on every thread of the team; a thread that wakes up after the run is over does nothing."""
        for rank in range(1 + len(self._queues), self._threads):
            self._start(rank)
        for queue in self._queues:
            queue.put(run)
        self._entry(0, run.address)

    def _start(self, rank: int) -> None:
        queue: SimpleQueue[_Run | None] = SimpleQueue()
        name = f"{THREAD_NAME}-{rank}"
        try:
            threading.Thread(target=_work, args=(rank, self._entry, queue), name=name, daemon=True).start()
        except RuntimeError as error:
            raise BackendUnavailableError(
                f"of {self._threads} threads only {rank} could be started ({error}): "
                "load the model with fewer, or raise the limit of threads"
            ) from None
        self._queues.append(queue)

    def __del__(self) -> None:
        for queue in self._queues:
            queue.put(None)


def _work(rank: int, entry: Callable[[int, int], None], queue: SimpleQueue[_Run | None]) -> None:
    while (run := queue.get()) is not None:
        entry(rank, run.address)
        del run


def _aligned(size: int) -> NDArray[np.uint8]:
    """Bytes that begin at a cache line."""
    memory = np.empty(size + 64, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : first + size]


def unavailable_reason(device: str = "cpu") -> str | None:
    """Why Numba, or the driver or GPU that a device needs, cannot be used here, or None if it can."""
    if device != "cpu":
        from edgebert.backends import numba_cuda_backend

        return numba_cuda_backend.unavailable_reason()
    try:
        import numba
    except ImportError as error:
        return f"numba cannot be imported ({error}): {_INSTALL}"
    if not numba.__version__.startswith(f"{_NUMBA}."):
        return f"numba {numba.__version__} is installed, the kernels need {_NUMBA}: {_INSTALL}"
    return None


def load(artifact: Artifact, device: str = "cpu", threads: int | None = None) -> Backend:
    """Load a file, verified; the first time on a machine this compiles the kernels.

    Raises:
        ModelFormatError: the file is missing, damaged or changed.
        UnsupportedModelError: the file asks for something that these kernels do not run.
        BackendUnavailableError: Numba, or for a GPU numba-cuda, the driver or the device is missing.
    """
    reason = unavailable_reason(device)
    if reason is not None:
        raise BackendUnavailableError(f"backend numba is not available: {reason}")
    artifact.check_graph()
    if device != "cpu":
        from edgebert.backends.numba_cuda_backend import NumbaCudaBackend

        return NumbaCudaBackend(artifact.spec, artifact.tensors, device)
    return NumbaBackend(artifact.spec, artifact.tensors, threads or usable_cpus())
