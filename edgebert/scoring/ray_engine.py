"""Scoring on Ray Data with the same readers, scorer and writer: tasks read files, a pool of actors scores the rows."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgebert.errors import InvalidInputError, require
from edgebert.scoring.output import Output
from edgebert.scoring.readers import InputFile, Source, Window
from edgebert.scoring.scorer import Scorer
from edgebert.scoring.survey import Survey, survey
from edgebert.scoring.writers import TableWriter, make_part

if TYPE_CHECKING:
    import pyarrow as pa

_ACTOR_CPUS, _READER_CPUS = 0.9, 0.1  # an actor a CPU, and readers beside them


class WindowReader:
    """What a reading task runs: file numbers in, the windows of these files out, each pickled."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        """The windows of the files, one a batch."""
        for number in batch["file"]:
            for window in self._source.read(self._source.files[number]):
                yield {"window": [pickle.dumps(window)]}


class WindowScorer:
    """What an actor of the pool runs: windows in, tables with results out."""

    def __init__(self, writer: TableWriter, model: str, columns: Sequence[str], options: dict[str, Any]) -> None:
        self._writer = writer
        self._scorer = Scorer(model, columns, **options)

    def __call__(self, batch: Mapping[str, Any]) -> pa.Table:
        """The one window of the batch with its results."""
        window: Window = pickle.loads(batch["window"][0])
        return make_part(window, self._scorer, self._writer).payload


def score_on_ray(
    model: str | os.PathLike[str],
    source: Source,
    output: Output,
    columns: Sequence[str],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Score on the cluster that Ray is connected to, or on this machine; every node must see the same paths.

    Args:
        model: a model file.
        source: the input; its files are read side by side, so that one big file is read by one task.
        output: a folder; Ray names the files in it and does not keep the order of rows.
        columns: the columns of texts.
        options: those of `Scorer`; threads are one an actor unless given.

    Returns:
        What `score` returns.

    Raises:
        InvalidInputError: an input, output or option that is not usable.
        BackendUnavailableError: Ray is not installed.
    """
    require("ray", "ray")
    import pyarrow.dataset
    import ray

    if not output.is_folder:
        raise InvalidInputError(f"Ray writes many files: {output.path} must be a folder, a name without a suffix")
    output.refuse_to_overwrite()
    started = time.perf_counter()
    options = {**options, "threads": options.get("threads") or 1}
    scorer = Scorer(os.path.abspath(model), columns, **options)
    writer = TableWriter(survey(source, scorer, _on_ray), scorer)
    arguments = (writer, os.path.abspath(model), columns, options)
    files = ray.data.from_items([{"file": number} for number in range(len(source.files))])
    windows = files.repartition(len(source.files)).map_batches(
        WindowReader(source).__call__, batch_size=1, num_cpus=_READER_CPUS
    )
    scored = windows.map_batches(
        WindowScorer,
        fn_constructor_args=arguments,
        batch_size=1,
        num_cpus=_ACTOR_CPUS,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=int(ray.cluster_resources()["CPU"])),
    )
    scored.write_parquet(os.path.abspath(output.path))
    seconds = time.perf_counter() - started
    written = pyarrow.dataset.dataset(output.path, schema=writer.schema)
    count = written.count_rows()
    return {
        "rows": count,
        "errors": written.count_rows(filter=pyarrow.dataset.field(scorer.error_column).is_valid()),
        "truncated": written.count_rows(filter=pyarrow.dataset.field(writer.truncated_column)),
        "seconds": seconds,
        "rows_per_second": count / seconds,
    }


def _on_ray(read: Callable[[InputFile], Survey], files: Sequence[InputFile]) -> Iterable[Survey]:
    """What `read` finds in each file, in order, by tasks."""
    import ray

    task = ray.remote(num_cpus=_READER_CPUS)(lambda file: read(file))
    try:
        yield from map(ray.get, [task.remote(file) for file in files])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
