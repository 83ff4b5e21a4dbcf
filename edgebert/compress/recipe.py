"""The recipe: everything a compression run is told, frozen and checked, and the same as TOML."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Training:
    """How a model is trained."""

    epochs: int = 6
    batch_size: int = 32
    learning_rate: float = 1e-4
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    dropout: float = 0.1  # also of the attention weights
    patience: int = 2  # epochs without a better score before training stops
    max_length: int | None = None  # tokens; None: the model's limit
    precision: str = "auto"
