"""The families: where each keeps what in its checkpoints, after transformers' `modeling_*.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import UnsupportedModelError


@dataclass(frozen=True)
class Family:
    """What sets one family apart: config keys, tensor names (without `.weight` and `.bias`), and what its code fixes.

    `class_prefix` begins the names of its classes in transformers. `encoder` names are below `prefix`, which a
    checkpoint of the bare encoder leaves out; `dense` (of the classification head), `classifier` and the `mlm` names
    are given in full. `qkv` in `encoder` stands for `q`, `k` and `v` one below the other; a gated `ffn_up` for `gate`
    and `factors`, or for `factors_and_gate`, where the factors come first.
    """

    class_prefix: str
    prefix: str
    encoder: Mapping[str, str]
    classifier: str
    dense: str
    dense_activation: str | None  # as mlm_activation
    mlm: tuple[str, str, str, str]  # dense, layer norm, decoder, the name of the bias
    mlm_activation: str | None  # None: the config's `head_act`
    head_act: str = "hidden_act"
    dense_act: str | None = None  # the key of the dense layer's activation where it is another than `head_act`
    new_mlm: tuple[str, str, str, str] | None = None  # as mlm, where the config's `legacy` is false
    span_classifier: str = "qa_outputs"
    token_dense: bool = False  # heads over tokens have the classification head's dense layer too
    dense_norm: str | None = None  # its LayerNorm
    config: Mapping[str, str] = field(default_factory=dict)
    old_config: Mapping[str, str] = field(default_factory=dict)  # names of keys in configs of code on the hub
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)  # what its code fixes, whatever the config says
    position_type: str = "absolute"  # what the config may call its positions
    has_span_head: bool = True  # there is a question answering head
    has_padding_position: bool = False  # the pad token's row comes first, and positions count the others alone
    shares_layers: bool = False  # consecutive layers have one group's weights
    has_position_bias: bool = False  # of attention's scores by distance, in buckets, one table for all layers
    has_embedding_size: bool = False  # embeddings may be of another width than the layers
    drops_pooled: bool = False  # in training, the classification head drops before its dense layer too
    # part of a tensor's name -> the config's key that says whether it has a bias; the first one counts
    biases: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()  # what names of tensors end in that its code does not read
    # Row of its table of relative positions for each distance j - i of key j from query i, ascending, from the config
    # and the longest sequence: queries and keys are multiplied with these rows.
    position_rows: Callable[[Mapping[str, Any], int], NDArray[np.int64]] | None = None
    # fields of EncoderSpec that its code fixes, or takes from the config
    spec: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}
    # fields of each LayerSpec, from the config and the number of layers
    layers: Callable[[Mapping[str, Any], int], list[dict[str, Any]]] = lambda config, count: [{}] * count


_BERT_ENCODER = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "token_type": "embeddings.token_type_embeddings",
    "embeddings.layer_norm": "embeddings.LayerNorm",
    "projection": "embeddings_project",
    "q": "encoder.layer.{i}.attention.self.query",
    "k": "encoder.layer.{i}.attention.self.key",
    "v": "encoder.layer.{i}.attention.self.value",
    "attention_output": "encoder.layer.{i}.attention.output.dense",
    "attention.layer_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "ffn_up": "encoder.layer.{i}.intermediate.dense",
    "ffn_down": "encoder.layer.{i}.output.dense",
    "ffn.layer_norm": "encoder.layer.{i}.output.LayerNorm",
    "pooler": "pooler.dense",
}
_MPNET_ENCODER = {
    **{name: where for name, where in _BERT_ENCODER.items() if name not in ("token_type", "projection")},
    **{name: f"encoder.layer.{{i}}.attention.attn.{name}" for name in ("q", "k", "v")},
    "position_bias": "encoder.relative_attention_bias",
    "attention_output": "encoder.layer.{i}.attention.attn.o",
    "attention.layer_norm": "encoder.layer.{i}.attention.LayerNorm",
}
_ALBERT_LAYER = "encoder.albert_layer_groups.{i}.albert_layers.0"
_ALBERT_ENCODER = {
    **{name: where for name, where in _BERT_ENCODER.items() if where.startswith("embeddings.")},
    "projection": "encoder.embedding_hidden_mapping_in",
    "q": f"{_ALBERT_LAYER}.attention.query",
    "k": f"{_ALBERT_LAYER}.attention.key",
    "v": f"{_ALBERT_LAYER}.attention.value",
    "attention_output": f"{_ALBERT_LAYER}.attention.dense",
    "attention.layer_norm": f"{_ALBERT_LAYER}.attention.LayerNorm",
    "ffn_up": f"{_ALBERT_LAYER}.ffn",
    "ffn_down": f"{_ALBERT_LAYER}.ffn_output",
    "ffn.layer_norm": f"{_ALBERT_LAYER}.full_layer_layer_norm",
    "pooler": "pooler",
}
_DISTILBERT_ENCODER = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "embeddings.layer_norm": "embeddings.LayerNorm",
    "q": "transformer.layer.{i}.attention.q_lin",
    "k": "transformer.layer.{i}.attention.k_lin",
    "v": "transformer.layer.{i}.attention.v_lin",
    "attention_output": "transformer.layer.{i}.attention.out_lin",
    "attention.layer_norm": "transformer.layer.{i}.sa_layer_norm",
    "ffn_up": "transformer.layer.{i}.ffn.lin1",
    "ffn_down": "transformer.layer.{i}.ffn.lin2",
    "ffn.layer_norm": "transformer.layer.{i}.output_layer_norm",
}


_MODERNBERT_ENCODER = {
    "word": "embeddings.tok_embeddings",
    "embeddings.layer_norm": "embeddings.norm",
    "qkv": "layers.{i}.attn.Wqkv",
    "attention_output": "layers.{i}.attn.Wo",
    "attention.layer_norm": "layers.{i}.attn_norm",
    "ffn_up": "layers.{i}.mlp.Wi",
    "ffn_down": "layers.{i}.mlp.Wo",
    "ffn.layer_norm": "layers.{i}.mlp_norm",
    "final.layer_norm": "final_norm",
}


_GTE_ENCODER = {
    "word": "embeddings.word_embeddings",
    "token_type": "embeddings.token_type_embeddings",
    "embeddings.layer_norm": "embeddings.LayerNorm",
    "qkv": "encoder.layer.{i}.attention.qkv_proj",
    "attention_output": "encoder.layer.{i}.attention.o_proj",
    "attention.layer_norm": "encoder.layer.{i}.attn_ln",
    "factors_and_gate": "encoder.layer.{i}.mlp.up_gate_proj",
    "ffn_down": "encoder.layer.{i}.mlp.down_proj",
    "ffn.layer_norm": "encoder.layer.{i}.mlp_ln",
    "pooler": "pooler.dense",
}


def _rotary_base(config: Mapping[str, Any], stated: Mapping[str, Any], base: float) -> float:
    """The base of rotary positions: `stated`, else `base`; refuses those that are scaled for longer texts."""
    rotary = {"rope_type": "default", "rope_theta": base} | dict(stated) | (config.get("rope_scaling") or {})
    if rotary["rope_type"] != "default" or rotary.get("type", "default") != "default":
        raise UnsupportedModelError(f"rotary positions of {rotary!r:.100} are not supported; supported: default")
    return float(rotary["rope_theta"])


def _gte_layers(config: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    if config.get("logn_attention_scale"):
        raise UnsupportedModelError("logn_attention_scale True is not supported; supported: False")
    base = _rotary_base(config, config.get("rope_parameters") or {}, config.get("rope_theta") or 160_000.0)
    return [{"rotary_base": base}] * count


_NOMIC_ENCODER = {
    "word": "embeddings.word_embeddings",
    "token_type": "embeddings.token_type_embeddings",
    "embeddings.layer_norm": "emb_ln",
    "qkv": "encoder.layers.{i}.attn.Wqkv",
    "attention_output": "encoder.layers.{i}.attn.out_proj",
    "attention.layer_norm": "encoder.layers.{i}.norm1",
    "gate": "encoder.layers.{i}.mlp.fc12",
    "factors": "encoder.layers.{i}.mlp.fc11",
    "ffn_down": "encoder.layers.{i}.mlp.fc2",
    "ffn.layer_norm": "encoder.layers.{i}.norm2",
    "pooler": "pooler.dense",
}


def _nomic_layers(config: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    expected: dict[str, Any] = {
        "activation_function": "swiglu",
        "rotary_emb_fraction": 1.0,
        "moe_every_n_layers": 0,
        "rotary_scaling_factor": None,  # of positions beyond those it was trained on
        "rotary_emb_scale_base": None,
    }
    flags = ("prenorm", "parallel_block", "use_rms_norm", "rotary_emb_interleaved", "causal")
    for key, value in (expected | dict.fromkeys(flags, False)).items():
        if config.get(key, value) not in (value, None):
            raise UnsupportedModelError(f"{key} {config[key]!r:.100} of NomicBert is not supported; supported: {value}")
    base = _rotary_base(config, config.get("rope_parameters") or {}, config.get("rotary_emb_base") or 1000.0)
    return [{"rotary_base": base} | ({"head_dim": config["head_dim"]} if config.get("head_dim") else {})] * count


def _modernbert_layers(config: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Global layers and local ones in turn, which count their positions in other units; the first has no norm.

    Release 5 of transformers lists kinds and bases, release 4 states a period and two bases.
    """
    period = config.get("global_attn_every_n_layers") or 3
    kinds = config.get("layer_types") or ["sliding_attention" if i % period else "full_attention" for i in range(count)]
    global_base = config.get("global_rope_theta") or 160_000.0
    local_base = config.get("local_rope_theta", 10_000.0) or global_base
    window = (128 if config.get("local_attention") is None else config["local_attention"]) // 2
    stated = {"full_attention": global_base, "sliding_attention": local_base}
    if window < 1 or len(kinds) != count or any(kind not in stated for kind in kinds):
        raise UnsupportedModelError(
            f"expected {count} layer_types, each of {' and '.join(stated)}, and a local_attention of at least 2, "
            f"got {kinds!r:.200} and {config.get('local_attention')!r}"
        )
    rotary = config.get("rope_parameters") or {}
    bases = {kind: _rotary_base(config, rotary.get(kind) or {}, base) for kind, base in stated.items()}
    return [
        {
            "window": window if kind == "sliding_attention" else 0,
            "rotary_base": bases[kind],
            "has_attention_norm": i > 0,
        }
        for i, kind in enumerate(kinds)
    ]


_DEBERTA_ENCODER = {
    **{name: where for name, where in _BERT_ENCODER.items() if name not in ("projection", "pooler")},
    **{name[0]: f"encoder.layer.{{i}}.attention.self.{name}_proj" for name in ("query", "key", "value")},
    "positions": "encoder.rel_embeddings",
    "positions.layer_norm": "encoder.LayerNorm",
    "position_keys": "encoder.layer.{i}.attention.self.pos_key_proj",
    "position_queries": "encoder.layer.{i}.attention.self.pos_query_proj",
}


def _deberta_spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """Whether positions are added to the embeddings too; refuses what no engine computes."""
    kinds = config.get("pos_att_type") or []
    kinds = kinds.lower().split("|") if isinstance(kinds, str) else kinds
    hidden_size, num_heads = config.get("hidden_size"), config.get("num_attention_heads")
    for key, found, expected in (
        ("relative_attention", bool(config.get("relative_attention")), True),
        ("pos_att_type", sorted(str(kind).strip() for kind in kinds), ["c2p", "p2c"]),
        ("conv_kernel_size", config.get("conv_kernel_size") or 0, 0),
        ("embedding_size", config.get("embedding_size") or hidden_size, hidden_size),
        ("pooler_hidden_size", config.get("pooler_hidden_size") or hidden_size, hidden_size),
    ):
        if found != expected:
            raise UnsupportedModelError(f"{key} {found!r:.100} of DebertaV2 is not supported; supported: {expected!r}")
    head_size = config.get("attention_head_size")
    if head_size and num_heads and head_size * num_heads != hidden_size:
        raise UnsupportedModelError(
            f"attention_head_size {head_size} with {num_heads} heads is not supported; supported: heads that together "
            f"have the hidden_size {hidden_size}"
        )
    biased = config.get("position_biased_input")
    return {"has_position_table": biased is None or bool(biased)}


def _deberta_rows(config: Mapping[str, Any], length: int) -> NDArray[np.int64]:
    """Single distances up to half of the buckets, then ranges that grow with the distance; rounded as in transformers.

    `make_log_bucket_position` there computes in float32 (He et al., arXiv 2006.03654, section 3.1, has no ranges).
    """
    buckets = config.get("position_buckets") or -1
    farthest = config.get("max_relative_positions") or -1
    farthest = farthest if farthest >= 1 else length
    span, middle = buckets if buckets > 0 else farthest, buckets // 2
    if buckets > 0 and not 1 <= middle < farthest - 1:
        raise UnsupportedModelError(
            f"position_buckets {buckets} with max_relative_positions {farthest} is not supported: expected at least 2 "
            "buckets, and more positions than half of them"
        )
    reach = max(length, 2) - 1  # so that there are distances at all
    distance = np.arange(reach, -reach - 1, -1)  # i - j, as the table counts
    if buckets > 0:
        size = np.maximum(np.abs(distance), middle).astype(np.float32)
        unit = np.log(np.float32((farthest - 1) / middle))
        wide = np.ceil(np.log(size / np.float32(middle)) / unit * np.float32(middle - 1)) + np.float32(middle)
        distance = np.where(np.abs(distance) <= middle, distance, np.sign(distance) * wide.astype(np.int64))
    rows: NDArray[np.int64] = np.clip(distance + span, 0, 2 * span - 1)
    return rows


def _roberta(class_prefix: str) -> Family:
    return Family(
        class_prefix=class_prefix,
        prefix="roberta.",
        encoder=_BERT_ENCODER,
        classifier="classifier.out_proj",
        dense="classifier.dense",
        dense_activation="tanh",
        mlm=("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"),
        mlm_activation="gelu_erf",
        defaults={"pad_token_id": 1},
        has_padding_position=True,
        drops_pooled=True,
    )


# By the `model_type` of config.json.
FAMILY_TABLES = {
    "bert": Family(
        class_prefix="Bert",
        prefix="bert.",
        encoder=_BERT_ENCODER,
        classifier="classifier",
        dense="bert.pooler.dense",
        dense_activation="tanh",
        mlm=(
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.decoder",
            "cls.predictions.bias",
        ),
        mlm_activation=None,
    ),
    "roberta": _roberta("Roberta"),
    "xlm-roberta": _roberta("XLMRoberta"),
    "camembert": _roberta("Camembert"),
    "mpnet": Family(
        class_prefix="MPNet",
        prefix="mpnet.",
        encoder=_MPNET_ENCODER,
        classifier="classifier.out_proj",
        dense="classifier.dense",
        dense_activation="tanh",
        mlm=("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"),
        mlm_activation="gelu_erf",
        fixed={"type_vocab_size": 0, "pad_token_id": 1},
        has_padding_position=True,
        has_position_bias=True,
        drops_pooled=True,
    ),
    "albert": Family(
        class_prefix="Albert",
        prefix="albert.",
        encoder=_ALBERT_ENCODER,
        classifier="classifier",
        dense="albert.pooler",
        dense_activation="tanh",
        mlm=("predictions.dense", "predictions.LayerNorm", "predictions.decoder", "predictions.bias"),
        mlm_activation=None,
        defaults={"hidden_act": "gelu_new", "num_hidden_groups": 1, "inner_group_num": 1},
        has_embedding_size=True,
        shares_layers=True,
    ),
    "distilbert": Family(
        class_prefix="DistilBert",
        prefix="distilbert.",
        encoder=_DISTILBERT_ENCODER,
        classifier="classifier",
        dense="pre_classifier",
        dense_activation="relu",
        mlm=("vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias"),
        mlm_activation=None,
        config={
            "hidden_size": "dim",
            "num_attention_heads": "n_heads",
            "num_hidden_layers": "n_layers",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        },
        fixed={"type_vocab_size": 0, "layer_norm_eps": 1e-12},
    ),
    "electra": Family(
        class_prefix="Electra",
        prefix="electra.",
        encoder=_BERT_ENCODER,
        classifier="classifier.out_proj",
        dense="classifier.dense",
        dense_activation="gelu_erf",
        mlm=(
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            "generator_lm_head",
            "generator_lm_head.bias",
        ),
        mlm_activation="gelu_erf",
        has_embedding_size=True,
        drops_pooled=True,
    ),
    "modernbert": Family(
        class_prefix="ModernBert",
        prefix="model.",
        encoder=_MODERNBERT_ENCODER,
        classifier="classifier",
        dense="head.dense",
        dense_activation=None,
        dense_norm="head.norm",
        token_dense=True,
        span_classifier="classifier",
        mlm=("head.dense", "head.norm", "decoder", "decoder.bias"),
        mlm_activation=None,
        head_act="classifier_activation",
        config={"hidden_act": "hidden_activation", "layer_norm_eps": "norm_eps"},
        defaults={
            "pad_token_id": 50283,
            "layer_norm_eps": 1e-5,
            "classifier_activation": "gelu",
            "norm_bias": False,
            "attention_bias": False,
            "mlp_bias": False,
            "classifier_bias": False,
            "decoder_bias": True,
        },
        fixed={"type_vocab_size": 0},
        biases={
            "norm": "norm_bias",
            ".attn.": "attention_bias",
            ".mlp.": "mlp_bias",
            "head.dense": "classifier_bias",
            "decoder": "decoder_bias",
        },
        spec=lambda _: {"is_gated": True, "is_pre_norm": True, "has_position_table": False},
        layers=_modernbert_layers,
    ),
    "gte": Family(
        class_prefix="Gte",
        prefix="gte.",
        encoder=_GTE_ENCODER,
        classifier="classifier",
        dense="gte.pooler.dense",
        dense_activation="tanh",
        mlm=("lm_head.dense", "lm_head.norm", "lm_head.decoder", "lm_head.bias"),
        mlm_activation="gelu_erf",
        position_type="rope",
        has_span_head=False,
        defaults={"type_vocab_size": 1, "pad_token_id": 1},
        fixed={"up_gate_bias": False},
        biases={"up_gate_proj": "up_gate_bias"},
        spec=lambda _: {"is_gated": True, "has_position_table": False},
        layers=_gte_layers,
    ),
    "nomic_bert": Family(
        class_prefix="NomicBert",
        prefix="nomic_bert.",
        encoder=_NOMIC_ENCODER,
        classifier="classifier",
        dense="nomic_bert.pooler.dense",
        dense_activation="tanh",
        mlm=(
            "cls.predictions.transform.dense",
            "cls.predictions.transform.layer_norm",
            "cls.predictions.decoder",
            "cls.predictions.bias",
        ),
        mlm_activation=None,
        has_span_head=False,
        old_config={
            "hidden_size": "n_embd",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
            "intermediate_size": "n_inner",
            "max_position_embeddings": "n_positions",
            "layer_norm_eps": "layer_norm_epsilon",
        },
        defaults={
            "hidden_act": "silu",
            "qkv_proj_bias": False,
            "mlp_fc1_bias": False,
            "mlp_fc2_bias": False,
        },
        biases={".attn.": "qkv_proj_bias", ".fc11": "mlp_fc1_bias", ".fc12": "mlp_fc1_bias", ".fc2": "mlp_fc2_bias"},
        spec=lambda _: {"is_gated": True, "has_position_table": False},
        layers=_nomic_layers,
    ),
    "deberta-v2": Family(
        class_prefix="DebertaV2",
        prefix="deberta.",
        encoder=_DEBERTA_ENCODER,
        classifier="classifier",
        dense="deberta.pooler.dense",  # the prefix is put before all of `pooler`
        dense_activation=None,
        dense_act="pooler_hidden_act",
        mlm=(
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.decoder",
            "cls.predictions.bias",
        ),
        new_mlm=(
            "lm_predictions.lm_head.dense",
            "lm_predictions.lm_head.LayerNorm",
            "lm_predictions.lm_head.decoder",
            "lm_predictions.lm_head.bias",
        ),
        mlm_activation=None,
        defaults={"type_vocab_size": 0, "layer_norm_eps": 1e-7, "pooler_hidden_act": "gelu"},
        ignored=("embeddings.position_embeddings.weight",),
        position_rows=_deberta_rows,
        spec=_deberta_spec,
    ),
}
