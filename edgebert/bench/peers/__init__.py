"""The runtimes that can be compared, by name."""

from __future__ import annotations

from importlib import import_module

from edgebert.bench.peers.base import ModelFiles, Peer
from edgebert.errors import InvalidInputError

# name -> (module, class); a name ends in the precision of its linears
PEERS = {
    "edgebert-int8": ("edgebert_native", "EdgeBertInt8"),
    "edgebert-attention-int8": ("edgebert_native", "EdgeBertInt8Attention"),
    "edgebert-fp32": ("edgebert_native", "EdgeBertFp32"),
    "onnxruntime-int8": ("onnxruntime", "OnnxRuntimeInt8"),
    "onnxruntime-fp32": ("onnxruntime", "OnnxRuntimeFp32"),
    "openvino-int8": ("openvino", "OpenVinoInt8"),
    "openvino-bf16": ("openvino", "OpenVinoBf16"),
    "openvino-fp32": ("openvino", "OpenVinoFp32"),
    "ctranslate2-int8": ("ctranslate2", "CTranslate2Int8"),
    "torch-int8": ("torch", "TorchInt8"),
    "torch-bf16": ("torch", "TorchBf16"),
    "torch-fp32": ("torch", "TorchFp32"),
}

# over one of the project's files, whatever its task; the source is the file, for the last three a Hugging Face folder
FILE_PEERS = {
    "edgebert/native": ("model_file", "NativeBackend"),
    "edgebert/numba": ("model_file", "NumbaBackend"),
    "edgebert/onnxruntime": ("model_file", "OnnxRuntimeBackend"),
    "edgebert/numpy": ("model_file", "NumpyBackend"),
    "onnxruntime": ("model_file", "OnnxRuntime"),
    "onnxruntime/int8": ("model_file", "OnnxRuntimeInt8"),
    "openvino": ("model_file", "OpenVino"),
    "openvino/bf16": ("model_file", "OpenVinoBf16"),
    "openvino/int8": ("model_file", "OpenVinoInt8"),
    "torch": ("model_file", "Torch"),
    "torch/int8": ("model_file", "TorchInt8"),
    "ctranslate2/int8": ("model_file", "CTranslate2"),
}


def make_peer(name: str, files: ModelFiles) -> Peer:
    """The peer of that name, not loaded yet; its library is imported when it is built or loaded.

    Raises:
        InvalidInputError: an unknown name.
    """
    peers = {**PEERS, **FILE_PEERS}
    if name not in peers:
        raise InvalidInputError(f"unknown peer {name!r}: expected one of {', '.join(peers)}")
    module, class_name = peers[name]
    peer: Peer = getattr(import_module(f"edgebert.bench.peers.{module}"), class_name)(files)
    return peer
