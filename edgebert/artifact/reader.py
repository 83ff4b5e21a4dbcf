"""Reads a model file with NumPy and the standard library: a walk over the protobuf wire format, giving views.

Hostile input is assumed: every length is checked against the enclosing message, messages are entered to a fixed depth
(model, graph, tensor), counts are capped, data outside the file is refused. The graph is verified, not interpreted:
its nodes, inputs, outputs and constants must hash to the value stored at export, its weights must be those of the spec.
Field numbers are those of onnx.proto (ONNX specification, IR version 8).
"""

from __future__ import annotations

import binascii
import json
import math
import mmap
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.names import ONNX_DTYPES, exit_tensors, stored_tensors, weight_tensors
from edgebert.artifact.spec import EncoderSpec
from edgebert.errors import InvalidInputError, ModelFormatError, UnsupportedModelError
from edgebert.quant import column_sums

# dtype codes of names.py as NumPy types, little-endian as in the file
DTYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype("<f4"),
    "u8": np.dtype("u1"),
    "s8": np.dtype("i1"),
    "s32": np.dtype("<i4"),
    "s64": np.dtype("<i8"),
}
CONSTANT_PREFIX = "const."
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # what such a file begins with
LFS_ADVICE = "a Git LFS pointer, which stands for the file in a repository: get the file itself with `git lfs pull`"
MAX_FIELDS = 1 << 17  # of one message; a file of ours has a few thousand
MAX_DIMS = 8
_OPSET = 17
_REMEDY = "re-export the model with `edgebert export`"
_FOREIGN = "make a file of EdgeBERT's from it with `edgebert export FILE.onnx -o NEW.onnx`"
_AS_IT_STANDS = "the onnxruntime backend runs it as it stands; for the others "

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12  # fields of GraphProto


@dataclass(frozen=True)
class Artifact:
    """A model file, checked.

    Attributes:
        spec: sizes, head and text settings.
        tokenizer_json: the tokenizer, None for a file that takes token ids only.
        probe: token ids and the outputs they must give; empty if the file has none.
        report: what the export's gate found; empty if the file has none.
        data: the file's bytes.
        path: the file they were read from, None for bytes.
        metadata: every entry of the file, by its key.
    """

    spec: EncoderSpec
    tokenizer_json: str | None
    probe: dict[str, Any]
    report: dict[str, Any]
    data: memoryview
    path: Path | None
    metadata: Mapping[str, str]
    _graph: memoryview
    _change: str  # what shows before the graph's hash is computed that another tool wrote the file

    @cached_property
    def is_changed(self) -> bool:
        """Whether the graph is another than at export: only a runtime of ONNX can still run it."""
        return bool(self._change) or hash_graph(self._graph) != self.metadata["edgebert.graph_hash"]

    @cached_property
    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """Every weight of `names.weight_tensors(spec)`, by name: read-only views, which need not be aligned.

        Raises:
            ModelFormatError: the file does not hold exactly the weights of its spec.
        """
        with told_of(self.path):
            return _read_tensors(self._graph, self.spec, self.metadata.get("edgebert.exits", ""))

    def at_full_depth(self) -> Artifact:
        """The same file, whose exits nobody takes."""
        return replace(self, spec=self.spec.replace(exits=()))

    def check_graph(self) -> None:
        """Recompute the hash over the graph and compare.

        Raises:
            ModelFormatError: it was changed since export.
        """
        with told_of(self.path):
            if self.is_changed:
                remedy = "export the checkpoint again" if self.spec.is_int8 else _FOREIGN
                raise ModelFormatError(
                    f"its graph was changed since export ({self._change or 'the hash over its nodes differs'}): "
                    + _AS_IT_STANDS
                    + remedy
                )

    def check_whole(self) -> None:
        """Look for initializers that lie outside the file.

        Raises:
            ModelFormatError: there is one.
        """
        with told_of(self.path):
            for number, value in _walk(self._graph, "graph"):
                if number == _INITIALIZER and isinstance(value, memoryview):
                    name = _tensor_name(value)
                    for part, content in _walk(value, name):
                        _refuse_outside(part, content, name)


def read_artifact(
    source: Artifact | str | os.PathLike[str] | bytes | bytearray | memoryview, verify: bool = True
) -> Artifact:
    """Read and check a model file, or a folder that holds `model.onnx`.

    Args:
        source: a path, the file's bytes, or what was read before.
        verify: check the graph and the weights now; False leaves them to whoever runs them.

    Raises:
        ModelFormatError: the file is missing, empty, truncated, not ONNX, not EdgeBERT's, changed since export, has
            data outside itself, or does not hold exactly the weights of its spec.
        InvalidInputError: the argument is neither a path nor bytes.
    """
    if isinstance(source, Artifact):
        artifact = source
    elif isinstance(source, (bytes, bytearray, memoryview)):
        artifact = _parse(memoryview(source).cast("B"), None)
    else:
        path = find_model_file(source)
        artifact = _parse(_map_file(path), path)
    if verify:
        artifact.check_graph()
        _ = artifact.tensors
    return artifact


def find_model_file(path: str | os.PathLike[str]) -> Path:
    """The model file that a path names: itself, or `model.onnx` in a folder. It need not exist.

    Raises:
        InvalidInputError: it is not a path.
    """
    try:
        file = Path(path)
    except TypeError:
        raise InvalidInputError(f"expected the path of a model file, got {type(path).__name__}") from None
    return file / "model.onnx" if os.path.isdir(file) else file  # unlike Path's, never an error


def hash_graph(graph: bytes | memoryview) -> str:
    """SHA-256 (hex) over the parts of a GraphProto that say what is computed.

    These are its nodes, inputs, outputs and `const.*` initializers, in file order, each as its field number (one byte),
    length (eight bytes, little-endian) and raw bytes. Weights are left out: they are checked by name, dtype and shape.
    """
    import hashlib  # not at the top: every start would wait for OpenSSL

    digest = hashlib.sha256()
    for number, value in _walk(memoryview(graph), "graph"):
        if not isinstance(value, memoryview) or number not in (_NODE, _INITIALIZER, _INPUT, _OUTPUT):
            continue
        if number == _INITIALIZER and not _tensor_name(value).startswith(CONSTANT_PREFIX):
            continue
        digest.update(bytes([number]) + len(value).to_bytes(8, "little"))
        digest.update(value)
    return digest.hexdigest()


def _map_file(path: Path) -> memoryview:
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ModelFormatError(f"{path} is not a regular file: give the path of an exported model")
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelFormatError(f"{path} is empty: {_REMEDY}")
            if sys.platform == "win32":  # where nobody may rename or remove a file that is mapped
                return memoryview(file.read())
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise ModelFormatError(f"{path} does not exist: give a file that `edgebert export` has written") from None
    except (OSError, ValueError) as error:
        raise ModelFormatError(f"{str(path)!r} cannot be read ({error}): give the path of an exported model") from None


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for its writer


@contextmanager
def told_of(path: Path | None) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except (ModelFormatError, UnsupportedModelError) as error:
        raise type(error)(f"{path or 'the model'}: {error}") from None


def _parse(data: memoryview, path: Path | None) -> Artifact:
    with told_of(path):
        if not len(data):
            raise ModelFormatError(f"empty: {_REMEDY}")
        if data[: len(LFS_POINTER)] == LFS_POINTER:
            raise ModelFormatError(LFS_ADVICE)
        graph, metadata, opsets, has_functions = _model_parts(data)
        if graph is None:
            raise ModelFormatError(f"not an ONNX model (it has no graph): {_REMEDY}")
        if "edgebert.spec" not in metadata or "edgebert.graph_hash" not in metadata:
            raise ModelFormatError(f"an ONNX model that EdgeBERT did not write: {_FOREIGN}")
        spec = EncoderSpec.from_json(metadata["edgebert.spec"])
        found = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in opsets)
        change = (
            "" if opsets == [("", _OPSET)] else f"operator sets {found[:200] or 'none'}, not ai.onnx {_OPSET} alone"
        )
        return Artifact(
            spec=spec,
            tokenizer_json=metadata.get("edgebert.tokenizer"),
            probe=_json_object(metadata, "edgebert.probe"),
            report=_json_object(metadata, "edgebert.report"),
            data=data,
            path=path,
            metadata=metadata,
            _graph=graph,
            _change=change or "it defines functions" * has_functions,
        )


def _model_parts(data: memoryview) -> tuple[memoryview | None, dict[str, str], list[tuple[str, int]], bool]:
    """(graph, metadata, operator sets, whether it defines functions) of a ModelProto."""
    graph: memoryview | None = None
    metadata: dict[str, str] = {}
    opsets: list[tuple[str, int]] = []
    has_functions = False
    for number, value in _walk(data, "model"):
        if number == 7 and isinstance(value, memoryview):
            if graph is not None:
                raise ModelFormatError(f"it has two graphs: {_REMEDY}")
            graph = value
        elif number == 8 and isinstance(value, memoryview):
            fields = dict(_walk(value, "opset_import"))
            domain, version = fields.get(1, b""), fields.get(2, 0)
            if isinstance(domain, int) or not isinstance(version, int):
                raise ModelFormatError(f"malformed operator set: {_REMEDY}")
            opsets.append((_text(domain, "operator set"), version))
        elif number == 14 and isinstance(value, memoryview):
            name, entry = read_entry(value)
            if name in metadata:
                raise ModelFormatError(f"metadata {name!r} appears twice: {_REMEDY}")
            metadata[name] = entry
        elif number == 25:
            has_functions = True
    return graph, metadata, opsets, has_functions


def read_entry(entry: memoryview) -> tuple[str, str]:
    """(key, value) of a metadata entry, ModelProto.metadata_props.

    Raises:
        ModelFormatError: it is malformed or not UTF-8.
    """
    fields = dict(_walk(entry, "metadata_props"))
    key, value = (fields.get(n, b"") for n in (1, 2))
    if isinstance(key, int) or isinstance(value, int):
        raise ModelFormatError(f"malformed metadata: {_REMEDY}")
    name = _text(key, "metadata")
    return name, _text(value, f"metadata {name!r}")


def _read_tensors(graph: memoryview, spec: EncoderSpec, exits: str) -> dict[str, NDArray[Any]]:
    expected = stored_tensors(spec)
    tensors: dict[str, NDArray[Any]] = {}
    for number, value in _walk(graph, "graph"):
        if number != _INITIALIZER or not isinstance(value, memoryview):
            continue
        name = _tensor_name(value)
        if name.startswith(CONSTANT_PREFIX):
            continue
        if name not in expected:
            raise ModelFormatError(f"it has a tensor {name[:80]!r} that its spec does not: {_REMEDY}")
        if name in tensors:
            raise ModelFormatError(f"tensor {name} appears twice: {_REMEDY}")
        tensors[name] = _read_tensor(value, name, *expected[name])
    if missing := [name for name in expected if name not in tensors]:
        raise ModelFormatError(f"{len(missing)} weights are missing, the first is {missing[0]}: {_REMEDY}")
    names = weight_tensors(spec)
    tensors |= _read_exits(spec, exits)
    for name in names.keys() - tensors.keys():
        weight = tensors.get(name.replace(".colsum", ".weight"))
        sums = column_sums(tensors["embeddings.word.weight"].T if weight is None else weight)  # the decoder has no own
        sums.flags.writeable = False
        tensors[name] = sums
    return {name: tensors[name] for name in names}


def _read_exits(spec: EncoderSpec, exits: str) -> dict[str, NDArray[Any]]:
    """The weights of the exits' heads, from the metadata `edgebert.exits`: in base64, one after the other."""
    expected = exit_tensors(spec)
    counts = [math.prod(shape) for _, shape in expected.values()]
    try:
        raw = binascii.a2b_base64(exits, strict_mode=True) if expected else b""
    except ValueError as error:  # not ASCII, or binascii.Error
        raise ModelFormatError(f"edgebert.exits is not base64 ({error}): {_REMEDY}") from None
    if len(raw) != 4 * sum(counts):
        raise ModelFormatError(f"edgebert.exits: expected {4 * sum(counts)} bytes, got {len(raw)}: {_REMEDY}")
    parts = np.split(np.frombuffer(raw, DTYPES["f32"]), np.cumsum(counts)[:-1])  # read-only, as bytes are
    return {name: part.reshape(shape) for part, (name, (_, shape)) in zip(parts, expected.items(), strict=False)}


def _read_tensor(tensor: memoryview, name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    dims: list[int] = []
    data_type = 0
    raw: memoryview | None = None
    for number, value in _walk(tensor, name):
        if number == 1:
            dims += [value] if isinstance(value, int) else _packed_varints(value, name)
            if len(dims) > MAX_DIMS:
                raise ModelFormatError(f"tensor {name} has more than {MAX_DIMS} dimensions: {_REMEDY}")
        elif number == 2 and isinstance(value, int):
            data_type = value
        elif number == 9 and isinstance(value, memoryview):
            raw = value
        _refuse_outside(number, value, name)
    if data_type != ONNX_DTYPES[dtype] or tuple(dims) != shape:
        raise ModelFormatError(
            f"tensor {name}: expected {dtype} {list(shape)}, got data type {data_type} {dims[:MAX_DIMS]}: {_REMEDY}"
        )
    num_bytes = math.prod(shape) * DTYPES[dtype].itemsize
    if raw is None or len(raw) != num_bytes:
        found = "none" if raw is None else str(len(raw))
        raise ModelFormatError(f"tensor {name}: expected {num_bytes} bytes of raw data, got {found}: {_REMEDY}")
    values = np.frombuffer(raw, DTYPES[dtype]).reshape(shape)
    values.flags.writeable = False
    return values


def _refuse_outside(number: int, value: int | memoryview, name: str) -> None:
    """Of a field of a TensorProto: external_data and data_location."""
    if number == 13 or (number == 14 and value != 0):
        raise ModelFormatError(f"tensor {name[:80]} lies outside the file, EdgeBERT's files are whole: {_REMEDY}")


def _tensor_name(tensor: memoryview) -> str:
    name = b""
    for number, value in _walk(tensor, "initializer"):
        if number == 8 and isinstance(value, memoryview):
            name = bytes(value)
    return _text(name, "tensor name")


def _json_object(metadata: dict[str, str], key: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata.get(key, "{}"))
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{key} is not valid JSON ({error}): {_REMEDY}") from None
    if not isinstance(value, dict):
        raise ModelFormatError(f"{key} must be a JSON object, got {type(value).__name__}: {_REMEDY}")
    return value


def _text(value: bytes | memoryview, what: str) -> str:
    try:
        return bytes(value).decode()
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{what} is not UTF-8 ({error}): {_REMEDY}") from None


def _walk(data: memoryview, what: str) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of each field of a message: an int for numbers, a view for everything with a length."""
    return ((number, value) for number, value, _, _ in walk_fields(data, what))


def walk_fields(data: memoryview, what: str) -> Iterator[tuple[int, int | memoryview, int, int]]:
    """(field number, value, begin, end) of each field of a message, the last two where it lies in `data`, key and all.

    Raises:
        ModelFormatError: not a message; `what` says where.
    """
    position, end = 0, len(data)
    for _ in range(MAX_FIELDS):
        if position == end:
            return
        begin = position
        key, position = _varint(data, position, what)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise _broken(what, position)
        if wire == _VARINT:
            value, position = _varint(data, position, what)
            yield number, value, begin, position
            continue
        if wire == _BYTES:
            size, position = _varint(data, position, what)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise _broken(what, position)
        if size > end - position:
            raise _broken(what, position)
        position += size
        yield number, data[position - size : position], begin, position
    raise ModelFormatError(f"{what} has more than {MAX_FIELDS} fields: {_REMEDY}")


def _varint(data: memoryview, position: int, what: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise _broken(what, position)


def _packed_varints(data: memoryview, what: str) -> list[int]:
    values: list[int] = []
    position = 0
    while position < len(data) and len(values) <= MAX_DIMS:
        value, position = _varint(data, position, what)
        values.append(value)
    return values


def _broken(what: str, position: int) -> ModelFormatError:
    return ModelFormatError(f"truncated, damaged, or not an ONNX file (in {what[:80]}, byte {position}): {_REMEDY}")
