"""Tiny random models over the words of conftest's tokenizer, in transformers and as a model file of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from checkpoints import CLASSES
from conftest import WORDS

from edgebert.artifact.writer import build_model
from edgebert.checkpoints.loading import load_checkpoint


def make_pipeline_parts(
    folder: Path, tokenizer_json: str, task: str, **config: Any
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerFast, Path]:
    """(model, tokenizer, model file) of a random BERT with the head of `task`; `config` by transformers' names."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    made = transformers.BertConfig(
        vocab_size=len(WORDS), max_position_embeddings=32, initializer_range=0.25, **sizes, **config
    )
    model = getattr(transformers, f"Bert{CLASSES[task]}")(made).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer_json),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        mask_token="[MASK]",
        model_max_length=32,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    checkpoint = load_checkpoint(folder)
    path = folder / "model.onnx"
    path.write_bytes(
        build_model(checkpoint.spec, checkpoint.tensors, {"edgebert.tokenizer": checkpoint.tokenizer_json or ""})
    )
    return model, tokenizer, path


def assert_same_answers(found: Any, expected: Any) -> None:
    """Equal shapes, keys, labels and offsets; scores within 1e-5."""
    if isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same_answers(a, b)
        return
    assert isinstance(found, dict)
    assert list(found) == list(expected)
    assert abs(found["score"] - expected["score"]) <= 1e-5 * max(1.0, abs(expected["score"])), (found, expected)
    for key in found:
        assert type(found[key]) in (str, int, float)
        if key != "score":
            assert found[key] == expected[key], key
