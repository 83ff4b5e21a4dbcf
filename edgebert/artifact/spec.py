"""EncoderSpec: everything an engine must know about a model besides its weights, stored as JSON in the file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import ModelFormatError

SPEC_VERSION = 1

TASKS = (
    "embedding",
    "text-classification",
    "token-classification",
    "question-answering",
    "fill-mask",
    "next-sentence",
    "pretraining",
)
ACTIVATIONS = ("gelu_erf", "gelu_tanh", "relu", "silu", "tanh", "identity")
FFN_ACTIVATIONS = ("gelu_erf", "gelu_tanh", "relu", "silu")
POOLINGS = ("mean", "cls", "max", "mean_sqrt_len", "weighted_mean", "last")  # or several, joined by "+"; or "none"
SPARSE_POOLINGS = ("none", "max", "sum")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
RANK_FUNCTIONS = ("none", "sigmoid", "tanh", "softmax")
LINEARS = ("qkv", "attention_output", "ffn_up", "ffn_down")
DTYPES = ("f32", "s8")
ATTENTION_DTYPES = ("f32", "bf16", "s8")
MAX_LAYERS = 1024
MAX_THRESHOLD = 1e6  # of an exit
MAX_INNER_SIZE = 65_000  # 65,000 * 255 * 127 < 2**31: the s32 sums of an int8 linear cannot overflow


@dataclass(frozen=True)
class LayerSpec:
    """Sizes and weight dtypes of one encoder layer; they vary by layer because pruning varies them.

    `num_heads == 0` or `intermediate_size == 0` is legal: that sub-block is then only its bias and the residual.
    `smoothed` names the linears that multiply their input by a per-channel `inv_smooth` before making codes.
    A token attends to the `window` tokens on each side and to itself; 0: to its whole sequence. With a `rotary_base`
    queries and keys are turned by their positions; 0: they are not. Only of a pre-norm model's first layer may the
    attention lack its norm: the embeddings' is right before it.
    """

    num_heads: int
    head_dim: int
    intermediate_size: int
    qkv: str = "f32"
    attention_output: str = "f32"
    ffn_up: str = "f32"
    ffn_down: str = "f32"
    smoothed: tuple[str, ...] = ()
    repeats: int = 1  # how many times it runs, one after the other, with the same weights (ALBERT)
    window: int = 0
    rotary_base: float = 0.0
    has_attention_norm: bool = True

    @property
    def attention_size(self) -> int:
        """Width of the attention context: num_heads * head_dim."""
        return self.num_heads * self.head_dim

    def dtype(self, linear: str) -> str:
        """Weight dtype, "f32" or "s8", of one of LINEARS."""
        return str(getattr(self, linear))


def rotary_frequencies(head_dim: int, base: float) -> NDArray[np.float32]:
    """By how much one position turns each pair of a head, f32 [head_dim / 2]: base ** (-2 j / head_dim).

    Rounded to f32 after the power and after its inverse, as in transformers (Su et al., arXiv 2104.09864, section 3.2).
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = (np.float64(base) ** exponents.astype(np.float64)).astype(np.float32)
    frequencies: NDArray[np.float32] = np.float32(1.0) / powers
    return frequencies


class Step(NamedTuple):
    """One operation of a head, on the rows that the step before left; engines know these and no tasks.

    pool: the tokens' rows become one a sequence: `kind` is one of POOLINGS or "sum", or several joined by "+", whose
        rows lie side by side. Steps before it are on tokens.
    linear: x @ weight + bias, f32, then the activation `kind`.
    layer_norm: LayerNorm of each row.
    decoder: the word table as a linear from `embedding_size` to `vocab_size`, s8 where the table is.
    normalize: each row divided by its Euclidean norm.
    log1p_relu: log(1 + max(x, 0)) of each value.
    column: value `column` of each row, alone; it comes last or not at all.
    """

    op: str
    width: int  # of the rows it leaves; 0: one value each, no axis
    kind: str = "identity"
    weights: str = ""  # prefix of its tensors' names
    column: int = 0
    drops_input: bool = False  # whether training drops out some of its input, as transformers does


class Head(NamedTuple):
    """One output: the steps that lead to it from the last hidden states."""

    name: str
    is_per_token: bool  # else it has one row a sequence
    width: int  # as that of a Step
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class ExitSpec:
    """A head after some of the layers, `EncoderSpec.exit_heads`: a text whose answer there is sure goes no deeper.

    `after` counts the layers before it, repeats too. A text is sure if `EncoderSpec.margins` of its logits, of all its
    tokens where these have logits, are `threshold` or more; with None, before calibration, no text is.
    """

    after: int
    threshold: float | None = None


@dataclass(frozen=True)
class EncoderSpec:
    """Sizes, dtypes, heads and text settings of one model file."""

    family: str  # a label: what a family computes is in the other fields
    task: str
    vocab_size: int
    hidden_size: int
    embedding_size: int
    num_positions: int  # rows of the position table; without one, the longest sequence
    num_token_types: int  # rows of the token type table; 0: no table; 1: its row is added to every token
    layers: tuple[LayerSpec, ...]
    activation: str = "gelu_erf"
    is_gated: bool = False  # ffn_up gives two values a neuron: the activation of the first times the second
    is_pre_norm: bool = False  # a sub-block's norm is before it, not after its residual; one more after the last layer
    has_position_table: bool = True
    layer_norm_eps: float = 1e-12
    position_offset: int = 0  # row of the position table that the first token takes (RoBERTa: 2)
    has_padding_position: bool = False  # pad_token_id takes the row before, and others count up without it (RoBERTa)
    max_relative_distance: int = 0  # of those that attention's scores have a bias for; 0: there is none (MPNet)
    # That bias is from products of queries and keys with rows of two tables (DeBERTa): how many distances each row is
    # for, from -max_relative_distance on; (): the bias is a number for each head and distance.
    distances_per_row: tuple[int, ...] = ()
    max_length: int = 512  # tokens, special tokens included
    embedding_dtype: str = "f32"
    attention_dtype: str = "f32"
    pooling: str = "none"  # of the sentence embedding: one of POOLINGS, or several joined by "+", side by side
    normalize: bool = False
    dense_size: int = 0  # 0: no dense layer between pooling and output
    dense_activation: str = "identity"
    has_dense_norm: bool = False  # a LayerNorm after the dense layer
    mlm_activation: str = "identity"
    sparse_pooling: str = "none"  # of the masked-LM head's logits over the tokens, for sparse_embedding (SPLADE)
    num_sparse_logs: int = 1  # how often log(1 + max(x, 0)) is taken of them
    token_size: int = 0  # width of token_embeddings, a linear of each hidden state (ColBERT); 0: no such output
    normalize_tokens: bool = False  # token embeddings have length 1
    has_token_weights: bool = False  # token_weights: relu of a linear of each hidden state, one value (BGE-M3)
    labels: tuple[str, ...] = ()
    problem_type: str = "single_label_classification"
    rank_function: str | None = None  # what makes a cross-encoder's logits scores; None: its checkpoint does not say
    portable: bool = False  # int8 weights kept in +-63
    is_weight_only: bool = False  # the graph multiplies in f32, by its s8 weights dequantized; engines compute int8
    pad_token_id: int = 0
    mask_token: str | None = None  # what stands for a token to be filled in; None: [MASK] or <mask>
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    markers: dict[str, int] = field(default_factory=dict)  # "query", "document": the token put after a text's first
    query_length: int = 0  # tokens that a query is cut to; 0: as any other text
    expansion_length: int = 0  # a shorter query is filled up to so many tokens with `expansion_id`
    expansion_id: int = 0
    attends_to_expansion: bool = True  # else tokens of that id at the end of a sequence are attended to by none
    skipped_ids: tuple[int, ...] = ()  # tokens of documents that have no token embedding
    drops_first_token: bool = False  # nor has the first token of any text
    unweighted_ids: tuple[int, ...] = ()  # tokens whose weight counts for nothing
    exits: tuple[ExitSpec, ...] = ()  # in their order; the graph has none, and no runtime of ONNX takes any
    version: int = SPEC_VERSION

    def __post_init__(self) -> None:
        self._validate()

    @property
    def num_layers(self) -> int:
        """Number of encoder layers with weights of their own."""
        return len(self.layers)

    @property
    def layer_order(self) -> list[int]:
        """Index of each layer that runs, in order; one that repeats is there so many times."""
        return [i for i, layer in enumerate(self.layers) for _ in range(layer.repeats)]

    @property
    def usable_positions(self) -> int:
        """Longest sequence, in tokens, that there are positions for."""
        return self.num_positions - self.position_offset

    @cached_property
    def distance_rows(self) -> NDArray[np.int32]:
        """Row of the position tables for each distance, int32 [2 * max_relative_distance + 1], ascending."""
        return np.repeat(np.arange(len(self.distances_per_row), dtype=np.int32), self.distances_per_row)

    @property
    def position_padding_id(self) -> int | None:
        """The id that positions do not count; None if they count every token."""
        return self.pad_token_id if self.has_padding_position else None

    @property
    def max_unattended(self) -> int:
        """How many tokens of `expansion_id` at the end of a sequence are attended to by none, at most."""
        return 0 if self.attends_to_expansion else self.expansion_length

    def count_keys(self, input_ids: NDArray[np.int32], cu_seqlens: NDArray[np.int32]) -> NDArray[np.int32]:
        """Of each sequence of a packed batch the tokens that are attended to, the first so many: int32 [n], above 0."""
        counts = np.diff(cu_seqlens).astype(np.int32)
        if self.max_unattended:
            for i, last in enumerate(cu_seqlens[1:]):
                least = max(1, counts[i] - self.max_unattended)
                while counts[i] > least and input_ids[last - 1 - (cu_seqlens[i + 1] - cu_seqlens[i] - counts[i])] == (
                    self.expansion_id
                ):
                    counts[i] -= 1
        return counts

    @property
    def has_token_types(self) -> bool:
        """Whether the model takes `token_type_ids` as an input (two or more types)."""
        return self.num_token_types >= 2

    @property
    def is_int8(self) -> bool:
        """Whether any of the encoder's products or tables is in int8."""
        return "s8" in (self.embedding_dtype, self.attention_dtype) or any(
            layer.dtype(name) == "s8" for layer in self.layers for name in LINEARS
        )

    @cached_property
    def heads(self) -> tuple[Head, ...]:
        """The file's outputs, in order. Everything that computes, stores or describes an output reads this table."""
        dense = [Step("linear", self.dense_size, self.dense_activation, "head.dense")] * bool(self.dense_size)
        if dense and self.has_dense_norm:
            dense.append(Step("layer_norm", self.dense_size, weights="head.layer_norm"))
        num_poolings = len(self.pooling.split("+"))
        pooled = [Step("pool", num_poolings * self.hidden_size, self.pooling), *dense]
        sentence = [*pooled, Step("normalize", pooled[-1].width)] if self.normalize else pooled
        labels = Step("linear", len(self.labels), weights="head.out", drops_input=True)
        span = Step("linear", 2, weights="head.out")
        words = (
            Step("linear", self.embedding_size, self.mlm_activation, "mlm.dense"),
            Step("layer_norm", self.embedding_size, weights="mlm.layer_norm"),
            Step("decoder", self.vocab_size, weights="mlm"),
        )
        embeddings: dict[str, Sequence[Step]] = {"last_hidden_state": ()}
        if self.pooling != "none":
            embeddings["sentence_embedding"] = sentence
        if self.sparse_pooling != "none":
            pool = Step("pool", self.vocab_size, self.sparse_pooling)
            logs = [Step("log1p_relu", self.vocab_size)] * self.num_sparse_logs
            # the logarithm grows with the logit: of the largest alone it is the largest
            embeddings["sparse_embedding"] = [*words, pool, *logs] if pool.kind == "max" else [*words, *logs, pool]
        if self.token_size:
            unit = [Step("normalize", self.token_size)] * self.normalize_tokens
            embeddings["token_embeddings"] = [Step("linear", self.token_size, weights="head.tokens"), *unit]
        if self.has_token_weights:
            embeddings["token_weights"] = [Step("linear", 1, "relu", "head.token_weights")]
        outputs: dict[str, dict[str, Sequence[Step]]] = {
            "embedding": embeddings,
            "text-classification": {"logits": (*pooled, labels)},
            "token-classification": {"logits": (*dense, labels)},
            "question-answering": {
                "start_logits": (*dense, span, Step("column", 0, column=0)),
                "end_logits": (*dense, span, Step("column", 0, column=1)),
            },
            "fill-mask": {"logits": words},
            "next-sentence": {"logits": (*pooled, labels)},
            "pretraining": {"prediction_logits": words, "seq_relationship_logits": (*pooled, labels)},
        }
        return tuple(
            Head(
                name,
                all(step.op != "pool" for step in steps),
                steps[-1].width if steps else self.hidden_size,
                tuple(steps),
            )
            for name, steps in outputs[self.task].items()
        )

    @cached_property
    def exit_heads(self) -> tuple[Head, ...]:
        """Of each exit the head that stands in for that of `logits`: a linear of the rows' mean, or of each token.

        Of the mean whatever `pooling` says: after few layers the first token does not know its text yet.
        """
        is_per_token, width = self.task == "token-classification", len(self.labels)
        pool = [Step("pool", self.hidden_size, "mean")] * (not is_per_token)
        return tuple(
            Head(
                "logits",
                is_per_token,
                width,
                (*pool, Step("linear", width, weights=f"exit.{each.after}", drops_input=True)),
            )
            for each in self.exits
        )

    def margins(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """How far each row of logits is from another answer: f32 [rows, labels] to [rows].

        The largest logit less the next; of labels that are each true or false the smallest distance from 0.
        """
        if self.problem_type == "multi_label_classification" or len(self.labels) == 1:
            distances: NDArray[np.float32] = np.abs(logits).min(axis=1)
            return distances
        largest = np.partition(logits, -2, axis=1)[:, -2:]
        leads: NDArray[np.float32] = largest[:, 1] - largest[:, 0]
        return leads

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the file's outputs, in order."""
        return tuple(head.name for head in self.heads)

    @property
    def has_decoder(self) -> bool:
        """Whether the word table is a product's weight too."""
        return any(step.op == "decoder" for head in self.heads for step in head.steps)

    def output_width(self, name: str) -> tuple[bool, int]:
        """Of an output: whether it has one row a token (else one a sequence), and its width (0: a scalar a token)."""
        return self._widths[name]

    @cached_property
    def _widths(self) -> dict[str, tuple[bool, int]]:
        return {head.name: (head.is_per_token, head.width) for head in self.heads}

    def to_json(self) -> str:
        """The spec as canonical JSON (sorted keys, no spaces)."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> EncoderSpec:
        """Parse and validate; raises ModelFormatError on anything unexpected."""
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelFormatError(f"edgebert.spec is not valid JSON ({error}): re-export the model") from None
        if not isinstance(raw, dict) or not isinstance(raw.get("layers"), list):
            raise ModelFormatError("edgebert.spec: expected an object with a list `layers`: re-export the model")
        if raw.get("version") != SPEC_VERSION:
            raise ModelFormatError(
                f"edgebert.spec has version {raw.get('version')!r}, this EdgeBERT reads {SPEC_VERSION}: "
                "update EdgeBERT or re-export the model"
            )
        try:
            layers = tuple(
                LayerSpec(**{**layer, "smoothed": tuple(layer.get("smoothed", ()))}) for layer in raw["layers"]
            )
            names = ("labels", "distances_per_row", "skipped_ids", "unweighted_ids", "exits")
            if odd := [name for name in names if not isinstance(raw.get(name, []), list)]:
                raise ModelFormatError(f"edgebert.spec: {odd[0]} must be a list, got {raw[odd[0]]!r:.100}")
            lists = {name: tuple(raw.get(name, ())) for name in names}
            lists["exits"] = tuple(ExitSpec(**each) for each in lists["exits"])
            return cls(**{**raw, "layers": layers, **lists})
        except (TypeError, AttributeError) as error:
            raise ModelFormatError(f"edgebert.spec does not fit this EdgeBERT ({error}): re-export the model") from None

    def replace(self, **changes: Any) -> EncoderSpec:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def _validate(self) -> None:
        def size(name: str, value: object, low: int, high: int) -> None:
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ModelFormatError(f"edgebert.spec: {name} must be an integer in [{low}, {high}], got {value!r}")

        def choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
            if value not in allowed:
                raise ModelFormatError(f"edgebert.spec: {name} must be one of {', '.join(allowed)}, got {value!r}")

        choice("task", self.task, TASKS)
        choice("activation", self.activation, FFN_ACTIVATIONS)
        choice("dense_activation", self.dense_activation, ACTIVATIONS)
        choice("mlm_activation", self.mlm_activation, ACTIVATIONS)
        choice("sparse_pooling", self.sparse_pooling, SPARSE_POOLINGS)
        if self.pooling != "none":
            poolings = str(self.pooling).split("+")
            for pooling in poolings:
                choice("pooling", pooling, POOLINGS)
            if len(set(poolings)) < len(poolings):
                raise ModelFormatError(f"edgebert.spec: pooling names one twice, {self.pooling!r:.100}")
            size("width of the pooled rows", len(poolings) * self.hidden_size, 1, MAX_INNER_SIZE)
        choice("embedding_dtype", self.embedding_dtype, DTYPES)
        choice("attention_dtype", self.attention_dtype, ATTENTION_DTYPES)
        choice("problem_type", self.problem_type, PROBLEM_TYPES)
        if self.rank_function is not None:
            choice("rank_function", self.rank_function, RANK_FUNCTIONS)
        size("vocab_size", self.vocab_size, 1, 2**24)
        size("hidden_size", self.hidden_size, 1, MAX_INNER_SIZE)
        size("embedding_size", self.embedding_size, 1, MAX_INNER_SIZE)
        size("num_positions", self.num_positions, 1, 2**20)
        size("num_token_types", self.num_token_types, 0, 2**10)
        size("position_offset", self.position_offset, 1 if self.has_padding_position else 0, self.num_positions - 1)
        size("max_relative_distance", self.max_relative_distance, 0, 2**16)
        num_distances = 2 * self.max_relative_distance + 1
        for count in self.distances_per_row:
            size("each of distances_per_row", count, 1, num_distances)
        if self.distances_per_row and (num_distances == 1 or sum(self.distances_per_row) != num_distances):
            raise ModelFormatError(
                "edgebert.spec: distances_per_row must be those from -max_relative_distance to max_relative_distance, "
                f"got {sum(self.distances_per_row)} for a max_relative_distance of {self.max_relative_distance}"
            )
        size("max_length", self.max_length, 1, self.usable_positions)
        size("dense_size", self.dense_size, 0, MAX_INNER_SIZE)
        size("num_sparse_logs", self.num_sparse_logs, 1, 2)
        size("token_size", self.token_size, 0, MAX_INNER_SIZE)
        size("query_length", self.query_length, 0, self.usable_positions)
        size("expansion_length", self.expansion_length, 0, self.query_length)
        if self.max_unattended and (self.pooling, self.sparse_pooling) != ("none", "none"):
            raise ModelFormatError(
                "edgebert.spec: unless attends_to_expansion, pooling and sparse_pooling must be none"
            )
        if self.max_unattended and any(0 < layer.window < self.max_unattended for layer in self.layers):
            raise ModelFormatError(
                "edgebert.spec: windows must be 0 or at least expansion_length, unless attends_to_expansion"
            )
        size("expansion_id", self.expansion_id, 0, self.vocab_size - 1)
        if not isinstance(self.markers, dict) or not set(self.markers) <= {"query", "document"}:
            raise ModelFormatError(
                f"edgebert.spec: markers must be ids of query and document, got {self.markers!r:.100}"
            )
        for token_id in (*self.markers.values(), *self.skipped_ids, *self.unweighted_ids):
            size("markers, skipped_ids and unweighted_ids", token_id, 0, self.vocab_size - 1)
        size("pad_token_id", self.pad_token_id, 0, self.vocab_size - 1)
        size("number of layers", len(self.layers), 0, MAX_LAYERS)
        if not isinstance(self.layer_norm_eps, float) or not 0.0 < self.layer_norm_eps < 1.0:
            raise ModelFormatError(f"edgebert.spec: layer_norm_eps must be in (0, 1), got {self.layer_norm_eps!r}")
        for i, layer in enumerate(self.layers):
            size(f"layers[{i}].num_heads", layer.num_heads, 0, 1024)
            size(f"layers[{i}].head_dim", layer.head_dim, 1, 1024)
            size(f"layers[{i}].attention size", layer.attention_size, 0, MAX_INNER_SIZE // 3)
            size(f"layers[{i}].intermediate_size", layer.intermediate_size, 0, MAX_INNER_SIZE)
            size(f"layers[{i}].repeats", layer.repeats, 1, MAX_LAYERS)
            size(f"layers[{i}].window", layer.window, 0, 2**20)
            base = layer.rotary_base
            if not isinstance(base, float) or not (base == 0 or 1 < base <= 1e9):
                raise ModelFormatError(f"edgebert.spec: layers[{i}].rotary_base must be 0 or in (1, 1e9], got {base!r}")
            if base and (layer.head_dim % 2 or self.position_offset or self.has_padding_position):
                raise ModelFormatError(
                    f"edgebert.spec: layers[{i}] has rotary positions: head_dim must be even, positions count from 0"
                )
            is_first = i == 0 and layer.repeats == 1
            if layer.has_attention_norm is not True and (layer.has_attention_norm is not False or not is_first):
                raise ModelFormatError(
                    f"edgebert.spec: layers[{i}].has_attention_norm must be true, but in a first layer without repeats"
                )
            if not layer.has_attention_norm and not self.is_pre_norm:
                raise ModelFormatError("edgebert.spec: the attention may lack its norm in a pre-norm model only")
            for name in LINEARS:
                choice(f"layers[{i}].{name}", layer.dtype(name), DTYPES)
            for name in layer.smoothed:
                choice(f"layers[{i}].smoothed", name, LINEARS)
                if layer.dtype(name) != "s8":
                    raise ModelFormatError(f"edgebert.spec: layers[{i}].{name} is smoothed but its weight is not s8")
        size("sum of the layers' repeats", sum(layer.repeats for layer in self.layers), 0, MAX_LAYERS)
        if not isinstance(self.family, str):
            raise ModelFormatError(f"edgebert.spec: family must be a string, got {self.family!r:.100}")
        for name in (
            "has_padding_position",
            "normalize",
            "portable",
            "is_weight_only",
            "is_gated",
            "is_pre_norm",
            "has_position_table",
            "has_dense_norm",
            "normalize_tokens",
            "has_token_weights",
            "attends_to_expansion",
            "drops_first_token",
        ):
            if not isinstance(getattr(self, name), bool):
                raise ModelFormatError(f"edgebert.spec: {name} must be true or false, got {getattr(self, name)!r}")
        if self.is_weight_only and self.attention_dtype != "f32":
            raise ModelFormatError(
                "edgebert.spec: is_weight_only has attention in f32: both of its factors are activations"
            )
        if not isinstance(self.prompts, dict) or not all(isinstance(prompt, str) for prompt in self.prompts.values()):
            raise ModelFormatError(f"edgebert.spec: prompts must be an object of strings, got {self.prompts!r:.100}")
        if self.mask_token is not None and not isinstance(self.mask_token, str):
            raise ModelFormatError(f"edgebert.spec: mask_token must be a string, got {self.mask_token!r:.100}")
        if self.default_prompt_name is not None and self.default_prompt_name not in list(self.prompts):
            raise ModelFormatError(f"edgebert.spec: there is no prompt named {self.default_prompt_name!r:.100}")
        if not all(isinstance(label, str) for label in self.labels):
            raise ModelFormatError("edgebert.spec: labels must be strings")
        if self.task == "embedding" and self.labels:
            raise ModelFormatError(f"edgebert.spec: an embedding has no labels, got {len(self.labels)}")
        if self.task in ("text-classification", "next-sentence", "pretraining"):
            if self.pooling not in (("cls", "mean") if self.task == "text-classification" else ("cls",)):
                raise ModelFormatError(f"edgebert.spec: {self.task} does not pool by {self.pooling!r}, expected cls")
            if self.task != "text-classification" and len(self.labels) != 2:
                raise ModelFormatError(f"edgebert.spec: {self.task} has 2 labels, got {len(self.labels)}")
        if self.task in ("text-classification", "token-classification"):
            size("number of labels", len(self.labels), 1, MAX_INNER_SIZE)
        if self.exits and (reason := self.why_no_exits):
            raise ModelFormatError(f"edgebert.spec: exits do not fit, {reason}")
        after = 0
        for each in self.exits:
            size("each of exits: after, which ascends,", each.after, after + 1, sum(x.repeats for x in self.layers) - 1)
            after = each.after
            is_number = isinstance(each.threshold, float) and 0 <= each.threshold < MAX_THRESHOLD
            if each.threshold is not None and not is_number:
                raise ModelFormatError(
                    f"edgebert.spec: thresholds of exits must be null or in [0, {MAX_THRESHOLD:g}), "
                    f"got {each.threshold!r}"
                )

    @property
    def why_no_exits(self) -> str | None:
        """Why a model of this kind can have no exits; None if it can."""
        if self.task not in ("text-classification", "token-classification"):
            return f"the task is {self.task}: only text-classification and token-classification choose among answers"
        if self.task == "text-classification" and self.problem_type == "regression":
            return "its answers are scores, of which none is sure"
        if self.is_pre_norm:
            return "its layers have their norms in front, so that what is between two layers is no row for a head"
        return None
