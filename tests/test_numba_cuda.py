"""Numba's CUDA kernels without a GPU: in the simulator against the oracle, and compiled to PTX."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from artifacts import POSITION_TABLES, ROTARY, random_spec, random_tensors

from edgebert.backends.numba_cuda_backend import NumbaCudaBackend
from edgebert.backends.registry import load_backend
from edgebert.errors import BackendUnavailableError, UnsupportedModelError

pytest.importorskip("numba")
needs_numba_cuda = pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed")


@pytest.mark.parametrize("case", [ROTARY, POSITION_TABLES], ids=["rotary", "position-tables"])
def test_refuses_what_its_kernels_do_not_run(case: dict[str, Any]) -> None:
    spec = random_spec(**case)
    with pytest.raises(UnsupportedModelError, match="tables of relative positions, which the CUDA kernels do not run"):
        NumbaCudaBackend(spec, random_tensors(spec), "cuda:0")


# Tiny shapes: every thread of a block is a thread of Python there. Off the tile of 4, two heads, two sequences.
SIMULATED = """
import os

import numpy as np
from artifacts import random_batch, random_spec, random_tensors
from edgebert.backends import numpy_ops as oracle
from edgebert.backends.encoder_loop import LayerNorm, Linear, Table
from edgebert.backends.numba_cuda_backend import NumbaCudaBackend
from edgebert.backends.numba_cuda_ops import CudaOps, cuda
from edgebert.backends.numpy_backend import NumpyBackend
from edgebert.errors import BackendUnavailableError

rng = np.random.default_rng(0)
normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
x, residual, qkv, norm = normal(3, 5), normal(3, 5), normal(7, 12), LayerNorm(normal(5), normal(5), 1e-5)
ids, cu_seqlens, linear = np.int32([1, 2, 6]), np.int32([0, 6, 7]), Linear(normal(5, 6), normal(6))
table = Table(normal(7, 5))
ops, put = CudaOps(), cuda.to_device

def close(found, expected):
    np.testing.assert_allclose(found.copy_to_host(), expected, rtol=1e-5, atol=1e-6)

close(ops.embed_layernorm([(table, ids)] * 2, norm), oracle.embed_layernorm([(table, ids)] * 2, norm))
close(ops.add_layernorm(put(x), put(residual), norm), oracle.add_layernorm(x, residual, norm))
close(ops.add_layernorm(put(x), residual[0], norm), oracle.add_layernorm(x, residual[0], norm))
for activation in ("identity", "gelu_erf", "gelu_tanh", "relu", "silu", "tanh"):
    close(ops.linear(put(x), linear, activation), oracle.linear(x, linear, activation))
square = Linear(normal(5, 5), norm.bias)
close(ops.linear(put(x), square, residual=put(residual)), oracle.linear(x, square, residual=residual))
close(ops.column(put(x), 1), x[:, 1])
for bias in (None, normal(2, 7)):
    close(ops.attention_varlen(put(qkv), cu_seqlens, 2, bias), oracle.attention_varlen(qkv, cu_seqlens, 2, bias))
for pooling in ("cls", "mean", "max", "sum", "last+mean_sqrt_len+weighted_mean"):
    close(ops.pool(put(qkv), cu_seqlens, pooling), oracle.pool(qkv, cu_seqlens, pooling))
close(ops.normalize(put(x)), oracle.normalize(x))
close(ops.log1p_relu(put(x)), oracle.log1p_relu(x))

small = {"layers": ((1, 3, 4),), "hidden": 4, "vocab_size": 7, "num_positions": 6}
for case in ({"position_offset": 2, "has_padding_position": True}, {}):
    spec = random_spec(**small, **case)
    tensors = random_tensors(spec)
    model, batch = NumbaCudaBackend(spec, tensors, "cuda:0"), random_batch(spec, (3, 1) if not case else (1, 4))
    found, expected = model.run(batch, spec.outputs), NumpyBackend(spec, tensors).run(batch, spec.outputs)
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() <= 1e-5 * np.abs(values).max(), name
alone = model.run(batch.take([1]), spec.outputs)
assert np.array_equal(alone["sentence_embedding"][0], found["sentence_embedding"][1])
try:
    NumbaCudaBackend(spec, tensors, "cuda:7")
except BackendUnavailableError as error:
    assert "'cuda:7': this machine has 1 CUDA device" in str(error)
else:
    raise AssertionError("a device that is not there")

child = os.fork()
if child == 0:
    try:
        model.run(batch, spec.outputs)
    except BackendUnavailableError as error:
        os._exit(int("load the model in the child" not in str(error)))
    finally:
        os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""

COMPILED = """
from numba import boolean, cuda, float32, int32, int64
from edgebert.backends import numba_cuda_ops as ops

rows, row, ids = float32[:, ::1], float32[::1], int32[::1]
for kernel, signature in (
    (ops.gather_rows, (rows, ids, boolean, rows)),
    (ops.layernorm_rows, (rows, rows, boolean, row, row, float32, rows)),
    (ops.linear_f32, (rows, rows, row, int64, rows, boolean, rows)),
    (ops.attention_varlen_kernel(33), (rows, ids, float32, rows, rows)),
    (ops.pool_rows, (rows, ids, int64, int64, rows)),
    (ops.log1p_relu_rows, (rows, rows)),
    (ops.normalize_rows, (rows, rows)),
    (ops.take_column, (rows, int64, row)),
):
    for major, minor in ((8, 0), (9, 0)):
        ptx, _ = cuda.compile_ptx(kernel.py_func, signature, cc=(major, minor))
        assert f".target sm_{major}{minor}" in ptx
"""


def run_script(script: str, *arguments: str, **environment: str) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": path} | environment,
        timeout=600,
    )
    assert done.returncode == 0


@needs_numba_cuda
def test_the_simulator_agrees_with_the_oracle() -> None:
    run_script(SIMULATED, NUMBA_ENABLE_CUDASIM="1")


@needs_numba_cuda
@pytest.mark.skipif(find_spec("nvidia") is None, reason="without edgebert[cuda] there is no compiler to PTX")
def test_compiles_without_a_gpu() -> None:
    run_script(COMPILED)


@needs_numba_cuda
def test_says_that_numpy_is_too_new_for_numba_cuda(make_file: Callable[..., Path]) -> None:
    script = (
        "import sys, numpy\n"
        "vars(numpy).pop('row_stack', None)  # as in NumPy 2.5\n"
        "numpy.__version__ = '2.5.0'\n"
        "import edgebert\n"
        "from edgebert.doctor import describe_machine\n"
        "try:\n"
        "    edgebert.load(sys.argv[1], 'numba', 'cuda')\n"
        "except edgebert.BackendUnavailableError as error:\n"
        "    message = str(error)\n"
        "assert 'does not work with the installed NumPy 2.5.0' in message and 'row_stack' in message, message\n"
        "assert 'install edgebert[cuda]' in message\n"
        "assert message.removeprefix('backend numba is not available: ') in describe_machine()\n"
    )
    run_script(script, str(make_file()))


def test_says_what_is_missing_for_a_gpu(make_file: Callable[..., Path]) -> None:
    path = make_file()
    try:
        loaded = load_backend(path, "numba", "cuda")
    except BackendUnavailableError as error:
        assert any(word in str(error) for word in ("edgebert[cuda]", "driver", "device"))
    else:
        assert loaded.device == "cuda:0"
