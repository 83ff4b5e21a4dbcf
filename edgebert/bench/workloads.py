"""What contenders of `edgebert bench` compute: texts of one length or of a file, and the oracle's answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from edgebert.artifact.reader import read_artifact
from edgebert.backends.registry import load_backend
from edgebert.batch import PackedBatch
from edgebert.bench.answers import answer_outputs, answer_rows
from edgebert.bench.harness import F32
from edgebert.errors import InvalidInputError
from edgebert.exporting.export import CALIBRATION_FILE
from edgebert.files import hash_file, read_texts
from edgebert.tokenizer import Tokenizer

Row = list[int]

_MAX_TEXTS = 256  # of a file, evenly spread
_CHECK_TEXTS = 24


@dataclass(frozen=True)
class Workload:
    """Texts of one length, or those of a file, `batch_size` of them computed together and timed."""

    length: str
    batch_size: int

    @property
    def file(self) -> Path | None:
        """Of texts, one a line."""
        return Path(self.length.removeprefix("text:")) if self.length.startswith("text:") else None

    @property
    def name(self) -> str:
        """For people."""
        texts = f"texts of {self.file.name}" if self.file else f"{self.length} tokens"
        return f"{texts}, {self.batch_size} at a time" if self.batch_size > 1 else texts


class Model:
    """A file that is measured: its texts and the oracle's answers."""

    def __init__(self, path: Path, name: str) -> None:
        artifact = read_artifact(path)
        self.path, self.name, self.spec = path, name, artifact.spec
        self.precision = "int8" if self.spec.is_int8 else "fp32"
        self.tokenizer_json = artifact.tokenizer_json
        self.sha256 = hash_file(path)
        self.answers = lru_cache(self._answer)

    def rows(self, workload: Workload) -> tuple[Row, ...]:
        """Token ids of the workload's texts.

        Raises:
            InvalidInputError: too long for the model, or texts without a tokenizer.
        """
        if workload.file:
            return self._tokenize(sample_texts(workload.file))
        length = int(workload.length)
        if length > self.spec.usable_positions:
            raise InvalidInputError(f"{length} tokens: the model has {self.spec.usable_positions} positions")
        if self._tokenizer is None:
            return self._draw_rows([length] * workload.batch_size)
        sentences = CALIBRATION_FILE.read_text(encoding="utf-8").splitlines()
        texts = [" ".join([*sentences[i:], *sentences[:i]]) for i in range(workload.batch_size)]
        rows = self._tokenize(texts, length)
        if {len(row) for row in rows} != {length}:
            raise InvalidInputError(f"{length} tokens: the built-in text has only {min(map(len, rows))}")
        return rows

    def check_rows(self, calibration: int = 0) -> tuple[Row, ...]:
        """Token ids of the texts on which answers are compared, or of `calibration` other texts to calibrate with."""
        if self._tokenizer is None:
            limit = min(40, self.spec.usable_positions)
            return self._draw_rows([1 + i % limit for i in range(calibration or _CHECK_TEXTS)])
        sentences = CALIBRATION_FILE.read_text(encoding="utf-8").splitlines()
        return self._tokenize(sentences[_CHECK_TEXTS:][:calibration] if calibration else sentences[:_CHECK_TEXTS])

    def describe(self) -> dict[str, Any]:
        """What it is, as plain values."""
        spec = self.spec
        return {
            "file": self.path.name,
            "sha256": self.sha256,
            "file_mb": round(self.path.stat().st_size / 1e6, 1),
            "task": spec.task,
            "precision": self.precision,
            "num_layers": spec.num_layers,
            "hidden_size": spec.hidden_size,
            "vocab_size": spec.vocab_size,
        }

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        if self.tokenizer_json is None:
            return None
        spec = self.spec
        return Tokenizer.for_spec(self.tokenizer_json, spec)

    def _tokenize(self, texts: Sequence[str], max_length: int | None = None) -> tuple[Row, ...]:
        if self._tokenizer is None:
            raise InvalidInputError(f"{self.path} has no tokenizer: give lengths in tokens")
        batch, _ = self._tokenizer.tokenize(texts, max_length)
        return tuple(row.tolist() for row in np.split(batch.input_ids, batch.cu_seqlens[1:-1]))

    def _draw_rows(self, lengths: Sequence[int]) -> tuple[Row, ...]:
        choices = np.delete(np.arange(self.spec.vocab_size), self.spec.pad_token_id)  # some count positions by it
        rng = np.random.default_rng(0)
        return tuple(rng.choice(choices, length).tolist() for length in lengths)

    def _answer(self, workload: Workload | None) -> list[F32]:
        batch = PackedBatch.from_lists(self.check_rows() if workload is None else self.rows(workload))
        outputs = load_backend(self.path, "numpy").run(batch, answer_outputs(self.spec))
        return answer_rows(self.spec, batch, outputs)


@lru_cache
def sample_texts(path: Path) -> tuple[str, ...]:
    """The texts of a file, of many _MAX_TEXTS, evenly spread; raises as `read_texts`."""
    lines = read_texts(path)
    step = max(1, len(lines) // _MAX_TEXTS)
    return tuple(lines[::step][:_MAX_TEXTS])


def name_files(paths: Sequence[Path]) -> list[str]:
    """A short name for each file, different from the others'.

    Raises:
        InvalidInputError: a file is given twice.
    """
    if len({path.absolute() for path in paths}) < len(paths):
        raise InvalidInputError(f"the same file twice: {', '.join(map(str, paths))}")
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    return [f"{path.absolute().parent.name}/{path.stem}".replace("/", "-") + f"-{i}" for i, path in enumerate(paths, 1)]
