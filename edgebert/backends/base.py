"""The interface that every backend implements: load a model file, then run packed batches through it."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.spec import EncoderSpec
from edgebert.batch import PackedBatch
from edgebert.errors import InvalidInputError

Outputs = dict[str, NDArray[np.float32]]


class Backend(ABC):
    """A loaded model on one backend and device.

    Attributes:
        name: "native", "onnxruntime", "numpy", …
        device: "cpu" or "cuda:n", where the model really runs.
        detail: one line for people, for instance "native, avx512_vnni, 2 threads".
        spec: the file's EncoderSpec.
        chooses_tokens: whether `_run` computes token outputs at the batch's `output_tokens` alone.
    """

    chooses_tokens = False
    name: str
    device: str
    detail: str
    spec: EncoderSpec

    def run(self, batch: PackedBatch, outputs: Sequence[str]) -> Outputs:
        """Run the encoder and return the outputs asked for, each float32.

        Token outputs have shape [total_tokens, width] ([total_tokens] for start_logits and end_logits), sequence
        outputs [num_sequences, width]; names and widths come from `EncoderSpec.outputs` and `output_width`. Where the
        batch names `output_tokens`, token outputs have a row for each of these alone.

        Raises:
            InvalidInputError: ids or types out of range, a sequence longer than the position table, an unknown output.
        """
        self._check(batch, outputs)
        if batch.num_sequences == 0:
            return {name: np.zeros(self._shape(batch, name), np.float32) for name in outputs}
        if batch.output_tokens is None or self.chooses_tokens:
            return self._run(batch, outputs)
        values = self._run(dataclasses.replace(batch, output_tokens=None), outputs)
        for name in outputs:
            if self.spec.output_width(name)[0]:
                values[name] = values[name][batch.output_tokens]
        return values

    def attention(self, batch: PackedBatch, layer: int) -> NDArray[np.float32]:
        """To what each token of a batch of one sequence attends in a layer, f32 [heads, n, n]; rows sum to 1.

        Raises:
            InvalidInputError: a layer that there is not, ids out of range, or a backend that keeps no such maps.
        """
        raise InvalidInputError(f"the {self.name} backend keeps no attention maps: load the file with backend='numpy'")

    @abstractmethod
    def _run(self, batch: PackedBatch, outputs: Sequence[str]) -> Outputs:
        """Run a batch that has been checked and has at least one sequence."""

    def _shape(self, batch: PackedBatch, name: str) -> tuple[int, ...]:
        per_token, width = self.spec.output_width(name)
        rows = batch.num_output_tokens if per_token else batch.num_sequences
        return (rows, width) if width else (rows,)

    def _check(self, batch: PackedBatch, outputs: Sequence[str]) -> None:
        spec = self.spec
        for name in outputs:
            if name not in spec.outputs:
                raise InvalidInputError(f"unknown output {name!r}: this {spec.task} file has {', '.join(spec.outputs)}")
        chosen = batch.output_tokens
        if chosen is not None and (np.diff(chosen, prepend=-1, append=batch.total_tokens) <= 0).any():
            raise InvalidInputError("output_tokens must be tokens of the batch in ascending order, each once")
        if batch.num_sequences == 0:
            return
        lowest, highest = int(batch.input_ids.min()), int(batch.input_ids.max())
        if not 0 <= lowest <= highest < spec.vocab_size:
            raise InvalidInputError(
                f"token ids {lowest} to {highest} are out of range: the vocabulary has ids 0 to {spec.vocab_size - 1}"
            )
        lowest_type, highest_type = int(batch.token_type_ids.min()), int(batch.token_type_ids.max())
        if spec.has_token_types and not 0 <= lowest_type <= highest_type < spec.num_token_types:
            raise InvalidInputError(
                f"token types {lowest_type} to {highest_type} are out of range: "
                f"the model has {spec.num_token_types} types"
            )
        if batch.max_seqlen > spec.usable_positions:
            raise InvalidInputError(
                f"a sequence of {batch.max_seqlen} tokens is too long: "
                f"the model has {spec.usable_positions} positions, truncate it"
            )
