"""A model file's answers as one vector for each text: the form in which runtimes are compared, whatever the task."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.spec import EncoderSpec
from edgebert.backends import numpy_ops
from edgebert.backends.base import Outputs
from edgebert.batch import PackedBatch
from edgebert.errors import UnsupportedModelError

F32 = NDArray[np.float32]

_COLUMNS = 128  # kept of a wider output of tokens, such as a vocabulary's logits: rows go through a pipe


def answer_outputs(spec: EncoderSpec) -> tuple[str, ...]:
    """The outputs that answers of the file's task are made from."""
    return spec.outputs[1:] if "sentence_embedding" in spec.outputs else spec.outputs


def answer_rows(spec: EncoderSpec, batch: PackedBatch, outputs: Outputs) -> list[F32]:
    """The vector of each sequence: its values of all `answer_outputs`, in the shapes of `Backend.run`, end to end.

    Of an output with more than 128 values a token, that many columns are taken, evenly spread.
    """
    parts: list[list[F32]] = [[] for _ in range(batch.num_sequences)]
    for name in answer_outputs(spec):
        per_token, width = spec.output_width(name)
        columns = np.linspace(0, width - 1, _COLUMNS).astype(int) if per_token and width > _COLUMNS else slice(None)
        cuts = batch.cu_seqlens if per_token else np.arange(batch.num_sequences + 1)
        for part, (first, last) in zip(parts, pairwise(cuts), strict=True):
            part.append(outputs[name][first:last, ..., columns].ravel() if width else outputs[name][first:last])
    return [np.concatenate(part) for part in parts]


def pool_outputs(spec: EncoderSpec, batch: PackedBatch, last_hidden_state: F32) -> Outputs:
    """The outputs of an embedding file from the encoder's alone, f32 [total_tokens, hidden_size].

    Raises:
        UnsupportedModelError: the file has another head, or a dense layer whose weights are not here.
    """
    if spec.task != "embedding" or spec.dense_size:
        raise UnsupportedModelError(
            f"this {spec.task} file{' with a dense layer' if spec.dense_size else ''} needs more than the hidden "
            "states that this runtime gives"
        )
    if spec.pooling == "none":
        return {"last_hidden_state": last_hidden_state}
    rows = numpy_ops.pool(last_hidden_state, batch.cu_seqlens, spec.pooling)
    return {"sentence_embedding": numpy_ops.normalize(rows) if spec.normalize else rows}
