"""PyTorch with transformers' model: as it is, compiled in bfloat16, and with dynamically quantized linears.

Also the export of the checkpoint to ONNX that other peers start from.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgebert.batch import PackedBatch
from edgebert.bench.peers.base import Peer, Settings, building


def load_model(source: Path, attention: str = "sdpa") -> Any:
    """transformers' encoder without its pooler, in f32, for inference."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(
        source, attn_implementation=attention, dtype=torch.float32, add_pooling_layer=False
    )
    return model.eval()


def export_onnx(source: Path, path: Path) -> None:
    """The checkpoint as an ONNX file: the tracing exporter, eager attention, opset 17.

    That is the one form in which ONNX Runtime's optimizer finds every fusion. Inputs input_ids, attention_mask,
    token_type_ids int64 [batch, sequence]; output last_hidden_state.
    """
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = load_model(source, "eager")

        def forward(self, ids: Any, mask: Any, types: Any) -> Any:
            return self.encoder(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state

    names = ["input_ids", "attention_mask", "token_type_ids"]
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in names)
    with building(path) as draft, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Encoder().eval(),
            example,
            str(draft),
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_axes={name: {0: "batch", 1: "sequence"} for name in [*names, "last_hidden_state"]},
            opset_version=17,
            dynamo=False,
        )


class TorchFp32(Peer):
    """transformers' own model, scaled-dot-product attention."""

    title = "PyTorch fp32"
    precision = "fp32"
    packages = ("torch", "transformers")
    file = "../source"  # no file of its own

    @property
    def path(self) -> Path:
        """The source folder."""
        return self.files.source

    def build(self, calibration: Sequence[Sequence[int]]) -> None:
        """Nothing to build."""

    def load(self, threads: int, settings: Settings) -> None:
        """From the source folder."""
        import torch

        torch.set_num_threads(threads)
        self._model = self.convert(self.load_source())

    def load_source(self) -> Any:
        """transformers' model of the source, in f32, for inference."""
        return load_model(self.files.source)

    def convert(self, model: Any) -> Any:
        """The model as this peer runs it."""
        return model

    def bind(self, batch: PackedBatch) -> Callable[[], Any]:
        """Padded; without a mask where nothing is padded."""
        import torch

        feed = {name: torch.from_numpy(array) for name, array in self.pad(batch).items()}
        if bool(feed["attention_mask"].all()):
            del feed["attention_mask"]
        model = self._model

        def call() -> Any:
            with torch.inference_mode():
                return self.collect(model(**feed))

        return call

    def collect(self, output: Any) -> Any:
        """The output to compare."""
        return output.last_hidden_state

    def embed(self, output: Any, batch: PackedBatch) -> Any:
        """Mean pooled."""
        return super().embed(output.float().numpy(), batch)


class TorchInt8(TorchFp32):
    """Linears quantized dynamically, weights per channel."""

    title = "PyTorch dynamic int8"
    precision = "int8"

    def convert(self, model: Any) -> Any:
        """torch.ao's dynamic quantization of every linear."""
        import torch
        from torch.ao import quantization

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            linears = {torch.nn.Linear: quantization.per_channel_dynamic_qconfig}
            return quantization.quantize_dynamic(model, linears)  # type: ignore[no-untyped-call]


class TorchBf16(TorchFp32):
    """bfloat16, compiled with frozen weights."""

    title = "torch.compile bf16"
    precision = "bf16"

    def convert(self, model: Any) -> Any:
        """torch.compile with shapes left free, weights frozen into the code."""
        import torch
        import torch._inductor.config as inductor

        inductor.freezing = True
        return torch.compile(model.to(torch.bfloat16), dynamic=True)
