"""Quantization-aware training: a model learns with the INT8 contract's codes in its products and tables.

In the forward pass every linear of the layers, the tied decoder and the embedding rows compute on codes, as
edgebert/quant.py says. In the backward pass rounding counts as the identity (the straight-through estimator: Bengio et
al., arXiv 1308.3432, section 3; for quantized training Jacob et al., arXiv 1712.05877, section 3). Scales follow each
row and channel, so no code is clipped and the gradient needs no mask. `settle` fixes the smoothing factors beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from edgebert import quant
from edgebert.artifact.spec import EncoderSpec
from edgebert.batch import PackedBatch
from edgebert.checkpoints.loading import Checkpoint
from edgebert.compress.torch_encoder import TorchEncoder
from edgebert.exporting.quantize import settle_smoothing
from edgebert.quant import F32


def settle(checkpoint: Checkpoint, batches: Sequence[PackedBatch]) -> Checkpoint:
    """A checkpoint of the same function, its smoothing factors chosen on calibration batches and kept in `smooth`."""
    tensors, smooth = settle_smoothing(checkpoint.spec, checkpoint.tensors, batches)
    return replace(checkpoint, tensors=tensors, smooth=smooth)


class QuantizedEncoder(TorchEncoder):
    """A model that answers as its int8 file will, and learns through it; its parameters stay f32."""

    def __init__(
        self,
        spec: EncoderSpec,
        tensors: Mapping[str, F32],
        *,
        smooth: Mapping[str, F32],
        portable: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        """As a TorchEncoder.

        Args:
            spec, tensors, dropout, attention_dropout: as of TorchEncoder.
            smooth: smoothing factors by linear, from `settle`.
            portable: codes of weights in +-63, as `quantize` has it.
        """
        super().__init__(spec, tensors, dropout=dropout, attention_dropout=attention_dropout)
        self._limit = quant.PORTABLE_WEIGHT_LIMIT if portable else quant.WEIGHT_LIMIT
        for name, factors in smooth.items():
            self.register_buffer(_buffer(name), torch.from_numpy(factors.copy()), persistent=False)

    def _product(self, prefix: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if not prefix.startswith("layer.") and prefix != "mlm":  # the heads stay f32
            return super()._product(prefix, x, weight, bias)
        x = x.float()
        smooth: Tensor | None = getattr(self, _buffer(prefix), None)
        if smooth is not None:
            x, weight = x * (1.0 / smooth), weight * smooth
        rows, a_scale = _quantize_rows(x)
        columns, w_scale = _quantize_weight(weight, self._limit)
        # codes are integers up to 255, which bf16 holds as well
        return functional.linear(rows, columns).float() * w_scale.squeeze(-1) * a_scale + bias

    def _rows(self, table: str, rows: Tensor) -> Tensor:
        is_decoder = table == "word" and self.spec.has_decoder
        codes, scale = _quantize_weight(rows, self._limit if is_decoder else quant.WEIGHT_LIMIT)
        return codes * scale


def _buffer(name: str) -> str:
    return f"smooth/{name.replace('.', '/')}"


def _quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(codes less their zero point [..., K], a_scale [..., 1]) of `quant.quantize_rows`; codes * a_scale is about x."""
    with torch.no_grad():
        lo = x.amin(-1, keepdim=True).clamp(max=-1e-12)
        span = x.amax(-1, keepdim=True).clamp(min=0.0) - lo
        r = 255.0 / span
        zn = torch.round(lo * r)
        codes = (torch.round(x * r - zn)).clamp(0.0, 255.0) + zn
    return _straight_through(codes, x * r), span / 255.0


def _quantize_weight(weight: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """(codes [..., N, K], scale [..., N, 1]) of `quant.weight_scale` and `quant.round_weight`."""
    with torch.no_grad():
        absmax = weight.abs().amax(-1, keepdim=True)
        scale = torch.where(absmax > 0, absmax / limit, torch.ones_like(absmax))
        codes = torch.round(weight / scale).clamp(-limit, limit)
    return _straight_through(codes, weight / scale), scale


def _straight_through(codes: Tensor, value: Tensor) -> Tensor:
    """The codes, with the gradient of the value that they stand for."""
    return value + (codes - value).detach()
