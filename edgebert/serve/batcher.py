"""A queue a model: the rows of several requests run together, and nobody waits for company.

A thread takes what waits, up to a budget of tokens, and runs it at once; what comes meanwhile is its next batch. So a
text alone starts when it comes, and batches grow with the load. Requests are taken in the order of the time they came
plus a handicap for their tokens: short ones go first, and a long one is overtaken for as long as its handicap only. A
request of more than one batch lets others run between its own batches.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from edgebert.backends.base import Outputs
from edgebert.model import Model
from edgebert.runner import run_rows
from edgebert.serve.errors import ClientGoneError, RequestError
from edgebert.serve.metrics import Metrics
from edgebert.serve.settings import Settings
from edgebert.tasks.base import Prepared
from edgebert.tokenizer import Row

HANDICAP = 1e-4  # seconds a token
LISTEN_AFTER = 0.1  # seconds
MAX_HELD = 1 << 22  # numbers that requests which run together give; of more, a request runs alone and streams them


class Answer(NamedTuple):
    """What a model answered: `value`, the indices of inputs that were truncated, and of how many tokens it was made."""

    value: Any
    truncated: list[int]
    num_tokens: int


@dataclass(frozen=True)
class Work:
    """What a request asks of a model.

    Attributes:
        prepare: makes its rows; runs on the model's thread.
        decode: makes the answer of their outputs; likewise.
        cost: about how many tokens it has.
        is_long_allowed: whether what is too long may be truncated.
    """

    prepare: Callable[[], Prepared]
    decode: Callable[[Iterable[tuple[Row, Outputs]]], Any]
    cost: int
    is_long_allowed: bool = True


@dataclass(eq=False)
class _Job:
    work: Work
    future: asyncio.Future[Answer]
    came: float
    num_tokens: int = 0
    truncated: list[int] = field(default_factory=list)
    found: list[tuple[Row, Outputs]] = field(default_factory=list)


class Batcher:
    """The queue of one model and the thread that runs it."""

    def __init__(self, name: str, model: Model, settings: Settings, metrics: Metrics) -> None:
        self._name, self._model, self._settings, self._metrics = name, model, settings, metrics
        self._changed = threading.Condition()
        self._waiting: tuple[list[Any], list[Any]] = ([], [])  # heaps: requests of one batch at most, and larger ones
        self._waiting_tokens = 0
        self._number = 0
        self._speed = 1e4  # tokens a second, of late
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._serve, name=f"edgebert {name}", daemon=True)
        self._thread.start()

    async def run(self, work: Work, is_gone: Callable[[], Coroutine[Any, Any, None]], deadline: float) -> Answer:
        """The answer to `work`.

        Args:
            work: what to do.
            is_gone: a coroutine function that raises once the client has hung up.
            deadline: of the loop's clock.

        Raises:
            RequestError: the queue is full, the time is over, or a limit is exceeded.
            EdgeBertError: what the model refuses.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._put(_Job(work, future, time.monotonic()))
        # most are answered soon: only then it is worth listening for clients that hang up
        timers = (
            self._loop.call_at(deadline, self._expire, future),
            self._loop.call_later(LISTEN_AFTER, self._listen, future, is_gone),
        )
        try:
            return await future
        finally:
            for timer in timers:
                timer.cancel()
            future.cancel()  # where this task was cancelled: the queue drops it

    def _expire(self, future: asyncio.Future[Answer]) -> None:
        _give_up(
            future,
            RequestError(
                504,
                "timeout",
                f"not answered within {self._settings.timeout:g} s: send fewer texts, or start the server with a "
                "longer --timeout",
            ),
        )

    def _listen(self, future: asyncio.Future[Answer], is_gone: Callable[[], Coroutine[Any, Any, None]]) -> None:
        watch = self._loop.create_task(is_gone())
        watch.add_done_callback(lambda task: None if task.cancelled() else _give_up(future, task.exception()))
        future.add_done_callback(lambda _: watch.cancel())

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return sum(map(len, self._waiting))

    def close(self) -> None:
        """Take no more; the thread ends when it has answered what waits."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _put(self, job: _Job) -> None:
        with self._changed:
            if self.num_waiting >= self._settings.max_waiting:
                self._forget_given_up()
            if self.num_waiting >= self._settings.max_waiting:
                raise RequestError(
                    429,
                    "overloaded",
                    f"{self.num_waiting} requests wait for this model already: try again later",
                    max(1, math.ceil(self._waiting_tokens / self._speed)),
                )
            assert not self._is_closed
            self._number += 1  # so that equal keys keep their order, and jobs are never compared
            key = job.came + job.work.cost * HANDICAP
            is_large = job.work.cost > self._settings.batch_tokens
            heapq.heappush(self._waiting[is_large], (key, self._number, job))
            self._waiting_tokens += job.work.cost
            self._changed.notify()

    def _forget_given_up(self) -> None:
        for heap in self._waiting:
            heap[:] = [entry for entry in heap if not entry[2].future.done()]
            heapq.heapify(heap)
        self._waiting_tokens = sum(job.work.cost for heap in self._waiting for _, _, job in heap)

    def _take(self, only_small: bool = False) -> list[_Job]:
        """The next requests of one batch, or one large one; none if none wait, or if they have been given up."""
        small, large = self._waiting
        jobs: list[_Job] = []
        cost = 0
        if large and not only_small and not (small and small[0] < large[0]):
            jobs.append(heapq.heappop(large)[2])
        else:
            while small and (not jobs or cost + small[0][2].work.cost <= self._settings.batch_tokens):
                jobs.append(heapq.heappop(small)[2])
                cost += jobs[-1].work.cost
        self._waiting_tokens -= sum(job.work.cost for job in jobs)
        return [job for job in jobs if not job.future.done()]

    # The model's thread

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not any(self._waiting):
                    if self._is_closed:
                        return
                    self._changed.wait()
                jobs = self._take()
            self._run(jobs)

    def _run(self, jobs: list[_Job], lets_others_in: bool = True) -> None:
        """Run requests together, and then those alone that give too much to be held."""
        started = time.monotonic()
        together: dict[tuple[str, ...], list[tuple[_Job, list[Row]]]] = {}
        alone: list[tuple[_Job, Iterable[Row], tuple[str, ...]]] = []
        answered: list[tuple[_Job, Any]] = []
        for job in jobs:
            self._metrics.queue_seconds.observe(started - job.came)
            try:
                rows, outputs, is_truncated = job.work.prepare()
                job.truncated = is_truncated.nonzero()[0].tolist()
                if job.truncated and not job.work.is_long_allowed:
                    self._refuse_long(job)
                if isinstance(rows, list):
                    job.num_tokens = self._check_tokens(sum(len(row.input_ids) for row in rows))
                if isinstance(rows, list) and self._can_hold(job, rows, outputs):
                    together.setdefault(outputs, []).append((job, rows))
                else:
                    alone.append((job, rows, outputs))
            except Exception as error:  # whatever it is, somebody waits for it
                answered.append((job, error))
        for outputs, found in together.items():
            owners = {id(row): job for job, rows in found for row in rows}
            try:
                for row, values in self._forward([row for _, rows in found for row in rows], outputs):
                    owners[id(row)].found.append((row, values))
            except Exception as error:
                answered += [(job, error) for job, _ in found]
                continue
            answered += [(job, _try(job.work.decode, job.found)) for job, _ in found]
        self._deliver(answered)
        for job, rows, outputs in alone:
            value = _try(job.work.decode, self._run_alone(job, rows, outputs, lets_others_in))
            self._deliver([(job, value)])

    def _deliver(self, answered: list[tuple[_Job, Any]]) -> None:
        if answered:
            self._loop.call_soon_threadsafe(_deliver, answered)

    def _can_hold(self, job: _Job, rows: list[Row], outputs: tuple[str, ...]) -> bool:
        """Whether it is a batch at most, and what it gives is little enough to wait for the others of its batch."""
        if job.num_tokens > self._settings.batch_tokens:
            return False
        widths = [self._model.spec.output_width(name) for name in outputs]
        width = sum(width or 1 for is_token, width in widths if is_token)
        row_width = sum(width for is_token, width in widths if not is_token)
        wanted = (row.input_ids if row.output_tokens is None else row.output_tokens for row in rows)
        return row_width * len(rows) + (width and width * sum(map(len, wanted))) <= MAX_HELD

    def _forward(self, rows: list[Row], outputs: tuple[str, ...]) -> Iterator[tuple[Row, Outputs]]:
        num_tokens = sum(len(row.input_ids) for row in rows)
        started = time.monotonic()
        yield from run_rows(self._model.backend, rows, outputs, self._settings.batch_tokens)
        seconds = max(time.monotonic() - started, 1e-6)
        self._speed += 0.1 * (num_tokens / seconds - self._speed)
        self._metrics.batch_tokens.observe(num_tokens)
        self._metrics.batch_rows.observe(len(rows))

    def _run_alone(
        self, job: _Job, rows: Iterable[Row], outputs: tuple[str, ...], lets_others_in: bool
    ) -> Iterator[tuple[Row, Outputs]]:
        """Rows and outputs of a large request; others run between its batches, for no more time than it takes."""

        def count() -> Iterator[Row]:  # rows that are made as they are taken
            for row in rows:
                job.num_tokens = self._check_tokens(job.num_tokens + len(row.input_ids))
                yield row

        since, others = time.monotonic(), 0.0
        taken = rows if isinstance(rows, list) else count()
        for found in run_rows(self._model.backend, taken, outputs, self._settings.batch_tokens):
            if job.future.done():
                raise ClientGoneError("given up")
            if lets_others_in and self._waiting[0] and time.monotonic() - since >= others:
                with self._changed:
                    jobs = self._take(only_small=True)
                before = time.monotonic()
                self._run(jobs, lets_others_in=False)
                since = time.monotonic()
                others = since - before
            yield found

    def _check_tokens(self, num_tokens: int) -> int:
        if num_tokens > self._settings.max_tokens:
            raise RequestError(
                413,
                "too_many_tokens",
                f"the request has more than {self._settings.max_tokens} tokens, which is the most this server takes: "
                "send it in parts",
            )
        return num_tokens

    def _refuse_long(self, job: _Job) -> None:
        longest = self._model.tokenizer.max_length if self._model.tokenizer else self._model.spec.max_length
        raise RequestError(
            413,
            "too_long",
            f"input {job.truncated[0]} has more than {longest} tokens, which is the most the model "
            "takes: shorten it, or ask for truncation",
        )


def _give_up(future: asyncio.Future[Answer], error: BaseException | None) -> None:
    if error is not None and not future.done():
        future.set_exception(error)


def _try(make: Callable[[Any], Any], outputs: Any) -> Any:
    try:
        return make(outputs)
    except Exception as error:  # whatever it is, somebody waits for it
        return error


def _deliver(answered: list[tuple[_Job, Any]]) -> None:
    """Give the answers to those who wait; runs on the event loop."""
    for job, value in answered:
        if job.future.done():
            continue
        if isinstance(value, Exception):
            job.future.set_exception(value)
        else:
            job.future.set_result(Answer(value, job.truncated, job.num_tokens))
