"""One file a task: `Options`, `prepare` (inputs to rows of tokens) and `decode` (their outputs to answers).

Both work on lists, one answer an input, and know neither backends nor batches. What transformers' pipeline of the task
makes of inputs and answers that are not lists, `Model` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from edgebert.artifact.spec import EncoderSpec
from edgebert.tokenizer import Tokenizer


class Task(NamedTuple):
    """How a task is called.

    Attributes:
        heads: whose files answer it.
        outputs: of which the file must have one; none: whatever it has.
        usage: for messages.
        inputs: names of what is given by place; the last of these is the list.
        single: types that stand for a list of one.
        keys: of inputs that are dicts, which may be given by name instead.
        expects: what the list may be, for messages.
        unlists: lists of one are answered without the list.
        is_best_alone: without `top_k` an input's one answer stands without a list.
        has_windows: with `stride` a long text is answered by windows.
    """

    heads: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    usage: str = "texts"
    inputs: tuple[str, ...] = ("texts",)
    single: tuple[type, ...] = (str,)
    keys: tuple[str, ...] = ()
    expects: str = "a text or a list of texts"
    unlists: bool = False
    is_best_alone: bool = False
    has_windows: bool = True


_PAIRS: dict[str, Any] = {
    "single": (str, dict),
    "expects": "a text, a dict or a list of them",
    "is_best_alone": True,
}
# `model(…)` answers the first that fits its head, unless told another.
TASKS = {
    "embedding": Task(("embedding",), ("sentence_embedding",)),
    "sparse-embedding": Task(("embedding",), ("sparse_embedding", "token_weights")),
    "multi-vector": Task(("embedding",), ("token_embeddings",), has_windows=False),
    "text-classification": Task(("text-classification",), inputs=("inputs",), **_PAIRS),
    "reranking": Task(
        ("text-classification",), (), "query, documents", ("query", "documents"), (), expects="a list of documents"
    ),
    "token-classification": Task(("token-classification",)),
    "question-answering": Task(
        ("question-answering",),
        (),
        "question=…, context=…",
        ("inputs",),
        (dict,),
        keys=("question", "context"),
        expects='{"question": …, "context": …} or a list',
        unlists=True,
    ),
    "fill-mask": Task(("fill-mask", "pretraining"), unlists=True),
    "rescoring": Task(
        ("fill-mask", "pretraining"), (), "sentences", ("inputs",), (str, dict), expects="sentences or n-best lists"
    ),
    "next-sentence": Task(("next-sentence", "pretraining"), (), "pairs", ("pairs",), **_PAIRS),
    "explain": Task(
        (
            "embedding",
            "text-classification",
            "token-classification",
            "question-answering",
            "next-sentence",
            "pretraining",
        ),
        ("sentence_embedding", "logits", "start_logits", "seq_relationship_logits"),
        "inputs",
        ("inputs",),
        (str, dict),
        expects="an input of the file's own task, of an embedding file a pair of texts, or a list of them",
    ),
}


# What others call them.
_ALIASES = {"ner": "token-classification", "sentiment-analysis": "text-classification"}


def name_task(task: str) -> str:
    """A task's own name, for one of transformers' other names of it; what is none stays."""
    return _ALIASES.get(task, task)


def find_fitting(head: str, outputs: tuple[str, ...]) -> list[str]:
    """The tasks that a file of this head answers with these outputs, its own first."""
    return [
        name
        for name, call in TASKS.items()
        if head in call.heads and (not call.outputs or not set(call.outputs).isdisjoint(outputs))
    ]


@cache
def find_task(name: str) -> Any:
    """The module of a task."""
    return import_module(f"edgebert.tasks.{name.replace('-', '_')}")


def find_limit(task: str, spec: EncoderSpec, tokenizer: Tokenizer, options: Mapping[str, Any]) -> int:
    """Tokens that a row of a task has at most with these options, special tokens included."""
    own = getattr(find_task(task), "find_limit", None)
    limit: int = own(spec, tokenizer, options) if own else options.get("max_length") or tokenizer.max_length
    return limit
