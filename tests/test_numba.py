"""The numba backend beyond parity: its kernels against the contract, its bits, its cache on disk, its threads."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import random_artifact, random_batch, random_spec, random_tensors
from conftest import BACKENDS
from test_backends import CASES, INVARIANT, LENGTHS, assert_agree, assert_invariant, assert_same_bits, outputs_of

from edgebert import quant
from edgebert.backends import numpy_ops
from edgebert.backends.cpus import cpu_flags
from edgebert.backends.encoder_loop import LayerNorm
from edgebert.backends.registry import load_backend
from edgebert.errors import BackendUnavailableError, UnsupportedModelError

numba = pytest.importorskip("numba")

from edgebert.backends import numba_cpu_kernels as kernels  # noqa: E402
from edgebert.backends import numba_cpu_vectors as vectors  # noqa: E402
from edgebert.backends.numba_backend import THREAD_NAME  # noqa: E402
from edgebert.backends.numba_cpu_ops import WeightStore, record_program  # noqa: E402

Array = np.ndarray[Any, Any]


def run_kernel(op: int, instruction: dict[str, Any], call: dict[str, Any]) -> None:
    """Call one kernel; arrays stand for their addresses."""
    records = []
    for dtype, fields in ((kernels.INSTRUCTION, instruction), (kernels.CALL, call)):
        record = np.zeros(1, dtype)
        for name, value in fields.items():
            record[name] = value.ctypes.data if isinstance(value, np.ndarray) else value
        records.append(record)
    kernel = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(kernels.kernel_address(op))
    kernel(*(record.ctypes.data for record in records))


def padded(x: Array) -> Array:
    """Rows as the kernels want them: 64 floats aligned, a few rows after the last; what lies there is not a number."""
    rows = np.full((len(x) + kernels.SLACK_ROWS, -(-x.shape[1] // 64) * 64), np.nan, np.float32)
    rows[: len(x), : x.shape[1]] = x
    return rows


def split_codes(rows: Array, width: int) -> tuple[Array, Array, Array]:
    tail = kernels.code_tail(width)
    meta = np.ascontiguousarray(rows[:, tail : tail + 8])
    codes = rows[:, :width] ^ kernels.CODE_FLIP
    return codes, meta[:, :4].copy().view(np.float32)[:, 0], meta[:, 4:].copy().view(np.int32)[:, 0] - kernels.CODE_FLIP


AWKWARD = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "zeros": lambda rng, shape: np.zeros(shape),
    "equal": lambda rng, shape: np.full(shape, 1.7),
    "huge": lambda rng, shape: rng.standard_normal(shape) * np.where(np.arange(shape[0]) == 1, 1e6, 1)[:, None],
    "negative": lambda rng, shape: -np.abs(rng.standard_normal(shape)),
}


@pytest.mark.parametrize("values", AWKWARD)
@pytest.mark.parametrize("shape", [(1, 1), (7, 63), (6, 64), (13, 65), (2, 200)])
def test_codes_and_linear_follow_the_contract(values: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x = AWKWARD[values](rng, shape).astype(np.float32)
    rows, inputs = shape
    smooth = rng.uniform(0.5, 2, inputs).astype(np.float32)
    store = WeightStore()
    stride = kernels.code_tail(inputs) + 64
    codes = np.zeros((rows + kernels.SLACK_ROWS, stride), np.uint8)
    x_rows = padded(x)
    run_kernel(
        kernels.QUANTIZE,
        {"width": inputs, "smooth": store.row(smooth)},
        {"rows": rows, "x": x_rows, "x_stride": x_rows.strides[0], "codes": codes, "codes_stride": stride},
    )
    expected = quant.quantize_rows(x, smooth)
    for found, wanted in zip(split_codes(codes[:rows], inputs), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)

    for outputs in (1, 63, 64, 65):
        weight = rng.integers(-127, 128, (inputs, outputs)).astype(np.int8)
        weight[:, 0] = 127
        scale, bias = (rng.uniform(0.1, 1, outputs).astype(np.float32) for _ in range(2))
        colsum = quant.column_sums(weight)
        out = padded(np.zeros((rows, outputs)))
        run_kernel(
            kernels.LINEAR_S8,
            {
                "width": inputs,
                "weight": store.panels(weight, 4),
                "scale": store.row(scale),
                "colsum": store.row(colsum),
                "bias": store.row(bias),
            },
            {
                "rows": rows,
                "end": -(-outputs // vectors.TILE),
                "x": codes,
                "x_stride": stride,
                "out": out,
                "out_stride": out.strides[0],
            },
        )
        assert_same_bits(
            out[:rows, :outputs], quant.linear_u8s8_f32(*expected, weight, scale, colsum, bias).astype(np.float32)
        )


@pytest.mark.parametrize("width", [1, 16, 17, 64, 130])
def test_layernorm_with_a_residual_gives_codes_too(width: int) -> None:
    rng = np.random.default_rng(0)
    x, residual = (rng.standard_normal((5, width)).astype(np.float32) for _ in range(2))
    norm = LayerNorm(*(rng.standard_normal(width).astype(np.float32) for _ in range(2)), 1e-5)
    smooth = rng.uniform(0.5, 2, width).astype(np.float32)
    store = WeightStore()
    x_rows, residual_rows, out = padded(x), padded(residual), padded(x)
    codes = np.zeros((5, kernels.code_tail(width) + 64), np.uint8)
    run_kernel(
        kernels.LAYERNORM,
        {
            "width": width,
            "weight": store.row(norm.weight),
            "bias": store.row(norm.bias),
            "eps": norm.eps,
            "smooth": store.row(smooth),
        },
        {
            "rows": 5,
            "x": x_rows,
            "x_stride": x_rows.strides[0],
            "residual": residual_rows,
            "residual_stride": residual_rows.strides[0],
            "out": out,
            "out_stride": out.strides[0],
            "codes": codes,
            "codes_stride": codes.strides[0],
        },
    )
    found = np.ascontiguousarray(out[:5, :width])
    np.testing.assert_allclose(found, numpy_ops.add_layernorm(x, residual, norm), rtol=1e-5, atol=1e-5)
    for ours, wanted in zip(split_codes(codes, width), quant.quantize_rows(found, smooth), strict=True):
        np.testing.assert_array_equal(ours, wanted)


# The flag as Linux spells it that each form of the dot product asks of the CPU.
FLAGS = {"avx512_vnni": "avx512_vnni", "avx_vnni": "avx_vnni", "avx2": "avx2", "neon_dotprod": "asimddp"}


@pytest.mark.parametrize("isa", vectors.ISAS, ids=lambda isa: str(isa.name))
def test_every_form_of_the_dot_product_is_exact(isa: vectors.Isa) -> None:
    if isa.name in FLAGS and FLAGS[isa.name] not in cpu_flags():
        pytest.skip("this CPU lacks it")
    form = vectors.make_dot_tile(isa)

    @numba.njit
    def tile(rows, codes, stride, columns, steps, start, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        form(rows, 1, codes, stride, columns, 64, steps, start, out, 64)

    rng = np.random.default_rng(0)
    for inputs in (4, 36):
        codes = rng.integers(0, 256, (isa.dot_rows, inputs)).astype(np.uint8)
        weight = rng.integers(-127, 128, (inputs, 16)).astype(np.int8)
        codes[0], weight[:, 0], codes[1], weight[:, 1] = 255, 127, 0, -127  # the extremes meet
        stored = codes ^ np.uint8(isa.code_flip)
        columns = np.ascontiguousarray(weight.reshape(-1, 4, 16).transpose(0, 2, 1))
        start = rng.integers(-1000, 1000, 16).astype(np.int32)
        left = codes.astype(np.int32) - (128 if isa.code_flip else 0)
        for rows in range(1, isa.dot_rows + 1):
            out = np.zeros((isa.dot_rows, 16), np.int32)
            tile(rows, stored.ctypes.data, inputs, columns.ctypes.data, inputs // 4, start.ctypes.data, out.ctypes.data)
            np.testing.assert_array_equal(out[:rows], left[:rows] @ weight.astype(np.int32) + start)
            assert not out[rows:].any()


def test_the_neon_form_compiles_to_dot_products() -> None:
    from llvmlite import binding, ir

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    try:
        target = binding.Target.from_triple("aarch64-unknown-linux-gnu")
    except RuntimeError:
        pytest.skip("this llvmlite cannot compile for Arm")
    isa = next(isa for isa in vectors.ISAS if isa.name == "neon_dotprod")
    sums, columns = ir.VectorType(ir.IntType(32), 16), ir.VectorType(ir.IntType(8), 64)
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(sums, [sums, ir.IntType(32), columns]), "dot4")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(vectors._emit_dot4(builder, isa, *function.args))
    machine = target.create_target_machine(features="+neon,+dotprod", opt=3)
    assembly = machine.emit_assembly(binding.parse_assembly(str(module)))
    assert assembly.count("sdot") == 4


@pytest.mark.parametrize("int8", [False, True], ids=["f32", "int8"])
@pytest.mark.parametrize("case", INVARIANT)
def test_gives_the_same_bits_in_any_batch(case: str, int8: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    random_artifact(path, int8=int8, num_positions=514, **CASES[case])
    lengths = (5, 1, 63, 64, 65, 5, 2, 129, 512, *range(1, 30))
    assert_invariant(lambda threads: load_backend(path, "numba", threads=threads), lengths)


@pytest.mark.skipif("native" not in BACKENDS, reason="the native backend is not built")
@pytest.mark.parametrize("int8", [False, True], ids=["f32", "int8"])
@pytest.mark.parametrize("case", CASES)
def test_equals_native_bit_for_bit(case: str, int8: bool, tmp_path: Path) -> None:
    if vectors.ISA.name == "generic":
        pytest.skip("without a fused multiply-add")
    path = tmp_path / "model.onnx"
    random_artifact(path, int8=int8, num_positions=514, **CASES[case])
    native, ours = load_backend(path, "native"), load_backend(path, "numba")
    batch = random_batch(native.spec, LENGTHS)
    expected = outputs_of(native, batch)
    for name, values in outputs_of(ours, batch).items():
        assert_same_bits(values, expected[name])


def test_refuses_an_attention_dtype_it_does_not_run() -> None:
    spec = random_spec(attention_dtype="bf16")
    with pytest.raises(UnsupportedModelError, match="bf16"):
        record_program(spec, random_tensors(spec), spec.outputs, WeightStore())


def test_asks_for_the_version_it_is_written_for(
    make_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba, "__version__", "0.61.2")
    with pytest.raises(BackendUnavailableError, match=r"numba 0\.61\.2 is installed, .*edgebert\[numba\]"):
        load_backend(make_file(), "numba")


def test_python_threads_may_share_a_model(make_file: Callable[..., Path]) -> None:
    loaded = load_backend(make_file(int8=True), "numba", threads=2)
    batches = [random_batch(loaded.spec, (3, 40, n)) for n in range(1, 9)]
    expected = [outputs_of(loaded, batch)["sentence_embedding"] for batch in batches]
    failures: list[int] = []

    def run(i: int) -> None:
        for _ in range(20):
            if not np.array_equal(outputs_of(loaded, batches[i])["sentence_embedding"], expected[i]):
                failures.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_the_cache_on_disk_is_used_and_not_needed(
    make_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_file()
    load_backend(path, "numba")
    script = (
        "import sys\n"
        "from edgebert.backends.registry import load_backend\n"
        "load_backend(sys.argv[1], 'numba')\n"
        "from edgebert.backends import numba_cpu_kernels as kernels\n"
        "print(*(kernels._compile(function).cache_hits for function in (*kernels.KERNELS.values(),\n"
        "    kernels._run_program) if function.__name__ in ('_linear_f32', '_attention_varlen', '_run_program')))\n"
    )
    found = subprocess.run(
        [sys.executable, "-P", "-c", script, str(path)], check=True, timeout=300, capture_output=True
    )
    assert found.stdout.split() == [b"1", b"1", b"1"]

    def refuse(function: object) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(kernels, "_Cache", refuse)
    assert kernels._compile.__wrapped__(kernels._copy).address


@pytest.mark.parametrize(
    ("cpu", "features", "isa"), [("haswell", "+avx2,+fma,+bmi2", "avx2"), ("x86-64", "+sse2", "generic")]
)
def test_other_cpus_agree(cpu: str, features: str, isa: str, tmp_path: Path) -> None:
    """Compiled for another CPU, with vectors of another width and another dot product: the oracle's results."""
    if "avx2" not in cpu_flags():
        pytest.skip("not an x86 CPU of the last ten years")
    cases = {"int8": {"int8": True, **CASES["int8-attention"]}, "f32": CASES["pruned"]}
    for name, case in cases.items():
        random_artifact(tmp_path / f"{name}.onnx", num_positions=514, **case)
    script = (
        "import sys\n"
        "import numpy as np\n"
        "from artifacts import random_batch\n"
        "from edgebert.backends.registry import load_backend\n"
        "for path in sys.argv[1:]:\n"
        "    model = load_backend(path, 'numba', threads=1)\n"
        f"    assert '{isa}' in model.detail, model.detail\n"
        f"    np.savez(path + '.npz', **model.run(random_batch(model.spec, {LENGTHS}), model.spec.outputs))\n"
    )
    environment = os.environ | {
        "NUMBA_CPU_NAME": cpu,
        "NUMBA_CPU_FEATURES": features,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    paths = [str(tmp_path / f"{name}.onnx") for name in cases]
    subprocess.run([sys.executable, "-P", "-c", script, *paths], check=True, timeout=300, env=environment)
    for path in paths:
        oracle = load_backend(path, "numpy")
        with np.load(path + ".npz") as results:
            assert_agree(oracle, StoredResults(oracle.spec, dict(results)), random_batch(oracle.spec, LENGTHS))  # type: ignore[arg-type]
            if isa == "avx2":  # it has the fused multiply-add
                here = outputs_of(load_backend(path, "numba"), random_batch(oracle.spec, LENGTHS))
                for name, values in results.items():
                    assert_same_bits(values, here[name])


class StoredResults:
    """A backend whose results are known."""

    def __init__(self, spec: object, results: dict[str, Array]) -> None:
        self.spec = spec
        self.results = results

    def run(self, batch: object, outputs: object) -> dict[str, Array]:
        return self.results


def test_workers_end_with_their_model(make_file: Callable[..., Path]) -> None:
    before = set(threading.enumerate())
    loaded = load_backend(make_file(), "numba", threads=3)
    outputs_of(loaded, random_batch(loaded.spec, (4,)))
    workers = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith(THREAD_NAME)]
    assert len(workers) == 2
    del loaded
    for worker in workers:
        worker.join(100)
        assert not worker.is_alive()
