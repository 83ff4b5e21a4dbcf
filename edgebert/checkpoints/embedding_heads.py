"""What embedding models have behind the encoder: sentence-transformers' modules, ColBERT's projection, BGE-M3's heads.

`modules.json` follows sentence-transformers 6.2, whose names of modes and defaults are here; PyLate writes the same
with settings of its own beside it. ColBERT's own checkpoints and BGE-M3's keep their matrices beside the encoder's.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgebert.artifact.spec import EncoderSpec
from edgebert.checkpoints.files import read_object, read_torch, read_weights, refuse
from edgebert.errors import ModelFormatError, UnsupportedModelError
from edgebert.quant import F32

Modules = list[tuple[str, str]]  # class name and path of each entry of modules.json

POOLING_MODES = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
# What earlier releases wrote, a flag a mode; those that are on lie side by side in this order.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_DENSE_ACTIVATIONS = {"Tanh": "tanh", "Identity": "identity", "ReLU": "relu", "GELU": "gelu_erf"}
_ORDERS = (
    "Pooling",
    "Pooling + Normalize",
    "Pooling + Dense",
    "Pooling + Dense + Normalize",
    "SpladePooling",
    "Dense, several times, + MultiVectorMask + Normalize",
)
COLBERT_ARCHITECTURE = "HF_ColBERT"
_SPARSE_FILE, _TOKENS_FILE = "sparse_linear.pt", "colbert_linear.pt"
_DEFAULT_EXPANSION = 32  # tokens that ColBERT fills a query up to


class Head(NamedTuple):
    """Fields of the spec, and f32 tensors by canonical name."""

    fields: dict[str, Any]
    tensors: dict[str, F32]


def read_head(root: Path, modules: Modules) -> Head:
    """What the modules after the Transformer compute, and what BGE-M3 keeps beside them.

    Raises:
        ModelFormatError: files missing or damaged.
        UnsupportedModelError: modules, or settings of theirs, that EdgeBERT does not compute.
    """
    kinds = [kind for kind, _ in modules[1:]]
    if kinds == ["SpladePooling"]:
        return Head(_read_splade(root / modules[1][1]), {})
    if kinds and set(kinds) <= {"Dense", "MultiVectorMask", "Normalize"}:
        return _read_token_modules(root, modules)
    if kinds not in [[], *(order.split(" + ") for order in _ORDERS[:5])]:
        refuse("the modules after the Transformer", ", ".join(kinds), _ORDERS)
    if not kinds:
        return Head({"pooling": "none"}, {})
    paths = dict(modules)
    pooling = _read_pooling(root / paths["Pooling"], root)
    head = Head({"pooling": pooling, "normalize": "Normalize" in kinds}, {})
    if "Dense" in kinds:
        folder = root / paths["Dense"]
        config = read_object(folder / "config.json")
        if config.get("use_residual"):
            raise UnsupportedModelError(f"{folder}: a Dense module with use_residual after pooling is not supported")
        activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
        if activation not in _DENSE_ACTIVATIONS:
            refuse("the Dense module's activation_function", activation, _DENSE_ACTIVATIONS)
        weight, bias = _read_linear(folder, read_weights(folder))
        head.fields.update(dense_size=weight.shape[1], dense_activation=_DENSE_ACTIVATIONS[activation])
        head.tensors.update({"head.dense.weight": weight, "head.dense.bias": bias})
    return Head({**head.fields, **(extra := read_bge_m3(root)).fields}, {**head.tensors, **extra.tensors})


def _read_linear(where: Path, weights: Mapping[str, F32], prefix: str = "linear.") -> tuple[F32, F32]:
    """(weight [inputs, outputs], bias [outputs]) of a torch Linear; zeros for one without a bias."""
    matrix = weights.get(f"{prefix}weight")
    if matrix is None or matrix.ndim != 2:
        raise ModelFormatError(f"{where}: no matrix {prefix}weight")
    bias = weights.get(f"{prefix}bias", np.zeros(len(matrix), np.float32))
    if bias.shape != (len(matrix),):
        raise ModelFormatError(f"{where}: {prefix}bias has shape {bias.shape}, {prefix}weight {matrix.shape}")
    return np.ascontiguousarray(matrix.T), bias


def _read_pooling(folder: Path, root: Path) -> str:
    config = read_object(folder / "config.json")
    modes = config.get("pooling_mode")  # newer releases write a name, or a list of them
    if modes is None:
        on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        if unknown := [key for key in on if key not in _POOLING_FLAGS]:
            refuse("the pooling", ", ".join(unknown), _POOLING_FLAGS)
        modes = [name for key, name in _POOLING_FLAGS.items() if key in on] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or not all(mode in POOLING_MODES for mode in map(str, modes)):
        refuse("the pooling", modes, POOLING_MODES)
    settings = read_object(root / "config_sentence_transformers.json", {})
    if config.get("include_prompt") is False and settings.get("prompts"):
        raise UnsupportedModelError(
            "pooling with include_prompt: false is not supported (prompts take part in pooling)"
        )
    return "+".join(POOLING_MODES[mode] for mode in modes)


# Sparse embeddings


def _read_splade(folder: Path) -> dict[str, Any]:
    config = read_object(folder / "config.json")
    strategy, activation = config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
    if strategy not in ("max", "sum"):
        refuse("SpladePooling's pooling_strategy", strategy, ("max", "sum"))
    num_logs = {"relu": 1, "log1p_relu": 2}
    if activation not in num_logs:
        refuse("SpladePooling's activation_function", activation, num_logs)
    return {"pooling": "none", "sparse_pooling": strategy, "num_sparse_logs": num_logs[activation]}


def read_bge_m3(root: Path) -> Head:
    """The heads that BGE-M3 keeps beside the encoder, of those whose files are there."""
    head = Head({}, {})
    if (root / _SPARSE_FILE).is_file():
        weight, bias = _read_linear(root / _SPARSE_FILE, read_torch(root / _SPARSE_FILE), "")
        if weight.shape[1] != 1:
            raise UnsupportedModelError(f"{root / _SPARSE_FILE} gives {weight.shape[1]} values a token, expected 1")
        head.fields["has_token_weights"] = True
        head.tensors.update({"head.token_weights.weight": weight, "head.token_weights.bias": bias})
    if (root / _TOKENS_FILE).is_file():
        weight, bias = _read_linear(root / _TOKENS_FILE, read_torch(root / _TOKENS_FILE), "")
        head.fields.update(token_size=weight.shape[1], normalize_tokens=True, drops_first_token=True)
        head.tensors.update({"head.tokens.weight": weight, "head.tokens.bias": bias})
    return head


# Token embeddings


def _read_token_modules(root: Path, modules: Modules) -> Head:
    """Dense modules on every token, which without activations are one matrix, and whether rows have length 1."""
    kinds = [kind for kind, _ in modules[1:]]
    settings = read_object(root / "config_sentence_transformers.json", {})
    dense = [path for kind, path in modules if kind == "Dense"]
    if not dense or kinds[: len(dense)] != ["Dense"] * len(dense) or len(set(kinds)) - 1 != len(kinds) - len(dense):
        refuse("the modules after the Transformer", ", ".join(kinds), _ORDERS)
    matrix: Any = None
    for path in dense:
        folder = root / path
        config = read_object(folder / "config.json")
        source = config.get("module_input_name", "token_embeddings")
        target = config.get("module_output_name") or source
        if (source, target) != ("token_embeddings", "token_embeddings"):
            refuse("a Dense module without Pooling from and to", f"{source}, {target}", ["token_embeddings"])
        activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
        if activation.rpartition(".")[2] != "Identity":
            refuse("activation_function of a Dense module on tokens", activation, ["torch.nn.modules.linear.Identity"])
        weights = read_weights(folder)
        weight, bias = (part.astype(np.float64) for part in _read_linear(folder, weights))
        if config.get("use_residual"):
            square = weight.shape[0] == weight.shape[1]
            weight = weight + (np.eye(len(weight)) if square else _read_linear(folder, weights, "residual.")[0])
        if matrix is None:
            matrix, offset = weight, bias
        elif matrix.shape[1] != len(weight):
            raise ModelFormatError(f"{folder}: takes {len(weight)} values, the module before gives {matrix.shape[1]}")
        else:
            matrix, offset = matrix @ weight, offset @ weight + bias
    for kind, path in modules:
        if kind == "Normalize" and (root / path / "config.json").is_file():
            source = read_object(root / path / "config.json").get("module_input_name", "sentence_embedding")
            if source != "token_embeddings":
                refuse("a Normalize module without Pooling of", source, ["token_embeddings"])
    is_pylate = settings.get("model_type") == "ColBERT"  # which normalizes where no module says so
    fields = {
        "pooling": "none",
        "token_size": matrix.shape[1],
        "normalize_tokens": is_pylate or "Normalize" in kinds,
    }
    tensors = {"head.tokens.weight": matrix.astype(np.float32), "head.tokens.bias": offset.astype(np.float32)}
    return Head(fields, tensors)


def read_colbert(folder: Path, weights: Mapping[str, F32]) -> Head:
    """The projection of ColBERT's own checkpoints."""
    weight, bias = _read_linear(folder, weights)
    fields = {"pooling": "none", "token_size": weight.shape[1], "normalize_tokens": True}
    return Head(fields, {"head.tokens.weight": weight, "head.tokens.bias": bias})


def read_roles(root: Path, folder: Path, modules: Modules, spec: EncoderSpec, tokenizer_json: str) -> dict[str, Any]:
    """Fields of the spec that say how queries and documents of token embeddings differ.

    Args:
        root, folder: the folder that was given, and that of the encoder inside it.
        modules: of modules.json.
        spec: with `max_length`, `mask_token` and `prompts` as they are without these fields.
        tokenizer_json: the tokenizer's JSON, which knows the ids of markers and of what is skipped.

    Raises:
        ModelFormatError: settings of a wrong type.
        UnsupportedModelError: settings that EdgeBERT does not follow, or a token that the tokenizer lacks.
    """
    import tokenizers

    vocabulary = tokenizers.Tokenizer.from_str(tokenizer_json)
    if spec.drops_first_token:  # BGE-M3, whose texts have one role
        return {}
    if modules:
        where = root / "config_sentence_transformers.json"
        settings = read_object(where, {})
        encoder = {}
        for path in sorted(folder.glob("sentence_*_config.json")):
            encoder = read_object(path)
        mask = next(
            (read_object(root / path / "config.json") for kind, path in modules if kind == "MultiVectorMask"), {}
        )
        settings = {**encoder, **_translate_pylate(settings), **mask}
    else:
        where = folder / "artifact.metadata"
        settings = _translate_colbert(read_object(where, {}))

    def take(name: str, kind: type, default: Any) -> Any:
        value = settings.get(name)
        if value is None:
            return default
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ModelFormatError(f"{where}: {name} must be {kind.__name__}, got {value!r:.100}")
        return value

    if settings.get("keep_only_token_ids"):
        raise UnsupportedModelError(f"{where}: keep_only_token_ids is for images, which EdgeBERT does not embed")
    words = take("skiplist_words", list, [])
    tasks = settings.get("skiplist_tasks") or ["document"]
    if words and tasks not in ("document", ["document"]):
        refuse("skiplist_tasks", tasks, ["document"])
    prompts, markers = dict(spec.prompts), {}
    for role in ("query", "document"):
        prefix = settings.get(f"{role}_prefix")
        if prefix is None:
            continue
        if not isinstance(prefix, str):
            raise ModelFormatError(f"{where}: {role}_prefix must be a text, got {prefix!r:.100}")
        prompt = prompts.get(role, "").removeprefix(prefix)
        marker = next((part for part in (prefix, *prefix.split()[:1]) if vocabulary.token_to_id(part) is not None), "")
        if marker:  # one token, put in as such; what follows it is text
            markers[role] = vocabulary.token_to_id(marker)
        prompts[role] = prefix.removeprefix(marker) + prompt
    fields: dict[str, Any] = {"prompts": prompts, "markers": markers}
    fields["skipped_ids"] = tuple(_find_ids(vocabulary, words))
    fields["max_length"] = min(spec.max_length, take("document_length", int, spec.max_length))
    longest = min(take("query_length", int, 0), spec.usable_positions)
    expansion = take("query_expansion", dict, None)
    if expansion:
        length = expansion.get("length")
        if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= spec.usable_positions:
            raise ModelFormatError(
                f"{where}: query_expansion must have a length from 1 to {spec.usable_positions}, got {length!r}"
            )
        if expansion.get("strategy") not in ("fixed", "min"):
            refuse("the strategy of query_expansion", expansion.get("strategy"), ("fixed", "min"))
        if expansion["strategy"] == "fixed":
            longest = length
        token = expansion.get("token") or spec.mask_token
        found = None if token is None else vocabulary.token_to_id(token)
        if found is None:
            raise UnsupportedModelError(f"{where}: queries are filled up with {token!r}, which the tokenizer lacks")
        fields |= {
            "expansion_length": length,
            "expansion_id": found,
            "attends_to_expansion": bool(expansion.get("attend")),
        }
        longest = max(longest or spec.max_length, length)
    return fields | {"query_length": longest}


def _translate_pylate(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as sentence-transformers names them today."""
    names = ("query_length", "document_length", "query_prefix", "document_prefix", "skiplist_words")
    found = {name: settings[name] for name in names if settings.get(name) is not None}
    flags = ("do_query_expansion", "attend_to_expansion_tokens", "attend_to_mask_tokens")
    is_pylate = any(name in settings for name in (*names, *flags))
    if "query_expansion" in settings:
        found["query_expansion"] = settings["query_expansion"]
    elif is_pylate and settings.get("do_query_expansion") is not False:  # on, unless it says otherwise
        attends = settings.get("attend_to_expansion_tokens", settings.get("attend_to_mask_tokens"))
        length = found.pop("query_length", _DEFAULT_EXPANSION)
        found["query_expansion"] = {"strategy": "fixed", "attend": bool(attends), "length": length}
    if settings.get("model_type") == "ColBERT":
        found.setdefault("skiplist_words", list(string.punctuation))
    return found


def _translate_colbert(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata of ColBERT's own checkpoints by the same names, with that library's defaults."""
    expansion = {
        "strategy": "fixed",
        "attend": bool(metadata.get("attend_to_mask_tokens")),
        "length": metadata.get("query_maxlen") or _DEFAULT_EXPANSION,
    }
    return {
        "query_prefix": (metadata.get("query_token_id") or "[unused0]") + " ",
        "document_prefix": (metadata.get("doc_token_id") or "[unused1]") + " ",
        "query_expansion": expansion,
        "document_length": metadata.get("doc_maxlen"),
        "skiplist_words": list(string.punctuation) if metadata.get("mask_punctuation", True) else [],
    }


def _find_ids(vocabulary: Any, words: Iterable[Any]) -> list[int]:
    """The ids of words that are tokens by themselves, ascending; others stand for no token that could be skipped."""
    ids = {vocabulary.token_to_id(word) for word in words if isinstance(word, str)}
    return sorted(found for found in ids if found is not None)


def find_unweighted_ids(tokenizer_json: str) -> tuple[int, ...]:
    """The special tokens that BGE-M3 gives no weight: those that begin, end, pad and stand for what is unknown."""
    import tokenizers

    vocabulary = tokenizers.Tokenizer.from_str(tokenizer_json)
    return tuple(_find_ids(vocabulary, ("<s>", "</s>", "<pad>", "<unk>", "[CLS]", "[PAD]", "[UNK]")))
