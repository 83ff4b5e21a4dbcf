"""EdgeBERT: BERT-family encoders as one ONNX file, with the same answer on every backend."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module it comes from, imported on first use so that `import edgebert` stays light.
_LAZY = {
    "Model": "edgebert.model",
    "load": "edgebert.model",
    "PackedBatch": "edgebert.batch",
    "available_backends": "edgebert.backends.registry",
    "check": "edgebert.artifact.check",
    "export": "edgebert.artifact.export",
    "EdgeBertError": "edgebert.errors",
    "ModelFormatError": "edgebert.errors",
    "UnsupportedModelError": "edgebert.errors",
    "InvalidInputError": "edgebert.errors",
    "BackendUnavailableError": "edgebert.errors",
}

__all__ = [*sorted(_LAZY), "__version__"]  # noqa: PLE0604

if TYPE_CHECKING:
    from edgebert.artifact.check import check
    from edgebert.artifact.export import export
    from edgebert.backends.registry import available_backends
    from edgebert.batch import PackedBatch
    from edgebert.errors import (
        BackendUnavailableError,
        EdgeBertError,
        InvalidInputError,
        ModelFormatError,
        UnsupportedModelError,
    )
    from edgebert.model import Model, load


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edgebert' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))
