"""The Hugging Face layout around a model file, for optimum, transformers.js, sentence-transformers and fastembed.

Everything is derived from the spec and the tokenizer, on top of the source's own files where it has them, so that the
folder is whole even where the source is not.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.spec import EncoderSpec
from edgebert.checkpoints.embedding_heads import POOLING_MODES
from edgebert.checkpoints.families import FAMILY_TABLES
from edgebert.checkpoints.loading import ARCHITECTURES, CROSS_ENCODER_ACTIVATIONS, Checkpoint
from edgebert.tokenizer import Tokenizer

# Role of a special token -> what the families call it.
_SPECIAL_TOKENS = {
    "unk_token": ("[UNK]", "<unk>"),
    "sep_token": ("[SEP]", "</s>"),
    "pad_token": ("[PAD]", "<pad>"),
    "cls_token": ("[CLS]", "<s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
# What transformers calls the settings of a BertNormalizer.
_NORMALIZER_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
_DENSE_ACTIVATIONS = {
    "tanh": "torch.nn.modules.activation.Tanh",
    "relu": "torch.nn.modules.activation.ReLU",
    "gelu_erf": "torch.nn.modules.activation.GELU",
    "identity": "torch.nn.modules.linear.Identity",
}


def write_folder(
    folder: Path, model: Path, spec: EncoderSpec, tensors: Mapping[str, NDArray[Any]], checkpoint: Checkpoint
) -> None:
    """Create `folder` around the file `model`, which becomes `model.onnx` and, for transformers.js, one of `onnx/`.

    There an int8 file is `model_quantized.onnx`, what transformers.js takes by default in a browser; Optimum, which
    takes `model.onnx` wherever it lies, then sees only one. config.json tells transformers.js the same everywhere.

    Args:
        folder: where to write; must not exist.
        model: the model file; it is moved.
        spec: the file's spec.
        tensors: the file's weights.
        checkpoint: where the file came from.
    """
    folder.mkdir()
    (folder / "onnx").mkdir()
    os.replace(model, folder / "model.onnx")
    second = folder / "onnx" / ("model_quantized.onnx" if spec.is_int8 else "model.onnx")
    try:
        os.link(folder / "model.onnx", second)
    except OSError:  # a file system without hard links
        shutil.copyfile(folder / "model.onnx", second)
    _write_json(folder / "config.json", _model_config(spec, checkpoint.config))
    if checkpoint.tokenizer_json is not None:
        (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json, encoding="utf-8")
        _write_tokenizer_config(folder, spec, checkpoint)
    if spec.task == "embedding" and "sentence_embedding" in spec.outputs:
        _write_modules(folder, spec, tensors, checkpoint)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_source(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    path = checkpoint.source_files.get(name)
    value = json.loads(path.read_text(encoding="utf-8")) if path else {}
    return value if isinstance(value, dict) else {}


def _model_config(spec: EncoderSpec, source: dict[str, Any]) -> dict[str, Any]:
    suffix = next(suffix for suffix, task in ARCHITECTURES.items() if task == spec.task)
    config = source | {
        "model_type": spec.family,
        "architectures": [FAMILY_TABLES[spec.family].class_prefix + suffix],
        "pad_token_id": spec.pad_token_id,
        "transformers.js_config": {"dtype": "q8" if spec.is_int8 else "fp32"},
    }
    if spec.task in ("text-classification", "token-classification"):
        config["id2label"] = {str(i): label for i, label in enumerate(spec.labels)}
        config["label2id"] = {label: i for i, label in enumerate(spec.labels)}
    if spec.task == "text-classification":
        config["problem_type"] = spec.problem_type
        # where CrossEncoder of sentence-transformers looks, before its release 4 under the second name
        for key in ("sentence_transformers", "sbert_ce_default_activation_function"):
            config.pop(key, None)
        for path, function in CROSS_ENCODER_ACTIVATIONS.items():
            if function == spec.rank_function:
                config["sentence_transformers"] = {"activation_fn": path}
                config["sbert_ce_default_activation_function"] = path
    return config


def _write_tokenizer_config(folder: Path, spec: EncoderSpec, checkpoint: Checkpoint) -> None:
    """tokenizer_config.json and special_tokens_map.json; fastembed asks for both, and for `pad_token` as a string."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(str(checkpoint.tokenizer_json))
    config = _read_source(checkpoint, "tokenizer_config.json")
    special = {
        role: next(name for name in names if tokenizer.token_to_id(name) is not None)
        for role, names in _SPECIAL_TOKENS.items()
        if any(tokenizer.token_to_id(name) is not None for name in names)
    }
    if (pad := tokenizer.id_to_token(spec.pad_token_id)) is not None:
        special.setdefault("pad_token", pad)
    for role in _SPECIAL_TOKENS:
        stated = config.get(role)
        stated = stated.get("content") if isinstance(stated, dict) else stated
        if isinstance(stated, str):
            special[role] = stated
    config |= special | {"model_max_length": spec.max_length}
    config["model_input_names"] = ["input_ids", *["token_type_ids"] * spec.has_token_types, "attention_mask"]
    # Names and forms that only some releases of transformers write are left out: others cannot read them.
    if not str(config.get("tokenizer_class", "")).endswith(("Tokenizer", "TokenizerFast")):
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    gives_types = Tokenizer.for_spec(str(checkpoint.tokenizer_json), spec).has_pair_types
    if (
        spec.has_token_types
        and not gives_types
        and config["tokenizer_class"].startswith(("Bert", "Electra", "DistilBert"))
    ):
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # those classes give pairs types whatever the JSON says
    parts = json.loads(str(checkpoint.tokenizer_json))
    if (parts.get("normalizer") or {}).get("type") == "BertNormalizer":
        # transformers' BERT classes overwrite the normalizer's settings with these, or with defaults
        for name, key in _NORMALIZER_SETTINGS.items():
            config[name] = parts["normalizer"][key]
        is_bert = parts["model"]["type"] == "WordPiece" and parts["pre_tokenizer"] == {"type": "BertPreTokenizer"}
        if is_bert and gives_types and spec.has_token_types and config["tokenizer_class"] == "PreTrainedTokenizerFast":
            config["tokenizer_class"] = "BertTokenizer"  # the general class of transformers.js drops pairs' types
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", special)


def _write_modules(
    folder: Path, spec: EncoderSpec, tensors: Mapping[str, NDArray[Any]], checkpoint: Checkpoint
) -> None:
    """What sentence-transformers puts behind the encoder: pooling, dense, normalisation; lengths and prompts."""
    kinds = ["Transformer", "Pooling", *["Dense"] * bool(spec.dense_size), *["Normalize"] * spec.normalize]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds[1:], 1))]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    _write_json(folder / "modules.json", modules)
    for path in paths[1:]:
        (folder / path).mkdir()
    poolings = spec.pooling.split("+")
    pooling: dict[str, Any] = {
        "word_embedding_dimension": spec.hidden_size,
        "pooling_mode_cls_token": "cls" in poolings,
        "pooling_mode_mean_tokens": "mean" in poolings,
        "pooling_mode_max_tokens": "max" in poolings,
        "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len" in poolings,
        "pooling_mode_weightedmean_tokens": "weighted_mean" in poolings,
        "pooling_mode_lasttoken": "last" in poolings,
    }
    if len(poolings) > 1:  # of flags the order would be lost
        names = {ours: theirs for theirs, ours in POOLING_MODES.items()}
        pooling["pooling_mode"] = [names[name] for name in poolings]
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    if spec.dense_size:
        from safetensors.numpy import save_file

        dense = {
            "in_features": len(tensors["head.dense.weight"]),
            "out_features": spec.dense_size,
            "bias": True,
            "activation_function": _DENSE_ACTIVATIONS[spec.dense_activation],
        }
        _write_json(folder / "2_Dense" / "config.json", dense)
        weights = {
            "linear.weight": np.ascontiguousarray(tensors["head.dense.weight"].T),
            "linear.bias": tensors["head.dense.bias"],
        }
        save_file(weights, folder / "2_Dense" / "model.safetensors")
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": spec.max_length, "do_lower_case": False})
    settings = _read_source(checkpoint, "config_sentence_transformers.json")
    settings |= {"prompts": spec.prompts, "default_prompt_name": spec.default_prompt_name}
    _write_json(folder / "config_sentence_transformers.json", settings)
