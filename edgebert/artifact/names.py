"""Canonical initializer names, and the exact list of tensors a file with a given spec must hold."""

from __future__ import annotations

from edgebert.artifact.spec import EncoderSpec

# dtype codes -> ONNX TensorProto.DataType numbers (onnx.proto, enum DataType)
ONNX_DTYPES = {"f32": 1, "u8": 2, "s8": 3, "s32": 6, "s64": 7}

# The linears of a layer, by the name used in LayerSpec.
LINEAR_NAMES = {
    "qkv": "attention.qkv",
    "attention_output": "attention.output",
    "ffn_up": "ffn.up",
    "ffn_down": "ffn.down",
}

TensorSpec = tuple[str, tuple[int, ...]]  # dtype code, shape


def linear_name(layer: int, linear: str) -> str:
    """Prefix of one linear's tensors, for instance `layer.3.ffn.up`."""
    return f"layer.{layer}.{LINEAR_NAMES[linear]}"


def position_bias_name(layer: int) -> str:
    """The tensor that a layer's attention scores get by distance."""
    return f"layer.{layer}.attention.position_bias"


def position_table_names(layer: int) -> tuple[str, str]:
    """The tensors whose rows a layer's queries, and its keys, are multiplied with for a bias by distance."""
    return f"layer.{layer}.attention.position_keys", f"layer.{layer}.attention.position_queries"


def position_tensors(spec: EncoderSpec, layer: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what makes the bias by distance of a layer's scores; the first axis is that of heads."""
    heads, head_dim = spec.layers[layer].num_heads, spec.layers[layer].head_dim
    if not heads or not spec.max_relative_distance:
        return {}
    if spec.distances_per_row:
        return dict.fromkeys(position_table_names(layer), (heads, head_dim, len(spec.distances_per_row)))
    return {position_bias_name(layer): (heads, 2 * spec.max_relative_distance + 1)}


def linear_shape(spec: EncoderSpec, layer: int, linear: str) -> tuple[int, int]:
    """(inputs, outputs) of one linear of one layer."""
    sizes = spec.layers[layer]
    return {
        "qkv": (spec.hidden_size, 3 * sizes.attention_size),
        "attention_output": (sizes.attention_size, spec.hidden_size),
        "ffn_up": (spec.hidden_size, sizes.intermediate_size * (2 if spec.is_gated else 1)),
        "ffn_down": (sizes.intermediate_size, spec.hidden_size),
    }[linear]


def weight_tensors(spec: EncoderSpec) -> dict[str, TensorSpec]:
    """Every weight of a file with this spec: name -> (dtype, shape), in the order the writer stores them.

    Linears are stored [inputs, outputs]: y = x @ weight + bias. An s8 linear also has `scale` f32 [outputs],
    `colsum` s32 [outputs] (sums of the codes over the inputs) and, where smoothed, `inv_smooth` f32 [inputs].
    A linear with no inputs (a pruned-away sub-block) keeps only its bias; one with no outputs is absent.
    An s8 table has one f32 `scale` a row. A position bias has a row a head, a column a distance, the farthest
    before a token first; the tables of positions have a column a row of `spec.distances_per_row`. Of these the file of
    an `is_weight_only` spec leaves out some: see `stored_tensors`.
    """
    tensors: dict[str, TensorSpec] = {}
    hidden, embedding = spec.hidden_size, spec.embedding_size

    def table(name: str, rows: int) -> None:
        tensors[f"embeddings.{name}.weight"] = (spec.embedding_dtype, (rows, embedding))
        if spec.embedding_dtype == "s8":
            tensors[f"embeddings.{name}.scale"] = ("f32", (rows,))

    def layer_norm(prefix: str, width: int) -> None:
        tensors[f"{prefix}.weight"] = ("f32", (width,))
        tensors[f"{prefix}.bias"] = ("f32", (width,))

    def linear(prefix: str, inputs: int, outputs: int, dtype: str = "f32", smoothed: bool = False) -> None:
        if outputs == 0:
            return
        if inputs:
            tensors[f"{prefix}.weight"] = (dtype, (inputs, outputs))
            if dtype == "s8":
                tensors[f"{prefix}.scale"] = ("f32", (outputs,))
                tensors[f"{prefix}.colsum"] = ("s32", (outputs,))
            if smoothed:
                tensors[f"{prefix}.inv_smooth"] = ("f32", (inputs,))
        tensors[f"{prefix}.bias"] = ("f32", (outputs,))

    table("word", spec.vocab_size)
    if spec.has_position_table:
        table("position", spec.num_positions)
    if spec.num_token_types:
        table("token_type", spec.num_token_types)
    layer_norm("embeddings.layer_norm", embedding)
    if embedding != hidden:
        linear("embeddings.projection", embedding, hidden)
    for i, layer in enumerate(spec.layers):
        for name in ("qkv", "attention_output", "ffn_up", "ffn_down"):
            linear(linear_name(i, name), *linear_shape(spec, i, name), layer.dtype(name), name in layer.smoothed)
            if name == "qkv":
                tensors |= {tensor: ("f32", shape) for tensor, shape in position_tensors(spec, i).items()}
            if name == "attention_output" and layer.has_attention_norm:
                layer_norm(f"layer.{i}.attention.layer_norm", hidden)
        layer_norm(f"layer.{i}.ffn.layer_norm", hidden)
    if spec.is_pre_norm:
        layer_norm("final.layer_norm", hidden)
    for head in sorted(spec.heads, key=lambda head: head.is_per_token):
        width = hidden
        for step in head.steps:
            if step.op == "linear":
                linear(step.weights, width, step.width)
            elif step.op == "layer_norm":
                layer_norm(step.weights, width)
            elif step.op == "decoder":  # its weight is the word table
                if spec.embedding_dtype == "s8":
                    tensors[f"{step.weights}.colsum"] = ("s32", (step.width,))
                tensors[f"{step.weights}.bias"] = ("f32", (step.width,))
            width = step.width
    for head in spec.exit_heads:
        linear(head.steps[-1].weights, hidden, head.width)
    return tensors


def stored_tensors(spec: EncoderSpec) -> dict[str, TensorSpec]:
    """Those of `weight_tensors` that the file's graph holds.

    Runtimes warn of initializers that no node reads. A weight-only graph has no use for a `colsum`: a reader sums the
    codes itself. No graph has one for `exit_tensors`.
    """
    tensors = weight_tensors(spec)
    left_out = exit_tensors(spec).keys()
    return {
        name: of
        for name, of in tensors.items()
        if name not in left_out and not (spec.is_weight_only and name.endswith(".colsum"))
    }


def exit_tensors(spec: EncoderSpec) -> dict[str, TensorSpec]:
    """Those of `weight_tensors` that the metadata `edgebert.exits` holds, in its order."""
    return {name: of for name, of in weight_tensors(spec).items() if name.startswith("exit.")}
