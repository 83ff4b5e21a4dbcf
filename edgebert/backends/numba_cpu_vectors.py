"""Vectors for Numba kernels: a type of 16 lanes (or a tile's width), its arithmetic, and register tiles.

Kernels name memory by its address, an int64, and count bytes. LLVM chooses the instructions for each operation (on one
512-bit register, two of 256 or four of 128); only the dot product of codes is written out for each instruction set.
Reductions have one order everywhere: 16 lanes, then one combining tree.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, extending, types
from numba.core.extending import lower_builtin, models, register_model
from numba.core.registry import cpu_target
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.np.numpy_support import from_dtype

Value = Any  # an llvmlite value
Builder = Any  # an llvmlite IRBuilder

intrinsic: Any = extending.intrinsic  # its result is not what its type says: kernels call it without the context

LANES = 16


class Isa(NamedTuple):
    """What the kernels are built for: tiles of rows x (16 * vectors) accumulators, and the form of the dot product."""

    name: str
    needs: frozenset[str]  # LLVM's names of CPU features
    dot_rows: int
    fma_rows: int
    vectors: int
    code_flip: int = 0  # codes are stored xor this; with 0x80 they are s8, the code less 128


# Best first; the last one runs anywhere.
ISAS = (
    Isa("avx512_vnni", frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"}), 6, 6, 4),
    Isa("avx_vnni", frozenset({"avx2", "fma", "avxvnni"}), 6, 6, 1),
    Isa("avx2", frozenset({"avx2", "fma"}), 4, 6, 1, 0x80),
    Isa("neon_dotprod", frozenset({"neon", "dotprod"}), 6, 6, 1, 0x80),
    Isa("generic", frozenset(), 4, 4, 1),
)


def target_cpu() -> tuple[str, str, frozenset[str]]:
    """(triple, CPU name, features that it has) of what Numba compiles for; NUMBA_CPU_NAME may name another CPU."""
    triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    return triple, name, frozenset(feature[1:] for feature in features.split(",") if feature.startswith("+"))


def find_isa() -> Isa:
    """The best form that the CPU Numba compiles for has."""
    features = target_cpu()[2]
    return next(isa for isa in ISAS if isa.needs <= features)


ISA = find_isa()
TILE = LANES * ISA.vectors  # lanes of a wide vector: one row of a tile
# x86 has had fused multiply-add since 2013; without it the function call of libm would take its place
_HAS_FMA = "fma" in target_cpu()[2] or not target_cpu()[0].startswith(("x86_64", "i686"))

_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()


# ---- The type --------------------------------------------------------------------------------------------------------


class Vector(types.Type):
    """A vector of float32 or int32 lanes, held in registers."""

    def __init__(self, element: types.Number, lanes: int) -> None:
        self.element = element
        self.lanes = lanes
        super().__init__(name=f"{element}x{lanes}")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, _llvm_type(vector))


F32X16, F32_WIDE = Vector(types.float32, LANES), Vector(types.float32, TILE)
I32X16, I32_WIDE = Vector(types.int32, LANES), Vector(types.int32, TILE)


def _llvm_type(vector: Vector) -> ir.VectorType:
    return ir.VectorType(_F32 if vector.element == types.float32 else _I32, vector.lanes)


def _constant(element: Any, lanes: int, value: Any) -> ir.Constant:
    return ir.Constant(ir.VectorType(element, lanes), [value] * lanes)


def _splat(builder: Builder, value: Value, lanes: int) -> Value:
    vector = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), _constant(_I32, lanes, 0))


def _shuffle(builder: Builder, a: Value, b: Value, lanes: Sequence[int]) -> Value:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes)))


def _call(builder: Builder, name: str, result: Any, *args: Value) -> Value:
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [arg.type for arg in args]), name)
    return builder.call(function, args)


def _llvm(builder: Builder, name: str, *args: Value) -> Value:
    """An LLVM intrinsic over vectors of one type: llvm.<name>.v16f32 and the like."""
    vector = args[0].type
    suffix = f"v{vector.count}{'f32' if vector.element == _F32 else f'i{vector.element.width}'}"
    return _call(builder, f"llvm.{name}.{suffix}", vector, *args)


def _pointer(builder: Builder, address: Value) -> Value:
    return builder.inttoptr(address, ir.PointerType())


def _load(builder: Builder, address: Value, what: Any) -> Value:
    return builder.load(_pointer(builder, address), align=1, typ=what)


def _store(builder: Builder, value: Value, address: Value) -> None:
    builder.store(value, _pointer(builder, address), align=1)


def _offset(builder: Builder, address: Value, count: int, stride: Value) -> Value:
    return builder.add(address, builder.mul(_I64(count), stride))


# ---- Arithmetic: operators and functions, lane by lane; scalars are spread over the lanes ----------------------------


def _common(args: Sequence[Any]) -> Vector | None:
    return next((arg for arg in args if isinstance(arg, Vector)), None)


def _spread_signature(args: Sequence[Any]) -> Any:
    vector = _common(args)
    if vector is None:
        return None
    return signature(vector, *(arg if isinstance(arg, Vector) else vector.element for arg in args))


def _spread(builder: Builder, sig: Any, args: Sequence[Value]) -> list[Value]:
    return [
        arg if isinstance(kind, Vector) else _splat(builder, arg, sig.return_type.lanes)
        for arg, kind in zip(args, sig.args, strict=True)
    ]


def _define_operator(function: Callable[..., Any], float_name: str | None, int_name: str | None) -> None:
    @infer_global(function)
    class Operator(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            return _spread_signature(args)

    def lower(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        name = float_name if sig.return_type.element == types.float32 else int_name
        return getattr(builder, str(name))(*_spread(builder, sig, args))

    for kinds in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(function, *kinds)(lower)


_define_operator(operator.add, "fadd", "add")
_define_operator(operator.sub, "fsub", "sub")
_define_operator(operator.mul, "fmul", "mul")
_define_operator(operator.truediv, "fdiv", None)
_define_operator(operator.and_, None, "and_")
_define_operator(operator.or_, None, "or_")
_define_operator(operator.lshift, None, "shl")


def _lane_function(arity: int, emit: Callable[..., Value]) -> Any:
    """An intrinsic of `arity` arguments, vectors or scalars, that gives a vector of the same type."""

    def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        return emit(builder, *_spread(builder, sig, args))

    def type1(typingctx: Any, a: Any) -> Any:
        return _spread_signature((a,)), codegen

    def type2(typingctx: Any, a: Any, b: Any) -> Any:
        return _spread_signature((a, b)), codegen

    def type3(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
        return _spread_signature((a, b, c)), codegen

    return intrinsic((type1, type2, type3)[arity - 1])


def _emit_fma(builder: Builder, a: Value, b: Value, c: Value) -> Value:
    return _llvm(builder, "fma", a, b, c) if _HAS_FMA else builder.fadd(builder.fmul(a, b), c)


def _emit_scale_exp2(builder: Builder, x: Value, n: Value) -> Value:
    integers = ir.VectorType(_I32, x.type.count)
    shifted = builder.shl(builder.fptosi(n, integers), _constant(_I32, x.type.count, 23))
    return builder.bitcast(builder.add(builder.bitcast(x, integers), shifted), x.type)


fma = _lane_function(3, _emit_fma)  # a * b + c, rounded once
fnma = _lane_function(3, lambda b, x, y, z: _emit_fma(b, b.fneg(x), y, z))  # c - a * b
minimum = _lane_function(2, lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), x, y))
maximum = _lane_function(2, lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))
absolute = _lane_function(1, lambda b, x: _llvm(b, "fabs", x))
rint = _lane_function(1, lambda b, x: _llvm(b, "rint", x))  # half to even
scale_exp2 = _lane_function(2, _emit_scale_exp2)  # x * 2**n for integer n; the result must be a normal number


@intrinsic
def to_f32(typingctx: Any, x: Any) -> Any:
    """Integers as float32, lane by lane."""

    def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        return builder.sitofp(args[0], _llvm_type(sig.return_type))

    return Vector(types.float32, x.lanes)(x), codegen


@intrinsic
def to_i32(typingctx: Any, x: Any) -> Any:
    """Integer-valued float32 as integers, lane by lane."""

    def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        return builder.fptosi(args[0], _llvm_type(sig.return_type))

    return Vector(types.int32, x.lanes)(x), codegen


@intrinsic
def keep(typingctx: Any, x: Any, count: Any, fill: Any) -> Any:
    """The first `count` lanes of x, `fill` in the others."""

    def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        x, count, fill = args
        return builder.select(_first_lanes(builder, count, x.type.count), x, _splat(builder, fill, x.type.count))

    return x(x, types.int64, x.element), codegen


def _first_lanes(builder: Builder, count: Value, lanes: int) -> Value:
    numbers = ir.Constant(ir.VectorType(_I32, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, _splat(builder, builder.trunc(count, _I32), lanes))


def _splatter(vector: Vector) -> Any:
    @intrinsic
    def splat(typingctx: Any, value: Any) -> Any:
        """The value in every lane."""

        def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            return _splat(builder, args[0], vector.lanes)

        return vector(vector.element), codegen

    return splat


splat, splat_wide = _splatter(F32X16), _splatter(F32_WIDE)


def _accumulator(emit: Callable[[Builder, Value, Value], Value]) -> Any:
    @intrinsic
    def accumulate(typingctx: Any, sums: Any, x: Any) -> Any:
        """Take each 16 lanes of x into the sums, one after another."""

        def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            total, x = args
            for first in range(0, x.type.count, LANES):
                total = emit(builder, total, _shuffle(builder, x, x, range(first, first + LANES)))
            return total

        return sums(sums, x), codegen

    return accumulate


add_parts = _accumulator(lambda builder, total, x: builder.fadd(total, x))
add_squares = _accumulator(lambda builder, total, x: _emit_fma(builder, x, x, total))


def _reducer(emit: Callable[[Builder, Value, Value], Value]) -> Any:
    @intrinsic
    def reduce(typingctx: Any, x: Any) -> Any:
        """One value of all lanes: lane i with lane i + 8, then + 4, + 2, + 1."""

        def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            value, lanes = args[0], args[0].type.count
            while lanes > 1:
                lanes //= 2
                low, high = (_shuffle(builder, value, value, range(i, i + lanes)) for i in (0, lanes))
                value = emit(builder, low, high)
            return builder.extract_element(value, _I32(0))

        return x.element(x), codegen

    return reduce


reduce_add = _reducer(lambda b, x, y: b.fadd(x, y))
reduce_max = _reducer(lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))
reduce_min = _reducer(lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), x, y))


# ---- Memory ----------------------------------------------------------------------------------------------------------


def _loader(kind: Any) -> Any:
    scalars = {types.float32: _F32, types.int32: _I32, types.int64: _I64}
    what = _llvm_type(kind) if isinstance(kind, Vector) else scalars[kind]

    @intrinsic
    def load(typingctx: Any, address: Any) -> Any:
        """What lies at the address, which need not be aligned."""

        def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            return _load(builder, args[0], what)

        return kind(types.int64), codegen

    return load


load, load_wide = _loader(F32X16), _loader(F32_WIDE)
load_i32, load_i32_wide = _loader(I32X16), _loader(I32_WIDE)
load_f32_scalar, load_i32_scalar, load_i64_scalar = _loader(types.float32), _loader(types.int32), _loader(types.int64)


@intrinsic
def store(typingctx: Any, address: Any, value: Any) -> Any:
    """Store a vector or a scalar."""

    def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> None:
        _store(builder, args[1], args[0])

    return types.void(types.int64, value), codegen


def _masked(builder: Builder, what: ir.VectorType, count: Value) -> tuple[str, Value]:
    bits = 32 if what.element == _F32 else what.element.width
    suffix = f"v{what.count}{'f' if what.element == _F32 else 'i'}{bits}.p0"
    return suffix, _first_lanes(builder, count, what.count)


def _partial_loader(what: ir.VectorType, convert: Callable[[Builder, Value], Value]) -> Any:
    @intrinsic
    def load_first(typingctx: Any, address: Any, count: Any) -> Any:
        """The first `count` lanes (16 if more), zeros in the others; nothing beyond is touched."""

        def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            suffix, mask = _masked(builder, what, args[1])
            pointer, zeros = _pointer(builder, args[0]), ir.Constant(what, None)
            # llvm.masked.load takes the alignment as an attribute of the pointer, 1 if there is none
            return convert(builder, _call(builder, f"llvm.masked.load.{suffix}", what, pointer, mask, zeros))

        return F32X16(types.int64, types.int64), codegen

    return load_first


load_first = _partial_loader(_llvm_type(F32X16), lambda builder, x: x)
load_s8_first = _partial_loader(ir.VectorType(_I8, LANES), lambda builder, x: builder.sitofp(x, _llvm_type(F32X16)))


@intrinsic
def store_first(typingctx: Any, address: Any, value: Any, count: Any) -> Any:
    """Store the first `count` lanes; nothing beyond is touched."""

    def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> None:
        suffix, mask = _masked(builder, args[1].type, args[2])
        _call(builder, f"llvm.masked.store.{suffix}", ir.VoidType(), args[1], _pointer(builder, args[0]), mask)

    return types.void(types.int64, value, types.int64), codegen


@intrinsic
def store_codes(typingctx: Any, address: Any, value: Any) -> Any:
    """Store integer-valued lanes as codes: clamped to [0, 255], xor the ISA's flip, one byte each."""

    def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> None:
        x = args[1]
        zero, top = (_constant(_F32, x.type.count, limit) for limit in (0.0, 255.0))
        x = builder.select(builder.fcmp_ordered(">", x, zero), x, zero)  # not a number becomes 0
        x = builder.select(builder.fcmp_ordered("<", x, top), x, top)
        codes = builder.trunc(builder.fptoui(x, ir.VectorType(_I32, x.type.count)), ir.VectorType(_I8, x.type.count))
        _store(builder, builder.xor(codes, _constant(_I8, x.type.count, ISA.code_flip)), args[0])

    return types.void(types.int64, value), codegen


@intrinsic(prefer_literal=True)
def stack_space(typingctx: Any, size: Any) -> Any:
    """Address of `size` bytes, a constant, in the frame of the function that asks."""
    what = ir.ArrayType(_I8, size.literal_value)

    def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        space = cgutils.alloca_once(builder, what)
        space.align = 64
        return builder.ptrtoint(space, _I64)

    return types.int64(size), codegen


@intrinsic
def copy_bytes(typingctx: Any, to: Any, source: Any, size: Any) -> Any:
    """memcpy."""

    def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> None:
        to, source, size = args
        cgutils.raw_memcpy(builder, _pointer(builder, to), _pointer(builder, source), size, 1)

    return types.void(types.int64, types.int64, types.int64), codegen


def record_reader(dtype: np.dtype[Any]) -> Any:
    """An intrinsic: the record of that dtype at an address, by reference."""
    kind = from_dtype(dtype)

    @intrinsic
    def record(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            return builder.inttoptr(args[0], context.get_value_type(kind))

        return kind(types.int64), codegen

    return record


@intrinsic
def address_of(typingctx: Any, record: Any) -> Any:
    """Address of a record."""

    def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        return builder.ptrtoint(args[0], _I64)

    return types.int64(record), codegen


@intrinsic
def invoke(typingctx: Any, function: Any, first: Any, second: Any) -> Any:
    """Call the C function at that address, of two int64 and without a result."""

    def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> None:
        function, *rest = args
        kind = ir.FunctionType(ir.VoidType(), [_I64, _I64])
        builder.call(builder.inttoptr(function, kind.as_pointer()), rest)

    return types.void(types.int64, types.int64, types.int64), codegen


# ---- Register tiles --------------------------------------------------------------------------------------------------


def _emit_counted_loop(
    builder: Builder, count: Value, start: Sequence[Value], body: Callable[[Value, list[Value]], list[Value]]
) -> list[Value]:
    """Values after `count` (at least 1) rounds of body(round, values) -> values, kept in registers throughout."""
    before = builder.basic_block
    loop, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(_I64)
    values = [builder.phi(value.type) for value in start]
    results = body(index, values)
    following = builder.add(index, _I64(1))
    for phi, first, result in zip([index, *values], [_I64(0), *start], [following, *results], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(result, builder.basic_block)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
    builder.position_at_end(after)
    return results


def _emit_by_size(
    builder: Builder, sizes: Sequence[tuple[int, int]], rows: Value, vectors: Value, emit: Callable[[int, int], None]
) -> None:
    """emit(rows, vectors) for the one of `sizes` that the two values name."""
    after = builder.append_basic_block("sized")
    key = builder.add(builder.mul(rows, _I64(8)), vectors)
    switch = builder.switch(key, after)
    for some_rows, some_vectors in sizes:
        block = builder.append_basic_block(f"tile{some_rows}x{some_vectors}")
        switch.add_case(_I64(some_rows * 8 + some_vectors), block)
        builder.position_at_end(block)
        emit(some_rows, some_vectors)
        builder.branch(after)
    builder.position_at_end(after)


VECTOR_COUNTS = tuple(count for count in (1, 2, 4) if count <= ISA.vectors)  # widths of a tile


def _tile_sizes(rows: int, vectors: Any) -> list[tuple[int, int]]:
    widths = (vectors.literal_value,) if isinstance(vectors, types.IntegerLiteral) else VECTOR_COUNTS
    return [(some, width) for some in range(1, rows + 1) for width in widths]


_TILE_ARGUMENTS = (types.int64,) * 10


@intrinsic(prefer_literal=True)
def fma_tile(
    typingctx: Any,
    rows: Any,
    vectors: Any,
    x: Any,
    x_stride: Any,
    columns: Any,
    step_stride: Any,
    steps: Any,
    start: Any,
    out: Any,
    out_stride: Any,
) -> Any:
    """out[m][lane] = sum over k of x[m][k] * columns[k][lane], f32, one chain of fused multiply-adds, k ascending.

    `rows` is 1 to ISA.fma_rows, `vectors` one of VECTOR_COUNTS (a constant makes for less code); strides count bytes;
    `start` is not used.
    """
    sizes = _tile_sizes(ISA.fma_rows, vectors)

    def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> None:
        rows, vectors, x, x_stride, columns, step_stride, steps, _, out, out_stride = args
        vector = ir.VectorType(_F32, LANES)

        def emit(rows: int, vectors: int) -> None:
            def step(k: Value, sums: list[Value]) -> list[Value]:
                at = builder.add(columns, builder.mul(k, step_stride))
                right = [_load(builder, builder.add(at, _I64(64 * v)), vector) for v in range(vectors)]
                results = []
                for m in range(rows):
                    address = builder.add(_offset(builder, x, m, x_stride), builder.mul(k, _I64(4)))
                    left = _splat(builder, _load(builder, address, _F32), LANES)
                    for v in range(vectors):
                        results.append(_emit_fma(builder, left, right[v], sums[m * vectors + v]))
                return results

            sums = _emit_counted_loop(builder, steps, [ir.Constant(vector, None)] * (rows * vectors), step)
            _emit_store_tile(builder, sums, rows, vectors, out, out_stride)

        _emit_by_size(builder, sizes, rows, vectors, emit)

    return types.void(*_TILE_ARGUMENTS), codegen


def _emit_store_tile(
    builder: Builder, sums: list[Value], rows: int, vectors: int, out: Value, out_stride: Value
) -> None:
    for m in range(rows):
        at = _offset(builder, out, m, out_stride)
        for v in range(vectors):
            _store(builder, sums[m * vectors + v], builder.add(at, _I64(64 * v)))


def _emit_halves(emit: Callable[[Value, Value], Value], builder: Builder, sums: Value, columns: Value) -> Value:
    low = emit(_shuffle(builder, sums, sums, range(8)), _shuffle(builder, columns, columns, range(32)))
    high = emit(_shuffle(builder, sums, sums, range(8, 16)), _shuffle(builder, columns, columns, range(32, 64)))
    return _shuffle(builder, low, high, range(16))


def _emit_dot4(builder: Builder, isa: Isa, sums: Value, four: Value, columns: Value) -> Value:
    """sums[lane] += the four codes in `four` (one i32) times columns [16][4] s8, exactly."""
    words, half = ir.VectorType(_I32, 8), ir.VectorType(_I8, 32)

    if isa.name == "avx512_vnni":
        left = builder.bitcast(_splat(builder, four, 16), columns.type)
        return _call(builder, "llvm.x86.avx512.vpdpbusd.512", sums.type, sums, left, columns)

    if isa.name == "avx_vnni":
        left = builder.bitcast(_splat(builder, four, 8), half)
        return _emit_halves(
            lambda acc, b: _call(builder, "llvm.x86.avx512.vpdpbusd.256", words, acc, left, b), builder, sums, columns
        )

    if isa.name == "avx2":
        # maddubs(|a|, sign(b, a)) sums pairs in 16 bits: 2 * 128 * 127 < 2**15, so it cannot saturate
        left = builder.bitcast(_splat(builder, four, 8), half)
        magnitude = _call(builder, "llvm.abs.v32i8", half, left, ir.Constant(ir.IntType(1), 0))
        shorts = ir.VectorType(ir.IntType(16), 16)

        def dot(acc: Value, b: Value) -> Value:
            signed = _call(builder, "llvm.x86.avx2.psign.b", half, b, left)
            pairs = _call(builder, "llvm.x86.avx2.pmadd.ub.sw", shorts, magnitude, signed)
            quads = _call(builder, "llvm.x86.avx2.pmadd.wd", words, pairs, _constant(ir.IntType(16), 16, 1))
            return builder.add(acc, quads)

        return _emit_halves(dot, builder, sums, columns)

    if isa.name == "neon_dotprod":
        quarter, bytes16 = ir.VectorType(_I32, 4), ir.VectorType(_I8, 16)
        left = builder.bitcast(_splat(builder, four, 4), bytes16)
        quarters = [
            _call(
                builder,
                "llvm.aarch64.neon.sdot.v4i32.v16i8",
                quarter,
                _shuffle(builder, sums, sums, range(4 * i, 4 * i + 4)),
                left,
                _shuffle(builder, columns, columns, range(16 * i, 16 * i + 16)),
            )
            for i in range(4)
        ]
        low, high = (_shuffle(builder, quarters[i], quarters[i + 1], range(8)) for i in (0, 2))
        return _shuffle(builder, low, high, range(16))

    weights = builder.bitcast(columns, sums.type)
    for byte in range(4):
        weight = builder.ashr(builder.shl(weights, _constant(_I32, 16, 24 - 8 * byte)), _constant(_I32, 16, 24))
        code = builder.and_(builder.lshr(four, _I32(8 * byte)), _I32(255))
        sums = builder.add(sums, builder.mul(weight, _splat(builder, code, 16)))
    return sums


def make_dot_tile(isa: Isa) -> Any:
    """`dot_tile` in the form of that instruction set."""

    @intrinsic(prefer_literal=True)
    def dot_tile(
        typingctx: Any,
        rows: Any,
        vectors: Any,
        codes: Any,
        stride: Any,
        columns: Any,
        step_stride: Any,
        steps: Any,
        start: Any,
        out: Any,
        out_stride: Any,
    ) -> Any:
        """out[m][lane] = start[lane] + sum over k of codes[m][k] * columns[k / 4][lane][k % 4], s32, exact.

        `rows` is 1 to isa.dot_rows, `vectors` one of VECTOR_COUNTS (a constant makes for less code); strides count
        bytes; `start` may be 0: from zero.
        """
        sizes = _tile_sizes(isa.dot_rows, vectors)

        def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> None:
            rows, vectors, codes, stride, columns, step_stride, steps, start, out, out_stride = args
            vector, block = ir.VectorType(_I32, LANES), ir.VectorType(_I8, 4 * LANES)
            zeros = cgutils.alloca_once(builder, ir.ArrayType(_I32, 4 * LANES))
            builder.store(ir.Constant(ir.ArrayType(_I32, 4 * LANES), None), zeros)
            is_null = builder.icmp_signed("==", start, _I64(0))
            start = builder.select(is_null, builder.ptrtoint(zeros, _I64), start)

            def emit(rows: int, vectors: int) -> None:
                def step(k: Value, sums: list[Value]) -> list[Value]:
                    at = builder.add(columns, builder.mul(k, step_stride))
                    right = [_load(builder, builder.add(at, _I64(64 * v)), block) for v in range(vectors)]
                    results = []
                    for m in range(rows):
                        address = builder.add(_offset(builder, codes, m, stride), builder.mul(k, _I64(4)))
                        four = _load(builder, address, _I32)
                        for v in range(vectors):
                            results.append(_emit_dot4(builder, isa, sums[m * vectors + v], four, right[v]))
                    return results

                first = [_load(builder, builder.add(start, _I64(64 * v)), vector) for v in range(vectors)]
                sums = _emit_counted_loop(builder, steps, first * rows, step)
                _emit_store_tile(builder, sums, rows, vectors, out, out_stride)

            _emit_by_size(builder, sizes, rows, vectors, emit)

        return types.void(*_TILE_ARGUMENTS), codegen

    return dot_tile


dot_tile = make_dot_tile(ISA)


@intrinsic
def transpose_block(typingctx: Any, x: Any, stride: Any, out: Any, out_stride: Any) -> Any:
    """out = transpose of the 16 x 16 f32 block at x; strides count bytes."""

    def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> None:
        x, stride, out, out_stride = args
        rows = [_load(builder, _offset(builder, x, i, stride), _llvm_type(F32X16)) for i in range(16)]
        low = [lane for i in range(8) for lane in (i, 16 + i)]
        for _ in range(4):  # four interleavings of the upper with the lower half exchange rows and columns
            rows = [
                _shuffle(builder, rows[i], rows[i + 8], [lane + first for lane in low])
                for i in range(8)
                for first in (0, 8)
            ]
        for i, row in enumerate(rows):
            _store(builder, row, _offset(builder, out, i, out_stride))

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


# ---- Threads ---------------------------------------------------------------------------------------------------------


@intrinsic
def atomic_add(typingctx: Any, address: Any, count: Any) -> Any:
    """Add to the int64 at the address, at once for all threads; returns what was there before."""

    def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        return builder.atomic_rmw("add", _pointer(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx: Any, address: Any) -> Any:
    """The int64 at the address, with everything that its writer wrote before it."""

    def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        return builder.load_atomic(_pointer(builder, args[0]), "seq_cst", 8, typ=_I64)

    return types.int64(types.int64), codegen


@intrinsic
def yield_cpu(typingctx: Any) -> Any:
    """Let another thread run."""

    def codegen(context: Any, builder: Builder, sig: Any, args: Any) -> None:
        _call(builder, "sched_yield", _I32)

    return types.void(), codegen
