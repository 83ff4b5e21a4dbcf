"""Tiny random Hugging Face checkpoints for tests, made with transformers; its outputs are what ours must equal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from edgebert.batch import PackedBatch
from edgebert.checkpoints.families import FAMILY_TABLES

F32 = NDArray[np.float32]

# Of those families that the installed release of transformers has.
CONFIGS = {
    family: getattr(transformers, f"{table.class_prefix}Config")
    for family, table in FAMILY_TABLES.items()
    if hasattr(transformers, f"{table.class_prefix}Config")
}
CLASSES = {
    "embedding": "Model",
    "text-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "fill-mask": "ForMaskedLM",
    "next-sentence": "ForNextSentencePrediction",
    "pretraining": "ForPreTraining",
}
VOCAB_SIZE, HIDDEN_SIZE, NUM_POSITIONS = 120, 32, 40


def make_checkpoint(
    folder: Path, family: str = "bert", task: str = "embedding", *, activation: str = "gelu", **config: Any
) -> transformers.PreTrainedModel:
    """Save a random model of two layers and return it; `config` changes the config by transformers' names.

    Every parameter is random, LayerNorms and biases too, and large enough for every head to answer far from a constant.
    """
    sizes: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": NUM_POSITIONS}
    if task in ("text-classification", "token-classification"):
        sizes |= {"num_labels": 3}
    if family == "distilbert":
        sizes |= {"dim": HIDDEN_SIZE, "n_heads": 4, "n_layers": 2, "hidden_dim": 48, "activation": activation}
    else:
        sizes |= {
            "hidden_size": HIDDEN_SIZE,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "intermediate_size": 48,
            "hidden_act": activation,
            "layer_norm_eps": 1e-5,
        }
    if family == "modernbert":  # a global layer and a local one
        sizes["hidden_activation"] = sizes["classifier_activation"] = sizes.pop("hidden_act")
        sizes["norm_eps"] = sizes.pop("layer_norm_eps")
        sizes |= {"local_attention": 8} | dict.fromkeys(
            (f"{role}_token_id" for role in ("pad", "bos", "eos", "cls", "sep")), 3
        )
    if family == "deberta-v2":
        sizes |= {"relative_attention": True, "pos_att_type": "p2c|c2p", "position_biased_input": False}
        sizes |= {"position_buckets": 8, "max_relative_positions": 32, "norm_rel_ebd": "layer_norm"}
    if family in ("electra", "albert"):
        sizes |= {"embedding_size": 24}
    if family in ("roberta", "xlm-roberta", "camembert"):
        sizes |= {"type_vocab_size": 1}
    made = CONFIGS[family](**sizes | config)
    torch.manual_seed(0)
    name = CONFIGS[family].__name__.removesuffix("Config") + CLASSES[task]
    model: transformers.PreTrainedModel = getattr(transformers, name)(made).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return model


def random_batch(model: transformers.PreTrainedModel, lengths: Sequence[int] = (7, 1, 30, 2, 17, 9, 3)) -> PackedBatch:
    """Random ids and token types; the pad token, to which some give a position of its own, begins the first sequence,
    is inside the third, ends the last but one, and is all of the last.
    """
    rng = np.random.default_rng(1)
    types = max(1, getattr(model.config, "type_vocab_size", 1))
    ids = [rng.integers(5, VOCAB_SIZE, length) for length in lengths]
    for i, places in ((0, [0]), (2, [4, 5, 17]), (-2, [-2, -1]), (-1, slice(None))):
        ids[i][places] = model.config.pad_token_id
    return PackedBatch.from_lists(
        [row.tolist() for row in ids],
        [rng.integers(0, types, length).tolist() for length in lengths],
    )


def run_transformers(model: transformers.PreTrainedModel, batch: PackedBatch) -> dict[str, F32]:
    """Outputs of the model by transformers' names, each sequence run alone: packed, a row a token or a sequence."""
    has_types = getattr(model.config, "type_vocab_size", 0) >= 2
    per_sequence = ["pooler_output", "seq_relationship_logits"]
    if type(model).__name__.endswith(("ForSequenceClassification", "ForNextSentencePrediction")):
        per_sequence.append("logits")
    parts: dict[str, list[F32]] = {}
    for i in range(batch.num_sequences):
        ids, mask, types = (torch.from_numpy(part) for part in batch.take([i]).pad())
        inputs = {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": types} if has_types else {})
        with torch.no_grad():
            outputs = model(**inputs)
        for name, value in outputs.items():
            parts.setdefault(name, []).append(value.numpy() if name in per_sequence else value[0].numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def add_sentence_modules(
    folder: Path,
    pooling: dict[str, Any],
    *,
    dense: dict[str, F32] | None = None,
    activation: str = "torch.nn.modules.activation.Tanh",
    normalize: bool = False,
    **files: Any,
) -> None:
    """Make a checkpoint a sentence-transformers folder; `files` maps names without `.json` to what they hold."""
    kinds = ["Transformer", "Pooling", *["Dense"] * (dense is not None), *["Normalize"] * normalize]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds[1:], 1))]
    for path in paths:
        (folder / path).mkdir(exist_ok=True)
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", pooling)
    if dense is not None:
        from safetensors.numpy import save_file

        outputs, inputs = dense["linear.weight"].shape
        config = {"in_features": inputs, "out_features": outputs, "bias": "linear.bias" in dense}
        write_json(folder / "2_Dense" / "config.json", config | {"activation_function": activation})
        save_file(dense, folder / "2_Dense" / "model.safetensors")
    for name, value in files.items():
        write_json(folder / f"{name}.json", value)


def change_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    write_json(folder / "config.json", {key: value for key, value in config.items() if value is not None})


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON."""
    path.write_text(json.dumps(value), encoding="utf-8")
