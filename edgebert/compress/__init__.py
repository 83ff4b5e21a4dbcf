"""Compression: fine-tune, distil, prune and quantize a model to a budget. The only part that imports torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Budget", "Distillation", "Pruning", "QuantizationAware", "Recipe", "Result", "Training", "run"]

if TYPE_CHECKING:
    from edgebert.compress.pipeline import Result, run
    from edgebert.compress.recipe import Budget, Distillation, Pruning, QuantizationAware, Recipe, Training


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edgebert.compress' has no attribute {name!r}")
    return getattr(import_module(f"edgebert.compress.{'pipeline' if name in ('Result', 'run') else 'recipe'}"), name)
