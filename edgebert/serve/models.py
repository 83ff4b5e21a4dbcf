"""The models that are served, by name, and work for their queues."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np

import edgebert
from edgebert.errors import InvalidInputError
from edgebert.model import Model, unlist, unlist_each
from edgebert.serve.batcher import Batcher, Work
from edgebert.serve.errors import RequestError
from edgebert.serve.metrics import Metrics
from edgebert.serve.settings import Settings
from edgebert.tasks import find_fitting, find_task
from edgebert.tasks.base import F32, Outputs, Prepared, in_order
from edgebert.tokenizer import Row

Items = Sequence[Any]


@dataclass(frozen=True)
class Served:
    """A model with its name and queue.

    Attributes:
        name: that clients call it by.
        model: as loaded.
        batcher: its queue.
        created: seconds since 1970, when it was loaded.
        tasks: that it answers without further options, its own first.
        all_tasks: those, and others that fit its head.
    """

    name: str
    model: Model
    batcher: Batcher
    created: int
    tasks: tuple[str, ...]
    all_tasks: frozenset[str]


class Models:
    """All models, once they are `read` and `put`; both again take the files as they are then."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._by_name: dict[str, Served] = {}

    def read(self) -> dict[str, Model]:
        """Load all files.

        Raises:
            EdgeBertError: one of them cannot be loaded.
        """
        settings, loaded = self._settings, {}
        for name, path in settings.models:
            model = edgebert.load(path, settings.backend, settings.device, settings.threads)
            if model.tokenizer is None:
                raise InvalidInputError(
                    f"{path} has no tokenizer, and texts need one: export it from a folder that has one"
                )
            loaded[name] = model
        return loaded

    def put(self, loaded: dict[str, Model]) -> None:
        """Serve these from now on; those before answer what they have taken."""
        before = list(self)
        self._by_name = {name: self._serve(name, model) for name, model in loaded.items()}
        for served in before:
            served.batcher.close()

    def _serve(self, name: str, model: Model) -> Served:
        tasks = _find_tasks(model)
        fitting = find_fitting(model.task, model.spec.outputs)
        batcher = Batcher(name, model, self._settings, self._metrics)
        return Served(name, model, batcher, int(time.time()), tasks, frozenset((*fitting, *tasks)))

    def close(self) -> None:
        """Take no more requests."""
        for served in self._by_name.values():
            served.batcher.close()

    def __iter__(self) -> Iterator[Served]:
        return iter(self._by_name.values())

    def find(self, name: str | None, *tasks: str) -> Served:
        """The model of a name, or the first that answers one of the tasks; none named: the first at all.

        Raises:
            RequestError: there is none, or it does not answer any of the tasks.
        """
        if name is not None:
            if name not in self._by_name:
                raise RequestError(404, "model_not_found", f"there is no model {name!r:.100}; {self._list()}")
            served = self._by_name[name]
            if tasks and served.all_tasks.isdisjoint(tasks):
                raise RequestError(400, "wrong_task", f"{name} does not answer {' or '.join(tasks)}; {self._list()}")
            return served
        for served in self:
            if not tasks or set(tasks) & set(served.tasks):
                return served
        raise RequestError(404, "model_not_found", f"no model here answers {' or '.join(tasks)}; {self._list()}")

    def _list(self) -> str:
        return "served are " + ", ".join(f"{served.name} ({', '.join(served.tasks)})" for served in self)


def _find_tasks(model: Model) -> tuple[str, ...]:
    found = find_fitting(model.task, model.spec.outputs)
    if model.task == "embedding":
        found.append("embed-all")
    if "reranking" in found and len(model.spec.labels) > 1:  # needs to be told by which label
        found.remove("reranking")
    return tuple(found)


def estimate_tokens(items: Any, longest: int) -> int:
    """About how many tokens texts have that stand anywhere in `items`, before they are read."""
    if isinstance(items, str):
        return min(len(items) // 3 + 2, longest)
    if isinstance(items, dict):
        items = list(items.values())
    if isinstance(items, (list, tuple)):
        return len(items) if items and isinstance(items[0], int) else sum(estimate_tokens(x, longest) for x in items)
    return 1


@cache
def find_options(task: str) -> dict[str, str]:
    """What the parameters of POST /models/NAME/TASK may have, besides `truncate`: name -> annotation."""
    own = fields(find_task(task).Options)
    return {field.name: str(field.type) for field in own if field.name not in ("spec", "query")}


def task_work(
    served: Served, task: str, inputs: Sequence[Any], options: dict[str, Any], is_long_allowed: bool, unlists: bool
) -> tuple[Work, int]:
    """(work that answers a task, how many inputs it has).

    Args:
        served: the model.
        task: one that it answers.
        inputs: as `model(*inputs)` takes them.
        options: of the task, `max_length` and `stride` among them.
        is_long_allowed: whether what is too long is truncated.
        unlists: answer as `model(…)` does, that is without a list where pipelines leave it out.

    Raises:
        InvalidInputError: inputs or options that are not usable.
    """
    model, module = served.model, find_task(task)
    limits = {key: options[key] for key in ("max_length", "stride") if key in options}
    own = {key: value for key, value in options.items() if key not in limits}
    given, items, arguments = model.read_call(task, inputs, own)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    chosen = module.Options(spec=model.spec, **limits, **arguments)

    def decode(outputs: Outputs) -> Any:
        answers = module.decode(items, outputs, tokenizer, chosen)
        return unlist(task, given, unlist_each(task, answers, own), own) if unlists else answers

    def prepare() -> Prepared:
        prepared: Prepared = module.prepare(items, tokenizer, chosen)
        return prepared

    longest = chosen.max_length if isinstance(chosen.max_length, int) else model.spec.max_length
    cost = estimate_tokens(items, longest)
    if task == "reranking":
        cost += len(items) * estimate_tokens(inputs[0], longest)
    return Work(prepare, decode, cost, is_long_allowed), len(items)


def ids_work(served: Served, rows: list[list[int]], options: dict[str, Any], is_long_allowed: bool) -> Work:
    """Work that embeds token ids as they are, special tokens included, or not."""
    model, module = served.model, find_task("embedding")
    chosen = module.Options(spec=model.spec, **options)
    longest = model.spec.max_length
    is_truncated = np.array([len(row) > longest for row in rows], np.bool_)

    def decode(outputs: Outputs) -> Any:
        return module.decode(rows, outputs, model.tokenizer, chosen)

    return Work(
        lambda: Prepared(_id_rows(rows, model), ("sentence_embedding",), is_truncated),
        decode,
        sum(min(len(row), longest) for row in rows),
        is_long_allowed,
    )


def _id_rows(rows: list[list[int]], model: Model) -> list[Row]:
    made = []
    for i, row in enumerate(rows):
        kept = row[: model.spec.max_length]
        if not kept or min(kept) < 0 or max(kept) >= model.spec.vocab_size:
            raise InvalidInputError(
                f"input {i}: token ids must be from 0 to {model.spec.vocab_size - 1}, those of this model's own "
                "vocabulary, and at least one: send texts, or ids of /tokenize"
            )
        made.append(Row(i, 0, np.array(kept, np.int32), np.zeros(len(kept), np.int32)))
    return made


def all_tokens_work(served: Served, texts: list[str], is_long_allowed: bool) -> Work:
    """Work that gives the hidden states of every token, special tokens included: a list of f32 [tokens, width]."""
    tokenizer = served.model.tokenizer
    assert tokenizer is not None

    def prepare() -> Prepared:
        rows, is_truncated = tokenizer.make_rows(texts)
        return Prepared(rows, ("last_hidden_state",), is_truncated)

    def decode(outputs: Outputs) -> list[F32]:
        return [values["last_hidden_state"] for _, values in in_order(outputs)]

    return Work(prepare, decode, estimate_tokens(texts, served.model.spec.max_length), is_long_allowed)
