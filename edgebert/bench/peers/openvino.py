"""OpenVINO on the CPU: fp32, bfloat16, and int8 by NNCF's preset for transformers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgebert.batch import I64, PackedBatch
from edgebert.bench.peers.base import Kind, Peer, Settings, building

Feed = dict[str, I64]

_NAMES = ("input_ids", "attention_mask", "token_type_ids")


def quantize(model: Any, calibration: Sequence[Feed]) -> Any:
    """NNCF's quantization with the transformer preset."""
    import nncf

    return nncf.quantize(
        model,
        nncf.Dataset(calibration),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration),
    )


class OpenVinoFp32(Peer):
    """The converted model computed in f32."""

    title = "OpenVINO fp32"
    precision = "fp32"
    packages = ("openvino",)
    file = "openvino-fp32"
    compute: tuple[str, ...] = ("f32",)

    @property
    def model_file(self) -> Path:
        """What OpenVINO reads."""
        return self.path / "model.xml"

    def build(self, calibration: Sequence[Sequence[int]]) -> None:
        """Convert the PyTorch model, shapes left free."""
        import openvino

        with building(self.path) as draft:
            draft.mkdir()
            openvino.save_model(self.convert(calibration), draft / "model.xml", compress_to_fp16=False)

    def convert(self, calibration: Sequence[Sequence[int]]) -> Any:
        """The model in OpenVINO's form."""
        import openvino
        import torch

        from edgebert.bench.peers.torch import load_model

        example = {name: torch.ones(2, 8, dtype=torch.int64) for name in _NAMES}
        shape = openvino.PartialShape([-1, -1])
        model = openvino.convert_model(
            load_model(self.files.source),
            example_input=example,
            input=[(name, shape, openvino.Type.i64) for name in _NAMES],
        )
        for port, name in zip(model.inputs, _NAMES, strict=True):
            port.get_tensor().set_names({name})
        return model

    def settings(self, threads: int, kind: Kind) -> list[Settings]:
        """The hint for the work, in each precision; for throughput also one stream a thread."""
        hint = kind.upper()
        tried: list[Settings] = [
            {"hint": "LATENCY", "compute": compute, "static": static}
            for compute in self.compute
            for static in ((False, True) if kind == "latency" else (False,))
        ]
        if kind == "throughput" and threads > 1:
            tried += [{"hint": hint, "compute": compute, "lanes": threads} for compute in self.compute]
        return tried

    def load(self, threads: int, settings: Settings) -> None:
        """Compiled at once, or in `bind` for each shape where shapes are static."""
        import openvino

        self._core = openvino.Core()
        self._model = self._core.read_model(self.model_file)
        self._config = {
            "PERFORMANCE_HINT": settings["hint"],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": settings.get("lanes", 1),
            "INFERENCE_PRECISION_HINT": settings["compute"],
        }
        self._is_static = settings.get("static", False)
        self._local = threading.local()
        if not self._is_static:
            self._compiled = self._core.compile_model(self._model, "CPU", self._config)

    def bind(self, batch: PackedBatch) -> Callable[[], Any]:
        """Padded; inputs and outputs shared, not copied; an infer request of its own for each calling thread."""
        feed = self.feed(self._model, batch)
        local = self._local
        if self._is_static:
            model = self._model.clone()
            model.reshape({name: list(array.shape) for name, array in feed.items()})
            compiled = self._core.compile_model(model, "CPU", self._config)
            local = threading.local()
        else:
            compiled = self._compiled

        def call() -> Any:
            if not hasattr(local, "request"):
                local.request = compiled.create_infer_request()
            return self.collect(local.request.infer(feed, share_inputs=True, share_outputs=True))

        return call

    def feed(self, model: Any, batch: PackedBatch) -> Feed:
        """What the model takes, padded."""
        given = {name for port in model.inputs for name in port.get_names()}
        return {name: array for name, array in self.pad(batch).items() if name in given}

    def collect(self, results: Any) -> Any:
        """The output to compare."""
        return results[0]

    def embed(self, output: Any, batch: PackedBatch) -> Any:
        """Mean pooled."""
        return super().embed(np.array(output), batch)


class OpenVinoBf16(OpenVinoFp32):
    """The same model computed in bfloat16, OpenVINO's default on CPUs that have it."""

    title = "OpenVINO bf16"
    precision = "bf16"
    compute = ("bf16",)


class OpenVinoInt8(OpenVinoFp32):
    """Post-training quantization; what stays float is computed in f32 or bf16, whichever is faster."""

    title = "OpenVINO int8"
    precision = "int8"
    compute = ("f32", "bf16")
    file = "openvino-int8"

    def convert(self, calibration: Sequence[Sequence[int]]) -> Any:
        """NNCF's quantization with the transformer preset, calibrated one row at a time."""
        feeds = [self.pad(PackedBatch.from_lists([row])) for row in calibration]
        return quantize(super().convert(calibration), feeds)
