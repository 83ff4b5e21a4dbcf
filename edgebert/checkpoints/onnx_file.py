"""ONNX files of other exporters: read whole, run by ONNX Runtime with every value in sight."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.batch import PackedBatch
from edgebert.checkpoints.files import refuse_lfs_pointer
from edgebert.errors import ModelFormatError, UnsupportedModelError, require

Array = NDArray[Any]
ROLES = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
MAX_BYTES = 2**31 - 2**24  # of the weights: protobuf ends there, and so does a file of ours
_EXTERNAL = 1  # TensorProto.DataLocation


def read_model(path: Path) -> Any:
    """The ModelProto of a file, external data and functions taken in.

    Raises:
        ModelFormatError: the file is missing or damaged, or its external data are missing, too short, or outside its
            folder.
        UnsupportedModelError: more weights than one file holds.
    """
    import onnx
    import onnx.inliner

    if not path.is_file():
        raise ModelFormatError(f"no such file: {path}")
    refuse_lfs_pointer(path)
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own errors, whose module has no types
        raise ModelFormatError(f"{path} is damaged or no ONNX file ({error}): get it again") from None
    if not model.graph.node:
        raise ModelFormatError(f"{path} is no ONNX model (it has no graph): give another file")
    folder = Path(os.path.realpath(path.parent))
    total = 0
    for tensor in all_tensors(model.graph):
        if tensor.data_location == _EXTERNAL:
            total += _take_in(tensor, folder, total)
    try:
        return onnx.inliner.inline_local_functions(model) if model.functions else model
    except Exception as error:  # what it raises is not documented
        raise ModelFormatError(f"{path}: its functions cannot be inlined ({error})") from None


def all_nodes(graph: Any) -> Iterator[Any]:
    """Every NodeProto of a graph and of the graphs inside it."""
    for node in graph.node:
        yield node
        for inner in _inner_graphs(node):
            yield from all_nodes(inner)


def all_tensors(graph: Any) -> Iterator[Any]:
    """Every TensorProto of a graph, in attributes and the graphs inside it too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t] if attribute.HasField("t") else []
            yield from attribute.tensors
        for inner in _inner_graphs(node):
            yield from all_tensors(inner)


def _inner_graphs(node: Any) -> list[Any]:
    return [
        graph
        for attribute in node.attribute
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
    ]


def _take_in(tensor: Any, folder: Path, total: int) -> int:
    """Put a tensor's external data into it, and give their number of bytes; nothing outside `folder` is read."""
    import onnx

    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, what = entries.get("location", ""), f"external data of tensor {tensor.name!r:.100}"
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", "-1"))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (ValueError, KeyError):
        raise ModelFormatError(f"{what}: malformed entries {entries!r:.200}: export the file again") from None
    bits = {"int4": 4, "uint4": 4, "float4e2m1": 4, "int2": 2, "uint2": 2}.get(dtype.name, 8 * dtype.itemsize)
    expected: int = (math.prod(tensor.dims) * bits + 7) // 8
    path = folder / location
    if not location or Path(location).is_absolute() or folder not in Path(os.path.realpath(path)).parents:
        raise ModelFormatError(f"{what}: {location!r:.200} is not inside the file's folder, and is not read")
    if not path.is_file():
        raise ModelFormatError(f"{what}: {path} is missing: put it beside the ONNX file")
    refuse_lfs_pointer(path)
    size = path.stat().st_size
    if length not in (-1, expected) or offset < 0 or offset + expected > size:
        raise ModelFormatError(
            f"{what}: {expected} bytes expected from byte {offset}, its entry says {length} and {location} has {size}: "
            "get both files again"
        )
    if total + expected > MAX_BYTES:
        raise UnsupportedModelError(f"the weights are beyond the {MAX_BYTES / 1e9:.1f} GB that one file holds")
    with path.open("rb") as file:
        file.seek(offset)
        tensor.raw_data = file.read(expected)
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    return expected


def describe(path: Path) -> dict[str, str] | None:
    """What an ONNX file is that EdgeBERT cannot load; None for another file, and where onnx is not installed."""
    try:
        import onnx

        model = onnx.load_model(str(path), load_external_data=False)
    except Exception:  # protobuf's own errors, whose module has no types
        return None
    if not model.graph.node:
        return None
    opsets = [f"{opset.domain or 'ai.onnx'} {opset.version}" for opset in model.opset_import]
    is_ours = any(entry.key == "edgebert.spec" for entry in model.metadata_props)
    producer = f"{model.producer_name} {model.producer_version}".strip() or "an unnamed exporter"
    return {
        "file": f"{path}, an ONNX file by {producer}",
        "kind": "written by EdgeBERT and changed since" if is_ours else "not written by EdgeBERT",
        "operator sets": ", ".join(opsets),
        "graph": f"{len(model.graph.node)} nodes, {len(model.functions)} functions",
        "inputs": ", ".join(value.name for value in model.graph.input),
        "outputs": ", ".join(value.name for value in model.graph.output),
    }


class OnnxProgram:
    """A model's graph with its inputs by role, run by ONNX Runtime without its optimizer.

    Attributes:
        model: the ModelProto.
        nodes: of its graph, in the order of computation.
        outputs: names of its outputs.
        varying: names of the values that depend on the inputs; all others are constants.
    """

    def __init__(self, model: Any, path: Path) -> None:
        require("ort", "onnxruntime")
        self.model, self.path = model, path
        self.nodes: Sequence[Any] = list(model.graph.node)
        self.outputs = [value.name for value in model.graph.output]
        stored = {tensor.name for tensor in model.graph.initializer}
        self._inputs = [value for value in model.graph.input if value.name not in stored]
        self.varying = {value.name for value in self._inputs}
        for node in self.nodes:
            if self.varying.intersection(read_names(node)):
                self.varying.update(node.output)
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._constants: dict[str, Array] = {}

    @cached_property
    def roles(self) -> dict[str, str]:
        """The inputs' names -> one of ROLES: by their names, or else by what they look up."""
        found: dict[str, str] = {}
        tables = self._looked_up
        for value in self._inputs:
            name = value.name
            near = name.rpartition(".")[2].lower()
            if near in ROLES:
                role = near
            elif name in tables:
                role = "input_ids" if tables[name] == max(tables.values()) else "token_type_ids"
            else:
                role = "attention_mask"
            if role in found.values():
                raise UnsupportedModelError(
                    f"{self.path}: inputs {', '.join(v.name for v in self._inputs)}: which of them is which is not "
                    f"clear; expected {', '.join(ROLES[:3])}"
                )
            found[name] = role
        if "input_ids" not in found.values():
            raise UnsupportedModelError(
                f"{self.path}: none of the inputs {', '.join(found) or '(there are none)'} chooses rows of a table, as "
                "input_ids of an encoder do"
            )
        return found

    def table_rows(self, role: str) -> int:
        """Rows of the table that an input chooses from; 0 for an input that is missing or chooses from none."""
        return next((self._looked_up.get(name, 0) for name, found in self.roles.items() if found == role), 0)

    @cached_property
    def _looked_up(self) -> dict[str, int]:
        """Rows of the table that an input chooses from, by the input's name."""
        origin = {value.name: value.name for value in self._inputs}
        tables: dict[str, int] = {}
        for node in self.nodes:
            if node.op_type in ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze") and node.input[0] in origin:
                origin[node.output[0]] = origin[node.input[0]]
            elif node.op_type == "Gather" and node.input[1] in origin and node.input[0] not in self.varying:
                if len(shape := self.constant(node.input[0]).shape) == 2:
                    tables.setdefault(origin[node.input[1]], shape[0])
            elif node.op_type == "EmbedLayerNormalization":
                for ids, table in zip(node.input[:2], (node.input[2], node.input[4]), strict=True):
                    if ids in origin and table:
                        tables.setdefault(origin[ids], self.constant(table).shape[0])
        return tables

    def fixed_shape(self) -> tuple[int | None, int | None]:
        """(batch, sequence) where the graph states them as numbers."""
        dims = [tuple(d.dim_value or None for d in v.type.tensor_type.shape.dim) for v in self._inputs]
        return next(((d[0], d[1]) for d in dims if len(d) == 2), (None, None))

    def constant(self, name: str) -> Array:
        """The value of a name that depends on no input."""
        import onnx

        if name not in self._constants:
            if name in self._initializers:
                self._constants[name] = onnx.numpy_helper.to_array(self._initializers[name])
            else:
                self.fetch_constants([name])
        return self._constants[name]

    def fetch_constants(self, names: Iterable[str]) -> None:
        """Compute constants, many at once."""
        names = [name for name in names if name not in self._constants and name not in self._initializers]
        if not names:
            return
        import onnx

        by_output = {output: node for node in self.nodes for output in node.output}
        needed: dict[str, Any] = {}
        pending = list(names)
        while pending:
            node = by_output.get(pending.pop())
            if node is not None and node.output[0] not in needed:
                needed[node.output[0]] = node
                pending += read_names(node)
        part = onnx.ModelProto()
        part.CopyFrom(_without_graph(self.model))
        part.graph.name = "constants"
        part.graph.node.extend(node for node in self.nodes if node.output and node.output[0] in needed)
        read = {name for node in part.graph.node for name in read_names(node)}
        part.graph.initializer.extend(t for name, t in self._initializers.items() if name in read)
        part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        self._constants.update(zip(names, self._session(part).run(list(names), {}), strict=True))

    def run(self, batch: PackedBatch, names: Sequence[str]) -> dict[str, Array]:
        """The values of these names for a batch, padded where its sequences differ in length.

        Raises:
            UnsupportedModelError: ONNX Runtime cannot run the graph.
        """
        import onnx

        ids, mask, types = batch.pad()
        rows, sequence = self.fixed_shape()
        if sequence is not None:
            extra = ((0, 0), (0, max(0, sequence - ids.shape[1])))
            ids, mask, types = (np.pad(part, extra) for part in (ids, mask, types))
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        by_role = dict(zip(ROLES, (ids, mask, types, positions), strict=True))
        feeds = {
            value.name: by_role[self.roles[value.name]].astype(
                onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            )
            for value in self._inputs
        }
        session = self._whole if set(names) <= set(self.outputs) else self._open
        step = rows or len(ids)
        try:
            parts = [
                session.run(list(names), {name: value[i : i + step] for name, value in feeds.items()})
                for i in range(0, len(ids), step)
            ]
        except Exception as error:  # ONNX Runtime's errors share no base
            raise UnsupportedModelError(
                f"ONNX Runtime cannot run {self.path} on a batch of {ids.shape[0]} × {ids.shape[1]} tokens: "
                f"{_first_line(error)}"
            ) from None
        if len(parts) == 1:
            return dict(zip(names, parts[0], strict=True))
        return {name: np.concatenate(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)}

    @cached_property
    def _whole(self) -> Any:
        return self._session(self.model)

    @cached_property
    def _open(self) -> Any:
        """A session whose outputs are all values that depend on the inputs."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        names = [name for node in self.nodes for name in node.output if name in self.varying and name]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in self.outputs)
        return self._session(model)

    def _session(self, model: Any) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        try:
            return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no base, protobuf's are its own
            raise UnsupportedModelError(f"ONNX Runtime cannot load {self.path}: {_first_line(error)}") from None


def attributes(node: Any) -> Mapping[str, Any]:
    """A node's attributes by name."""
    import onnx

    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def read_names(node: Any) -> list[str]:
    """Names that a node reads, those of the graphs inside it too."""
    names = [name for name in node.input if name]
    for graph in _inner_graphs(node):
        names += [name for inner in graph.node for name in read_names(inner)]
        names += [value.name for value in graph.output]
    return names


def _without_graph(model: Any) -> Any:
    import onnx

    bare = onnx.ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    return bare


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
