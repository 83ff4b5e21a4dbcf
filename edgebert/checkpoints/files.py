"""Where a checkpoint's files are, and what is in them: JSON, safetensors, PyTorch weights."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from edgebert.artifact.reader import LFS_ADVICE, LFS_POINTER
from edgebert.errors import EdgeBertError, ModelFormatError, UnsupportedModelError
from edgebert.quant import F32


def find_checkpoint_folder(source: str | Path) -> Path:
    """The folder of a source: itself, the one inside an installed package, or a download from the hub.

    Raises:
        ModelFormatError: the source is none of these, or a package holds no checkpoint or several.
    """
    path = Path(source)
    if path.is_dir():
        if not _is_checkpoint(path) and not (path / "modules.json").is_file():
            raise ModelFormatError(
                f"{path}: expected a folder with config.json and model.safetensors or pytorch_model.bin, "
                f"found {', '.join(sorted(p.name for p in path.iterdir())[:12]) or 'nothing'}"
            )
        return path
    if path.exists():
        raise ModelFormatError(f"{path} is a file: give the folder that holds config.json and the weights")
    name = str(source)
    folders = _package_checkpoints(name)
    if folders:
        if len(folders) > 1:
            raise ModelFormatError(
                f"package {name} holds {len(folders)} checkpoints, give the path of one: {', '.join(map(str, folders))}"
            )
        return folders[0]
    if isinstance(source, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelFormatError(f"no such folder: {name}")
    return _download(name)


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file() and bool(find_weights(folder))


def find_weights(folder: Path) -> list[Path]:
    """The files of a checkpoint's weights in a folder, or their indices."""
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    return [folder / name for name in names if (folder / name).is_file()]


def _package_checkpoints(name: str) -> list[Path]:
    """Checkpoint folders inside the installed distribution or module of this name; nothing is imported."""
    candidates: Iterable[Path] = ()
    try:
        files = importlib.metadata.distribution(name).files or []
        candidates = [Path(str(file.locate())).parent for file in files if file.name == "config.json"]
    except (importlib.metadata.PackageNotFoundError, ValueError):
        pass
    if not candidates and name.isidentifier():
        module = importlib.util.find_spec(name)
        roots = module.submodule_search_locations or [] if module else []
        candidates = [path.parent for root in roots for path in Path(root).rglob("config.json")]
    folders = sorted({folder for folder in candidates if _is_checkpoint(folder)})
    # a sentence-transformers module inside another checkpoint (2_Dense) is a part of it
    return [folder for folder in folders if not any(other in folder.parents for other in folders)]


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelFormatError(
            f"{name} is neither a folder nor an installed package with a checkpoint in it; to take it from the "
            "Hugging Face hub install huggingface_hub, or give a folder"
        ) from None
    patterns = ["*.json", "*.txt", "*.safetensors", "*.model", "artifact.metadata", "*_linear.pt"]
    ignored = ["onnx/*", "openvino/*"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=ignored))
        if not list(folder.rglob("*.safetensors")):
            folder = Path(
                snapshot_download(name, allow_patterns=[*patterns, "pytorch_model*.bin"], ignore_patterns=ignored)
            )
    except Exception as error:  # the hub client's own errors differ between its versions
        raise ModelFormatError(
            f"{name} is neither a folder nor an installed package with a checkpoint in it, and the Hugging Face hub "
            f"did not give it ({type(error).__name__}: {str(error).partition(chr(10))[0]}); give a folder"
        ) from None
    return folder


def refuse(what: str, found: object, supported: Iterable[str]) -> NoReturn:
    """Raise UnsupportedModelError for something that was found and is none of what is supported."""
    raise UnsupportedModelError(f"{what} {found!r} is not supported; supported: {', '.join(supported)}")


def read_object(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object in a file, or `default` where that is given and the file is missing; else ModelFormatError."""
    value = read_json(path) if default is None or path.is_file() else default
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_json(path: Path) -> Any:
    """The JSON value in a file; ModelFormatError where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFormatError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        refuse_lfs_pointer(path)
        raise ModelFormatError(f"{path} is not valid JSON: {error}") from None


def refuse_lfs_pointer(path: Path) -> None:
    """Raise ModelFormatError if the file is a Git LFS pointer, which stands for one that was not downloaded."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ModelFormatError(f"{path}: {LFS_ADVICE}")


def read_weights(folder: Path) -> dict[str, F32]:
    """Every tensor of the folder's safetensors or PyTorch files, in shards or not, as f32.

    Raises:
        ModelFormatError: the files are missing or damaged.
        UnsupportedModelError: a tensor's dtype is not a float that f32 can hold.
        EdgeBertError: the package that reads them is not installed.
    """
    for pattern, read in (("model.safetensors", _read_safetensors), ("pytorch_model.bin", read_torch)):
        index = folder / f"{pattern}.index.json"
        if index.is_file():
            names = sorted(set(read_object(index).get("weight_map", {}).values()))
        elif (folder / pattern).is_file():
            names = [pattern]
        else:
            continue
        tensors: dict[str, F32] = {}
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise ModelFormatError(f"{index} names {name!r}, which is missing: download the checkpoint again")
            refuse_lfs_pointer(folder / name)
            tensors.update(read(folder / name))
        return tensors
    raise ModelFormatError(f"{folder}: no model.safetensors or pytorch_model.bin")


def _read_safetensors(path: Path) -> dict[str, F32]:
    try:
        import safetensors
    except ImportError:
        raise EdgeBertError(f"reading {path} needs safetensors: pip install 'edgebert[export]'") from None
    try:
        entries = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise ModelFormatError(f"{path} is damaged ({error}): download it again") from None
    tensors = {}
    for name, entry in entries:
        dtype, data = entry["dtype"], entry["data"]
        if dtype == "BF16":  # the upper half of an f32
            values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif dtype in ("F64", "F32", "F16"):
            values = np.frombuffer(data, f"<f{int(dtype[1:]) // 8}").astype(np.float32)
        elif dtype in ("I64", "I32", "U8", "BOOL"):
            continue  # buffers such as position_ids; a weight left out here is reported as missing
        else:
            raise UnsupportedModelError(f"{path}: tensor {name} has dtype {dtype}; supported: F32, F16, BF16, F64")
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def read_torch(path: Path) -> dict[str, F32]:
    """The float tensors of a file of PyTorch weights as f32; it is read without running what it holds.

    Raises:
        ModelFormatError: the file is damaged, or holds more than weights.
        EdgeBertError: torch is not installed.
    """
    refuse_lfs_pointer(path)
    try:
        import torch
    except ImportError:
        raise EdgeBertError(f"reading {path} needs torch; install it, or save the checkpoint as safetensors") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch errors alike
        raise ModelFormatError(f"{path} cannot be read as PyTorch weights: {str(error).splitlines()[0]}") from None
    if not isinstance(state, dict):
        raise ModelFormatError(f"{path}: expected a state dict, found {type(state).__name__}")
    return {
        name: value.to(torch.float32).numpy()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
