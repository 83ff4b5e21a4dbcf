"""Peer: one runtime with one model, as the harness drives it."""

from __future__ import annotations

import contextlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from edgebert.batch import I64, PackedBatch

F32 = NDArray[np.float32]
Settings = dict[str, Any]
Kind = Literal["latency", "throughput"]


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's files lie.

    Attributes:
        source: what peers start from: a Hugging Face folder (config.json, model.safetensors, tokenizer.json), or for
            those over one of the project's files that file.
        folder: where peers keep what they build from it.
        model: the project's file of the same model, for peers that must answer what it answers.
    """

    source: Path
    folder: Path
    model: Path | None = None

    def to_json(self) -> str:
        """For `from_json`, in another process."""
        return json.dumps([str(path) if path else None for path in (self.source, self.folder, self.model)])

    @classmethod
    def from_json(cls, text: str) -> ModelFiles:
        """What `to_json` wrote."""
        source, folder, model = json.loads(text)
        return cls(Path(source), Path(folder), Path(model) if model else None)


class Peer(ABC):
    """A runtime with a model: built once, loaded with settings, bound to batches, called.

    Attributes:
        title: its name for people.
        precision: of the linears: "int8", "bf16" or "fp32".
        packages: the distributions a user installs to run it, without those that only building needs.
        is_own: whether it is this project's.
        is_packed: whether it computes no padding.
        file: what `load` reads, relative to `ModelFiles.folder`.
    """

    title: ClassVar[str]
    precision: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    is_own: ClassVar[bool] = False
    is_packed: ClassVar[bool] = False
    file: ClassVar[str]

    def __init__(self, files: ModelFiles) -> None:
        self.files = files

    @property
    def path(self) -> Path:
        """The file or folder that `load` reads."""
        return self.files.folder / self.file

    @abstractmethod
    def build(self, calibration: Sequence[Sequence[int]]) -> None:
        """Write `path` from the source; `calibration` are rows of token ids for those that need them."""

    def settings(self, threads: int, kind: Kind) -> list[Settings]:
        """The configurations worth trying for that kind of work, all on `threads` threads in total.

        "lanes" is the number of batches in flight at once; the harness gives each lane a Python thread.
        """
        return [{}]

    @abstractmethod
    def load(self, threads: int, settings: Settings) -> None:
        """Load the model on `threads` threads; replaces what was loaded before."""

    @abstractmethod
    def bind(self, batch: PackedBatch) -> Callable[[], Any]:
        """A call that runs the batch: inputs are made here, the call ends when its result can be read."""

    def pad(self, batch: PackedBatch) -> dict[str, I64]:
        """input_ids, attention_mask and token_type_ids, each int64 [n, max_seqlen]."""
        return dict(zip(("input_ids", "attention_mask", "token_type_ids"), batch.pad(), strict=True))

    def embed(self, output: Any, batch: PackedBatch) -> Iterable[F32]:
        """What is compared with the reference, a vector for each text, from what the call returned.

        Here sentence embeddings of unit length, f32 [n, hidden], of the padded last hidden state [n, max_seqlen,
        hidden], mean pooled. It is not part of the time taken.
        """
        hidden = np.asarray(output, np.float32)
        return normalize_rows(
            np.stack([row[:length].mean(0) for row, length in zip(hidden, batch.lengths, strict=True)])
        )


def normalize_rows(rows: F32) -> F32:
    """Rows divided by their L2 norm."""
    unit: F32 = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


@contextlib.contextmanager
def building(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, file or folder, that becomes `path` when the block ends well."""
    draft = path.with_name("draft-" + path.name)
    if draft.is_dir():
        shutil.rmtree(draft)
    yield draft
    draft.replace(path)
