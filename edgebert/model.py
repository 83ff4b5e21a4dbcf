"""Model: texts or token ids in, through a backend, rows or the task's answers out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property, partial
from inspect import Parameter, Signature
from typing import Any, Literal, overload

import numpy as np

from edgebert.artifact.reader import read_artifact
from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Backend, Outputs
from edgebert.backends.registry import load_backend
from edgebert.batch import PackedBatch
from edgebert.errors import InvalidInputError
from edgebert.runner import BATCH_TOKENS, answer
from edgebert.tasks import TASKS, Task, base, find_fitting, find_limit, find_task, name_task
from edgebert.tasks.base import F32, Bools, warn
from edgebert.tokenizer import Text, Tokenizer, check_ids


def load(
    path: str | os.PathLike[str],
    backend: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    verify: bool = False,
    public_key: str | os.PathLike[str] | None = None,
    full_depth: bool = False,
) -> Model:
    """Load a model file.

    Args:
        path: a file written by `edgebert export`, or a folder that holds it as `model.onnx`.
        backend: "auto" (the best one usable here), "native", "numba", "onnxruntime" or "numpy".
        device: "cpu", "cuda" or "cuda:n"; the model runs there or is not loaded.
        threads: CPU threads of all calls together; None takes the CPUs that this process may use.
        verify: compare the file's content, weights and tokenizer too, with its hash, which reads all of it once more.
        public_key: verify, and take the file only if it is signed with this key: the 64 hexadecimal digits that
            `edgebert sign` prints, or the path of a PEM file.
        full_depth: run all layers for every text, also in a file with exits, where a text that is sure goes no deeper.

    Raises:
        ModelFormatError: the file is missing, damaged, changed, not EdgeBERT's, or not signed with the key.
        BackendUnavailableError: the backend or the device is missing here.
        UnsupportedModelError: the native tokenizer refuses the file's, and the tokenizers library is not installed.
        InvalidInputError: not a path, an unknown backend or device name, a bad count of threads, or no public key.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidInputError(f"expected the path of a model file, got {type(path).__name__}")
    artifact = read_artifact(path, verify=False)  # the backend verifies what it verifies
    if verify or public_key is not None:
        from edgebert.artifact.integrity import check_content  # not at the top: every start would wait for it

        check_content(artifact, public_key)
    loaded = load_backend(artifact, backend, device, threads, full_depth)
    text = artifact.tokenizer_json
    tokenizer = None if text is None else Tokenizer.for_spec(text, artifact.spec, threads or 0)
    return Model(loaded, tokenizer, (os.path.abspath(path), backend, device, threads, verify, public_key, full_depth))


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
    loaded = load(model, backend, device, threads)
    return partial(loaded, task=loaded.choose_task(task), **options)


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
    arguments: tuple[Any, ...]

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
            **options: the task's own options: see `Options` in `edgebert/tasks/`, one file a task.
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
        name = self.choose_task(task)
        given, answers, is_truncated = self._answer(
            name, inputs, options, max_length=max_length, stride=stride, batch_tokens=batch_tokens
        )
        answers = unlist(name, given, answers, options)
        if return_truncated:
            return answers, is_truncated[0] if isinstance(given, str) else is_truncated
        if num_truncated := np.count_nonzero(is_truncated):
            assert self.tokenizer is not None  # which has truncated them
            limit = find_limit(name, self.spec, self.tokenizer, {**options, "max_length": max_length})
            windows = ", stride=N answers from all of a text" if TASKS[name].has_windows else ""
            warn(
                f"{num_truncated} of {len(is_truncated)} texts were truncated to {limit} tokens: "
                f"return_truncated=True says which{windows}"
            )
        return answers

    def answer_each(
        self, inputs: Sequence[Any], task: str | None = None, **options: Any
    ) -> tuple[Sequence[Any], Bools]:
        """`model(inputs, **options)` with one answer an input, also where pipelines take the list off a single one.

        Returns:
            (the answers, bool [n]: which inputs were truncated).
        """
        limits = {key: options.pop(key) for key in ("max_length", "stride", "batch_tokens") if key in options}
        return self._answer(self.choose_task(task), (inputs,), options, **limits)[1:]

    def _answer(
        self, task: str, inputs: Sequence[Any], options: dict[str, Any], **limits: Any
    ) -> tuple[Any, Sequence[Any], Bools]:
        """(the inputs as they were given; an answer an input, as pipelines have it; which inputs were truncated)."""
        given, items, arguments = self.read_call(task, inputs, options)
        assert self.tokenizer is not None
        answers, is_truncated = answer(self.backend, self.tokenizer, task, items, **limits, **arguments)
        return given, unlist_each(task, answers, options), is_truncated

    def read_call(
        self, task: str, inputs: Sequence[Any], options: dict[str, Any]
    ) -> tuple[Any, list[Any], dict[str, Any]]:
        """(the inputs as they were given; as a list; the arguments of the task's `Options`) of a call, to be answered.

        Raises:
            InvalidInputError: inputs of another form, an option that the task has not, or a file without a tokenizer.
        """
        call = TASKS[task]
        if options or len(inputs) != len(call.inputs):
            arguments = _bind(task, inputs, options)
        else:
            arguments = dict(zip(call.inputs, inputs, strict=True))
        given = _take_inputs(call, arguments)
        items = _list_inputs(call, given)
        if self.tokenizer is None:
            raise InvalidInputError(
                "this file has no tokenizer, it takes token ids: use forward(PackedBatch.from_lists(input_ids))"
            )
        return given, items, arguments

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
            **options: those of every call, and those of `edgebert.tasks.embedding.Options`.

        Returns:
            f32 [n, width] in the order of the texts, f32 [width] for a single str; with `return_truncated`
            (that, bool [n], or one bool for a single str).

        Raises:
            InvalidInputError: not an embedding file with pooling, or a text, prompt name or limit that is not usable.
        """
        if self.tokenizer is not None and self._prompt is not None and not options:
            # a text alone, which is often waited for, goes the short way
            text = texts[0] if type(texts) is list and len(texts) == 1 else texts
            if type(text) is str:
                rows = self.tokenizer.run_text(self._prompt + text, self.backend, "sentence_embedding")
                if rows is not None:
                    return rows[0] if text is texts else rows
        result: F32 | tuple[F32, Bools] = self(texts, task="embedding", **options)
        return result

    @cached_property
    def _prompt(self) -> str | None:
        """What is put before every text that is embedded; None for a file that embeds none."""
        if self.tokenizer is None or "embedding" not in find_fitting(self.task, self.spec.outputs):
            return None
        prompt: str = find_task("embedding").find_prompt(self.spec, None, None)
        return prompt

    def rank(self, query: str, documents: Iterable[str], **options: Any) -> Any:
        """Documents in the order a cross-encoder ranks them: see `edgebert.tasks.reranking`."""
        return self(query, documents, task="reranking", **options)

    def rescore(self, inputs: Any, **options: Any) -> Any:
        """Pseudo-log-likelihoods of sentences, and n-best lists: see `edgebert.tasks.rescoring`."""
        return self(inputs, task="rescoring", **options)

    def explain(self, inputs: Any, faithfulness: bool = False, **options: Any) -> Any:
        """What each word counts for the score of an input: see `edgebert.tasks.explain`.

        Args:
            inputs: as of the file's own task; of an embedding file a pair of texts, whose similarity is explained.
            faithfulness: also measure, with some seven more copies a word, whether the words named are those that the
                score comes from, in "faithfulness": see `measure` in `edgebert.tasks.faithfulness`.
            **options: those of every call, and those of `edgebert.tasks.explain.Options`.

        Raises:
            InvalidInputError: an input or option that is not usable, or a head without a score.
        """
        from edgebert.tasks.faithfulness import measure, order_words

        if not isinstance(inputs, (str, dict)) and isinstance(inputs, Iterable):
            inputs = list(inputs)
        found = self(inputs, task="explain", **options)
        if faithfulness:
            answers = found[0] if options.pop("return_truncated", False) else found
            answers = [answers] if isinstance(answers, dict) else answers
            limits = {key: options.pop(key) for key in ("max_length", "stride", "batch_tokens") if key in options}
            _, items, arguments = self.read_call("explain", (inputs,), options)
            assert self.tokenizer is not None
            orders = [order_words(answer) for answer in answers]
            curves, _ = answer(
                self.backend, self.tokenizer, "faithfulness", items, **limits, **arguments, orders=orders
            )
            for each, of_each in zip(answers, curves, strict=True):
                each["faithfulness"] = measure(of_each)
        return found

    def attention(self, text: Text, layer: int, max_length: int | None = None) -> tuple[list[str], F32]:
        """To what each token attends, from the numpy backend.

        Args:
            text: a text, or a pair of two.
            layer: which, from 0, in the order in which they run.
            max_length: as of `__call__`.

        Returns:
            (the tokens, special ones too; f32 [heads, n, n], of each head and token how much each token counts, rows
            that sum to 1; no heads where pruning has removed the layer's attention).

        Raises:
            InvalidInputError: another backend, a layer that there is not, or a text that is not usable.
        """
        if self.tokenizer is None:
            raise InvalidInputError("this file has no tokenizer, it takes token ids: use backend.attention(…)")
        batch, is_truncated = self.tokenizer.tokenize([text], max_length)
        check_ids(batch, [0], self.tokenizer, self.spec)
        if is_truncated[0]:
            warn(f"the text was truncated to {batch.total_tokens} tokens")
        tokens = [self.tokenizer.id_to_token(i) for i in batch.input_ids.tolist()]
        return tokens, self.backend.attention(batch, layer)

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

    def choose_task(self, task: str | None) -> str:
        """`task`, or the one that the file's head is for.

        Raises:
            InvalidInputError: it does not fit the head; the message says which calls do.
        """
        task = name_task(task) if isinstance(task, str) else task
        fitting = find_fitting(self.task, self.spec.outputs)
        answers = ", ".join(fitting) or "none"
        if task is not None and (not isinstance(task, str) or task not in TASKS):
            raise InvalidInputError(
                f"unknown task {task!r}: expected one of {', '.join(TASKS)}, of which this file answers {answers}"
            )
        if fitting and (task is None or task in fitting):
            return task or fitting[0]
        calls = [f"model({TASKS[name].usage}{'' if name == fitting[0] else f', task={name!r}'})" for name in fitting]
        raise InvalidInputError(
            f"{task or self.task} does not fit this file: its head is {self.task}, with the outputs "
            f"{', '.join(self.spec.outputs)}. It answers {answers}: use {' or '.join([*calls, 'forward(PackedBatch)'])}"
        )


def unlist_each(task: str, answers: Sequence[Any], options: dict[str, Any]) -> Sequence[Any]:
    """An answer an input, those of a single part without the list, where the task's pipeline takes it off."""
    call = TASKS[task]
    if call.unlists or (call.is_best_alone and "top_k" not in options):
        return [found[0] if len(found) == 1 else found for found in answers]
    return answers


def unlist(task: str, given: Any, answers: Sequence[Any], options: dict[str, Any]) -> Any:
    """The answers to a call, without the list where one input was given and the task's pipeline takes it off."""
    call = TASKS[task]
    is_listed = call.is_best_alone and "top_k" not in options and isinstance(given, str)
    if len(answers) == 1 and (call.unlists or (isinstance(given, call.single) and not is_listed)):
        return answers[0]
    return answers


# Options that other libraries' calls have, and what stands for them here.
_NEIGHBOURS = {
    "batch_size": "batches are chosen for you, batch_tokens=… bounds what is computed together",
    "normalize": "embeddings are normalized with normalize_embeddings=True, or where the file says so",
    "convert_to_numpy": "embeddings are NumPy arrays",
    "convert_to_tensor": "embeddings are NumPy arrays, torch.from_numpy(…) takes them",
    "output_value": "forward(…) gives every output of the file by name",
    "precision": "embeddings are float32, edgebert.quantize_embeddings(…) makes int8 and bits of them",
    "show_progress_bar": "calls show none, edgebert.score(…) of a file does",
    "device": "it is given to edgebert.load(…)",
    "num_workers": "threads=… is given to edgebert.load(…)",
    "truncation": "what is longer than max_length=… is truncated, unless stride=… makes windows of it",
    "padding": "nothing is padded",
    "return_all_scores": "top_k=None gives every label",
    "grouped_entities": "aggregation_strategy='simple' groups",
    "return_tensors": "answers are plain values, embeddings NumPy arrays",
    "faithfulness": "model.explain(…) takes it",
    "return_documents": "every answer has its document's index, corpus_id",
}


def _bind(task: str, inputs: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
    """The inputs and options by name.

    Raises:
        InvalidInputError: too many or too few, or an option that the task has not.
    """
    try:
        return _signature(task).bind(*inputs, **options).arguments
    except TypeError as error:
        common = Signature.from_callable(Model.__call__).parameters
        names = [name for name in (*_signature(task).parameters, *common) if name not in ("self", "inputs", "options")]
        hints = [f"for {name}: {hint}" for name in options if name not in names and (hint := _find_hint(name))]
        raise InvalidInputError("; ".join([f"{task}: {error}", *hints, f"it takes {', '.join(names)}"])) from None


def _find_hint(name: str) -> str:
    """What stands here for an option of another library or task; empty where nothing is known."""
    owners = [task for task in TASKS if name in _signature(task).parameters]
    return _NEIGHBOURS.get(name) or (f"it is of task={owners[0]!r}" if len(owners) == 1 else "")


@cache
def _signature(task: str) -> Signature:
    """The inputs and options that a task takes."""
    call = TASKS[task]
    common = {field.name for field in fields(base.Options)}
    own = [field for field in fields(find_task(task).Options) if field.name not in (*common, *call.inputs)]
    optional = {"default": None} if call.keys else {}
    by_name = [*call.keys, *(field.name for field in own)]
    return Signature(
        [
            *(Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, **optional) for name in call.inputs),
            *(Parameter(name, Parameter.KEYWORD_ONLY, default=None) for name in by_name),
        ]
    )


def _take_inputs(call: Task, arguments: dict[str, Any]) -> Any:
    """The inputs out of the arguments: those given by place, or lists by key made one."""
    given = arguments.pop(call.inputs[-1], None)
    if not call.keys:
        return given
    columns = [column for key in call.keys if (column := arguments.pop(key, None)) is not None]
    if not columns and given is not None:
        return given
    keys = " and ".join(f"{key}=…" for key in call.keys)
    if given is not None:
        raise InvalidInputError(f"expected {call.inputs[-1]}, or {keys}, got both")
    size = len(columns[0]) if columns and isinstance(columns[0], list) else 1
    lists = [[column] * size if isinstance(column, str) else column for column in columns]
    if len(lists) < len(call.keys) or not all(isinstance(part, list) and len(part) == size for part in lists):
        raise InvalidInputError(f"expected {keys}, each a text or lists of one length")
    return [dict(zip(call.keys, values, strict=True)) for values in zip(*lists, strict=True)]


def _list_inputs(call: Task, given: Any) -> list[Any]:
    """The inputs as a list.

    Raises:
        InvalidInputError: neither a list nor what stands for a list of one.
    """
    if isinstance(given, list):
        return list(given)
    if isinstance(given, call.single):
        return [given]
    if isinstance(given, (str, bytes, dict)) or not isinstance(given, Iterable):
        one = "" if call.single else "one "
        raise InvalidInputError(f"expected {call.expects}, got {one}{type(given).__name__}")
    return list(given)
