"""The encoder in PyTorch, built from a spec and canonical tensors, so that every stage of compression can train it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgebert.artifact.names import linear_name, position_bias_name, position_table_names, weight_tensors
from edgebert.artifact.spec import EncoderSpec, Head, Step
from edgebert.backends.numpy_ops import rotary_table
from edgebert.checkpoints.families import FAMILY_TABLES
from edgebert.errors import InvalidInputError, UnsupportedModelError
from edgebert.quant import F32

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_erf": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


class TorchEncoder(nn.Module):
    """A model of any task of the spec; its parameters are the canonical tensors, all of them trainable.

    Layers may differ in their number of heads and their intermediate size, and either may be 0.
    """

    def __init__(
        self, spec: EncoderSpec, tensors: Mapping[str, F32], *, dropout: float = 0.0, attention_dropout: float = 0.0
    ) -> None:
        """Take copies of the tensors.

        Args:
            spec: of an f32 model.
            tensors: exactly those of `names.weight_tensors(spec)`.
            dropout: probability for the embeddings, the two sub-blocks of every layer and the head's input; in training
                mode only, as in BERT (arXiv 1810.04805, appendix A.2).
            attention_dropout: probability for the attention weights, in training mode only.

        Raises:
            UnsupportedModelError: the spec is int8.
            InvalidInputError: tensors missing, too many, or of another shape.
        """
        super().__init__()
        if spec.is_int8:
            raise UnsupportedModelError("only f32 models can be trained, this one is int8: take the f32 checkpoint")
        expected = {name: shape for name, (_, shape) in weight_tensors(spec).items()}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != expected:
            wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
            raise InvalidInputError(
                f"tensor {wrong[0]}: expected the shape {expected.get(wrong[0])}, got {found.get(wrong[0])} "
                f"({len(wrong)} tensors do not fit the spec): give those of names.weight_tensors(spec)"
            )
        self.spec = spec
        self.dropout, self.attention_dropout = dropout, attention_dropout
        is_classifier = any(step.drops_input for head in spec.heads for step in head.steps)
        self._drops_pooled = is_classifier and FAMILY_TABLES[spec.family].drops_pooled
        for name in expected:  # in canonical order: optimizers know parameters by their number
            tensor = torch.from_numpy(np.array(tensors[name], np.float32))
            self.register_parameter(_attribute(name), nn.Parameter(tensor))

    def tensors(self) -> dict[str, F32]:
        """Copies of the canonical tensors as they are now, f32."""
        return {name: self.tensor(name).detach().cpu().numpy().copy() for name in weight_tensors(self.spec)}

    def tensor(self, name: str) -> Tensor:
        """The parameter of a canonical name."""
        parameter: Tensor = getattr(self, _attribute(name))
        return parameter

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        *,
        head_masks: Sequence[Tensor] | None = None,
        neuron_masks: Sequence[Tensor] | None = None,
        keep_hidden: bool = False,
        only: Tensor | None = None,
    ) -> dict[str, Any]:
        """Run padded sequences, padded on the right.

        Args:
            input_ids: int64 [B, S].
            attention_mask: [B, S], 1 or True for real tokens.
            token_type_ids: int64 [B, S]; None for zeros.
            head_masks: of every layer [num_heads] or [B, num_heads], multiplied into each head's context.
            neuron_masks: of every layer [intermediate_size] or [B, 1, intermediate_size], multiplied into the
                activation before ffn_down.
            keep_hidden: also return `hidden_states` and `qkv`.
            only: bool [B, S]; heads over tokens are applied to these tokens alone and give [n, width].

        Returns:
            The outputs of `spec.outputs`, [B, S, ...] or [B, ...]; at padding they mean nothing. With exits also
            "exits": tuple of the logits at each, however sure they are. With `keep_hidden` also "hidden_states": tuple
            of [B, S, hidden_size], the embeddings first, and "qkv": a tuple with one entry a layer and repeat,
            [B, S, 3, num_heads, head_dim], or None where the layer has no heads.
        """
        spec = self.spec
        mask = attention_mask.bool()
        x = self.embed(input_ids, token_type_ids)
        hidden_states: list[Tensor] = [x]
        kept_qkv: list[Tensor | None] = []
        attention_bias = None if bool(mask.all()) else mask[:, None, None, :]
        exits = {each.after: head for each, head in zip(spec.exits, spec.exit_heads, strict=True)}
        at_exits: list[Tensor] = []
        for depth, i in enumerate(spec.layer_order, 1):
            context, qkv = self.attend(i, x, attention_bias, None if head_masks is None else head_masks[i])
            x = self.add(i, "attention_output", context, x)
            inner = self.activate(i, x)
            x = self.add(i, "ffn_down", inner if neuron_masks is None else inner * neuron_masks[i], x)
            kept_qkv.append(qkv)
            hidden_states.append(x)
            if depth in exits:
                at_exits.append(self._heads([exits[depth]], x, mask, only)["logits"])
        if spec.is_pre_norm:
            x = self._layer_norm("final.layer_norm", x)
        outputs: dict[str, Any] = self._heads(spec.heads, x, mask, only)
        if at_exits:
            outputs["exits"] = tuple(at_exits)
        if keep_hidden:
            outputs |= {"hidden_states": tuple(hidden_states), "qkv": tuple(kept_qkv)}
        return outputs

    def attend(
        self, i: int, x: Tensor, attention_bias: Tensor | None, head_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The input of layer i's attention_output, [B, S, attention_size], and its qkv, None where there are no heads.

        Args:
            i: the layer.
            x: hidden states [B, S, hidden_size].
            attention_bias: bool [B, 1, 1, S], True for real tokens; None if all are.
            head_mask: as in `forward`, of this layer.
        """
        layer = self.spec.layers[i]
        if not layer.num_heads:
            return x[..., :0], None
        if self.spec.is_pre_norm and layer.has_attention_norm:
            x = self._layer_norm(f"layer.{i}.attention.layer_norm", x)
        qkv = self._linear(linear_name(i, "qkv"), x).view(*x.shape[:2], 3, layer.num_heads, layer.head_dim)
        query, key, value = qkv.transpose(1, 3).unbind(2)  # [B, num_heads, S, head_dim] each
        if layer.rotary_base:
            query, key = _rotate(query, layer.rotary_base), _rotate(key, layer.rotary_base)
        if layer.window:
            places = torch.arange(x.shape[1], device=x.device)
            is_near = (places[:, None] - places).abs() <= layer.window
            attention_bias = is_near if attention_bias is None else attention_bias & is_near
        if self.spec.max_relative_distance:
            bias = self._position_bias(i, query, key).to(query.dtype)
            attention_bias = bias if attention_bias is None else bias.where(attention_bias, -math.inf)
        context = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_bias,
            dropout_p=self.attention_dropout if self.training else 0.0,
            scale=1.0 / math.sqrt(layer.head_dim),
        )
        if head_mask is not None:
            context = context * head_mask[..., None, None]
        return context.transpose(1, 2).flatten(2), qkv

    def _position_bias(self, i: int, query: Tensor, key: Tensor) -> Tensor:
        """What layer i's scores get by distance, [num_heads, S, S]; of position tables [B, num_heads, S, S]."""
        places, farthest = torch.arange(query.shape[2], device=query.device), self.spec.max_relative_distance
        columns = (places - places[:, None]).clamp(-farthest, farthest) + farthest
        if not self.spec.distances_per_row:
            return self.tensor(position_bias_name(i))[:, columns]
        keys, queries = (self.tensor(name) for name in position_table_names(i))
        rows = torch.from_numpy(self.spec.distance_rows).long().to(query.device)[columns]
        rows = rows.expand(*query.shape[:2], -1, -1)
        of_query, of_key = (query @ keys).gather(3, rows), (key @ queries).mT.gather(2, rows)
        return (of_query + of_key) / math.sqrt(query.shape[3])

    def activate(self, i: int, x: Tensor) -> Tensor:
        """The input of layer i's ffn_down, [B, S, intermediate_size]."""
        if not self.spec.layers[i].intermediate_size:
            return x[..., :0]
        if self.spec.is_pre_norm:
            x = self._layer_norm(f"layer.{i}.ffn.layer_norm", x)
        activation = _ACTIVATIONS[self.spec.activation]
        up = self._linear(linear_name(i, "ffn_up"), x)
        if not self.spec.is_gated:
            return activation(up)
        up, gate = up.chunk(2, dim=-1)
        return activation(up) * gate

    def output(self, i: int, name: str, inner: Tensor) -> Tensor:
        """Layer i's "attention_output" or "ffn_down" of its input; where that has no width, the bias."""
        if not inner.shape[-1]:
            return self.tensor(f"{linear_name(i, name)}.bias").expand(*inner.shape[:-1], -1)
        return self._linear(linear_name(i, name), inner)

    def add(self, i: int, name: str, inner: Tensor, x: Tensor) -> Tensor:
        """The hidden states after a sub-block: LayerNorm of x + output; in a pre-norm model x + output."""
        if self.spec.is_pre_norm:
            return x + self._drop(self.output(i, name, inner))
        norm = f"layer.{i}.{'ffn' if name == 'ffn_down' else 'attention'}.layer_norm"
        return self._layer_norm(norm, x + self._drop(self.output(i, name, inner)))

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """The hidden states before the first layer, [B, S, hidden_size]."""
        spec = self.spec
        x = self._rows("word", functional.embedding(input_ids, self.tensor("embeddings.word.weight")))
        if spec.num_token_types:
            types = self.tensor("embeddings.token_type.weight")
            if token_type_ids is None or not spec.has_token_types:
                x = x + self._rows("token_type", types[0])
            else:
                x = x + self._rows("token_type", functional.embedding(token_type_ids, types))
        if spec.has_position_table:
            positions = self.tensor("embeddings.position.weight")
            first = spec.position_offset
            if spec.has_padding_position:
                is_counted = (input_ids != spec.pad_token_id).long()
                rows = functional.embedding(is_counted.cumsum(1) * is_counted + first - 1, positions)
            else:
                rows = positions[first : first + input_ids.shape[1]]
            x = x + self._rows("position", rows)
        x = self._drop(self._layer_norm("embeddings.layer_norm", x))
        return x if spec.embedding_size == spec.hidden_size else self._linear("embeddings.projection", x)

    def _heads(self, heads: Sequence[Head], x: Tensor, mask: Tensor, only: Tensor | None) -> dict[str, Tensor]:
        tokens = x if only is None else x[only]

        @cache
        def after(steps: tuple[Step, ...]) -> Tensor:
            if not steps:
                return tokens
            step = steps[-1]
            if step.op == "pool":
                rows = x if len(steps) == 1 else after(steps[:-1])
                rows = torch.cat([_pool(rows, mask, kind) for kind in step.kind.split("+")], dim=-1)
                return self._drop(rows) if self._drops_pooled else rows
            rows = after(steps[:-1])
            if step.op == "log1p_relu":
                return torch.log1p(functional.relu(rows))
            if step.op == "layer_norm":
                return self._layer_norm(step.weights, rows)
            if step.op == "decoder":
                word, bias = self.tensor("embeddings.word.weight"), self.tensor(f"{step.weights}.bias")
                return self._product(step.weights, rows, word, bias)
            if step.op == "normalize":
                return functional.normalize(rows.float(), dim=-1)
            if step.op == "column":
                return rows[..., step.column]
            rows = self._drop(rows) if step.drops_input else rows
            return _ACTIVATIONS[step.kind](self._linear(step.weights, rows))

        return {head.name: after(head.steps) if head.steps else x for head in heads}

    def _linear(self, prefix: str, x: Tensor) -> Tensor:
        return self._product(prefix, x, self.tensor(f"{prefix}.weight").t(), self.tensor(f"{prefix}.bias"))

    def _product(self, prefix: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """x @ weight.t() + bias of one linear, weight [N, K]; "mlm" is the tied decoder."""
        return functional.linear(x, weight, bias)

    def _rows(self, table: str, rows: Tensor) -> Tensor:
        """Rows of an embedding table, [..., embedding_size], as they are added up."""
        return rows

    def _layer_norm(self, prefix: str, x: Tensor) -> Tensor:
        weight, bias = self.tensor(f"{prefix}.weight"), self.tensor(f"{prefix}.bias")
        return functional.layer_norm(x, weight.shape, weight, bias, self.spec.layer_norm_eps)

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


def _attribute(name: str) -> str:
    """The name of a canonical tensor as torch's modules allow it."""
    return name.replace(".", "/")


def _rotate(x: Tensor, base: float) -> Tensor:
    """`numpy_ops.rotate` of [B, num_heads, S, head_dim]."""
    tables = rotary_table(x.shape[2], x.shape[3], base)
    cos, sin = (torch.from_numpy(table).to(x.device, x.dtype) for table in tables)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _pool(x: Tensor, mask: Tensor, kind: str) -> Tensor:
    """`numpy_ops.pool` of each sequence's real tokens, by one pooling: [B, S, width] and bool [B, S] -> [B, width]."""
    if kind == "cls":
        return x[:, 0]
    weights = mask[..., None].to(x.dtype)
    if kind == "max":
        return x.masked_fill(~mask[..., None], -math.inf).amax(1)
    if kind == "last":
        return x[torch.arange(len(x), device=x.device), mask.sum(1) - 1]
    if kind == "weighted_mean":
        weights = weights * weights.cumsum(1)
    total, number = (x * weights).sum(1), weights.sum(1)
    return total if kind == "sum" else total / (number.sqrt() if kind == "mean_sqrt_len" else number)
