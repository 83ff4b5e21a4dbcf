"""Model: texts or token ids in, through a backend, rows or the task's answers out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.reader import read_artifact
from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Backend, Outputs
from edgebert.backends.registry import load_backend
from edgebert.batch import PackedBatch
from edgebert.errors import InvalidInputError
from edgebert.tasks import embedding, text_classification
from edgebert.tokenizer import Text, Tokenizer

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]

BATCH_TOKENS = 4096  # tokens of one micro-batch, unless a single text has more


def load(path: str | os.PathLike[str], backend: str = "auto", device: str = "cpu", threads: int | None = None) -> Model:
    """Load a model file.

    Args:
        path: a file written by `edgebert export`, or a folder that holds it as `model.onnx`.
        backend: "auto" (the best one usable here), "native", "onnxruntime" or "numpy".
        device: "cpu", "cuda" or "cuda:n"; never left for another one.
        threads: CPU threads; None takes the CPUs that this process may use.

    Raises:
        ModelFormatError: the file is missing, damaged, changed or not EdgeBERT's.
        BackendUnavailableError: the backend or the device is missing here.
        InvalidInputError: not a path, an unknown backend or device name, or a bad count of threads.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidInputError(f"expected the path of a model file, got {type(path).__name__}")
    file = Path(path)
    if file.is_dir():
        file = file / "model.onnx"
    loaded = load_backend(file, backend, device, threads)
    return Model(loaded, _read_tokenizer(file, loaded.spec))


@dataclass(frozen=True)
class Model:
    """A loaded model; made by `load`.

    Attributes:
        backend: what runs it; `backend.detail` says which one, where and how.
        tokenizer: None for a file that takes token ids only.
    """

    backend: Backend
    tokenizer: Tokenizer | None

    @property
    def spec(self) -> EncoderSpec:
        """Sizes, head and text settings of the file."""
        return self.backend.spec

    @property
    def task(self) -> str:
        """The file's task, for instance "embedding"."""
        return self.spec.task

    def __repr__(self) -> str:
        return f"Model(task={self.task!r}, backend={self.backend.detail!r})"

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """What transformers' pipeline of the file's task returns.

        An embedding file: `encode(inputs, **options)`. A text-classification file: `classify(inputs, **options)`.

        Raises:
            InvalidInputError: the file has another head; the message says which calls fit.
        """
        if self.task == "embedding":
            return self.encode(inputs, **options)
        self._expect("model(…)", self.task == "text-classification")
        return self.classify(inputs, **options)

    @overload
    def encode(
        self,
        texts: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        max_length: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        return_truncated: Literal[False] = False,
    ) -> F32: ...

    @overload
    def encode(
        self,
        texts: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        max_length: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        return_truncated: Literal[True],
    ) -> tuple[F32, Bools]: ...

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        max_length: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        return_truncated: bool = False,
    ) -> F32 | tuple[F32, Bools]:
        """One sentence embedding a text.

        Args:
            texts: a text or several.
            prompt_name: name of one of the file's prompts, put before every text; the file's default prompt if None.
            prompt: a prompt of the caller's own, instead of one by name.
            max_length: tokens a text has at most, special tokens included; None takes the file's limit.
            batch_tokens: tokens that are computed together; a matter of memory and speed, not of the result.
            return_truncated: return which texts were truncated as well, instead of warning about them.

        Returns:
            f32 [n, width] in the order of the texts, f32 [width] for a single str; with `return_truncated`
            (that, bool [n], or one bool for a single str).

        Raises:
            InvalidInputError: not an embedding file with pooling, or a text, prompt name or limit that is not usable.
        """
        self._expect("encode(…)", self.task == "embedding" and self.spec.has_sequence_head)
        is_single, items = embedding.read_inputs(texts, embedding.find_prompt(self.spec, prompt_name, prompt))
        rows, is_truncated = self._run_texts(
            items, "sentence_embedding", max_length, batch_tokens, not return_truncated
        )
        if is_single:
            return (rows[0], is_truncated[0]) if return_truncated else rows[0]
        return (rows, is_truncated) if return_truncated else rows

    def classify(
        self,
        inputs: Any,
        *,
        top_k: int | str | None = "",
        function_to_apply: str | None = None,
        max_length: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        return_truncated: bool = False,
    ) -> Any:
        """Labels and scores, in the shape that transformers' text-classification pipeline gives them.

        Args:
            inputs: a text, a pair as {"text": …, "text_pair": …}, or several of these; among several a pair may also be
                a tuple or list of two.
            top_k: how many labels a text gets, best first; None for all. Left out: the best one, not in a list.
            function_to_apply: "softmax", "sigmoid" or "none"; None takes what the file's kind of labels asks for.
            max_length: tokens a row has at most, special tokens included; None takes the file's limit.
            batch_tokens: tokens that are computed together; a matter of memory and speed, not of the result.
            return_truncated: return (answers, bool [n]: which were truncated) instead of warning about them.

        Returns:
            A list of {"label": str, "score": float}, one a text (also for a single str); with `top_k` a list of such
            a text. A single pair given as a dict is answered without the outer list.

        Raises:
            InvalidInputError: not a text-classification file, or an input or option that is not usable.
        """
        self._expect("classify(…)", self.task == "text-classification")
        is_single, items = text_classification.read_inputs(inputs)
        decode = text_classification.decoder(self.spec, function_to_apply, top_k)
        logits, is_truncated = self._run_texts(items, "logits", max_length, batch_tokens, not return_truncated)
        answers: Any = [decode(row) for row in logits]
        if is_single and (isinstance(inputs, dict) or top_k != ""):
            answers = answers[0]
        return (answers, is_truncated) if return_truncated else answers

    def forward(self, batch: PackedBatch, outputs: Sequence[str] | None = None) -> Outputs:
        """Run token ids through the encoder and its head.

        Args:
            batch: for instance `PackedBatch.from_lists(input_ids)`.
            outputs: names out of `spec.outputs`; None for all of them.

        Returns:
            name -> f32: [total_tokens, width] for hidden states and token logits, [total_tokens] for start_logits and
            end_logits, [num_sequences, width] for pooled rows and sequence logits.

        Raises:
            InvalidInputError: ids or types out of range, a sequence too long, an unknown output.
        """
        if not isinstance(batch, PackedBatch):
            raise InvalidInputError(
                f"forward takes a PackedBatch, got {type(batch).__name__}: use PackedBatch.from_lists(input_ids)"
            )
        return self.backend.run(batch, self.spec.outputs if outputs is None else tuple(outputs))

    def _run_texts(
        self, texts: list[Text], output: str, max_length: int | None, batch_tokens: int, warn: bool
    ) -> tuple[F32, Bools]:
        """One row of a sequence output a text, in the texts' order; and which texts were truncated."""
        if self.tokenizer is None:
            raise InvalidInputError(
                "this file has no tokenizer, it takes token ids: use forward(PackedBatch.from_lists(input_ids))"
            )
        if not isinstance(batch_tokens, int) or batch_tokens < 1:
            raise InvalidInputError(f"batch_tokens must be a positive integer, got {batch_tokens!r}")
        batch, is_truncated = self.tokenizer.tokenize(texts, max_length)
        if warn and is_truncated.any():
            warnings.warn(
                f"{np.count_nonzero(is_truncated)} of {len(texts)} texts were truncated to "
                f"{max_length or self.tokenizer.max_length} tokens: return_truncated=True says which",
                stacklevel=3,
            )
        # longest first: neighbours are of like length, and memory does not grow after the first batch
        order = np.argsort(-batch.lengths, kind="stable")
        batch = batch.take(order)
        rows = np.empty((len(texts), self.spec.output_width(output)[1]), np.float32)
        for first, last in batch.split(batch_tokens):
            rows[order[first:last]] = self.backend.run(batch.take(range(first, last)), [output])[output]
        return rows, is_truncated

    def _expect(self, call: str, fits: bool) -> None:
        if fits:
            return
        fitting = ["forward(PackedBatch)"]
        if self.task == "embedding" and self.spec.has_sequence_head:
            fitting.insert(0, "encode(texts)")
        elif self.task == "text-classification":
            fitting.insert(0, "model(texts)")
        raise InvalidInputError(
            f"{call} does not fit this file: its task is {self.task}, with the outputs {', '.join(self.spec.outputs)}; "
            f"use {' or '.join(fitting)}"
        )


def _read_tokenizer(path: Path, spec: EncoderSpec) -> Tokenizer | None:
    tokenizer_json = read_artifact(path, verify=False).tokenizer_json  # the backend has verified what it verifies
    if tokenizer_json is None:
        return None
    return Tokenizer(tokenizer_json, spec.max_length, spec.usable_positions, spec.num_token_types)
