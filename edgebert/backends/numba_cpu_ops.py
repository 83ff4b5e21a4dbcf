"""The Numba CPU backend's ops: they do not compute, they record the program of kernel calls that computes.

`run_encoder` is called once for each set of outputs asked for, with these ops; what it records then runs for every
batch in compiled code, without Python between two kernels. Quantizing right after a LayerNorm joins it.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.spec import EncoderSpec
from edgebert.backends import numba_cpu_kernels as kernels
from edgebert.backends import numpy_ops
from edgebert.backends.encoder_loop import LayerNorm, Linear, PositionBias, PositionTables, Table, run_encoder
from edgebert.backends.numba_cpu_kernels import BLOCK_ROWS, DOT_ROWS, OVER_HEADS, OVER_SEQUENCES, OVER_TOKENS, ROW_ALIGN
from edgebert.backends.numba_cpu_vectors import TILE
from edgebert.batch import I32, PackedBatch

Array = NDArray[Any]

_BLOCK_BYTES = 2**25  # of weights; pages that nothing is written to cost nothing
_LOCAL_BYTES = 2**21  # of one thread's block of one buffer, where rows are as wide as a vocabulary


class Rows(NamedTuple):
    """What an op returns: rows that the program will compute, float32 or codes."""

    number: int
    width: int


class Program(NamedTuple):
    """The recorded program; arrays are those of `numba_cpu_kernels`, and `keep` holds what they give the address of."""

    functions: Array
    program: Array
    segments: Array
    buffers: Array
    lookups: Array
    is_token_rows: NDArray[np.bool_]  # of each buffer: over tokens, else over sequences
    block_rows: NDArray[np.int64]  # of each buffer: rows of a thread's block if it is local
    num_steps: int
    head_dim: int  # the largest
    num_position_rows: int  # of the position tables; 0: none
    keep: list[Array]
    rotations: dict[int, tuple[int, float]]  # head_dim and base of each instruction that turns rows
    slack_rows: int = kernels.SLACK_ROWS  # of a buffer, beyond its last row
    run_fields: tuple[str, ...] = tuple(kernels.RUN.names or ())  # int64 each

    def scratch_bytes(self, max_seqlen: int) -> int:
        """Bytes that attention needs for one head of a sequence of that length."""
        return kernels.attention_scratch_bytes(max_seqlen, self.head_dim, self.num_position_rows)

    def reserve_positions(self, count: int) -> list[Array]:
        """Tables of rotary positions for sequences of up to `count` tokens; they must live as long as they are used."""
        tables = {rotation: _rotary_rows(count, *rotation) for rotation in set(self.rotations.values())}
        for i, rotation in self.rotations.items():
            self.program["weight"][i] = tables[rotation].ctypes.data
        return list(tables.values())


def _rotary_rows(count: int, head_dim: int, base: float) -> Array:
    """Cosines, then sines of each position, padded to 16 each."""
    half = head_dim // 2
    rows = np.zeros((count, 2, -(-half // 16) * 16), np.float32)
    rows[:, 0, :half], rows[:, 1, :half] = numpy_ops.rotary_table(count, head_dim, base)
    return rows


class WeightStore:
    """Weights as the kernels want them, each packed once, in large blocks that the OS may back with huge pages."""

    def __init__(self) -> None:
        self._packed: dict[tuple[Any, ...], Array] = {}
        self._block: NDArray[np.uint8] = np.empty(0, np.uint8)

    def row(self, values: Array | None) -> Array | None:
        """A vector, padded with zeros to whole rows of a tile."""
        if values is None:
            return None
        return self._once("row", values, lambda: np.pad(values, (0, -len(values) % ROW_ALIGN)))

    def panels(self, weight: Array, group: int) -> Array:
        """[K, N] -> panels [N / TILE][K / group][TILE][group], zeros in the padding."""

        def pack() -> Array:
            inputs, outputs = weight.shape
            padded = np.zeros((-(-inputs // group) * group, -(-outputs // TILE) * TILE), weight.dtype)
            padded[:inputs, :outputs] = weight
            return padded.reshape(-1, group, padded.shape[1] // TILE, TILE).transpose(2, 0, 3, 1)

        return self._once("panels", weight, pack)

    def lines(self, values: Array) -> Array:
        """The last axis padded to an odd number of vectors: never a power of two, which would fill few cache sets."""
        width = values.shape[-1]
        padding = [(0, 0)] * (values.ndim - 1) + [(0, (-(-width // 16) | 1) * 16 - width)]
        return self._once("lines", values, lambda: np.pad(values, padding))

    def _once(self, kind: str, source: Array, pack: Callable[[], Array]) -> Array:
        key = (kind, source.ctypes.data, source.shape, source.strides)
        if key not in self._packed:
            values = pack()
            packed = self._allocate(values.nbytes).view(values.dtype).reshape(values.shape)
            packed[...] = values
            self._packed[key] = packed  # stored last: a child may be forked while the values are copied
        return self._packed[key]

    def _allocate(self, size: int) -> NDArray[np.uint8]:
        """Bytes at a cache line: weights are read end to end by every batch."""
        room = -(-size // 64) * 64
        if room > len(self._block):
            self._block = np.frombuffer(_map_memory(max(room, _BLOCK_BYTES)), np.uint8)
        taken, self._block = self._block[:size], self._block[room:]
        return taken


def _map_memory(size: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    # private: the OS has no huge pages for shared memory
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


def record_program(
    spec: EncoderSpec, tensors: Mapping[str, Array], outputs: Sequence[str], weights: WeightStore
) -> Program:
    """The program that computes these outputs of a file.

    Raises:
        UnsupportedModelError: see `run_encoder`.
    """
    recorder = _Recorder(spec, weights)
    batch = PackedBatch.from_lists([[0]])  # the ops look at no ids
    results = run_encoder(recorder, spec, tensors, batch, outputs)  # type: ignore[arg-type]
    for index, name in enumerate(outputs):
        rows: Any = results[name]
        recorder.copy(rows, index)
    return recorder.finish()


class _Recorder:
    """The ops of `EncoderOps`; `Rows` stand for arrays."""

    def __init__(self, spec: EncoderSpec, weights: WeightStore) -> None:
        self._spec = spec
        self._weights = weights
        self._rotations: dict[int, tuple[int, float]] = {}
        self._keep: list[Array] = []
        self._instructions: list[dict[str, Any]] = []
        self._kinds: list[int] = []  # of each instruction: what it runs over
        self._lookups: list[tuple[int, int, int]] = []
        self._strides: list[int] = []  # of each buffer, in bytes
        self._domains: list[int] = []
        self._columns: dict[int, tuple[Rows, int]] = {}
        self._head_dim = 1

    # ---- The ops

    def embed_layernorm(self, lookups: Sequence[tuple[Table, I32]], norm: LayerNorm) -> Rows:
        spec = self._spec  # rows of the ids: word, token type, position
        numbers = [0, *[1] * bool(spec.num_token_types), *[2] * spec.has_position_table]
        for (table, _), number in zip(lookups, numbers, strict=True):
            self._lookups.append((self._address(table.weight), self._address(table.scale), number))
        width = len(norm.weight)
        return self._record(kernels.EMBED, OVER_TOKENS, width, width=width, option=len(lookups), **self._norm(norm))

    def quantize_rows(self, x: Rows, inv_smooth: Array | None) -> Rows:
        last = self._instructions[-1]
        smooth = self._address(self._weights.row(inv_smooth))
        codes = self._buffer(kernels.code_tail(x.width) + 64, self._domains[x.number])
        if last["op"] == kernels.LAYERNORM and last["out"] == x.number:
            last |= {"codes": codes, "smooth": smooth}
        else:
            self._append(
                kernels.QUANTIZE, self._domains[x.number], x=x.number, width=x.width, smooth=smooth, codes=codes
            )
        return Rows(codes, x.width)

    def linear(self, x: Rows, linear: Linear, activation: str = "identity", residual: Rows | None = None) -> Rows:
        outputs = len(linear.bias)
        is_s8 = linear.scale is not None
        return self._record(
            kernels.LINEAR_S8 if is_s8 else kernels.LINEAR_F32,
            self._domains[x.number],
            outputs,
            x=x.number,
            residual=-1 if residual is None else residual.number,
            width=x.width,
            outputs=outputs,
            weight=self._address(self._weights.panels(linear.weight, 4 if is_s8 else 1)),
            scale=self._address(self._weights.row(linear.scale)),
            colsum=self._address(self._weights.row(linear.colsum)),
            bias=self._address(self._weights.row(linear.bias)),
            option=kernels.ACTIVATIONS.index(activation),
        )

    def gate(self, x: Rows, activation: str) -> Rows:
        """In place: the rows keep their buffer."""
        option = kernels.ACTIVATIONS.index(activation)
        self._append(kernels.GATE, self._domains[x.number], x=x.number, width=x.width // 2, option=option)
        return Rows(x.number, x.width // 2)

    def rotate(self, qkv: Rows, cu_seqlens: I32, num_heads: int, base: float) -> Rows:
        """In place; the address of the table is filled in when it is known how many positions there are."""
        head_dim = qkv.width // 3 // num_heads
        self._rotations[len(self._instructions)] = (head_dim, base)
        self._append(kernels.ROTATE, OVER_TOKENS, x=qkv.number, width=head_dim, option=2 * num_heads)
        return qkv

    def attention_varlen(
        self,
        qkv: Rows,
        cu_seqlens: I32,
        num_heads: int,
        position_bias: PositionBias | None,
        window: int,
        num_keys: I32 | None = None,
    ) -> Rows:
        return self._attention(kernels.ATTENTION, qkv, num_heads, position_bias, window)

    def attention_varlen_u8s8(
        self,
        qkv: Rows,
        cu_seqlens: I32,
        num_heads: int,
        position_bias: PositionBias | None,
        window: int,
        num_keys: I32 | None = None,
    ) -> Rows:
        return self._attention(kernels.ATTENTION_S8, qkv, num_heads, position_bias, window)

    def _attention(self, op: int, qkv: Rows, num_heads: int, position_bias: PositionBias | None, window: int) -> Rows:
        size = qkv.width // 3
        self._head_dim = max(self._head_dim, size // num_heads)
        spec = self._spec
        fields = {"window": window, "unattended": spec.expansion_id, "most_unattended": spec.max_unattended}
        if isinstance(position_bias, PositionTables):
            keys, queries = self._weights.lines(position_bias.keys), self._weights.lines(position_bias.queries)
            fields |= {
                "position_keys": self._address(keys),
                "position_queries": self._address(queries),
                "position_rows": self._address(position_bias.rows),
                "position_stride": keys.strides[1],
                "distance": len(position_bias.rows) // 2,
            }
        elif position_bias is not None:
            fields |= {"bias": self._address(position_bias), "distance": position_bias.shape[1] // 2}
        return self._record(op, OVER_HEADS, size, x=qkv.number, width=size, option=num_heads, **fields)

    def add_layernorm(self, x: Rows, residual: Rows | Array | None, norm: LayerNorm) -> Rows:
        fields: dict[str, int] = {}
        if isinstance(residual, Rows):
            fields["residual"] = residual.number
        elif residual is not None:
            fields["row"] = self._address(self._weights.row(residual))
        return self._record(
            kernels.LAYERNORM,
            self._domains[x.number],
            x.width,
            x=x.number,
            width=x.width,
            **fields,
            **self._norm(norm),
        )

    def add_row(self, x: Rows, row: Array) -> Rows:
        """A linear of nothing, whose bias is the row and whose residual is x."""
        return self.linear(Rows(x.number, 1), Linear(np.zeros((1, len(row)), np.float32), row), residual=x)

    def pool(self, x: Rows, cu_seqlens: I32, pooling: str) -> Rows:
        kinds = [kernels.POOLINGS.index(kind) + 1 for kind in pooling.split("+")]
        option = sum(kind << 4 * i for i, kind in enumerate(kinds))
        # whole vectors are stored, of the last pooling beyond the row's end, too
        room = (len(kinds) - 1) * x.width + -(-x.width // ROW_ALIGN) * ROW_ALIGN
        rows = self._record(kernels.POOL, OVER_SEQUENCES, room, x=x.number, width=x.width, option=option)
        return Rows(rows.number, len(kinds) * x.width)

    def normalize(self, x: Rows) -> Rows:
        return self._record(kernels.NORMALIZE, self._domains[x.number], x.width, x=x.number, width=x.width)

    def log1p_relu(self, x: Rows) -> Rows:
        """In place."""
        self._append(kernels.LOG1P, self._domains[x.number], x=x.number, width=x.width)
        return x

    def column(self, x: Rows, index: int) -> Rows:
        """One column, as rows of width 1 that only `copy` takes."""
        rows = Rows(-1 - len(self._columns), 1)
        self._columns[rows.number] = (x, index)
        return rows

    def copy(self, rows: Rows, output: int) -> None:
        """Copy rows to the result of that index."""
        source, column = self._columns.get(rows.number, (rows, 0))
        domain = self._domains[source.number]
        self._append(
            kernels.COPY,
            domain,
            x=source.number,
            width=rows.width,
            option=output,
            column=column,
            per_sequence=int(domain == OVER_SEQUENCES),
        )

    # ---- Recording

    def _record(self, op: int, kind: int, width: int, /, **fields: Any) -> Rows:
        stride = -(-width // ROW_ALIGN) * ROW_ALIGN * 4
        out = self._buffer(stride, OVER_TOKENS if kind == OVER_HEADS else kind)
        self._append(op, kind, out=out, **fields)
        return Rows(out, width)

    def _append(self, op: int, kind: int, /, **fields: Any) -> None:
        self._instructions.append({"op": op, "x": -1, "residual": -1, "out": -1, "codes": -1, **fields})
        self._kinds.append(kind)

    def _buffer(self, stride: int, domain: int) -> int:
        self._strides.append(stride)
        self._domains.append(domain)
        return len(self._strides) - 1

    def _norm(self, norm: LayerNorm) -> dict[str, Any]:
        weight, bias = (self._address(self._weights.row(values)) for values in (norm.weight, norm.bias))
        return {"weight": weight, "bias": bias, "eps": norm.eps}

    def _address(self, array: Array | None) -> int:
        if array is None:
            return 0
        self._keep.append(array)
        return int(array.ctypes.data)

    # ---- Finishing

    def finish(self) -> Program:
        segments = self._find_segments()
        segment_of = {i: s for s, (_, first, last) in enumerate(segments) for i in range(first, last)}
        uses: dict[int, list[int]] = {number: [] for number in range(len(self._strides))}
        for i, instruction in enumerate(self._instructions):
            for field in ("x", "residual", "out", "codes"):
                if instruction[field] >= 0:
                    uses[instruction[field]].append(i)
        local = {number for number, at in uses.items() if len({segment_of[i] for i in at}) == 1}
        block_rows = [BLOCK_ROWS] * len(segments)
        for number in local:
            segment = segment_of[uses[number][0]]
            fitting = _LOCAL_BYTES // self._strides[number] // DOT_ROWS * DOT_ROWS
            block_rows[segment] = max(2 * DOT_ROWS, min(block_rows[segment], fitting))
        slots = self._assign_slots(uses, local, {number: block_rows[segment_of[uses[number][0]]] for number in local})

        program = np.zeros(len(self._instructions), kernels.INSTRUCTION)
        for row, instruction in zip(program, self._instructions, strict=True):
            for field, value in instruction.items():
                row[field] = value
        functions = np.zeros(kernels.NUM_OPS, np.int64)
        for op in {instruction["op"] for instruction in self._instructions}:
            functions[op] = kernels.kernel_address(op)
        fields = [(*segment, rows) for segment, rows in zip(segments, block_rows, strict=True)]
        return Program(
            functions,
            program,
            np.array(fields, kernels.SEGMENT),
            np.array([(stride, is_local) for _, is_local, stride, _ in slots], kernels.BUFFER),
            np.array(self._lookups, kernels.LOOKUP),
            np.array([domain == OVER_TOKENS for domain, *_ in slots]),
            np.array([rows for *_, rows in slots]),
            2 + len(program),
            self._head_dim,
            len(self._spec.distances_per_row),
            self._keep,
            self._rotations,
        )

    def _find_segments(self) -> list[tuple[int, int, int]]:
        """(kind, first, last) of runs of instructions over the same rows; a very wide linear begins its own."""
        segments: list[tuple[int, int, int]] = []
        for i, (kind, instruction) in enumerate(zip(self._kinds, self._instructions, strict=True)):
            wide = instruction["out"] >= 0 and self._strides[instruction["out"]] * BLOCK_ROWS > _LOCAL_BYTES
            is_new = not segments or kind == OVER_HEADS or segments[-1][0] != kind or wide
            first = i if is_new else segments.pop()[1]
            segments.append((kind, first, i + 1))
        return segments

    def _assign_slots(
        self, uses: dict[int, list[int]], local: set[int], local_rows: dict[int, int]
    ) -> list[tuple[int, bool, int, int]]:
        """Lets buffers that are never needed at once share memory; returns (domain, is local, stride, rows) of each.

        An instruction may write over what it reads for the last time only where it works in place: a LayerNorm.
        """
        slots: list[tuple[int, bool, int, int]] = []
        free: list[int] = []
        slot_of: dict[int, int] = {}

        def release(i: int, instruction: dict[str, Any]) -> None:
            for number in {instruction[field] for field in ("x", "residual") if instruction[field] >= 0}:
                if uses[number][-1] == i:
                    free.append(slot_of[number])

        for i, instruction in enumerate(self._instructions):
            in_place = instruction["op"] == kernels.LAYERNORM
            if in_place:
                release(i, instruction)
            for number in (instruction["out"], instruction["codes"]):
                if number < 0:
                    continue
                what = (self._domains[number], number in local, self._strides[number], local_rows.get(number, 0))
                found = next((slot for slot in free if slots[slot] == what), None)
                if found is None:
                    slots.append(what)
                    found = len(slots) - 1
                else:
                    free.remove(found)
                slot_of[number] = found
                if uses[number] == [i]:
                    free.append(found)  # written and never read
            if not in_place:
                release(i, instruction)
        for instruction in self._instructions:
            for field in ("x", "residual", "out", "codes"):
                instruction[field] = slot_of.get(instruction[field], -1)
        return slots
