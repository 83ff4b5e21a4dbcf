"""Peers that answer what one of the project's files answers, whatever its task.

The project's backends, ONNX Runtime and OpenVINO load the file itself. PyTorch and CTranslate2 load the Hugging Face
folder that it was exported from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgebert.artifact.reader import read_artifact
from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Outputs
from edgebert.batch import I64, PackedBatch, unpad
from edgebert.bench.answers import answer_outputs, answer_rows, pool_outputs
from edgebert.bench.peers import ctranslate2, onnxruntime, openvino, torch
from edgebert.bench.peers.base import F32, Peer, Settings, building
from edgebert.exporting.reference import TRANSFORMERS_CLASSES


class FilePeer(Peer):
    """A peer that knows the file's spec, and gives answers in the shapes of `Backend.run`."""

    precision = "of the file"
    file = "its own path"

    @cached_property
    def spec(self) -> EncoderSpec:
        """Of the file."""
        return read_artifact(self.files.model or self.files.source, verify=False).spec

    @cached_property
    def names(self) -> list[str]:
        """The outputs that are asked for."""
        return list(answer_outputs(self.spec))

    @property
    def path(self) -> Path:
        """The file."""
        return self.files.source

    def build(self, calibration: Sequence[Sequence[int]]) -> None:
        """Nothing to build."""

    def pad(self, batch: PackedBatch) -> dict[str, I64]:
        """With the model's own pad token: some count positions by it."""
        ids, mask, types = batch.pad(self.spec.pad_token_id)
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}

    def embed(self, output: Any, batch: PackedBatch) -> Iterable[F32]:
        """`output` is a dict of what was asked for, padded."""
        return answer_rows(self.spec, batch, self.unpad(output, batch))

    def unpad(self, padded: dict[str, Any], batch: PackedBatch) -> Outputs:
        """Padded outputs, [n, max_seqlen, …] for those of tokens, as `Backend.run` gives them."""
        mask = batch.pad()[1]
        arrays = {name: np.asarray(value, np.float32) for name, value in padded.items()}
        return {
            name: unpad(value, mask) if self.spec.output_width(name)[0] else value for name, value in arrays.items()
        }


class NativeBackend(FilePeer):
    """The project's native backend."""

    title = "EdgeBERT native"
    packages: ClassVar[tuple[str, ...]] = ("edgebert",)
    is_own = True
    is_packed = True
    backend = "native"

    def load(self, threads: int, settings: Settings) -> None:
        """EDGEBERT_FORCE_ISA is honoured."""
        from edgebert.backends.registry import load_backend

        self._backend = load_backend(self.path, self.backend, threads=threads)

    def bind(self, batch: PackedBatch) -> Callable[[], Any]:
        """One packed batch."""
        backend, names = self._backend, self.names
        return lambda: backend.run(batch, names)

    def unpad(self, padded: Outputs, batch: PackedBatch) -> Outputs:
        """Nothing is padded."""
        return padded


class NumbaBackend(NativeBackend):
    """The project's numba backend."""

    title = "EdgeBERT numba"
    packages = ("edgebert", "numba")
    backend = "numba"


class OnnxRuntimeBackend(NativeBackend):
    """The project's onnxruntime backend: ONNX Runtime, with packing around it."""

    title = "EdgeBERT onnxruntime"
    packages = ("edgebert", "onnxruntime")
    is_packed = False
    backend = "onnxruntime"


class NumpyBackend(NativeBackend):
    """The project's numpy backend: the oracle."""

    title = "EdgeBERT numpy"
    backend = "numpy"


class OnnxRuntime(FilePeer, onnxruntime.OnnxRuntimeFp32):
    """ONNX Runtime on the file as it is."""

    title = "ONNX Runtime"
    variants = ("",)  # the path itself

    def call(self, session: Any, feed: dict[str, Any]) -> Callable[[], Any]:
        """A run that gives what is asked for."""
        names = self.names
        return lambda: dict(zip(names, session.run(names, feed), strict=True))


class OnnxRuntimeInt8(OnnxRuntime):
    """ONNX Runtime's dynamic quantization of an fp32 file: weights per channel, its defaults otherwise."""

    title = "ONNX Runtime dynamic int8"
    precision = "int8"

    @property
    def path(self) -> Path:
        """The quantized file."""
        return self.files.folder / "onnxruntime-int8.onnx"

    def build(self, calibration: Sequence[Sequence[int]]) -> None:
        """Quantize the file."""
        from onnxruntime.quantization import quantize_dynamic

        logging.disable(logging.WARNING)  # it advises a pre-processing that changes nothing for these graphs
        with building(self.path) as draft:
            quantize_dynamic(self.files.source, draft, per_channel=True)


class OpenVino(FilePeer, openvino.OpenVinoFp32):
    """OpenVINO on the file as it is, computed in f32."""

    title = "OpenVINO"

    @property
    def model_file(self) -> Path:
        """The file: OpenVINO reads ONNX."""
        return self.path

    def collect(self, results: Any) -> Any:
        """What is asked for."""
        return {name: results[name] for name in self.names}


class OpenVinoBf16(OpenVino):
    """The same computed in bfloat16, OpenVINO's default on CPUs that have it."""

    title = "OpenVINO bf16"
    precision = "bf16"
    compute = ("bf16",)


class OpenVinoInt8(OpenVino):
    """NNCF's quantization of an fp32 file; what stays float is computed in f32 or bf16, whichever is faster."""

    title = "OpenVINO int8"
    precision = "int8"
    compute = ("f32", "bf16")

    @property
    def path(self) -> Path:
        """The folder of the quantized model."""
        return self.files.folder / "openvino-int8"

    @property
    def model_file(self) -> Path:
        """In that folder."""
        return self.path / "model.xml"

    def build(self, calibration: Sequence[Sequence[int]]) -> None:
        """Quantize the file, calibrated one row at a time."""
        from openvino import Core, save_model

        model = Core().read_model(self.files.source)
        feeds = [self.feed(model, PackedBatch.from_lists([row])) for row in calibration]
        with building(self.path) as draft:
            draft.mkdir()
            save_model(openvino.quantize(model, feeds), draft / "model.xml", compress_to_fp16=False)


class Torch(FilePeer, torch.TorchFp32):
    """transformers' model of the file's task, from the Hugging Face folder."""

    title = "PyTorch"
    precision = "fp32"

    def load_source(self) -> Any:
        """The class of the task, in f32, for inference."""
        import torch
        import transformers

        model = getattr(transformers, TRANSFORMERS_CLASSES[self.spec.task][0])
        return model.from_pretrained(self.files.source, dtype=torch.float32).eval()

    def pad(self, batch: PackedBatch) -> dict[str, I64]:
        """Without token types for a model that has none."""
        feed = super().pad(batch)
        if not self.spec.has_token_types:
            del feed["token_type_ids"]
        return feed

    def collect(self, output: Any) -> Any:
        """What is asked for, of an embedding what it is pooled from."""
        return {name: output[name] for name in (["last_hidden_state"] if self.spec.task == "embedding" else self.names)}

    def unpad(self, padded: dict[str, Any], batch: PackedBatch) -> Outputs:
        """Embeddings are pooled."""
        outputs = super().unpad({name: value.float().numpy() for name, value in padded.items()}, batch)
        return (
            pool_outputs(self.spec, batch, outputs["last_hidden_state"]) if "last_hidden_state" in padded else outputs
        )


class TorchInt8(Torch, torch.TorchInt8):
    """Linears quantized dynamically, weights per channel."""

    title = "PyTorch dynamic int8"
    precision = "int8"


class CTranslate2(FilePeer, ctranslate2.CTranslate2Int8):
    """CTranslate2's encoder from the Hugging Face folder, int8; of embedding files only."""

    title = "CTranslate2 int8"
    precision = "int8"
    is_packed = True

    @property
    def path(self) -> Path:
        """The folder of the converted model."""
        return self.files.folder / "ctranslate2-int8"

    def build(self, calibration: Sequence[Sequence[int]]) -> None:
        """The converter for transformers' models."""
        ctranslate2.CTranslate2Int8.build(self, calibration)

    def unpad(self, padded: Any, batch: PackedBatch) -> Outputs:
        """The last hidden states, pooled."""
        return pool_outputs(self.spec, batch, unpad(padded, batch.pad()[1]))
