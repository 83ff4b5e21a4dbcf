"""ONNX Runtime on the traced export, fused by its own optimizer; int8 by its own dynamic quantization."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from edgebert.batch import PackedBatch
from edgebert.bench.peers.base import Kind, Peer, Settings, building


def fuse(source: str, output: str, peer: Peer) -> None:
    """onnxruntime.transformers' optimizer for BERT."""
    import json

    from onnxruntime.transformers.optimizer import optimize_model

    config = json.loads((peer.files.source / "config.json").read_text(encoding="utf-8"))
    model = optimize_model(
        source, model_type="bert", num_heads=config["num_attention_heads"], hidden_size=config["hidden_size"]
    )
    model.save_model_to_file(output)


class OnnxRuntimeFp32(Peer):
    """The fused graph."""

    title = "ONNX Runtime fp32"
    precision = "fp32"
    packages = ("onnxruntime",)
    file = "onnxruntime-fp32"
    variants: tuple[str, ...] = ("fused.onnx",)

    def build(self, calibration: Sequence[Sequence[int]]) -> None:
        """Export, then fuse."""
        from edgebert.bench.peers.torch import export_onnx

        logging.disable(logging.WARNING)
        with building(self.path) as draft:
            draft.mkdir()
            plain = draft / "plain.onnx"
            export_onnx(self.files.source, plain)
            fuse(str(plain), str(draft / "fused.onnx"), self)
            self.quantize(str(plain), str(draft / "fused.onnx"), str(draft))
            for path in draft.iterdir():
                if path.name not in self.variants:
                    path.unlink()

    def quantize(self, plain: str, fused: str, folder: str) -> None:
        """Nothing for fp32."""

    def settings(self, threads: int, kind: Kind) -> list[Settings]:
        """Spinning on or off where there are several threads; for throughput also one session run from each thread."""
        tried: list[Settings] = []
        for file in self.variants:
            for spin in (True, False) if threads > 1 else (False,):
                tried.append({"file": file, "spin": spin})
            if kind == "throughput" and threads > 1:
                tried.append({"file": file, "spin": False, "lanes": threads})
        return tried

    def load(self, threads: int, settings: Settings) -> None:
        """All graph optimisations, as by default."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads // settings.get("lanes", 1)
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(settings["spin"])))
        self._session = onnxruntime.InferenceSession(
            str(self.path / settings["file"]), options, providers=["CPUExecutionProvider"]
        )

    def bind(self, batch: PackedBatch) -> Callable[[], Any]:
        """Padded."""
        session = self._session
        given = {value.name: value.type for value in session.get_inputs()}
        feed = {
            name: array.astype("int32") if given[name] == "tensor(int32)" else array
            for name, array in self.pad(batch).items()
            if name in given
        }
        return self.call(session, feed)

    def call(self, session: Any, feed: dict[str, Any]) -> Callable[[], Any]:
        """A run that ends with the output to compare."""
        return lambda: session.run(None, feed)[0]


class OnnxRuntimeInt8(OnnxRuntimeFp32):
    """Quantized dynamically, weights s8 per channel; before or after the fusions, whichever turns out faster."""

    title = "ONNX Runtime int8"
    precision = "int8"
    file = "onnxruntime-int8"
    variants = ("quantized-fused.onnx", "fused-quantized.onnx", "quantized.onnx")

    def quantize(self, plain: str, fused: str, folder: str) -> None:
        """The graph quantized, then fused; fused, then quantized; and quantized alone."""
        from onnx import TensorProto
        from onnxruntime.quantization import QuantType, quantize_dynamic

        options: dict[str, Any] = {"per_channel": True, "weight_type": QuantType.QInt8}
        quantize_dynamic(plain, f"{folder}/quantized.onnx", **options)
        fuse(f"{folder}/quantized.onnx", f"{folder}/quantized-fused.onnx", self)
        quantize_dynamic(
            fused,
            f"{folder}/fused-quantized.onnx",
            **options,
            extra_options={"DefaultTensorType": TensorProto.FLOAT},  # shapes after the fused operators are not inferred
        )
