"""Files: written whole or not at all, read as lines of text, hashed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgebert.errors import InvalidInputError


def read_path(name: str, value: object) -> Path:
    """`value` as a path; `name` is what messages call it.

    Raises:
        InvalidInputError: no file or folder can have it.
    """
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    try:
        if isinstance(path, str) and path and b"\0" not in os.fsencode(path):
            return Path(path)
    except UnicodeEncodeError:
        pass
    raise InvalidInputError(f"{name} must be the path of a file or folder, got {value!r:.100}")


def check_target(path: str | os.PathLike[str]) -> None:
    """See, before any work is done, that a file can be written to a path; a device can.

    Raises:
        InvalidInputError: its folder is missing, or it is a folder itself.
    """
    target = Path(os.path.abspath(read_path("output", path)))
    if not target.parent.is_dir():
        raise InvalidInputError(f"folder {target.parent} does not exist: create it first")
    if target.is_dir():
        raise InvalidInputError(f"{target} is a folder, where a file is to be written: choose another name")


@contextmanager
def writing_whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file to: it becomes `path` when the block ends well, and is removed otherwise."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a file in UTF-8, whole or not at all; a device, such as /dev/stdout, is written to directly.

    Raises:
        OSError: the file cannot be written.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        target.write_text(text, encoding="utf-8")
        return
    with writing_whole(target) as draft:
        draft.write_text(text, encoding="utf-8")


def read_texts(path: Path) -> list[str]:
    """The lines of a file that are not blank.

    Raises:
        InvalidInputError: there are none, or the file cannot be read.
    """
    try:
        texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"{path} cannot be read as UTF-8 text ({error}): give a file with a text a line"
        ) from None
    if not texts:
        raise InvalidInputError(f"{path} has no texts: give a file with one a line")
    return texts


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
