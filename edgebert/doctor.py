"""What this machine and this installation can do, as text for people."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from edgebert import __version__
from edgebert.backends import cpus
from edgebert.backends.registry import available_backends

# Looked up in the installation's metadata, never imported.
_PACKAGES = (
    "numpy",
    "tokenizers",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "numba",
    "numba-cuda",
    "safetensors",
    "torch",
    "transformers",
)


def describe_machine() -> str:
    """Lines on the CPU, its instruction sets, threads, backends (or why not) and versions."""
    quota = cpus.cgroup_quota()
    sections = {
        "CPU": [f"{cpus.cpu_name()} ({platform.machine()}, {platform.system()} {platform.release()})"],
        "ISA": _describe_isas(),
        "threads": [
            f"{cpus.usable_cpus()} by default: {cpus.affinity_size()} CPUs in the affinity mask, "
            + ("no cgroup limit" if quota is None else f"a cgroup limit of {quota:g} CPUs")
        ],
        "backends": _describe_backends("cpu"),
        "CUDA": _describe_cuda(),
        "texts": [_describe_tokenizer()],
        "versions": [f"edgebert {__version__}, Python {platform.python_version()}", *_describe_packages()],
    }
    lines = [f"{title if i == 0 else '':10}{line}" for title, part in sections.items() for i, line in enumerate(part)]
    lines += [f"warning: {warning}" for warning in _find_conflicts()]
    return "\n".join(lines)


def _describe_isas() -> list[str]:
    if available_backends()["native"] is not None:
        return ["unknown: the native backend is not available"]
    from edgebert.backends import native

    usable = native.usable_isas()
    return [f"{isa}: {'usable' if isa in usable else 'this CPU lacks it'}" for isa in native.built_isas()]


def _describe_backends(device: str) -> list[str]:
    return [
        f"{name}: {'available' if reason is None else f'not available: {reason}'}"
        for name, reason in available_backends(device).items()
    ]


def _describe_cuda() -> list[str]:
    from edgebert.backends import native

    gpus = native.usable_gpus() if native.unavailable_reason("cuda") is None else []
    return gpus + _describe_backends("cuda")


def _describe_tokenizer() -> str:
    library = _version("tokenizers")
    fallback = f"the tokenizers library {library}" if library else "nothing: for that, pip install tokenizers"
    if available_backends()["native"] is None:
        return f"read by the native tokenizer; those of files that it refuses, by {fallback}"
    return f"read by {fallback}, because there is no native library"


def _describe_packages() -> list[str]:
    return [f"{name} {_version(name) or 'not installed'}" for name in _PACKAGES]


def _find_conflicts() -> list[str]:
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        return [
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall both, install one"
        ]
    return []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
