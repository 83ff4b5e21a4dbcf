"""Finished stages on disk: a checkpoint and what was measured of it, so that a run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from edgebert.artifact.spec import EncoderSpec
from edgebert.checkpoints.loading import Checkpoint
from edgebert.errors import EdgeBertError

_RECORD = "stage.json"
_SMOOTH = ".smooth"  # ends the names of smoothing factors among the tensors


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        name: for instance "finetune".
        folder: where it lies; `model.onnx` in it is its fp32 file.
        checkpoint: what it made.
        record: what was measured, and how it went; JSON.
    """

    name: str
    folder: Path
    checkpoint: Checkpoint
    record: dict[str, Any]

    @property
    def model(self) -> Path:
        """The stage's fp32 file."""
        return self.folder / "model.onnx"


class StageStore:
    """The stages of a run, in order, in one folder.

    The name of a stage's folder hashes everything it depends on: the stages before it and its own settings. So a run
    that is started again reuses finished stages, and a changed recipe keeps those that the change does not affect.
    """

    def __init__(self, folder: Path, origin: object, base: Checkpoint) -> None:
        """Begin a run.

        Args:
            folder: of the stages; made if need be.
            origin: what the first stage depends on: model, data, seed.
            base: the checkpoint that the model came from.
        """
        self._folder, self._base = folder, base
        self._key = _digest(repr(origin))
        self.stages: list[Stage] = []
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, settings: object, make: Callable[[Path], tuple[Checkpoint, dict[str, Any]]]) -> Stage:
        """The stage of that name and settings: taken from disk if it is finished, else made.

        Args:
            name: a short word.
            settings: what it depends on besides the stages before it; its repr counts.
            make: called with a folder; writes model.onnx there and returns the checkpoint and what to record. If it
                fails, the folder is kept, so that a training state in it can be resumed.
        """
        self._key = _digest(f"{self._key} {name} {settings!r}")
        folder = self._folder / f"{len(self.stages)}-{name}-{self._key}"
        if not folder.exists():
            draft = folder.with_name(folder.name + ".partial")
            draft.mkdir(exist_ok=True)
            checkpoint, record = make(draft)
            save_checkpoint(draft, checkpoint)
            (draft / _RECORD).write_text(json.dumps(record, ensure_ascii=False, indent=1), encoding="utf-8")
            os.replace(draft, folder)
        stage = Stage(name, folder, load_saved(folder, self._base), json.loads((folder / _RECORD).read_bytes()))
        self.stages.append(stage)
        return stage


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write weights, spec, tokenizer and config into a folder that is there."""
    smooth = {f"{name}{_SMOOTH}": factors for name, factors in checkpoint.smooth.items()}
    save_file(checkpoint.tensors | smooth, folder / "model.safetensors")
    texts: Mapping[str, Any] = {
        "spec": checkpoint.spec.to_json(),
        "tokenizer": checkpoint.tokenizer_json,
        "config": checkpoint.config,
        "source_files": sorted(checkpoint.source_files),
    }
    (folder / "checkpoint.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")


def load_saved(folder: Path, base: Checkpoint) -> Checkpoint:
    """Read back what `save_checkpoint` wrote; the source's own files are the base's.

    Raises:
        EdgeBertError: the folder is damaged.
    """
    try:
        texts = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "model.safetensors")
        smooth = {name: tensors.pop(name) for name in list(tensors) if name.endswith(_SMOOTH)}
        return replace(
            base,
            spec=EncoderSpec.from_json(texts["spec"]),
            tensors=tensors,
            smooth={name.removesuffix(_SMOOTH): factors for name, factors in smooth.items()},
            tokenizer_json=texts["tokenizer"],
            config=texts["config"],
            source_files={name: base.source_files[name] for name in texts["source_files"]},
        )
    except (OSError, ValueError, KeyError) as error:
        raise EdgeBertError(f"finished stage {folder} cannot be read ({error}): remove the folder") from None
