"""Tiny models as PyTorch's exporters write them, for tests of other exporters' ONNX files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

OUTPUTS = {
    "embedding": ["last_hidden_state"],
    "text-classification": ["logits"],
    "token-classification": ["logits"],
    "question-answering": ["start_logits", "end_logits"],
    "fill-mask": ["logits"],
    "next-sentence": ["logits"],
    "pretraining": ["prediction_logits", "seq_relationship_logits"],
}


class _Wrapped(torch.nn.Module):
    """A model of transformers that takes its inputs by position and gives its outputs as a tuple."""

    def __init__(self, model: transformers.PreTrainedModel, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(**dict(zip(self.inputs, values, strict=True)))
        return tuple(found[name] for name in self.outputs)


def export_torch(
    model: transformers.PreTrainedModel,
    path: Path,
    task: str = "embedding",
    *,
    opset: int = 17,
    attention: str = "eager",
    dynamo: bool = False,
    inputs: Sequence[str] = ("input_ids", "attention_mask", "token_type_ids"),
    outputs: Sequence[str] | None = None,
    wrap: Any = None,
) -> None:
    """Write a model with PyTorch's exporter, both axes of the inputs free.

    `wrap` makes of the module that returns `outputs` another that is exported in its place.
    """
    outputs = OUTPUTS[task] if outputs is None else outputs
    if getattr(model.config, "type_vocab_size", 0) < 2:
        inputs = [name for name in inputs if name != "token_type_ids"]
    model.set_attn_implementation(attention)
    module = _Wrapped(model, inputs, outputs)
    module = module if wrap is None else wrap(module)
    ids = torch.randint(5, model.config.vocab_size, (2, 6))
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    free: dict[str, Any] = (
        {"dynamic_shapes": (({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},) * len(inputs),)}
        if dynamo
        else {"dynamic_axes": {name: {0: "batch", 1: "sequence"} for name in inputs}}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(made[name] for name in inputs),
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=opset,
            dynamo=dynamo,
            **free,
        )
