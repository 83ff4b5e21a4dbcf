"""The native backend: the C++ engine behind kernels/include/edgebert.h, reached with ctypes; the GIL is released.

Two libraries have that interface: one for CPUs, and one for NVIDIA GPUs, which is loaded only when a GPU is asked for.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import edgebert
from edgebert.artifact.reader import Artifact, read_artifact, told_of
from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Backend, Outputs
from edgebert.batch import PackedBatch
from edgebert.errors import (
    BackendUnavailableError,
    EdgeBertError,
    InvalidInputError,
    ModelFormatError,
    UnsupportedModelError,
)

F32 = NDArray[np.float32]


class _Library(NamedTuple):
    file: str
    variable: str  # environment variable that names another file
    advice: str


def _file_name(stem: str) -> str:
    if sys.platform == "win32":
        return f"{stem}.dll"
    return f"lib{stem}.{'dylib' if sys.platform == 'darwin' else 'so'}"


_LIBRARIES = {
    "cpu": _Library(_file_name("edgebert"), "EDGEBERT_LIBRARY", "install edgebert with pip"),
    "cuda": _Library(
        _file_name("edgebert_cuda"),
        "EDGEBERT_CUDA_LIBRARY",
        "where nvcc is installed, build it with pip install -C cmake.define.EDGEBERT_CUDA=ON",
    ),
}

# enum eb_status -> the exception it becomes
_ERRORS: dict[int, type[Exception]] = {
    1: InvalidInputError,
    2: ModelFormatError,
    3: UnsupportedModelError,
    4: BackendUnavailableError,
    5: MemoryError,
}


class _Options(ctypes.Structure):
    _fields_ = (
        ("isa", ctypes.c_char_p),
        ("num_threads", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("verify", ctypes.c_int32),
        ("public_key", ctypes.c_char_p),
        ("ids_only", ctypes.c_int32),
        ("full_depth", ctypes.c_int32),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("input_ids", ctypes.c_void_p),
        ("token_type_ids", ctypes.c_void_p),
        ("cu_seqlens", ctypes.c_void_p),
        ("num_sequences", ctypes.c_int32),
        ("output_tokens", ctypes.c_void_p),
        ("num_output_tokens", ctypes.c_int32),
    )


class _Output(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("capacity", ctypes.c_size_t))


class _Arguments:
    """The structs of one call of eb_run."""

    def __init__(self, num_outputs: int) -> None:
        self.batch = _Batch()
        self.outputs = (_Output * num_outputs)()


class NativeBackend(Backend):
    """A model in the C++ engine. On CPUs a child may use it too, even one forked during a run.

    Runs of several threads go on side by side, on `threads` threads together; on GPUs they take turns.
    """

    name = "native"
    chooses_tokens = True

    def __init__(self, spec: EncoderSpec, library: ctypes.CDLL, model: ctypes.c_void_p, device: str) -> None:
        self._library = library
        self._model = model
        self.spec = spec
        self.device = device
        self.isa: str = library.eb_model_isa(model).decode()
        self.threads: int = library.eb_model_threads(model)
        where = f"{self.threads} thread{'s' if self.threads > 1 else ''}" if device == "cpu" else device
        self.detail = f"native, {self.isa}, {where}"
        # kept between calls, because building one costs as much as a short call
        self._idle_arguments: list[_Arguments] = []
        self._names = {name: name.encode() for name in spec.outputs}
        self._widths = {name: spec.output_width(name)[1] for name in spec.outputs}

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._library.eb_free(self._model)

    @property
    def workspace_bytes(self) -> int:
        """Bytes held for activations; flat once the largest batch was seen."""
        return int(self._library.eb_model_workspace_bytes(self._model))

    def _run(self, batch: PackedBatch, outputs: Sequence[str]) -> Outputs:
        arrays = [np.ascontiguousarray(a, np.int32) for a in (batch.input_ids, batch.token_type_ids, batch.cu_seqlens)]
        chosen = None if batch.output_tokens is None else np.ascontiguousarray(batch.output_tokens, np.int32)
        results = {name: np.empty(self._shape(batch, name), np.float32) for name in outputs}
        arguments = self._take_arguments()
        args = arguments.batch
        args.input_ids, args.token_type_ids, args.cu_seqlens = (a.ctypes.data for a in arrays)
        args.num_sequences = batch.num_sequences
        args.output_tokens = None if chosen is None else chosen.ctypes.data
        args.num_output_tokens = batch.num_output_tokens
        for output, (name, array) in zip(arguments.outputs, results.items(), strict=False):
            output.name, output.data, output.capacity = self._names[name], array.ctypes.data, array.size
        status = self._library.eb_run(self._model, args, arguments.outputs, len(results))
        self._idle_arguments.append(arguments)
        check(self._library, status)
        return results

    def run_sequence(self, input_ids: int, token_type_ids: int, cu_seqlens: int, output: str) -> F32 | None:
        """An output of one sequence, f32 [1, width], of the int32 arrays at three addresses.

        None for what `run` refuses, which says why.
        """
        result = np.empty((1, self._widths[output]), np.float32)
        arguments = self._take_arguments()
        args, out = arguments.batch, arguments.outputs[0]
        args.input_ids, args.token_type_ids, args.cu_seqlens = input_ids, token_type_ids, cu_seqlens
        args.num_sequences, args.output_tokens = 1, None
        out.name, out.data, out.capacity = self._names[output], result.ctypes.data, result.size
        status = self._library.eb_run(self._model, args, arguments.outputs, 1)
        self._idle_arguments.append(arguments)
        return None if status else result

    def _take_arguments(self) -> _Arguments:
        try:
            return self._idle_arguments.pop()  # no lock: a child forked while it is held could never take it
        except IndexError:
            return _Arguments(len(self.spec.outputs))


def load(
    source: Artifact | str | Path | bytes, device: str = "cpu", threads: int | None = None, isa: str | None = None
) -> NativeBackend:
    """Load a model file, a folder that holds `model.onnx`, a file's bytes, or what was read of either.

    Args:
        source: the file, which the engine verifies.
        device: "cpu" or "cuda:n".
        threads: of the CPU; None for those this process may use.
        isa: of the CPU, one of `built_isas()`; None for EDGEBERT_FORCE_ISA if that is set, else the best this CPU has.

    Raises:
        ModelFormatError: the file is missing, damaged or changed.
        UnsupportedModelError: the file asks for something that this engine does not run.
        BackendUnavailableError: the library, the ISA, the driver or the device is missing.
    """
    kind, _, index = device.partition(":")
    library = load_library(kind)
    artifact = read_artifact(source, verify=False)
    options = _Options(isa.encode() if isa is not None else None, threads or 0, int(index or 0))
    options.ids_only = 1  # the tokenizer is `edgebert.tokenizer`'s
    options.full_depth = not artifact.spec.exits
    model = ctypes.c_void_p()
    data = np.frombuffer(artifact.data, np.uint8)  # the bytes that were read, and perhaps verified; the engine copies
    with told_of(artifact.path):
        check(library, library.eb_load_memory(data.ctypes.data, data.size, options, ctypes.byref(model)))
    return NativeBackend(artifact.spec, library, model, device)


def unavailable_reason(device: str = "cpu") -> str | None:
    """Why the native library, or the driver or GPU that a device needs, cannot be used here, or None if it can."""
    try:
        if device != "cpu":
            usable_gpus()
        else:
            load_library()
    except BackendUnavailableError as error:
        return str(error)
    return None


def usable_gpus() -> list[str]:
    """The GPUs here that the CUDA library can run on, by device and name.

    Raises:
        BackendUnavailableError: there is none, or no driver or library for them.
    """
    library = load_library("cuda")
    found: bytes = library.eb_usable_isas()
    if not found:
        raise BackendUnavailableError(library.eb_last_error().decode(errors="replace"))
    return _names(found)


def built_isas() -> list[str]:
    """Instruction sets in this build, best first."""
    return _names(load_library().eb_built_isas())


def usable_isas() -> list[str]:
    """Those of `built_isas()` that this CPU and its system can run."""
    return _names(load_library().eb_usable_isas())


def default_threads() -> int:
    """Threads a model takes if not told: the CPUs of the affinity mask, cut to the cgroup's quota."""
    return int(load_library().eb_default_threads())


@cache
def load_library(kind: str = "cpu") -> ctypes.CDLL:
    """The shared library for "cpu" or "cuda": $EDGEBERT_LIBRARY or $EDGEBERT_CUDA_LIBRARY if set, else the package's.

    Raises:
        BackendUnavailableError: it is not there, cannot be loaded, or is of another version.
    """
    path = _find_library(_LIBRARIES[kind])
    variable = _LIBRARIES[kind].variable
    remedy = f"{variable} names it: correct or unset that" if os.environ.get(variable) else "reinstall edgebert"
    try:
        library = ctypes.CDLL(str(path))
        _declare(library)
    except (OSError, AttributeError) as error:
        raise BackendUnavailableError(f"the native library {path} cannot be loaded ({error}): {remedy}") from None
    version = library.eb_version().decode()
    if version != edgebert.__version__:
        raise BackendUnavailableError(
            f"the native library {path} has version {version}, edgebert has {edgebert.__version__}: {remedy}"
        )
    return library


def _find_library(library: _Library) -> Path:
    if chosen := os.environ.get(library.variable):
        return Path(chosen)
    for folder in edgebert.__path__:  # two in an editable install
        path = Path(folder) / "lib" / library.file
        if path.exists():
            return path
    raise BackendUnavailableError(
        f"the native library lib/{library.file} is not in this installation: {library.advice}, "
        f"or set {library.variable} to one built with CMake"
    )


def _declare(library: ctypes.CDLL) -> None:
    c_char_p, c_int32, c_size_t, c_void_p = ctypes.c_char_p, ctypes.c_int32, ctypes.c_size_t, ctypes.c_void_p
    options, model = ctypes.POINTER(_Options), ctypes.POINTER(c_void_p)
    for name, result, arguments in (
        ("eb_version", c_char_p, ()),
        ("eb_last_error", c_char_p, ()),
        ("eb_built_isas", c_char_p, ()),
        ("eb_usable_isas", c_char_p, ()),
        ("eb_default_threads", c_int32, ()),
        ("eb_load_memory", ctypes.c_int, (c_void_p, c_size_t, options, model)),
        ("eb_free", None, (c_void_p,)),
        ("eb_model_isa", c_char_p, (c_void_p,)),
        ("eb_model_threads", c_int32, (c_void_p,)),
        ("eb_model_workspace_bytes", c_size_t, (c_void_p,)),
        ("eb_run", ctypes.c_int, (c_void_p, ctypes.POINTER(_Batch), ctypes.POINTER(_Output), c_int32)),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments


def _names(value: bytes) -> list[str]:
    return value.decode().split(",")


def check(library: ctypes.CDLL, status: int) -> None:
    """Raise the exception that a status stands for, with the thread's last message; none for success."""
    if status:
        message = library.eb_last_error().decode(errors="replace")
        raise _ERRORS.get(status, EdgeBertError)(message)
