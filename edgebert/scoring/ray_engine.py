"""The same readers, scorer and writer on Ray Data: files are read by tasks, and a pool of actors scores their rows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgebert.errors import InvalidInputError
from edgebert.scoring.output import Output
from edgebert.scoring.readers import Source, Window
from edgebert.scoring.runner import first_window, require
from edgebert.scoring.scorer import Scorer, find_fault
from edgebert.scoring.writers import TableWriter

if TYPE_CHECKING:
    import pyarrow as pa

_ACTOR_CPUS, _READER_CPUS = 0.9, 0.1  # an actor a CPU, and readers beside them


class RayScorer:
    """What an actor of the pool is: tables of rows in, tables with results out."""

    def __init__(
        self, source: Source, writer: TableWriter, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self._file = source.files[0]
        self._writer = writer
        self._scorer = Scorer(*arguments, **options)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows with results; those that could not be read come with their error."""
        name = self._scorer.error_column
        errors = {i: error for i, error in enumerate(table[name].to_pylist()) if error is not None}
        window = Window(self._file, rows=table.drop_columns(name), errors=errors)
        results = self._scorer({name: window.column(name) for name in self._scorer.columns})
        return self._writer.encode(window, results).payload


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
    import pyarrow as pa
    import pyarrow.dataset
    import ray

    if not output.is_folder:
        raise InvalidInputError(f"Ray writes many files: {output.path} must be a folder, a name without a suffix")
    output.refuse_to_overwrite()
    first = first_window(source, columns)
    options = {**options, "threads": options.get("threads") or 1}
    scorer = Scorer(os.path.abspath(model), columns, **options)
    writer = TableWriter(source, scorer, first)
    error_column, scorer_columns = scorer.error_column, scorer.columns

    def read(batch: Mapping[str, Any]) -> Iterator[pa.Table]:
        for number in batch["file"]:
            for window in source.read(source.files[number]):
                texts = zip(*map(window.column, scorer_columns), strict=True)  # as they are before they have one type
                errors = [window.errors.get(i) or find_fault(scorer_columns, row) for i, row in enumerate(texts)]
                table = writer.pass_through(window, errors)
                yield table.append_column(error_column, pa.array(errors, pa.string()))

    started = time.perf_counter()
    files = ray.data.from_items([{"file": number} for number in range(len(source.files))])
    rows = files.repartition(len(source.files)).map_batches(read, batch_size=1, num_cpus=_READER_CPUS)
    cpus = int(ray.cluster_resources()["CPU"])
    scored = rows.map_batches(
        RayScorer,
        fn_constructor_args=(source, writer, (os.path.abspath(model), columns), options),
        batch_format="pyarrow",
        batch_size=source.window_rows,
        num_cpus=_ACTOR_CPUS,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, cpus)),
    )
    scored.write_parquet(os.path.abspath(output.path))
    seconds = time.perf_counter() - started
    written = pyarrow.dataset.dataset(output.path, schema=writer.schema)
    count = written.count_rows()
    return {
        "rows": count,
        "errors": written.count_rows(filter=pyarrow.dataset.field(error_column).is_valid()),
        "truncated": written.count_rows(filter=pyarrow.dataset.field(writer.truncated_column)),
        "seconds": seconds,
        "rows_per_second": count / seconds,
    }
