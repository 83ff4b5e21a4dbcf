"""Model: texts or token ids in, through a backend, rows or the task's answers out."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from edgebert.artifact.reader import find_model_file, read_artifact
from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Backend, Outputs
from edgebert.backends.registry import load_backend
from edgebert.batch import PackedBatch
from edgebert.errors import InvalidInputError
from edgebert.runner import BATCH_TOKENS, F32, Bools, TextRunner
from edgebert.tasks import INPUTS, TASKS_OF_HEAD, UNLISTED, find_answer
from edgebert.tasks.inputs import warn
from edgebert.tokenizer import Tokenizer


def load(path: str | os.PathLike[str], backend: str = "auto", device: str = "cpu", threads: int | None = None) -> Model:
    """Load a model file.

    Args:
        path: a file written by `edgebert export`, or a folder that holds it as `model.onnx`.
        backend: "auto" (the best one usable here), "native", "numba", "onnxruntime" or "numpy".
        device: "cpu", "cuda" or "cuda:n"; never left for another one.
        threads: CPU threads; None takes the CPUs that this process may use.

    Raises:
        ModelFormatError: the file is missing, damaged, changed or not EdgeBERT's.
        BackendUnavailableError: the backend or the device is missing here.
        InvalidInputError: not a path, an unknown backend or device name, or a bad count of threads.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidInputError(f"expected the path of a model file, got {type(path).__name__}")
    file = find_model_file(path)
    loaded = load_backend(file, backend, device, threads)
    return Model(loaded, _read_tokenizer(file, loaded.spec), (os.path.abspath(path), backend, device, threads))


def pipeline(
    task: str,
    model: str | os.PathLike[str],
    *,
    backend: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    **options: Any,
) -> Callable[..., Any]:
    """A function that answers `task`, called as the one that transformers' `pipeline` returns.

    Args:
        task: "token-classification" ("ner"), "text-classification" ("sentiment-analysis"), "question-answering",
            "fill-mask", and EdgeBERT's own: see `Model.__call__`.
        model: a model file, as for `load`, and
        backend: as for `load`, and
        device: as for `load`, and
        threads: as for `load`.
        **options: of every call, unless the call says otherwise.

    Raises:
        EdgeBertError: as `load`; InvalidInputError where the file's head does not fit the task.
    """
    task = {"ner": "token-classification", "sentiment-analysis": "text-classification"}.get(task, task)
    loaded = load(model, backend, device, threads)
    loaded.choose_task(task)
    return partial(loaded, task=task, **options)


@dataclass(frozen=True)
class Model:
    """A loaded model; made by `load`. Copied or pickled, it is loaded again, from the same path.

    Attributes:
        backend: what runs it; `backend.detail` says which one, where and how.
        tokenizer: None for a file that takes token ids only.
        arguments: of the call of `load`, with the path made absolute.
    """

    backend: Backend
    tokenizer: Tokenizer | None
    arguments: tuple[str, str, str, int | None]

    @property
    def spec(self) -> EncoderSpec:
        """Sizes, head and text settings of the file."""
        return self.backend.spec

    @property
    def task(self) -> str:
        """The file's task, for instance "embedding"."""
        return self.spec.task

    def __reduce__(self) -> tuple[Callable[..., Model], tuple[Any, ...]]:
        return load, self.arguments

    def __repr__(self) -> str:
        return f"Model(task={self.task!r}, backend={self.backend.detail!r})"

    def __call__(
        self,
        *inputs: Any,
        task: str | None = None,
        max_length: int | None = None,
        stride: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        return_truncated: bool = False,
        **options: Any,
    ) -> Any:
        """What transformers' pipeline of the file's task returns.

        Args:
            *inputs: the task's inputs, and
            **options: the task's own options: see `answer` in `edgebert/tasks/`, one file a task.
            task: another task that fits the file's head; None for the file's own.
            max_length: tokens a row has at most, special tokens included; None takes the file's limit.
            stride: cut what is longer into windows that have this many tokens in common, and answer from all of
                them; None truncates it.
            batch_tokens: tokens that are computed together; a matter of memory and speed, not of the result.
            return_truncated: return (answers, bool [n]: which were truncated) instead of warning about them.

        Raises:
            InvalidInputError: an input or option that is not usable, or a task that does not fit the file's head;
                the message says what does.
        """
        task = self.choose_task(task)
        answer = find_answer(task)
        runner = TextRunner(self.backend, self.tokenizer, max_length, stride, batch_tokens)
        try:
            answers = answer(runner, *inputs, **options)
        except TypeError:
            _check_arguments(task, answer, runner, *inputs, **options)
            raise
        if return_truncated:
            is_single = len(inputs) == 1 and isinstance(inputs[0], str)
            return answers, runner.is_truncated[0] if is_single else runner.is_truncated
        if runner.is_truncated.any():
            warn(
                f"{np.count_nonzero(runner.is_truncated)} of {len(runner.is_truncated)} texts were truncated to "
                f"{max_length or runner.tokenizer.max_length} tokens: return_truncated=True says which, "
                "stride=N answers from all of a text"
            )
        return answers

    @overload
    def encode(
        self, texts: str | Iterable[str], *, return_truncated: Literal[False] = False, **options: Any
    ) -> F32: ...

    @overload
    def encode(
        self, texts: str | Iterable[str], *, return_truncated: Literal[True], **options: Any
    ) -> tuple[F32, Bools]: ...

    def encode(self, texts: str | Iterable[str], **options: Any) -> F32 | tuple[F32, Bools]:
        """One sentence embedding a text: `model(texts, **options)` of an embedding file.

        Args:
            texts: a text or several.
            **options: those of every call, and those of `edgebert.tasks.embedding.answer`.

        Returns:
            f32 [n, width] in the order of the texts, f32 [width] for a single str; with `return_truncated`
            (that, bool [n], or one bool for a single str).

        Raises:
            InvalidInputError: not an embedding file with pooling, or a text, prompt name or limit that is not usable.
        """
        result: F32 | tuple[F32, Bools] = self(texts, task="embedding", **options)
        return result

    def rank(self, query: str, documents: Iterable[str], **options: Any) -> Any:
        """Documents in the order a cross-encoder ranks them: see `edgebert.tasks.reranking.answer`."""
        return self(query, documents, task="reranking", **options)

    def rescore(self, inputs: Any, **options: Any) -> Any:
        """Pseudo-log-likelihoods of sentences, and n-best lists: see `edgebert.tasks.rescoring.answer`."""
        return self(inputs, task="rescoring", **options)

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
        if outputs is not None and (isinstance(outputs, str) or not isinstance(outputs, Iterable)):
            raise InvalidInputError(f"outputs must be a list of names, got {outputs!r}")
        return self.backend.run(batch, self.spec.outputs if outputs is None else tuple(outputs))

    def answer_each(self, inputs: Sequence[Any], **options: Any) -> tuple[Sequence[Any], Bools]:
        """`model(inputs, **options)` with one answer an input, also where pipelines take the list off a single one.

        Returns:
            (the answers, bool [n]: which inputs were truncated).
        """
        answers, is_truncated = self(inputs, return_truncated=True, **options)
        is_bare = len(inputs) == 1 and self.choose_task(options.get("task")) in UNLISTED
        return [answers] if is_bare else answers, is_truncated

    def choose_task(self, task: str | None) -> str:
        """`task`, or the one that the file's head is for.

        Raises:
            InvalidInputError: it does not fit the head; the message says which calls do.
        """
        if task is not None and (not isinstance(task, str) or task not in INPUTS):
            raise InvalidInputError(f"unknown task {task!r}: expected one of {', '.join(INPUTS)}")
        fitting = TASKS_OF_HEAD[self.task]
        if self.task == "embedding" and self.spec.pooling == "none":  # hidden states, not pooled
            fitting = ()
        if fitting and task in (None, *fitting):
            return task or fitting[0]
        calls = [f"model({INPUTS[name]}{'' if name == fitting[0] else f', task={name!r}'})" for name in fitting]
        raise InvalidInputError(
            f"{task or self.task} does not fit this file: its head is {self.task}, with the outputs "
            f"{', '.join(self.spec.outputs)}; use {' or '.join([*calls, 'forward(PackedBatch)'])}"
        )


def _check_arguments(task: str, answer: Callable[..., Any], *inputs: Any, **options: Any) -> None:
    """Raise InvalidInputError if the task does not take such arguments."""
    try:
        inspect.signature(answer).bind(*inputs, **options)
    except TypeError as error:
        own, common = (inspect.signature(function).parameters for function in (answer, Model.__call__))
        names = [name for name in (*own, *common) if name not in ("runner", "self", "inputs", "options")]
        raise InvalidInputError(f"{task}: {error}; it takes {', '.join(names)}") from None


def _read_tokenizer(path: Path, spec: EncoderSpec) -> Tokenizer | None:
    tokenizer_json = read_artifact(path, verify=False).tokenizer_json  # the backend has verified what it verifies
    if tokenizer_json is None:
        return None
    return Tokenizer.for_spec(tokenizer_json, spec)
