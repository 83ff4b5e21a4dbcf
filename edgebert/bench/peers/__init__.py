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


def make_peer(name: str, files: ModelFiles) -> Peer:
    """The peer of that name, not loaded yet; its library is imported when it is built or loaded.

    Raises:
        InvalidInputError: an unknown name.
    """
    if name not in PEERS:
        raise InvalidInputError(f"unknown peer {name!r}: expected one of {', '.join(PEERS)}")
    module, class_name = PEERS[name]
    peer: Peer = getattr(import_module(f"edgebert.bench.peers.{module}"), class_name)(files)
    return peer
