"""Between the padded rows of other libraries and packed batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.batch import PackedBatch
from edgebert.errors import InvalidInputError
from edgebert.model import Model

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]


def pack(input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None) -> tuple[PackedBatch, Bools]:
    """A tokenizer's padded rows without their padding, which may be on either side.

    Args:
        input_ids: integers [n, length].
        attention_mask: [n, length], 1 for the tokens of a text; None: all are.
        token_type_ids: integers [n, length]; None: zeros.

    Returns:
        (the batch; the mask, bool [n, length]).

    Raises:
        InvalidInputError: arrays that are not of one shape, or a mask with a row that is empty or has a gap.
    """
    ids = np.asarray(input_ids)
    mask = np.ones(ids.shape, bool) if attention_mask is None else np.asarray(attention_mask).astype(bool)
    types = np.zeros_like(ids) if token_type_ids is None else np.asarray(token_type_ids)
    if ids.ndim != 2 or mask.shape != ids.shape or types.shape != ids.shape:
        shapes = f"{list(ids.shape)}, {list(mask.shape)} and {list(types.shape)}"
        raise InvalidInputError(f"input_ids, attention_mask and token_type_ids must be [n, length], got {shapes}")
    begins = mask.copy()
    begins[:, 1:] &= ~mask[:, :-1]
    if (wrong := np.flatnonzero(begins.sum(1) != 1)).size:
        row = wrong[0]
        raise InvalidInputError(
            f"attention_mask, row {row}: expected the tokens of one text side by side, got {mask[row].sum()} tokens in "
            f"{begins[row].sum()} parts"
        )
    parts = ([row[chosen] for row, chosen in zip(rows, mask, strict=True)] for rows in (ids, types))
    return PackedBatch.from_lists(*parts), mask


def run_padded(model: Model, rows: Iterable[Any], outputs: Sequence[str] | None = None) -> dict[str, F32]:
    """A model's outputs for a tokenizer's padded rows.

    Args:
        model: what runs them.
        rows: the arguments of `pack`, tensors among them.
        outputs: as for `Model.forward`.

    Returns:
        name -> those of tokens f32 [n, length, ...], zeros where padding was; others as they are.

    Raises:
        InvalidInputError: as `pack` and `Model.forward`.
    """
    batch, mask = pack(*(row.cpu() if hasattr(row, "cpu") else row for row in rows))
    found = model.forward(batch, outputs)
    return {n: pad(values, mask) if model.spec.output_width(n)[0] else values for n, values in found.items()}


def pad(values: F32, mask: Bools) -> F32:
    """Outputs of tokens, f32 [total_tokens, ...], in the places of the mask: [n, length, ...], zeros between."""
    padded = np.zeros((*mask.shape, *values.shape[1:]), np.float32)
    padded[mask] = values
    return padded
