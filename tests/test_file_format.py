"""docs/file-format.md is enough to write a reader from: `read` and `run` are made of that page and NumPy alone."""

import base64
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import POSITION_TABLES, ROTARY, random_artifact, random_batch

from edgebert.artifact.spec import EncoderSpec, LayerSpec
from edgebert.backends.registry import load_backend

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "file-format.md").read_text(encoding="utf-8")
SECTIONS = PAGE.partition("\n## Spec")[2].partition("\n## Weights")[0].split("\nOf a layer:\n")
SPEC, LAYER = (dict(re.findall(r"^\| `(\w+)` \|.*? \|(?: `(.+?)`)? \|", part, re.M)) for part in SECTIONS)
DEFAULTS, LAYER_DEFAULTS = ({k: json.loads(v) for k, v in table.items() if v} for table in (SPEC, LAYER))
F32 = np.float32


def walk(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a message: a number, or the bytes of what has a length."""
    at = 0
    while at < len(data):
        numbers = []  # the key, and the number or length after it
        while len(numbers) < 2:
            end = next(i for i in range(at, len(data)) if data[i] < 128) + 1
            numbers.append(sum((byte & 127) << 7 * i for i, byte in enumerate(data[at:end])))
            at = end
        key, value = numbers
        assert key & 7 in (0, 2) and (key & 7 == 0 or at + value <= len(data))
        yield key >> 3, data[at : at + value] if key & 7 else value
        at += value if key & 7 else 0


def read(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """(spec with its defaults, weights by name)."""
    model = list(walk(data))
    [graph], [opset] = ([value for number, value in model if number == field] for field in (7, 8))
    assert {1: b"", **dict(walk(opset))} == {1: b"", 2: 17}
    metadata = {entry[1].decode(): entry[2] for entry in (dict(walk(value)) for number, value in model if number == 14)}
    digest, tensors = hashlib.sha256(), {}
    for number, value in walk(graph):
        fields = dict(walk(value)) if number == 5 else {}
        if fields and not fields[8].startswith(b"const."):
            shape = [size for field, size in walk(value) if field == 1]
            values = np.frombuffer(fields[9], {1: "<f4", 3: "i1", 6: "<i4"}[fields[2]])
            tensors[fields[8].decode()] = values.reshape(shape)
        elif number in (1, 5, 11, 12):
            digest.update(bytes([number]) + len(value).to_bytes(8, "little") + value)
    assert digest.hexdigest() == metadata["edgebert.graph_hash"].decode(), "the graph was changed"
    spec = DEFAULTS | json.loads(metadata["edgebert.spec"])
    spec["layers"] = [LAYER_DEFAULTS | layer for layer in spec["layers"]]
    raw = np.frombuffer(base64.b64decode(metadata.get("edgebert.exits", b"")), "<f4")
    for leave in spec["exits"]:
        width = len(spec["labels"])
        weight, bias, raw = np.split(raw, np.cumsum([spec["hidden_size"] * width, width]))
        tensors |= {f"exit.{leave['after']}.weight": weight.reshape(-1, width), f"exit.{leave['after']}.bias": bias}
    assert not len(raw)
    if spec["is_weight_only"]:
        for prefix in [name.removesuffix(".scale") for name in tensors if name.endswith(".scale")]:
            is_word = prefix == "embeddings.word"  # of which the masked head's columns are the rows
            sums = tensors[f"{prefix}.weight"].sum(1 if is_word else 0, dtype=np.int32)
            tensors["mlm.colsum" if is_word else f"{prefix}.colsum"] = sums
    assert spec.keys() == SPEC.keys() and all(layer.keys() == LAYER.keys() for layer in spec["layers"])
    return spec, tensors


def turn(x: Any, base: float) -> Any:
    half = x.shape[1] // 2
    power = (base ** (np.arange(half, dtype=F32) * 2 / F32(2 * half)).astype(float)).astype(F32)
    angle = (np.arange(len(x), dtype=F32)[:, None] * (1 / power)).astype(float)
    cos, sin, a, b = np.cos(angle).astype(F32), np.sin(angle).astype(F32), x[:, :half], x[:, half:]
    return np.hstack([a * cos - b * sin, b * cos + a * sin])


def attend(q: Any, k: Any, v: Any, bias: Any, is_s8: bool, window: int) -> Any:
    def codes(x: Any, axis: int) -> tuple[Any, Any]:
        top = np.maximum(np.abs(x).max(axis, keepdims=True), F32(1e-12))
        return (np.rint(x * (F32(127) / top)), top / F32(127)) if is_s8 else (x, np.ones_like(top))

    (qc, qs), (kc, ks), (vc, vs) = codes(q, 1), codes(k, 1), codes(v, 0)
    scores = qc @ kc.T * ks.T * qs * F32(1 / math.sqrt(q.shape[1])) + bias
    places = np.arange(len(q))
    scores = np.where(np.abs(places[:, None] - places) <= (window or len(q)), scores, -np.inf)
    w = np.exp(scores - scores.max(1, keepdims=True))
    w = np.rint(w * F32(255)) if is_s8 else w
    return w @ vc * vs * (1 / w.sum(1, keepdims=True))


def activate(x: Any, kind: str) -> Any:
    if kind == "gelu_erf":
        return x / 2 * (1 + np.vectorize(math.erf, otypes=[F32])(x / F32(math.sqrt(2))))
    others = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0), "silu": lambda x: x / (1 + np.exp(-x))}
    return x if kind == "identity" else others[kind](x)


def pool(x: Any, kind: str) -> Any:
    weights = np.arange(1, len(x) + 1, dtype=F32)[:, None]
    rows = {
        "mean": x.mean(0),
        "cls": x[0],
        "last": x[-1],
        "max": x.max(0),
        "mean_sqrt_len": x.sum(0) / len(x) ** F32(0.5),
    }
    return {**rows, "weighted_mean": (x * weights).sum(0) / weights.sum()}[kind]


def run(spec: dict[str, Any], tensors: dict[str, Any], ids: Any, types: Any) -> dict[str, Any]:
    """The outputs of one sequence, for an embedding, pretraining or text classification."""

    def norm(x: Any, name: str) -> Any:
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + F32(spec["layer_norm_eps"]))
        return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def multiply(x: Any, weight: Any, bias: Any, scale: Any, colsum: Any, inv_smooth: Any = None) -> Any:
        if colsum is None:
            return x @ weight + bias if x.shape[1] else bias
        x = x if inv_smooth is None else x * inv_smooth
        low, high = np.minimum(x.min(1), F32(-1e-12))[:, None], np.maximum(x.max(1), 0)[:, None]
        r = F32(255) / (high - low)
        codes, zn = np.clip(np.rint(x * r - np.rint(low * r)), 0, 255), np.rint(low * r)
        sums = codes.astype(np.int32) @ weight.astype(np.int32) + zn.astype(np.int32) * colsum
        return sums.astype(F32) * scale * ((high - low) / F32(255)) + bias

    def linear(x: Any, name: str) -> Any:
        return multiply(x, *(tensors.get(f"{name}.{k}") for k in ("weight", "bias", "scale", "colsum", "inv_smooth")))

    def look_up(name: str, rows: Any) -> Any:
        scale = tensors.get(f"embeddings.{name}.scale", np.ones(1 << 20, F32))
        return tensors[f"embeddings.{name}.weight"][rows] * scale[rows][:, None]

    is_counted = ids != spec["pad_token_id"] if spec["has_padding_position"] else np.ones(len(ids), bool)
    positions = spec["position_offset"] + np.where(is_counted, np.cumsum(is_counted) - 1, -1)
    x = look_up("word", ids) + (look_up("token_type", types) if spec["num_token_types"] else 0)
    x = norm(x + (look_up("position", positions) if spec["has_position_table"] else 0), "embeddings.layer_norm")
    x = linear(x, "embeddings.projection") if spec["embedding_size"] != spec["hidden_size"] else x
    layers = [(f"layer.{i}", layer) for i, layer in enumerate(spec["layers"]) for _ in range(layer["repeats"])]
    exits = {leave["after"]: leave["threshold"] for leave in spec["exits"]}
    for depth, (name, layer) in enumerate(layers, 1):
        context = up = x[:, :0]
        is_pre, is_s8 = spec["is_pre_norm"], spec["attention_dtype"] == "s8"
        first, second = f"{name}.attention.layer_norm", f"{name}.ffn.layer_norm"
        if num_heads := layer["num_heads"]:
            qkv = linear(norm(x, first) if is_pre and layer["has_attention_norm"] else x, f"{name}.attention.qkv")
            heads = list(zip(*(np.split(part, num_heads, 1) for part in np.split(qkv, 3, 1)), strict=True))
            if base := layer["rotary_base"]:
                heads = [(turn(q, base), turn(k, base), v) for q, k, v in heads]
            places, farthest = np.arange(len(x)), spec["max_relative_distance"]
            column = np.clip(places - places[:, None], -farthest, farthest) + farthest
            if counts := spec["distances_per_row"]:
                row = np.repeat(np.arange(len(counts)), counts)[column]
                tables = zip(
                    *(tensors[f"{name}.attention.position_{part}"] for part in ("keys", "queries")), strict=True
                )
                biases = [
                    ((q @ one)[places[:, None], row] + (k @ two)[places, row]) / F32(math.sqrt(layer["head_dim"]))
                    for (q, k, _), (one, two) in zip(heads, tables, strict=True)
                ]
            else:
                biases = tensors[f"{name}.attention.position_bias"][:, column] if farthest else np.zeros(num_heads)
            heads = [(*head, bias, is_s8, layer["window"]) for head, bias in zip(heads, biases, strict=True)]
            context = np.hstack([attend(*head) for head in heads])
        x = linear(context, f"{name}.attention.output") + x
        x = x if is_pre else norm(x, first)
        if layer["intermediate_size"]:
            up = linear(norm(x, second) if is_pre else x, f"{name}.ffn.up")
            up, gate = np.split(up, 2, 1) if spec["is_gated"] else (up, 1)
            up = activate(up, spec["activation"]) * gate
        x = linear(up, f"{name}.ffn.down") + x
        x = x if is_pre else norm(x, second)
        if exits.get(depth) is not None:
            logits = linear(pool(x, "mean")[None], f"exit.{depth}")
            if np.subtract(*np.sort(logits[0])[[-1, -2]]) >= F32(exits[depth]):
                return {"logits": logits}
    x = norm(x, "final.layer_norm") if spec["is_pre_norm"] else x
    pooled = np.hstack([pool(x, kind)[None] for kind in spec["pooling"].split("+")])
    pooled = activate(linear(pooled, "head.dense"), spec["dense_activation"]) if spec["dense_size"] else pooled
    pooled = norm(pooled, "head.layer_norm") if spec["has_dense_norm"] and spec["dense_size"] else pooled
    if spec["task"] == "text-classification":
        return {"logits": linear(pooled, "head.out")}
    if spec["task"] == "embedding":
        length = np.maximum(np.linalg.norm(pooled), F32(1e-12)) if spec["normalize"] else 1
        outputs = {"last_hidden_state": x, "sentence_embedding": pooled / length}
        if spec["token_size"]:
            vectors = linear(x, "head.tokens")
            lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), F32(1e-12))
            outputs["token_embeddings"] = vectors / lengths if spec["normalize_tokens"] else vectors
        if spec["has_token_weights"]:
            outputs["token_weights"] = np.maximum(linear(x, "head.token_weights"), 0)
    if spec["task"] == "embedding" and spec["sparse_pooling"] == "none":
        return outputs
    rows = norm(activate(linear(x, "mlm.dense"), spec["mlm_activation"]), "mlm.layer_norm")
    word = tensors["embeddings.word.weight"].T, tensors["mlm.bias"], tensors.get("embeddings.word.scale")
    logits = multiply(rows, *word, tensors.get("mlm.colsum"))
    if spec["task"] == "embedding":
        if spec["sparse_pooling"] == "max":
            logits = logits.max(0, keepdims=True)
        for _ in range(spec["num_sparse_logs"]):
            logits = np.log1p(np.maximum(logits, 0))
        return outputs | {"sparse_embedding": logits.sum(0, keepdims=True)}
    return {"prediction_logits": logits, "seq_relationship_logits": linear(pooled, "head.out")}


FILES: dict[str, dict[str, Any]] = {
    "f32": {"position_offset": 3, "has_padding_position": True, "layers": ((2, 8, 40), (0, 8, 0))},
    "int8": {"int8": True, "attention_dtype": "s8"},
    "int8 weights": {"int8": True, "is_weight_only": True, "task": "pretraining", "layers": ((2, 8, 40), (0, 8, 7))},
    "f32, shared layers": {"repeats": 3},
    "f32, position bias": {"max_relative_distance": 11, "layers": ((2, 8, 40), (0, 8, 0))},
    "int8, position bias": {"max_relative_distance": 40, "int8": True, "attention_dtype": "s8"},
    "f32, position tables": POSITION_TABLES | {"layers": ((2, 8, 40), (0, 8, 0))},
    "int8, position tables": POSITION_TABLES | {"int8": True, "attention_dtype": "s8"},
    "f32, heads": {"task": "pretraining", "embedding_size": 16, "num_token_types": 1},
    "f32, rotary": ROTARY | {"activation": "silu"} | {"dense_size": 10, "has_dense_norm": True},
    "int8, rotary": ROTARY | {"int8": True, "attention_dtype": "s8"},
    "f32, poolings": {"pooling": "weighted_mean+max+last+cls+mean_sqrt_len+mean", "dense_size": 7},
    "f32, sparse and tokens": {
        "sparse_pooling": "max",
        "token_size": 9,
        "has_token_weights": True,
        "embedding_size": 16,
    },
    "int8, sparse": {"sparse_pooling": "sum", "num_sparse_logs": 2, "int8": True},
    "f32, exits": {
        "task": "text-classification",
        "layers": ((2, 8, 40),) * 4,
        "exits": ((1, 0.5), (2, None), (3, 0.5)),
    },
    "int8, heads": {"task": "pretraining", "int8": True, "activation": "relu", "layers": ((1, 5, 0), (0, 3, 7))},
}


@pytest.mark.parametrize("name", FILES)
def test_a_reader_made_of_the_page_gives_what_the_numpy_backend_gives(name: str) -> None:
    data = random_artifact(**FILES[name])
    backend = load_backend(data, "numpy")
    batch = random_batch(backend.spec, (1, 7, 30, 2, 5, 4))
    rows = zip(*(np.split(ids, batch.cu_seqlens[1:-1]) for ids in (batch.input_ids, batch.token_type_ids)), strict=True)
    found = [run(*read(data), *row) for row in rows]
    for output, b in backend.run(batch, backend.spec.outputs).items():
        a = np.concatenate([part[output] for part in found])
        if backend.spec.is_int8:  # where sums differ in their last bit a code may, too
            assert np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)) >= 0.998
        else:
            assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def test_the_page_lists_the_fields_and_their_defaults() -> None:
    for cls, table, defaults in ((EncoderSpec, SPEC, DEFAULTS), (LayerSpec, LAYER, LAYER_DEFAULTS)):
        fields = {field.name: field for field in dataclasses.fields(cls)}
        assert table.keys() == fields.keys()
        for name, field in fields.items():
            default = field.default_factory() if callable(field.default_factory) else field.default
            if default is not dataclasses.MISSING and name != "version":
                assert defaults[name] == (list(default) if isinstance(default, tuple) else default)


def test_a_changed_constant_is_found_by_the_hash() -> None:
    data = random_artifact()
    with pytest.raises(AssertionError, match="the graph was changed"):
        read(data.replace(b"const.sqrt2", b"const.sqrt3"))
