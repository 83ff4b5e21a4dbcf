"""score: runs a whole scoring job on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any

from edgebert.errors import EdgeBertError, InvalidInputError, require
from edgebert.files import hash_file, read_path
from edgebert.scoring.output import Output
from edgebert.scoring.readers import InputFile, Source, Window
from edgebert.scoring.scorer import Scorer
from edgebert.scoring.survey import Survey, survey
from edgebert.scoring.writers import WRITERS, Part, Writer, make_part

ROWS_PER_PART = 8192

# Threads that score a window each: while the model computes for one window, others are tokenized and made into parts.
_WORKERS = 2
_WAITING = 1  # windows read ahead


def score(
    model: str | os.PathLike[str],
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    columns: Sequence[str] = ("text",),
    errors: str | os.PathLike[str] | None = None,
    rows_per_part: int = ROWS_PER_PART,
    resume: bool = False,
    overwrite: bool = False,
    engine: str = "local",
    progress: bool = False,
    **scorer_options: Any,
) -> dict[str, Any]:
    """Score all rows of a file or folder.

    Args:
        model: a model file.
        source: Parquet, JSON lines or CSV, the last two also as .gz or .zst; or a folder of such files.
        output: a file of any of these formats; without a suffix a folder of Parquet files, in folders like the input's.
        columns: the column of texts; two columns for pairs, or for a question and its context.
        errors: a file for rows that cannot be scored, as JSON lines; None keeps them in the output, with null for an
            answer and the reason in the column "error".
        rows_per_part: rows that are read, sorted by length, scored and committed together: a matter of memory.
        resume: go on with a job that was interrupted.
        overwrite: replace an output that is there, once the new one is whole; without it there must be none. With
            `resume` too, this very job goes on where it was interrupted.
        engine: "local", or "ray" for a cluster that Ray knows, without resuming.
        progress: show a progress bar on standard error.
        **scorer_options: see `Scorer`: task, options, too_long, dtype, prefix, scores, threshold, backend, device and
            threads.

    Returns:
        {"rows", "errors", "truncated": counts over the whole job, "seconds", "rows_per_second": of this run}.

    Raises:
        InvalidInputError: an input, output or option that is not usable; all of the input is looked at before any row
            is scored.
        EdgeBertError: the disk failed or is full; parts that were committed stay.
        BackendUnavailableError: pyarrow, tqdm or Ray is not installed.
    """
    require("score", "pyarrow", "tqdm")
    if not isinstance(rows_per_part, int) or rows_per_part < 1:
        raise InvalidInputError(f"rows_per_part must be a positive integer, got {rows_per_part!r}")
    if engine not in ("local", "ray"):
        raise InvalidInputError(f"engine must be local or ray, got {engine!r}")
    takes = list(signature(Scorer).parameters)[2:]
    if odd := [name for name in scorer_options if name not in takes]:
        raise InvalidInputError(f"score has no option {odd[0]!r}; besides its own it takes {', '.join(takes)}")
    with _failures_told(source, output):
        model, source, output = (
            read_path(*given) for given in (("model", model), ("source", source), ("output", output))
        )
        errors = read_path("errors", errors) if errors is not None else None
        target = Output(output, errors, overwrite)
        for path in (source, model):
            for written in (output, *([errors] if errors else [])):
                if written.resolve() in (path.resolve(), *path.resolve().parents):
                    raise InvalidInputError(f"{written} would take the place of {path}: choose an output elsewhere")
        if source.is_dir() and source.resolve() in output.resolve().parents:
            raise InvalidInputError(f"{output} is inside of the input: choose an output elsewhere")
        whole = Source(source, rows_per_part, has_partition=not target.is_folder or engine == "ray")
        if engine == "ray":
            from edgebert.scoring.ray_engine import score_on_ray

            if resume or overwrite or errors:
                raise InvalidInputError(
                    "with Ray a job cannot be resumed or overwritten, and bad rows stay in the output"
                )
            return score_on_ray(model, whole, target, columns, scorer_options)
        scorer = Scorer(model, columns, **scorer_options)
        job = _describe_job(model, whole, scorer, rows_per_part, errors)
        started = time.perf_counter()
        writer, num_rows = None, 0
        if not target.look(job, resume)["complete"]:
            found = survey(whole, scorer, partial(_read_each, progress))
            writer = WRITERS[target.format](found, scorer, has_error_column=errors is None, codec=target.codec)
            num_rows = found.rows
        with target.open(job, resume):
            state = target.state
            rows_before = state["rows"]
            if writer is None or state["complete"]:
                target.tidy()
            else:
                _run(whole, scorer, writer, target, num_rows, progress)
                target.finish(writer)
        seconds = time.perf_counter() - started
        return {
            **{name: state[name] for name in ("rows", "errors", "truncated")},
            "seconds": seconds,
            "rows_per_second": (state["rows"] - rows_before) / seconds,
        }


@contextmanager
def _failures_told(source: str | os.PathLike[str], output: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what a disk raises, and files that change during a job, into EdgeBertErrors."""
    import pyarrow as pa

    try:
        yield
    except (OSError, OverflowError, pa.ArrowException) as error:
        where = str(error).partition("\n")[0]
        if isinstance(error, OSError) and error.filename:
            where = f"{error.filename}: {error.strerror}"
        raise EdgeBertError(f"scoring {source} to {output} has stopped ({where}); parts that are done stay") from error


def _read_each(progress: bool, read: Callable[[InputFile], Survey], files: Sequence[InputFile]) -> Iterator[Survey]:
    """What `read` finds in each file, in order."""
    from tqdm import tqdm

    yield from map(read, tqdm(files, "reading", unit=" files", leave=False, disable=not progress))


def _run(source: Source, scorer: Scorer, writer: Writer, output: Output, num_rows: int, progress: bool) -> None:
    """Score what is left and commit it part by part, in order."""
    from tqdm import tqdm

    pending: deque[tuple[Window, Future[Part]]] = deque()
    state = output.state
    with (
        tqdm(total=num_rows, unit=" rows", initial=state["rows"], disable=not progress, smoothing=0.1) as bar,
        ThreadPoolExecutor(_WORKERS) as pool,
    ):

        def commit_oldest() -> None:
            window, future = pending.popleft()
            output.commit(source, window, future.result(), writer)
            bar.update(len(window.rows))

        try:
            for window in _windows_from(source, state["next_file"], state["next_window"]):
                pending.append((window, pool.submit(make_part, window, scorer, writer)))
                if len(pending) > _WORKERS + _WAITING:
                    commit_oldest()
            while pending:
                commit_oldest()
            if not state["parts"]:
                empty = source.empty_window()
                output.commit(source, empty, make_part(empty, scorer, writer), writer)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _windows_from(source: Source, next_file: int, next_window: int) -> Iterator[Window]:
    for file in source.files[next_file:]:
        is_first = file is source.files[next_file]
        yield from islice(source.read(file), next_window if is_first else 0, None)


def _describe_job(
    model: str | os.PathLike[str],
    source: Source,
    scorer: Scorer,
    rows_per_part: int,
    errors: str | os.PathLike[str] | None,
) -> dict[str, Any]:
    """What the output depends on; a job is resumed only with the same."""
    path = Path(model)
    model_hash = hash_file(path / "model.onnx" if path.is_dir() else path)
    files = [(file.name, file.size, file.time_ns) for file in source.files]
    names_sizes_times = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    job = {
        "version": 3,
        "model": model_hash,
        "backend": scorer.backend,
        "input": {"files": len(files), "bytes": source.total_bytes, "names_sizes_times": names_sizes_times},
        **scorer.settings,
        "rows_per_part": rows_per_part,
        "errors": None if errors is None else os.fspath(errors),
    }
    try:
        return dict(json.loads(json.dumps(job)))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"options must be values that JSON has, to be written down with the job: {error}"
        ) from None
