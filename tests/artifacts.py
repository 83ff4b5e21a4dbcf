"""Tiny random model files for tests, made straight from a spec and random tensors (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert import quant
from edgebert.artifact.names import linear_name, linear_shape, weight_tensors
from edgebert.artifact.spec import LINEARS, EncoderSpec, ExitSpec, LayerSpec
from edgebert.artifact.writer import build_model
from edgebert.batch import PackedBatch

Layers = Sequence[tuple[int, int, int]]  # (num_heads, head_dim, intermediate_size) of each layer

# What ModernBERT computes: a norm before each sub-block, gates, rotary positions, windows of attention.
ROTARY: dict[str, Any] = {
    "is_gated": True,
    "is_pre_norm": True,
    "has_position_table": False,
    "num_token_types": 0,
    "family": "modernbert",
    "windows": (0, 3),
    "rotary_bases": (160_000.0, 10_000.0),
}
# What DeBERTa computes, with single distances near and ranges of them far.
POSITION_TABLES: dict[str, Any] = {
    "family": "deberta-v2",
    "has_position_table": False,
    "num_token_types": 0,
    "max_relative_distance": 60,
    "distances_per_row": (20, 9, *[1] * 63, 9, 20),
}
_SEQUENCE_TASKS = ("text-classification", "next-sentence", "pretraining")


def random_spec(
    *,
    task: str = "embedding",
    int8: bool = False,
    layers: Layers = ((2, 8, 40), (2, 8, 40)),
    hidden: int = 24,
    activation: str = "gelu_erf",
    num_token_types: int = 2,
    embedding_size: int | None = None,
    position_offset: int = 0,
    has_padding_position: bool = False,
    smoothed: bool = True,
    pooling: str = "mean",
    normalize: bool = True,
    dense_size: int | None = None,
    num_labels: int = 3,
    vocab_size: int = 101,
    num_positions: int = 80,
    family: str = "bert",
    attention_dtype: str = "f32",
    max_relative_distance: int = 0,
    distances_per_row: Sequence[int] = (),
    repeats: int = 1,
    is_gated: bool = False,
    is_pre_norm: bool = False,
    has_position_table: bool = True,
    has_dense_norm: bool = False,
    windows: Sequence[int] = (),
    rotary_bases: Sequence[float] = (),
    is_weight_only: bool = False,
    sparse_pooling: str = "none",
    num_sparse_logs: int = 1,
    token_size: int = 0,
    normalize_tokens: bool = True,
    has_token_weights: bool = False,
    unattended: int = 0,
    problem_type: str = "single_label_classification",
    exits: Sequence[tuple[int, float | None]] = (),
) -> EncoderSpec:
    """A spec of the given shape; `dense_size` None means `hidden` for labels of a sequence, none for embeddings.

    `unattended` tokens of the id 5 at the end of a sequence are attended to by none, at most.
    `windows` and `rotary_bases` are those of the layers; of a pre-norm model the first layer's attention has no norm.
    `exits` are pairs (after so many layers, threshold); text classifiers with any pool by `pooling`.
    """
    dtype = "s8" if int8 else "f32"
    is_sequence_task = task in _SEQUENCE_TASKS
    dense = dense_size if dense_size is not None else hidden if is_sequence_task else 0
    label_count = {"text-classification": num_labels, "token-classification": num_labels}.get(task, 0)
    if task in ("next-sentence", "pretraining"):
        label_count = 2
    return EncoderSpec(
        family=family,
        task=task,
        attention_dtype=attention_dtype,
        max_relative_distance=max_relative_distance,
        distances_per_row=tuple(distances_per_row),
        vocab_size=vocab_size,
        hidden_size=hidden,
        embedding_size=embedding_size or hidden,
        num_positions=num_positions,
        num_token_types=num_token_types,
        layers=tuple(
            LayerSpec(
                heads,
                head_dim,
                ffn,
                *[dtype] * len(LINEARS),
                smoothed=LINEARS if int8 and smoothed else (),
                repeats=repeats,
                window=windows[i] if windows else 0,
                rotary_base=rotary_bases[i] if rotary_bases else 0.0,
                has_attention_norm=i > 0 or not is_pre_norm,
            )
            for i, (heads, head_dim, ffn) in enumerate(layers)
        ),
        is_weight_only=is_weight_only,
        is_gated=is_gated,
        is_pre_norm=is_pre_norm,
        has_position_table=has_position_table,
        has_dense_norm=has_dense_norm,
        activation=activation,
        position_offset=position_offset,
        has_padding_position=has_padding_position,
        pad_token_id=position_offset - 1 if has_padding_position else 0,
        max_length=num_positions - position_offset,
        embedding_dtype=dtype,
        pooling=pooling if task == "embedding" or exits else "cls" if is_sequence_task else "none",
        problem_type=problem_type,
        exits=tuple(ExitSpec(*each) for each in exits),
        normalize=normalize and task == "embedding",
        dense_size=dense,
        dense_activation="tanh" if dense else "identity",
        mlm_activation=activation if task in ("fill-mask", "pretraining") or sparse_pooling != "none" else "identity",
        sparse_pooling=sparse_pooling,
        num_sparse_logs=num_sparse_logs,
        token_size=token_size,
        normalize_tokens=normalize_tokens and token_size > 0,
        has_token_weights=has_token_weights,
        query_length=unattended,
        expansion_length=unattended,
        expansion_id=min(5, vocab_size - 1),
        attends_to_expansion=not unattended,
        labels=tuple(f"LABEL_{i}" for i in range(label_count)),
    )


def random_tensors(spec: EncoderSpec, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Weights for `spec`: linears keep the size of what they are given, LayerNorm weights are near 1."""
    rng = np.random.default_rng(seed)

    def normal(shape: Sequence[int], scale: float = 1.0, mean: float = 0.0) -> NDArray[np.float32]:
        return (mean + scale * rng.standard_normal(tuple(shape))).astype(np.float32)

    tensors: dict[str, NDArray[Any]] = {}
    for name, (dtype, shape) in weight_tensors(spec).items():
        if name in tensors or name.endswith((".scale", ".colsum", ".inv_smooth")):
            continue
        if name.startswith("embeddings.") and name.endswith(".weight") and "norm" not in name and "proj" not in name:
            table = normal(shape, 0.5)
            tensors[name] = table
            if dtype == "s8":
                tensors[name], tensors[name.replace("weight", "scale")] = quant.quantize_table(table)
        elif name.endswith("layer_norm.weight"):
            tensors[name] = normal(shape, 0.1, 1.0)
        elif name.endswith("position_bias"):
            tensors[name] = normal(shape)
        elif name.endswith(".bias"):
            tensors[name] = normal(shape, 0.1)
        elif dtype == "f32":
            tensors[name] = normal(shape, 1.0 / np.sqrt(shape[0]))
    for i, layer in enumerate(spec.layers):
        for linear in LINEARS:
            prefix, (inputs, outputs) = linear_name(i, linear), linear_shape(spec, i, linear)
            if layer.dtype(linear) != "s8" or not inputs or not outputs:
                continue
            weight = normal((inputs, outputs), 1.0 / np.sqrt(inputs))
            if linear in layer.smoothed:
                smooth = rng.uniform(0.5, 2.0, inputs).astype(np.float32)
                tensors[f"{prefix}.inv_smooth"] = 1 / smooth
                weight *= smooth[:, None]
            limit = quant.PORTABLE_WEIGHT_LIMIT if spec.portable else quant.WEIGHT_LIMIT
            scale = quant.weight_scale(weight, limit)
            codes = quant.round_weight(weight, scale, limit)
            tensors |= {
                f"{prefix}.weight": codes,
                f"{prefix}.scale": scale,
                f"{prefix}.colsum": quant.column_sums(codes),
            }
    if "mlm.colsum" in weight_tensors(spec):
        tensors["mlm.colsum"] = quant.column_sums(tensors["embeddings.word.weight"].T)
    return tensors


def random_artifact(
    path: Path | None = None,
    *,
    seed: int = 0,
    tokenizer_json: str | None = None,
    **spec_arguments: Any,  # noqa: ANN401
) -> bytes:
    """A model file with random weights; the other arguments are those of `random_spec`. Written to `path` if given."""
    spec = random_spec(**spec_arguments)
    data = build_model(
        spec, random_tensors(spec, seed), {"edgebert.tokenizer": tokenizer_json} if tokenizer_json else {}
    )
    if path:
        path.write_bytes(data)
    return data


def random_batch(spec: EncoderSpec, lengths: Sequence[int], seed: int = 0) -> PackedBatch:
    """Random ids (and types) in sequences of the given lengths; about every fourth is the pad token where that counts.

    Where it does, the first sequence is nothing but pad tokens. Where some tokens are not attended to, every second
    sequence ends with them, the last with more than there may be.
    """
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, spec.vocab_size, n) for n in lengths]
    if spec.has_padding_position:
        ids = [np.where(rng.random(len(row)) < (0.25 if i else 1), spec.pad_token_id, row) for i, row in enumerate(ids)]
    if spec.max_unattended:
        for i, row in enumerate(ids):
            count = spec.max_unattended + 9 if i == len(ids) - 1 else i % 2 * spec.max_unattended * 2 // 3
            row[max(0, len(row) - count) :] = spec.expansion_id
    types = [rng.integers(0, max(1, spec.num_token_types), n).tolist() for n in lengths]
    return PackedBatch.from_lists([row.tolist() for row in ids], types)
