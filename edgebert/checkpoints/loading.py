"""Hugging Face checkpoints in: config, weights, heads and tokenizer as an EncoderSpec and canonical f32 tensors.

One small table a family (families.py) maps canonical names to the checkpoint's; everything the tables do not know is
refused by name. Layouts and head arithmetic follow transformers' `modeling_*.py`; `modules.json` follows
sentence-transformers.
"""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.names import linear_name, linear_shape, position_bias_name, position_table_names, weight_tensors
from edgebert.artifact.spec import LINEARS, POOLINGS, PROBLEM_TYPES, TASKS, EncoderSpec, LayerSpec
from edgebert.checkpoints.embedding_heads import (
    COLBERT_ARCHITECTURE,
    Head,
    find_unweighted_ids,
    read_bge_m3,
    read_colbert,
    read_head,
    read_roles,
)
from edgebert.checkpoints.families import FAMILY_TABLES, Family
from edgebert.checkpoints.files import find_checkpoint_folder, read_json, read_object, read_weights, refuse
from edgebert.checkpoints.tokenizer import CheckpointTokenizer, read_plain_tokenizer, read_tokenizer
from edgebert.errors import ModelFormatError, UnsupportedModelError
from edgebert.quant import F32
from edgebert.tasks.base import warn

# Names of transformers' ACT2FN for what the engines compute; gelu_10 clips, quick_gelu is another function.
HIDDEN_ACTS = {
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
ARCHITECTURES = {
    "Model": "embedding",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForNextSentencePrediction": "next-sentence",
    "ForPreTraining": "pretraining",
}
# MPNetEncoder's buckets of distances: what it computes with, whatever the config says.
_NUM_BUCKETS, _MAX_BUCKETED_DISTANCE = 32, 128
NEXT_SENTENCE_LABELS = ("is_next", "not_next")  # logit 0: the second sentence follows the first
# Classes of torch that a cross-encoder may name as its activation -> spec.RANK_FUNCTIONS.
CROSS_ENCODER_ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "none",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.Softmax": "softmax",
}
TEXT_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spm.model",
    "modules.json",
    "config_sentence_transformers.json",
)


# What transformers takes where a config leaves a key out.
_DEFAULTS = {
    "embedding_size": 128,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "pad_token_id": 0,
    "classifier_pooling": "cls",
}
# What the values of config.json must be, beside those that `_body_spec` reads as sizes; null counts as absent.
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "architectures": (list, "a list of names"),
    "model_type": (str, "a name"),
    "hidden_act": (str, "a name"),
    "activation": (str, "a name"),
    "position_embedding_type": (str, "a name"),
    "problem_type": (str, "a name"),
    "tokenizer_class": (str, "a name"),
    "id2label": (dict, "an object of names by number"),
    "num_labels": (int, "a whole number"),
    "layer_norm_eps": ((int, float), "a number"),
    "norm_eps": ((int, float), "a number"),
    "hidden_activation": (str, "a name"),
    "classifier_activation": (str, "a name"),
    "classifier_pooling": (str, "a name"),
    "layer_types": (list, "a list of names"),
    "local_attention": (int, "a whole number"),
    "global_attn_every_n_layers": (int, "a whole number"),
    "global_rope_theta": ((int, float), "a number"),
    "local_rope_theta": ((int, float), "a number"),
    "rope_parameters": (dict, "an object"),
    "rope_scaling": (dict, "an object"),
    "rope_theta": ((int, float), "a number"),
    "rotary_emb_base": ((int, float), "a number"),
    "head_dim": (int, "a whole number"),
    "pos_att_type": ((str, list), "names"),
    "position_buckets": (int, "a whole number"),
    "max_relative_positions": (int, "a whole number"),
    "conv_kernel_size": (int, "a whole number"),
    "attention_head_size": (int, "a whole number"),
    "norm_rel_ebd": (str, "a name"),
    "pooler_hidden_act": (str, "a name"),
}


_TOPS = (
    "embeddings.",
    "emb_ln.",
    "encoder.",
    "transformer.",
    "layers.",
    "final_norm.",
)  # what encoders' names begin with


# What a linear may be stored as, side by side, where a family has no such linear.
_PARTS: dict[str, list[tuple[str, ...]]] = {
    "qkv": [("q", "k", "v")],
    "ffn_up": [("gate", "factors"), ("factors_and_gate",)],
}


@dataclass
class Checkpoint:
    """A checkpoint read into memory.

    Attributes:
        spec: the model's EncoderSpec, every dtype f32.
        tensors: f32 arrays under the names and shapes of `names.weight_tensors(spec)`.
        tokenizer_json: the tokenizer's JSON, minified, without padding, and with a truncation only
            for the side it is on; None if the source has none.
        config: the source's config.json.
        source_files: config and tokenizer files of the source, worth keeping beside an export: name relative to the
            source's folder -> path.
        folder: the folder that transformers can load.
        lowercases: sentence-transformers puts texts in lower case before the tokenizer sees them; its JSON does so too.
        has_plain_tokenizer: its tokenizer.json stands alone, so that no class of transformers has a say.
        smooth: by linear the smoothing factors f32 [K] that quantization-aware training held fixed (compress/qat.py):
            quantization takes these, and the nearest codes; empty: it chooses.
    """

    spec: EncoderSpec
    tensors: dict[str, F32]
    tokenizer_json: str | None
    config: dict[str, Any]
    source_files: dict[str, Path]
    folder: Path
    lowercases: bool = False
    has_plain_tokenizer: bool = False
    smooth: dict[str, F32] = field(default_factory=dict)


def load_checkpoint(source: str | Path, task: str | None = None, family: str | None = None) -> Checkpoint:
    """Read a checkpoint.

    Args:
        source: a folder in the Hugging Face layout, the name of an installed package that holds one, or a hub name.
        task: one of spec.TASKS; None takes it from the config's `architectures`. For embeddings without a
            sentence-transformers `modules.json` the pooling may follow a colon: `embedding:mean` (what
            sentence-transformers does by default), `embedding:cls`, `embedding:none` or BERT's own `embedding:pooler`.
            `sparse-embedding` makes one of a masked-LM head, as SPLADE does (or `sparse-embedding:sum`).
        family: one of families.FAMILY_TABLES; None takes the config's `model_type`.

    Raises:
        ModelFormatError: no such source, or files missing or damaged.
        UnsupportedModelError: a model outside what EdgeBERT supports; says what was found and what is supported.
    """
    root = find_checkpoint_folder(source)
    modules = read_modules(root)
    folder = root / modules[0][1] if modules else root
    config = read_config(folder / "config.json")
    family = _choose_family(config, family)
    table = FAMILY_TABLES[family]
    weights = read_weights(folder)
    raw = _Weights(weights, table, config)
    is_colbert = COLBERT_ARCHITECTURE in (config.get("architectures") or [])
    sparse, task = _take_sparse(task)
    if is_colbert and task is None:
        task, pooling = "embedding", None
    else:
        task, pooling = choose_task(config, table, task, has_modules=bool(modules))
    spec = _body_spec(config, table, family, task)
    head = Head({}, {})
    if task == "embedding" and pooling is None and modules:
        head = read_head(root, modules)
    elif task == "embedding" and pooling is None and is_colbert:
        head = read_colbert(folder, weights)
    elif task == "embedding":
        head = read_bge_m3(root) if pooling is None else head
        pooling = pooling or ("cls" if head.fields else assume_mean(root))
        head.fields.update(pooling="cls" if pooling == "pooler" else pooling, normalize=bool(head.tensors))
        if pooling == "pooler":
            head.fields.update(dense_size=spec.hidden_size, dense_activation="tanh")
    head.fields.update(sparse)
    if "sparse_pooling" in head.fields:
        head.fields["mlm_activation"] = _mlm_activation(config, table)
    spec = spec.replace(**head.fields, **_task_head(config, table, task, raw), **read_prompts(root, task))
    if task == "text-classification":
        spec = spec.replace(rank_function=read_rank_function(config, root, modules))
    tensors = _canonical_tensors(spec, table, raw, head.tensors)
    return finish_checkpoint(spec, tensors, config, root, folder, modules)


def assume_mean(source: Path) -> str:
    """The pooling "mean", of a source that does not say; warns."""
    warn(
        f"{source} does not say how an embedding is made of its tokens, as 1_Pooling/config.json does: their mean is "
        "taken; the task embedding:cls takes the first token, embedding:mean says that this is right"
    )
    return "mean"


def _take_sparse(task: str | None) -> tuple[dict[str, Any], str | None]:
    """Fields of the spec for a sparse embedding that is asked for, and the task without it."""
    name, _, pooling = (task or "").partition(":")
    if name != "sparse-embedding":
        return {}, task
    if pooling not in ("", "max", "sum"):
        refuse("pooling", task, ("sparse-embedding:max", "sparse-embedding:sum"))
    return {"sparse_pooling": pooling or "max"}, "embedding:none"


def finish_checkpoint(
    spec: EncoderSpec,
    tensors: dict[str, F32],
    config: dict[str, Any],
    root: Path,
    folder: Path,
    modules: list[tuple[str, str]],
    is_plain: bool = False,
) -> Checkpoint:
    """The checkpoint of a spec without text settings, which the files beside it give.

    Args:
        spec, tensors: as of the checkpoint, but for the spec's `max_length` and `mask_token`.
        config: as of the checkpoint.
        root, folder: the folder that was given, and that of the encoder inside it.
        modules: what `read_modules` gave.
        is_plain: tokenizer.json is all there is about the tokenizer, and the tokenizers library what runs it.

    Raises:
        ModelFormatError, UnsupportedModelError: as `load_checkpoint`.
    """
    tokenizer = (
        read_plain_tokenizer(folder) if is_plain else read_tokenizer(folder, spec.family, config, spec.has_token_types)
    )
    limit = tokenizer.max_length if tokenizer else None
    spec = spec.replace(
        max_length=_max_length(spec, root, folder, limit), mask_token=tokenizer.mask_token if tokenizer else None
    )
    lowercases = bool(_sentence_config(root, spec.task).get("do_lower_case"))
    tokenizer_json = _tokenizer_json(spec, tokenizer, lowercases) if tokenizer else None
    if tokenizer_json is not None and spec.token_size:
        spec = spec.replace(**read_roles(root, folder, modules, spec, tokenizer_json))
    if tokenizer_json is not None and spec.has_token_weights:
        spec = spec.replace(unweighted_ids=find_unweighted_ids(tokenizer_json))
    return Checkpoint(
        spec=spec,
        tensors=tensors,
        tokenizer_json=tokenizer_json,
        config=config,
        source_files=_source_files(root, folder, modules),
        folder=folder,
        lowercases=lowercases,
        has_plain_tokenizer=is_plain,
    )


# Files and weights


def read_config(path: Path) -> dict[str, Any]:
    """config.json; ModelFormatError where a value is of the wrong type."""
    config = read_object(path)
    for key, (kind, what) in _TYPES.items():
        value = config.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ModelFormatError(f"{path}: {key} must be {what}, got {value!r:.100}")
    return config


def _source_files(root: Path, folder: Path, modules: list[tuple[str, str]]) -> dict[str, Path]:
    files = [folder / name for name in TEXT_FILES] + [root / name for name in TEXT_FILES]
    files += sorted(root.glob("sentence_*_config.json")) + [root / path / "config.json" for _, path in modules if path]
    return {str(path.relative_to(root)): path for path in files if path.is_file()}


class _Weights:
    """A checkpoint's tensors by the full names of transformers, whichever way they were saved."""

    def __init__(self, raw: dict[str, F32], table: Family, config: dict[str, Any]) -> None:
        self._table, self.config = table, config
        self._has_bias = {part: bool(_value(config, table, key)) for part, key in table.biases.items()}
        tops = (*_TOPS, "embeddings_project.", "pooler.")
        self._tensors: dict[str, F32] = {}
        for name, tensor in raw.items():
            for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
                if name.endswith("LayerNorm" + old):
                    name = name.removesuffix(old) + new
            self._tensors[table.prefix + name if name.startswith(tops) else name] = tensor
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def get(self, name: str, shape: tuple[int, ...]) -> F32:
        """The tensor of this name and shape."""
        if name not in self._tensors:
            near = difflib.get_close_matches(name, self._tensors, n=3, cutoff=0.5) or sorted(self._tensors)[:3]
            raise UnsupportedModelError(
                f"the checkpoint has no tensor {name} (nor under the names of older releases), which its config asks "
                f"for; the nearest of its {len(self._tensors)} are {', '.join(near) or 'none'}: check the config's "
                "`architectures`, or name the task and family"
            )
        tensor = self._tensors[name]
        self._used.add(name)
        if tensor.shape != shape:
            raise UnsupportedModelError(f"tensor {name} has shape {tensor.shape}, the config asks for {shape}")
        return tensor

    def bias(self, module: str, width: int) -> F32:
        """The bias of a module, zeros where the config says that it has none."""
        if not next((has for part, has in self._has_bias.items() if part in module), True):
            return np.zeros(width, np.float32)
        return self.get(f"{module}.bias", (width,))

    def norm(self, module: str, width: int) -> dict[str, F32]:
        """Weight and bias of a LayerNorm."""
        return {"weight": self.get(f"{module}.weight", (width,)), "bias": self.bias(module, width)}

    def encoder(self, key: str, suffix: str, shape: tuple[int, ...], i: int = 0) -> F32:
        """A tensor of the encoder by its key in the family's table."""
        module = self._table.prefix + self._table.encoder[key].format(i=i)
        return self.bias(module, *shape) if suffix == "bias" else self.get(f"{module}.{suffix}", shape)

    def check_encoder_used(self) -> None:
        """Refuse tensors inside the encoder that were not read: they would change what the model computes."""
        ignored = ("position_ids", "token_type_ids", *self._table.ignored)
        inside = tuple(self._table.prefix + top for top in _TOPS)
        unknown = sorted(
            name for name in self._tensors.keys() - self._used if name.startswith(inside) and not name.endswith(ignored)
        )
        if unknown:
            raise UnsupportedModelError(
                f"the checkpoint's encoder has {len(unknown)} tensors that its config does not account for "
                f"(adapters, more layers?): {', '.join(unknown[:4])}{', …' if len(unknown) > 4 else ''}; "
                "merge or remove them, and save the checkpoint again"
            )


# The spec


def _choose_family(config: dict[str, Any], family: str | None) -> str:
    if family is None:
        family = config.get("model_type")
    if family is None:
        for name, table in FAMILY_TABLES.items():
            if any(str(a).removeprefix(table.class_prefix) in ARCHITECTURES for a in config.get("architectures") or ()):
                return name
        raise UnsupportedModelError(
            f"config.json has no model_type: name the family, one of {', '.join(FAMILY_TABLES)}"
        )
    if family not in FAMILY_TABLES:
        refuse("model family", family, FAMILY_TABLES)
    return family


def choose_task(config: dict[str, Any], table: Family, task: str | None, has_modules: bool) -> tuple[str, str | None]:
    """(task, pooling asked for): from `task` if given, else from the config's architectures."""
    if task is not None:
        task, _, pooling = task.partition(":")
        if task not in TASKS:
            refuse("task", task, TASKS)
        names = (*POOLINGS, "none", "pooler")
        if pooling and (task != "embedding" or pooling not in names):
            refuse("pooling", f"{task}:{pooling}", (f"embedding:{name}" for name in names))
        if pooling == "pooler" and "pooler" not in table.encoder:
            raise UnsupportedModelError(
                f"{table.class_prefix} models have no pooler; use embedding:mean or embedding:cls"
            )
        _check_task_of_family(task, table)
        return task, pooling or None
    architectures = [str(name) for name in config.get("architectures") or ()]
    tasks = [ARCHITECTURES.get(name.removeprefix(table.class_prefix)) for name in architectures]
    if has_modules and (not tasks or tasks[0] in ("embedding", "fill-mask", "pretraining")):
        return "embedding", None
    if not architectures:
        raise UnsupportedModelError(f"config.json has no `architectures`: name the task, one of {', '.join(TASKS)}")
    if tasks[0] is None:
        refuse("architecture", architectures[0], (table.class_prefix + suffix for suffix in ARCHITECTURES))
    _check_task_of_family(tasks[0], table)
    return tasks[0], None


def _check_task_of_family(task: str, table: Family) -> None:
    if task in ("next-sentence", "pretraining") and table.class_prefix != "Bert":
        raise UnsupportedModelError(
            f"{table.class_prefix} has no {task} head that EdgeBERT supports (only BERT has); supported: "
            + ", ".join(name for name in TASKS if name not in ("next-sentence", "pretraining"))
        )
    if task == "question-answering" and not table.has_span_head:
        raise UnsupportedModelError(f"{table.class_prefix} has no question-answering head")


def _body_spec(config: dict[str, Any], table: Family, family: str, task: str) -> EncoderSpec:
    """The spec without its head (task `embedding`, no pooling); refuses what the engines do not compute."""
    for flag in ("is_decoder", "add_cross_attention"):
        if config.get(flag):
            raise UnsupportedModelError(f"the config has {flag}: only encoders without cross attention are supported")
    position_type = config.get("position_embedding_type") or table.position_type
    if position_type != table.position_type:
        refuse("position_embedding_type", position_type, [table.position_type])
    num_buckets = config.get("relative_attention_num_buckets")
    if table.has_position_bias and num_buckets not in (None, _NUM_BUCKETS):
        refuse("relative_attention_num_buckets", num_buckets, [str(_NUM_BUCKETS)])
    if config.get("pruned_heads"):
        raise UnsupportedModelError("the config has pruned_heads: save the checkpoint unpruned, or prune with EdgeBERT")

    def size(key: str) -> int:
        found = _value(config, table, key)
        if not isinstance(found, int) or isinstance(found, bool) or found < 0:
            raise ModelFormatError(f"config.json: {table.config.get(key, key)} must be a whole number, got {found!r}")
        return found

    hidden_size, num_heads = size("hidden_size"), size("num_attention_heads")
    if num_heads == 0 or hidden_size % num_heads:
        raise UnsupportedModelError(f"hidden size {hidden_size} is not a multiple of the {num_heads} attention heads")
    embedding_size = size("embedding_size") if table.has_embedding_size else hidden_size
    layer = LayerSpec(num_heads, hidden_size // num_heads, size("intermediate_size"))
    count = size("num_hidden_layers")
    layers = tuple(replace(layer, **fields) for fields in table.layers(config, count))
    if table.shares_layers:
        groups, inner = size("num_hidden_groups"), size("inner_group_num")
        if inner != 1 or not 1 <= groups <= max(count, 1):
            refuse("num_hidden_groups, inner_group_num", f"{groups}, {inner}", ["1 to as many groups as layers, 1"])
        repeats = Counter(int(i / (count / groups)) for i in range(count))  # as AlbertTransformer chooses groups
        layers = tuple(replace(layer, repeats=repeats[group]) for group in sorted(repeats))
    num_token_types = size("type_vocab_size")
    position_offset = size("pad_token_id") + 1 if table.has_padding_position else 0
    num_positions = size("max_position_embeddings")
    fields = table.spec(config)
    if table.position_rows:
        rows = _distance_rows(config, table, num_positions)
        counts = Counter(rows.tolist())  # in the order of the distances
        fields |= {"max_relative_distance": len(rows) // 2, "distances_per_row": tuple(counts.values())}
    elif table.has_position_bias:
        fields["max_relative_distance"] = _MAX_BUCKETED_DISTANCE
    if position_offset >= num_positions:
        raise UnsupportedModelError(f"{num_positions} positions leave none after the pad token's {position_offset}")
    return EncoderSpec(
        family=family,
        task="embedding",
        vocab_size=size("vocab_size"),
        hidden_size=hidden_size,
        embedding_size=embedding_size,
        num_positions=num_positions,
        num_token_types=num_token_types,
        layers=layers,
        activation=_activation(config, table, "hidden_act"),
        layer_norm_eps=float(_value(config, table, "layer_norm_eps")),
        position_offset=position_offset,
        has_padding_position=table.has_padding_position,
        max_length=num_positions - position_offset,
        pad_token_id=size("pad_token_id"),
        mlm_activation=_mlm_activation(config, table) if task in ("fill-mask", "pretraining") else "identity",
        **fields,
    )


def _value(config: dict[str, Any], table: Family, key: str) -> Any:
    """A value of config.json by the name that most families have for it, or what the family takes in its place."""
    if key in table.fixed:
        return table.fixed[key]
    defaults = {**_DEFAULTS, **table.defaults}
    key_in_config = table.config.get(key, key)
    found = config.get(key_in_config)
    if found is None and key in table.old_config:
        found = config.get(table.old_config[key])
    if found is None:
        if key not in defaults:
            raise ModelFormatError(f"config.json has no {key_in_config}")
        return defaults[key]
    return found


def _mlm_activation(config: dict[str, Any], table: Family) -> str:
    return table.mlm_activation or _activation(config, table, table.head_act)


def _activation(config: dict[str, Any], table: Family, key: str) -> str:
    name = _value(config, table, key)
    if name not in HIDDEN_ACTS:
        refuse(table.config.get(key, key), name, HIDDEN_ACTS)
    return HIDDEN_ACTS[name]


def _task_head(config: dict[str, Any], table: Family, task: str, raw: _Weights) -> dict[str, Any]:
    """Spec fields of the heads that transformers defines."""
    head: dict[str, Any] = {"task": task}
    hidden_size = _value(config, table, "hidden_size")
    if task in ("text-classification", "token-classification"):
        head["labels"] = read_labels(config)
    head |= dense_head(config, table, task)
    if task == "text-classification":
        head["problem_type"] = read_problem_type(config, len(head["labels"]))
    if task in ("next-sentence", "pretraining"):
        head |= {
            "pooling": "cls",
            "dense_size": hidden_size,
            "dense_activation": "tanh",
            "labels": NEXT_SENTENCE_LABELS,
        }
    return head


def dense_head(config: dict[str, Any], table: Family, task: str) -> dict[str, Any]:
    """Spec fields of what a classification head has between the hidden states and its classifier."""
    head: dict[str, Any] = {}
    if task == "text-classification":
        head["pooling"] = _value(config, table, "classifier_pooling")
        if head["pooling"] not in ("cls", "mean"):
            refuse("classifier_pooling", head["pooling"], ("cls", "mean"))
    if task == "text-classification" or (table.token_dense and task in ("token-classification", "question-answering")):
        head |= {
            "dense_size": _value(config, table, "hidden_size"),
            "dense_activation": table.dense_activation or _activation(config, table, table.dense_act or table.head_act),
            "has_dense_norm": table.dense_norm is not None,
        }
    return head


def read_problem_type(config: dict[str, Any], num_labels: int) -> str:
    """How logits become scores, one of PROBLEM_TYPES."""
    problem_type = config.get("problem_type")
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        refuse("problem_type", problem_type, PROBLEM_TYPES)
    # a single label is a yes or no: transformers' pipeline gives its sigmoid, and takes no softmax over one
    is_single = num_labels == 1 and problem_type != "regression"
    return PROBLEM_TYPES[1] if is_single else problem_type or PROBLEM_TYPES[0]


def read_labels(config: dict[str, Any]) -> tuple[str, ...]:
    """The labels as transformers counts and names them: `num_labels` wins over an `id2label` of another length.

    Raises:
        ModelFormatError: ids that are not 0, 1, 2 …: transformers has no name for some logits then.
    """
    id2label, count = config.get("id2label"), config.get("num_labels")
    if id2label is None or (count is not None and count != len(id2label)):
        return tuple(f"LABEL_{i}" for i in range(2 if count is None else count))
    names = {str(key): str(name) for key, name in id2label.items()}
    ids = [str(i) for i in range(len(names))]
    if sorted(names) != sorted(ids):
        raise ModelFormatError(
            f"config.json: id2label must name the logits 0 to {len(names) - 1}, got the ids {', '.join(names)[:100]}: "
            "name them all"
        )
    return tuple(names[i] for i in ids)


# sentence-transformers


def read_modules(root: Path) -> list[tuple[str, str]]:
    """(class name, path) of each entry of modules.json, the Transformer first; [] without the file."""
    path = root / "modules.json"
    if not path.is_file():
        return []
    entries = read_json(path)
    try:
        modules = [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in entries]
    except (TypeError, KeyError):
        raise ModelFormatError(f"{path}: expected a list of objects with `type` and `path`") from None
    if not modules or modules[0][0] not in ("Transformer", "MLMTransformer"):
        refuse("the first module of modules.json", modules[0][0] if modules else None, ["Transformer"])
    settings = read_object(root / "config_sentence_transformers.json", {})
    if settings.get("model_type") == "CrossEncoder":
        if len(modules) > 1:
            refuse("a CrossEncoder of the modules", ", ".join(kind for kind, _ in modules), ["Transformer"])
        if settings.get("default_prompt_name") is not None:
            refuse("a CrossEncoder's default_prompt_name", settings["default_prompt_name"], ["none"])
    for _, folder in modules:
        if Path(folder).is_absolute() or ".." in Path(folder).parts:
            raise ModelFormatError(f"{path}: module path {folder!r} leaves the folder")
    return modules


def read_rank_function(config: dict[str, Any], root: Path, modules: list[tuple[str, str]]) -> str | None:
    """What sentence-transformers' CrossEncoder makes of the logits, None where the checkpoint does not say.

    Its release 6 writes that beside modules.json, 4 and 5 into config.json, and those before there by another name.
    """
    settings = read_object(root / "config_sentence_transformers.json", {}) if modules else {}
    name = settings.get("activation_fn")
    if name is None:
        stated = config.get("sentence_transformers")
        stated = stated if isinstance(stated, dict) else {}
        name = stated.get("activation_fn", config.get("sbert_ce_default_activation_function"))
    if name is None:
        return None
    found = {path.rpartition(".")[2]: function for path, function in CROSS_ENCODER_ACTIVATIONS.items()}
    package, _, kind = str(name).rpartition(".")
    if not package.startswith("torch.nn") or kind not in found:
        refuse("the cross-encoder's activation function", name, CROSS_ENCODER_ACTIVATIONS)
    return found[kind]


def read_prompts(root: Path, task: str) -> dict[str, Any]:
    """Spec fields of the prompts that sentence-transformers puts before the texts of an embedding."""
    if task != "embedding":
        return {}
    config = read_object(root / "config_sentence_transformers.json", {})
    prompts = config.get("prompts") or {}
    default = config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ModelFormatError("config_sentence_transformers.json: prompts must map names to texts")
    if default is not None and default not in prompts:
        raise ModelFormatError(
            f"config_sentence_transformers.json: default_prompt_name {default!r} is not among the prompts"
        )
    return {"prompts": prompts, "default_prompt_name": default}


def _sentence_config(root: Path, task: str) -> dict[str, Any]:
    """sentence_bert_config.json; older releases wrote the family's name into the file name.

    {} where sentence-transformers reads none: for other tasks, and for a cross-encoder without modules.json.
    """
    if task != "embedding" and (task != "text-classification" or not (root / "modules.json").is_file()):
        return {}
    paths = sorted(root.glob("sentence_*_config.json")) + sorted(root.glob("0_Transformer/sentence_*_config.json"))
    return read_object(paths[0]) if paths else {}


def _tokenizer_json(spec: EncoderSpec, tokenizer: CheckpointTokenizer, lowercases: bool) -> str:
    """The tokenizer's JSON, minified, with what sentence-transformers and the truncation side add to it."""
    parts = dict(tokenizer.parts)
    if lowercases:
        normalizers = [{"type": "Lowercase"}] + [parts["normalizer"]] * bool(parts.get("normalizer"))
        parts["normalizer"] = {"type": "Sequence", "normalizers": normalizers}
        # tokens with capitals cannot occur in a text that was put in lower case first
        parts["added_tokens"] = [
            token for token in parts["added_tokens"] if token["content"] == token["content"].lower()
        ]
    if tokenizer.truncation_side == "left":  # the right is what everybody takes
        truncation = {"max_length": spec.max_length, "strategy": "LongestFirst", "stride": 0}
        parts["truncation"] = {"direction": "Left", **truncation}
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))


def _max_length(spec: EncoderSpec, root: Path, folder: Path, stored: int | None) -> int:
    """The limit in sentence-transformers' config, else the tokenizer's, else the stored one; at most all positions."""
    limit = _sentence_config(root, spec.task).get("max_seq_length")
    if limit is None:
        settings = read_object(folder / "tokenizer_config.json", {})
        limit = settings.get(
            "model_max_length", settings.get("max_len", stored)
        )  # 1e30 where transformers knows no limit
    if limit is None:
        return spec.usable_positions
    if not isinstance(limit, (int, float)) or isinstance(limit, bool) or not limit >= 1:
        raise ModelFormatError(f"{folder}: the longest text must be a number of tokens, at least 1, got {limit!r}")
    return int(min(limit, spec.usable_positions))


# Canonical tensors


def _canonical_tensors(spec: EncoderSpec, table: Family, raw: _Weights, given: dict[str, F32]) -> dict[str, F32]:
    """The tensors of `names.weight_tensors(spec)`: linears transposed to [inputs, outputs], q, k and v side by side.

    Those of the head that are `given` are taken as they are.
    """
    hidden, embedding = spec.hidden_size, spec.embedding_size
    tensors = dict(given)
    expected = weight_tensors(spec)

    def linear(name: str, weight: F32, bias: F32) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight.T, bias

    def encoder_linear(name: str, keys: tuple[str, ...], inputs: int, outputs: int, i: int = 0) -> None:
        weights = [raw.encoder(key, "weight", (outputs, inputs), i) for key in keys]
        biases = [raw.encoder(key, "bias", (outputs,), i) for key in keys]
        linear(name, np.concatenate(weights), np.concatenate(biases))

    def head_linear(name: str, source: str) -> None:
        shape = expected[f"{name}.weight"][1][::-1]
        linear(name, raw.get(f"{source}.weight", shape), raw.bias(source, shape[0]))

    def layer_norm(name: str, key: str, width: int, i: int = 0) -> None:
        for part, value in raw.norm(table.prefix + table.encoder[key].format(i=i), width).items():
            tensors[f"{name}.{part}"] = value

    tensors["embeddings.word.weight"] = raw.encoder("word", "weight", (spec.vocab_size, embedding))
    if spec.has_position_table:
        tensors["embeddings.position.weight"] = raw.encoder("position", "weight", (spec.num_positions, embedding))
    if spec.num_token_types:
        tensors["embeddings.token_type.weight"] = raw.encoder("token_type", "weight", (spec.num_token_types, embedding))
    layer_norm("embeddings.layer_norm", "embeddings.layer_norm", embedding)
    if embedding != hidden:
        encoder_linear("embeddings.projection", ("projection",), embedding, hidden)
    for i, layer in enumerate(spec.layers):
        for name in LINEARS:
            inputs, outputs = linear_shape(spec, i, name)
            choices: list[tuple[str, ...]] = [(name,), *_PARTS.get(name, ())]
            parts = next(keys for keys in choices if keys[0] in table.encoder)
            encoder_linear(linear_name(i, name), parts, inputs, outputs // len(parts), i)
            for part in ("weight", "bias") if parts == ("factors_and_gate",) else ():
                both = tensors[f"{linear_name(i, name)}.{part}"]
                tensors[f"{linear_name(i, name)}.{part}"] = np.roll(both, outputs // 2, axis=-1)
        if spec.distances_per_row:
            _add_position_tables(tensors, spec, table, raw, i)
        elif spec.max_relative_distance:
            buckets = raw.encoder("position_bias", "weight", (_NUM_BUCKETS, layer.num_heads))
            tensors[position_bias_name(i)] = buckets[_distance_buckets()].T
        if layer.has_attention_norm:
            layer_norm(f"layer.{i}.attention.layer_norm", "attention.layer_norm", hidden, i)
        layer_norm(f"layer.{i}.ffn.layer_norm", "ffn.layer_norm", hidden, i)
    if spec.is_pre_norm:
        layer_norm("final.layer_norm", "final.layer_norm", hidden)

    if "head.dense.weight" in expected and "head.dense.weight" not in given:
        source = table.dense if spec.task != "embedding" else f"{table.prefix}{table.encoder['pooler']}"
        head_linear("head.dense", source)
    if spec.has_dense_norm:
        for part, value in raw.norm(str(table.dense_norm), spec.dense_size).items():
            tensors[f"head.layer_norm.{part}"] = value
    if "head.out.weight" in expected:
        sources = {"text-classification": table.classifier, "token-classification": "classifier"}
        sources["question-answering"] = table.span_classifier
        head_linear("head.out", sources.get(spec.task, "cls.seq_relationship"))
    if spec.has_decoder:
        _add_mlm_head(tensors, spec, table, raw)
    raw.check_encoder_used()

    canonical = {}
    for name, (_, shape) in expected.items():
        if tensors[name].shape != shape:
            raise UnsupportedModelError(f"{name} has shape {tensors[name].shape}, expected {shape}")
        canonical[name] = np.ascontiguousarray(tensors[name], np.float32)
    return canonical


def _distance_rows(config: dict[str, Any], table: Family, length: int) -> NDArray[np.int64]:
    """The family's `position_rows`, as far as they differ: [2 * distance + 1], the farthest before first."""
    assert table.position_rows is not None
    rows = table.position_rows(config, length)
    middle = len(rows) // 2
    is_last = (rows == rows[0]) & (np.arange(len(rows)) < middle) | (rows == rows[-1]) & (np.arange(len(rows)) > middle)
    farthest = max(int(np.abs(np.flatnonzero(~is_last) - middle).max()) + 1, 1)
    return rows[max(middle - farthest, 0) : middle + farthest + 1]


def _add_position_tables(tensors: dict[str, F32], spec: EncoderSpec, table: Family, raw: _Weights, i: int) -> None:
    """The tables of layer i: the relative positions' embeddings through its linears, in float64, then rounded once.

    DeBERTa divides the three products that make a score by sqrt(3 head_dim), the engines by sqrt(head_dim): the rest
    goes into the queries, of tokens and of positions.
    """
    config, hidden, layer = raw.config, spec.hidden_size, spec.layers[i]
    distances = _distance_rows(config, table, spec.num_positions)
    buckets, farthest = config.get("position_buckets") or 0, config.get("max_relative_positions") or 0
    span = buckets if buckets > 0 else farthest if farthest > 0 else spec.num_positions
    rows = raw.encoder("positions", "weight", (2 * span, hidden)).astype(np.float64)
    if "layer_norm" in [part.strip() for part in (config.get("norm_rel_ebd") or "none").lower().split("|")]:
        norm = raw.norm(table.prefix + table.encoder["positions.layer_norm"], hidden)
        rows = rows - rows.mean(axis=1, keepdims=True)
        rows /= np.sqrt((rows * rows).mean(axis=1, keepdims=True) + spec.layer_norm_eps)
        rows = rows * norm["weight"] + norm["bias"]
    rows = rows[list(dict.fromkeys(distances.tolist()))]
    share = 1.0 / math.sqrt(3.0)
    keys = ("k", "q") if config.get("share_att_key") else ("position_keys", "position_queries")
    for name, key, factor in zip(position_table_names(i), keys, (1.0, share), strict=True):
        weight = raw.encoder(key, "weight", (layer.attention_size, hidden), i).astype(np.float64)
        made = (rows @ weight.T + raw.encoder(key, "bias", (layer.attention_size,), i)) * factor
        tensors[name] = made.astype(np.float32).reshape(len(rows), layer.num_heads, layer.head_dim).transpose(1, 2, 0)
    for part in ("weight", "bias"):
        name = f"{linear_name(i, 'qkv')}.{part}"
        tensors[name] = np.array(tensors[name])
        tensors[name][..., : layer.attention_size] *= np.float32(share)


def _distance_buckets() -> NDArray[np.int64]:
    """The bucket of each distance j - i of a key from its query, from the farthest before on: int64.

    Half of the buckets are for keys after the query; of each half, half are for single distances and half for ranges
    that grow with the distance (Raffel et al., arXiv 1910.10683, section 2.1), rounded as MPNetEncoder does in float32.
    """
    half, exact = _NUM_BUCKETS // 2, _NUM_BUCKETS // 4
    distance = np.arange(-_MAX_BUCKETED_DISTANCE, _MAX_BUCKETED_DISTANCE + 1)
    size = np.maximum(np.abs(distance), 1).astype(np.float32)
    steps = np.log(size / np.float32(exact)) / np.float32(math.log(_MAX_BUCKETED_DISTANCE / exact))
    wide = np.minimum(exact + (steps * np.float32(half - exact)).astype(np.int64), half - 1)
    buckets: NDArray[np.int64] = np.where(np.abs(distance) < exact, np.abs(distance), wide) + half * (distance > 0)
    return buckets


def _add_mlm_head(tensors: dict[str, F32], spec: EncoderSpec, table: Family, raw: _Weights) -> None:
    is_new = table.new_mlm is not None and raw.config.get("legacy") is False
    dense, norm, decoder, bias = table.new_mlm if table.new_mlm and is_new else table.mlm
    width = spec.embedding_size
    tensors["mlm.dense.weight"] = raw.get(f"{dense}.weight", (width, spec.hidden_size)).T
    tensors["mlm.dense.bias"] = raw.bias(dense, width)
    for part, value in raw.norm(norm, width).items():
        tensors[f"mlm.layer_norm.{part}"] = value
    tensors["mlm.bias"] = raw.bias((bias if bias in raw else f"{decoder}.bias").removesuffix(".bias"), spec.vocab_size)
    tied = {f"{decoder}.weight": tensors["embeddings.word.weight"], f"{decoder}.bias": tensors["mlm.bias"]}
    for name, value in tied.items():
        if name in raw and not np.array_equal(raw.get(name, value.shape), value):
            raise UnsupportedModelError(
                f"untied MLM decoder: {name} differs from the tensor it is tied to in transformers; "
                "supported: a decoder that shares the word embeddings"
            )
