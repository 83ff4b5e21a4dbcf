"""EdgeBERT: BERT-family encoders as one ONNX file, with the same answer on every backend."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgebert.errors import (
    BackendUnavailableError,
    EdgeBertError,
    InvalidInputError,
    ModelFormatError,
    UnsupportedModelError,
)

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "EdgeBertError",
    "InvalidInputError",
    "Model",
    "ModelFormatError",
    "PackedBatch",
    "UnsupportedModelError",
    "__version__",
    "available_backends",
    "check",
    "export",
    "load",
    "maxsim",
    "pipeline",
    "quantize_embeddings",
    "score",
    "semantic_search",
    "sign",
    "similarity",
]

# Public names and their modules, imported on first use, so that `import edgebert` stays light.
_MODULES = {
    "Model": "edgebert.model",
    "PackedBatch": "edgebert.batch",
    "available_backends": "edgebert.backends.registry",
    "check": "edgebert.exporting.check",
    "export": "edgebert.exporting.export",
    "load": "edgebert.model",
    "maxsim": "edgebert.tasks.multi_vector",
    "pipeline": "edgebert.model",
    "quantize_embeddings": "edgebert.tasks.embedding",
    "score": "edgebert.scoring.runner",
    "semantic_search": "edgebert.tasks.embedding",
    "sign": "edgebert.artifact.integrity",
    "similarity": "edgebert.tasks.embedding",
}

if TYPE_CHECKING:
    from edgebert.artifact.integrity import sign
    from edgebert.backends.registry import available_backends
    from edgebert.batch import PackedBatch
    from edgebert.exporting.check import check
    from edgebert.exporting.export import export
    from edgebert.model import Model, load, pipeline
    from edgebert.scoring.runner import score
    from edgebert.tasks.embedding import quantize_embeddings, semantic_search, similarity
    from edgebert.tasks.multi_vector import maxsim


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'edgebert' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_MODULES))
