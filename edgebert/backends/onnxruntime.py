"""The onnxruntime backend: the file's own graph in ONNX Runtime, on CPU or an NVIDIA GPU; pads inside."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.reader import Artifact, told_of
from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Backend, Outputs
from edgebert.backends.cpus import cpu_flags, usable_cpus
from edgebert.batch import PackedBatch, unpad
from edgebert.errors import BackendUnavailableError, ModelFormatError

_INSTALL = "install edgebert[ort], or edgebert[ort-gpu] for a GPU; never both"
_CUDA = "CUDAExecutionProvider"
_AGAIN = "export the checkpoint again with `edgebert export`"


class OnnxRuntimeBackend(Backend):
    """One InferenceSession; each batch is padded to its longest sequence."""

    name = "onnxruntime"

    def __init__(
        self, session: Any, spec: EncoderSpec, device: str, detail: str, path: Path | None, is_changed: bool
    ) -> None:
        self.spec = spec
        self.device = device
        self.detail = detail
        self._session = session
        self._inputs = {value.name for value in session.get_inputs()}
        self._path = path
        self._is_changed = is_changed

    def _run(self, batch: PackedBatch, outputs: Sequence[str]) -> Outputs:
        ids, mask, types = batch.pad(self.spec.pad_token_id)
        attended = mask
        if self.spec.max_unattended:
            num_keys = self.spec.count_keys(batch.input_ids, batch.cu_seqlens)
            attended = (np.arange(mask.shape[1]) < num_keys[:, None]).astype(mask.dtype)
        feed = {"input_ids": ids, "attention_mask": attended, "token_type_ids": types}
        feed = {name: array for name, array in feed.items() if name in self._inputs}
        values = self._run_changed(feed, outputs) if self._is_changed else self._session.run(list(outputs), feed)
        return {
            name: unpad(value, mask) if self.spec.output_width(name)[0] else value
            for name, value in zip(outputs, values, strict=True)
        }

    def _run_changed(self, feed: dict[str, NDArray[np.int64]], outputs: Sequence[str]) -> list[NDArray[np.float32]]:
        """What a graph that somebody rewrote gives, which may be anything."""
        try:
            values = self._session.run(list(outputs), feed)
        except Exception as error:  # its exception classes share no other base
            raise ModelFormatError(
                f"{self._path or 'the model'}: its graph was changed since export, and ONNX Runtime cannot run it on "
                f"{' × '.join(map(str, feed['input_ids'].shape))} tokens ({error}): {_AGAIN}"
            ) from error
        shape = feed["input_ids"].shape
        for name, value in zip(outputs, values, strict=True):
            per_token, width = self.spec.output_width(name)
            expected = (shape if per_token else shape[:1]) + ((width,) if width else ())
            if value.shape != expected or value.dtype != np.float32:
                raise ModelFormatError(
                    f"{self._path or 'the model'}: its graph was changed since export, output {name} is {value.dtype} "
                    f"{list(value.shape)} where float32 {list(expected)} is expected: {_AGAIN}"
                )
        return list(values)


def unavailable_reason(device: str = "cpu") -> str | None:
    """Why ONNX Runtime cannot be used here, or None if it can; only a session shows whether it finds a GPU."""
    try:
        import onnxruntime
    except ImportError as error:
        return f"onnxruntime cannot be imported ({error}): {_INSTALL}"
    if not hasattr(onnxruntime, "InferenceSession"):  # what is left after uninstalling one of the two packages
        return f"the installed onnxruntime is broken, it has no InferenceSession: force a reinstall; {_INSTALL}"
    if device != "cpu" and _CUDA not in onnxruntime.get_available_providers():
        return f"this build of ONNX Runtime {onnxruntime.__version__} has no CUDA: {_INSTALL}"
    return None


def load(artifact: Artifact, device: str = "cpu", threads: int | None = None) -> Backend:
    """Create a session on exactly the device asked for.

    A file whose graph another tool rewrote still runs, and only here: its metadata say what goes in and comes out.

    Raises:
        ModelFormatError: ONNX Runtime refuses the file, or it is not one that EdgeBERT wrote.
        BackendUnavailableError: the package or the device is missing; a session that fell back is refused.
    """
    reason = unavailable_reason(device)
    if reason is not None:
        raise BackendUnavailableError(f"backend onnxruntime is not available: {reason}")
    import onnxruntime

    if artifact.is_changed:
        artifact.check_whole()
    else:
        _ = artifact.tensors  # its weights are checked
    threads = threads or usable_cpus()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised below, not printed
    # Spinning threads win microseconds on an idle machine and lose multiples of the run time on a shared one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if _saturates_u8s8():
        options.add_session_config_entry("session.x64quantprecision", "1")

    provider = "CPUExecutionProvider"
    providers: list[Any] = [provider]
    if device != "cpu":
        provider = _CUDA
        providers.insert(0, (provider, {"device_id": int(device.removeprefix("cuda:"))}))
    try:
        session = onnxruntime.InferenceSession(
            bytes(artifact.data) if artifact.path is None else str(artifact.path),
            sess_options=options,
            providers=providers,
        )
    except Exception as error:  # its exception classes share no other base
        if device != "cpu":
            raise BackendUnavailableError(f"ONNX Runtime cannot use device {device!r}: {error}") from error
        raise ModelFormatError(f"ONNX Runtime refuses the file ({error}): re-export the model") from error
    found = session.get_providers()
    if found[0] != provider:
        raise BackendUnavailableError(
            f"device {device!r} was asked for, ONNX Runtime runs on {', '.join(found)}: "
            "check the GPU, its driver and the CUDA version that this onnxruntime-gpu needs"
        )
    detail = f"onnxruntime {onnxruntime.__version__}, {provider}, {threads} thread{'s' if threads > 1 else ''}"
    if artifact.is_changed:
        detail += ", a graph changed since export"
        with told_of(artifact.path):
            _check_interface(session, artifact.spec)
    return OnnxRuntimeBackend(session, artifact.spec, device, detail, artifact.path, artifact.is_changed)


def _check_interface(session: Any, spec: EncoderSpec) -> None:
    """Whether a rewritten graph still has the inputs and outputs that its spec speaks of."""
    inputs = {value.name: value.type for value in session.get_inputs()}
    expected = dict.fromkeys(
        ("input_ids", "attention_mask", *["token_type_ids"] * spec.has_token_types), "tensor(int64)"
    )
    missing = set(spec.outputs) - {value.name for value in session.get_outputs()}
    if "input_ids" not in inputs or not inputs.items() <= expected.items() or missing:
        raise ModelFormatError(
            f"its graph was changed since export: it takes {inputs} where {', '.join(expected)} in int64 is expected, "
            f"and lacks the outputs {sorted(missing)}: {_AGAIN}"
        )


def _saturates_u8s8() -> bool:
    """Whether ONNX Runtime adds pairs of u8*s8 products in saturating 16 bits: on x86 without VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return cpu_flags().isdisjoint({"avx512_vnni", "avx_vnni"})
