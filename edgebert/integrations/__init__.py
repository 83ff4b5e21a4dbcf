"""EdgeBERT inside other libraries: one module each, imported by its name. None of the libraries is a dependency."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.reader import find_model_file
from edgebert.errors import BackendUnavailableError, InvalidInputError
from edgebert.model import Model, load
from edgebert.tasks import TASKS

Source = str | os.PathLike[str] | Model

# Module -> its library's name on PyPI, the first release that fits, and the first that does not. The extra of that name
# in pyproject.toml says the same.
LIBRARIES = {
    "duckdb": ("duckdb", "2.0", "3"),
    "haystack": ("haystack-ai", "3.4", "4"),
    "langchain": ("langchain-core", "1.8", "2"),
    "llama_index": ("llama-index-core", "0.14", "0.15"),
    "mteb": ("mteb", "2.26", "3"),
    "polars": ("polars", "2.1", "3"),
    "sentence_transformers": ("sentence-transformers", "5.7", "7"),
    "sklearn": ("scikit-learn", "1.6", "2"),
    "spacy": ("spacy", "3.8", "4"),
    "transformers": ("transformers", "4.57", "6"),
}
# Prompts that files have for queries, and for the texts that are searched, the first of them that a file has.
QUERY, DOCUMENT = ("query",), ("document", "passage", "corpus")


def need_library(module: str) -> None:
    """See that the library of a module is installed, in a release that fits.

    Args:
        module: the name of one of this package's modules, `__name__` there.

    Raises:
        BackendUnavailableError: it is not; says what fits and how it is installed.
    """
    name, first, last = LIBRARIES[module.rpartition(".")[2]]
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found == "none" or not _numbers(first) <= _numbers(found) < _numbers(last):
        raise BackendUnavailableError(
            f"{module} needs {name} from release {first} to before {last}, found {found}: "
            f"pip install 'edgebert[{name}]'"
        )


def _numbers(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)[:3]]


def take_model(
    model: Source,
    names: Mapping[str, str],
    *tasks: str,
    reads_texts: bool = True,
    pools: bool = True,
    **options: Any,
) -> Model:
    """A model that answers one of these tasks: loaded from a path, or as it was given.

    Args:
        model: a model file, or what `edgebert.load` returned.
        names: task -> what takes its files in the calling module, for messages.
        *tasks: those that the caller can use.
        reads_texts: whether it is to read texts.
        pools: whether an embedding file must give an embedding a text, and not one a token alone.
        **options: of `edgebert.load`.

    Raises:
        EdgeBertError: as `edgebert.load`; InvalidInputError where the head does not fit, or something is missing.
    """
    if isinstance(model, Model):
        if options:
            raise InvalidInputError(f"{', '.join(options)}: this model is loaded already, give these to edgebert.load")
    else:
        model = load(model, **options)
    if not any(_is_for(model, task) for task in tasks):
        fitting = [name for task, name in names.items() if _is_for(model, task)]
        raise InvalidInputError(
            f"expected a file for {' or '.join(tasks)}, its head is {model.task}: use "
            f"{' or '.join(dict.fromkeys(fitting)) or 'edgebert.load, nothing of this library takes it'}"
        )
    if pools and model.task == "embedding" and model.spec.pooling == "none":
        raise InvalidInputError(
            "the file gives no embedding of a text, but one a token: export it with the task embedding:mean or :cls"
        )
    if reads_texts and model.tokenizer is None:
        raise InvalidInputError("the file has no tokenizer, and texts need one: export it from a folder that has one")
    return model


def _is_for(model: Model, task: str) -> bool:
    return task == model.task or (task in TASKS and model.task in TASKS[task].heads)


def copy_file(model: Model, folder: str | os.PathLike[str]) -> None:
    """Copy a model's file into a folder, as `model.onnx`; nothing if it is there already."""
    source, target = find_model_file(model.arguments[0]), Path(folder) / "model.onnx"
    if not (target.exists() and target.samefile(source)):
        shutil.copyfile(source, target)


def encode(model: Model, texts: list[str], prompt_names: tuple[str, ...] = (), **options: Any) -> NDArray[np.float32]:
    """Embeddings f32 [n, width], with the first of these prompts that the file has, else with its default."""
    name = next((name for name in prompt_names if name in model.spec.prompts), None)
    return model.encode(texts, **{"prompt_name": name} | options)


def score_documents(
    model: Model, query: str, documents: list[str], label: str | None = None
) -> list[tuple[int, float]]:
    """A cross-encoder's (index, score) of each document, best first."""
    return [(entry["corpus_id"], entry["score"]) for entry in model.rank(query, documents, label=label)]
