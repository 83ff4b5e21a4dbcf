"""The backends by name, why one cannot be used here, and which one `auto` picks."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgebert.artifact.reader import Artifact, read_artifact
from edgebert.backends.cpus import usable_cpus
from edgebert.errors import BackendUnavailableError, InvalidInputError, UnsupportedModelError

if TYPE_CHECKING:
    from edgebert.backends.base import Backend


class _Entry(NamedTuple):
    module: str
    devices: tuple[str, ...]
    takes_exits: bool = False  # on CPUs; else every text goes through all layers


# In the order of preference of `auto`.
BACKENDS = {
    "native": _Entry("edgebert.backends.native", ("cpu", "cuda"), takes_exits=True),
    "numba": _Entry("edgebert.backends.numba_backend", ("cpu", "cuda")),
    "onnxruntime": _Entry("edgebert.backends.onnxruntime", ("cpu", "cuda")),
    "numpy": _Entry("edgebert.backends.numpy_backend", ("cpu",), takes_exits=True),
}

_MAX_THREADS = 1024  # as in the C API


def available_backends(device: str = "cpu") -> dict[str, str | None]:
    """The backends that have a device, best first, with None if it can be used on it here, else the reason why not."""
    device = _parse_device(device)
    return {name: _unavailable_reason(name, device) for name in _backends_for(device)}


def load_backend(
    source: Artifact | str | Path | bytes,
    backend: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    full_depth: bool = False,
) -> Backend:
    """Load a model file on a backend.

    Args:
        source: the file, its bytes, or what `read_artifact` has read.
        backend: a name out of `available_backends()`, or "auto": the best one usable here that has the device.
            What was picked, and what was passed over, is in the backend's `detail`.
        device: "cpu", "cuda" or "cuda:n"; the model runs there or is not loaded.
        threads: CPU threads; None takes the CPUs that this process may use.
        full_depth: take none of the file's exits.

    Raises:
        InvalidInputError: an unknown backend or device name, or a bad count of threads.
        BackendUnavailableError: the backend or the device is missing here.
        ModelFormatError: the file is missing, damaged or changed.
    """
    device = _parse_device(device)
    if threads is not None and (
        not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= _MAX_THREADS
    ):
        raise InvalidInputError(f"threads must be an integer from 1 to {_MAX_THREADS}, or None, got {threads!r}")
    if backend == "auto":
        return _load_best(_read(source, full_depth), device, threads)
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise InvalidInputError(f"unknown backend {backend!r}: expected auto, {', '.join(BACKENDS)}")
    if backend not in _backends_for(device):
        reason: str | None = f"it runs on {', '.join(BACKENDS[backend].devices)}, not on {device!r}"
    else:
        reason = _unavailable_reason(backend, device)
    if reason is not None:
        raise BackendUnavailableError(f"backend {backend} is not available: {reason}")
    return _load(_read(source, full_depth), backend, device, threads)


def _read(source: Artifact | str | Path | bytes, full_depth: bool) -> Artifact:
    artifact = read_artifact(source, verify=False)
    return artifact.at_full_depth() if full_depth else artifact


def _load_best(artifact: Artifact, device: str, threads: int | None) -> Backend:
    skipped: list[str] = []
    for name in _backends_for(device):
        reason = _unavailable_reason(name, device)
        if reason is None:
            try:
                loaded = _load(artifact, name, device, threads)
            except (BackendUnavailableError, UnsupportedModelError) as error:
                if device == "cpu":
                    raise
                reason = str(error)  # some notice only now that the GPU is missing or cannot run the file
            else:
                loaded.detail += f" (picked by auto{''.join(f'; no {entry}' for entry in skipped)})"
                return loaded
        skipped.append(f"{name}: {reason}")
    raise BackendUnavailableError(f"no backend here can run on device {device!r}: {'; '.join(skipped)}")


def _load(artifact: Artifact, name: str, device: str, threads: int | None) -> Backend:
    takes_exits = device == "cpu" and BACKENDS[name].takes_exits
    taken = artifact if takes_exits else artifact.at_full_depth()
    loaded: Backend = import_module(BACKENDS[name].module).load(taken, device, threads)
    if artifact.spec.exits and not takes_exits:
        loaded.detail += ", which takes none of the file's exits"
    if device == "cpu" and (threads or 0) > (cpus := usable_cpus()):
        loaded.detail += f", more than the {cpus} CPU{'s' if cpus > 1 else ''} that this process may use"
    return loaded


def _parse_device(device: str) -> str:
    if device == "cuda":
        return "cuda:0"
    if not isinstance(device, str) or not re.fullmatch(r"cpu|cuda:\d{1,4}", device):
        raise InvalidInputError(f"unknown device {device!r}: expected cpu, cuda or cuda:n")
    return device


def _backends_for(device: str) -> list[str]:
    kind = device.partition(":")[0]
    names = [name for name, entry in BACKENDS.items() if kind in entry.devices]
    # on a GPU onnxruntime comes before numba, whose kernels there are plain f32
    return sorted(names, key=lambda name: kind == "cuda" and name == "numba")


def _unavailable_reason(name: str, device: str) -> str | None:
    try:
        module: Any = import_module(BACKENDS[name].module)
    except ImportError as error:
        return str(error)
    reason: str | None = getattr(module, "unavailable_reason", lambda device: None)(device)
    return reason
