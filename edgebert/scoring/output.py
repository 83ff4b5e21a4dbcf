"""Output: the parts written so far, a manifest that says how far the job is, and the file made of the parts.

Each part and the manifest are written under another name in the same folder, synced and then renamed. So after a crash
all parts that the manifest counts are there, and perhaps one more, which the resumed job writes again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgebert.errors import EdgeBertError, InvalidInputError
from edgebert.scoring.readers import CODECS, FORMATS, Source, Window, find_format
from edgebert.scoring.writers import WRITERS, Part, Writer

_MANIFEST = "_manifest.json"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Output:
    """Where a job's rows go.

    A path without a suffix is a folder of Parquet parts, in folders like the input's; any other is one file, whose
    parts wait in a folder beside it, so that it takes room twice until it is done. A folder that is replaced has its
    parts there too: what is replaced stays as it is until the new rows are all there.

    The manifest of a job that is not done lies with its parts. In the end it stays beside the file, or in the folder,
    as a record of how the output was made.

    Attributes:
        is_folder: which of the two.
        format: one of WRITERS.
        codec: of a file, "gzip", "zstd" or None.
        state: what the manifest holds: the job, and how much of it is done.
    """

    def __init__(self, path: Path, errors: Path | None = None, overwrite: bool = False) -> None:
        """Args: the output, the file for bad rows if they are to have one, and whether to replace what is there.

        Raises:
            InvalidInputError: the name does not say what to write.
        """
        self.is_folder = not path.suffix
        if self.is_folder and (path.is_symlink() or path.name in ("", "..")):
            path = path.resolve()
        if not path.name:
            raise InvalidInputError(f"{path} cannot be an output: name a file, or a folder in it")
        self.path = path
        format_, self.codec = ("parquet", None) if self.is_folder else find_format(path)
        if format_ not in WRITERS or (format_ == "parquet" and self.codec):
            endings = ", ".join(ending for ending, format_ in FORMATS.items() if format_ in WRITERS)
            raise InvalidInputError(
                f"{path} does not say what to write: end it in {endings}, the last ones also with "
                f"{' or '.join(CODECS)}, or in nothing for a folder of Parquet files"
            )
        if self.is_folder and path.is_file():
            raise InvalidInputError(
                f"{path} is a file, and a name without a suffix is a folder's: choose another, or end it in .parquet"
            )
        self.format = format_
        self._errors, self._overwrites = errors, overwrite
        self._beside = path.with_name(f"{path.name}.parts")
        self._old = path.with_name(f".{path.name}.old")
        is_in_place = self.is_folder and not (self._beside / _MANIFEST).exists()
        self._parts = path if is_in_place else self._beside
        self._manifest = path / _MANIFEST if self.is_folder else path.with_name(f"{path.name}.manifest.json")
        taken = {each.resolve() for each in (path, self._beside, self._manifest)}
        if errors and taken.intersection((errors.resolve(), *errors.resolve().parents)):
            raise InvalidInputError(f"{errors} cannot hold the bad rows too: choose another name for them")
        self.state: dict[str, Any] = {}

    def look(self, job: dict[str, Any], resume: bool) -> dict[str, Any]:
        """How far a job is; writes nothing.

        Args:
            job: the model, input and options that the output depends on.
            resume: go on with what is there; without anything there, begin.

        Raises:
            InvalidInputError: there is an output and it was not to be resumed or replaced, or it is of another job.
        """
        return self._find_state(job, resume) or {
            **{"job": job, "complete": False, "parts": 0, "next_file": 0, "next_window": 0},
            **{"rows": 0, "errors": 0, "truncated": 0},
        }

    def _find_state(self, job: dict[str, Any], resume: bool) -> dict[str, Any] | None:
        """How far a job is; None: it begins."""
        state = _read_manifest(self._parts / _MANIFEST)
        if state is None:
            state = _read_manifest(self._manifest)
            if state and state["complete"] and not self.path.exists():
                state = None  # somebody has taken the output away
        if state is not None and self._overwrites and not (resume and state["job"] == job):
            state = None
        if state is None:
            self.refuse_to_overwrite()
        elif not resume:
            done = "is there already" if state["complete"] else f"was begun, {state['rows']} rows are done"
            raise InvalidInputError(
                f"{self.path} {done}: choose another name, go on with resume (--resume), or begin anew with overwrite "
                "(--overwrite)"
            )
        elif state["job"] != job:
            raise InvalidInputError(f"{self.path} is of another job, {_differences(state['job'], job)}")
        return state

    @contextmanager
    def open(self, job: dict[str, Any], resume: bool) -> Iterator[None]:
        """Begin a job or go on with it, and keep other processes away from it meanwhile; arguments as for `look`.

        Raises:
            InvalidInputError: as from `look`, or another process is writing the output, or parts of it are gone.
        """
        if self._find_state(job, resume) is None and self._overwrites:
            self._parts = self._beside
            self._remove_parts()
        for folder in (self._parts, self._errors.parent if self._errors else self._parts):
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(self._parts):
            self.state = state = self.look(job, resume)
            found = len(self._find_parts())
            if not state["complete"]:
                if found < state["parts"]:
                    raise InvalidInputError(
                        f"{self._parts} has {found} parts, its {_MANIFEST} says {state['parts']}: "
                        "the job cannot go on, begin anew with overwrite (--overwrite)"
                    )
                self._write_manifest(self._parts / _MANIFEST)
            yield

    def commit(self, source: Source, window: Window, part: Part, writer: Writer) -> None:
        """Write a window's part, and then say so in the manifest."""
        file = source.files.index(window.file)
        number = f"{file:05}-{window.index:05}"
        folder = self._parts / window.file.folder if self.is_folder else self._parts
        folder.mkdir(parents=True, exist_ok=True)
        suffix = ".parquet" if self.is_folder else "".join(self.path.suffixes[-2 if self.codec else -1 :])
        self._write(folder / f"part-{number}{suffix}", lambda path: writer.write(part.payload, path))
        if part.bad:
            self._write(self._parts / f"_errors-{number}.jsonl", lambda path: path.write_bytes(part.bad))
        self.state["parts"] += 1
        self.state["next_file"], self.state["next_window"] = file, window.index + 1
        self.state["rows"] += part.num_rows
        self.state["errors"] += part.num_errors
        self.state["truncated"] += part.num_truncated
        self._write_manifest(self._parts / _MANIFEST)

    def finish(self, writer: Writer) -> None:
        """Make the output from its parts. Doing so twice gives the same output, so a crash in here does no harm."""
        bad = sorted(self._parts.glob("_errors-*.jsonl"), key=_read_number)
        if not self.is_folder:
            self._write(self.path, lambda path: writer.merge(self._find_parts(), path))
        if self._errors:
            self._write(self._errors, lambda path: _concatenate(bad, path))
        self.state["complete"] = True
        self._write_manifest(self._parts / _MANIFEST if self.is_folder else self._manifest)
        self.tidy()

    def tidy(self) -> None:
        """Of a finished job, put a new folder in the place of the old one, and remove what is needed no longer."""
        if not self.is_folder:
            (self._parts / _MANIFEST).unlink(missing_ok=True)  # first: it says how many parts there are
            shutil.rmtree(self._parts)
            return
        for path in self._parts.glob("_errors-*.jsonl"):
            path.unlink()
        if self._parts != self.path:
            if self.path.exists():
                self._remove_old()
                _replace(self.path, self._old)
            _replace(self._parts, self.path)
        self._remove_old()

    def _remove_old(self) -> None:
        if self._old.exists():
            shutil.rmtree(self._old)

    def _find_parts(self) -> list[Path]:
        """All parts, in order."""
        return sorted(self._parts.rglob("part-*"), key=_read_number)

    def refuse_to_overwrite(self) -> None:
        """Check that nothing would be overwritten.

        Raises:
            InvalidInputError: something is.
        """
        if self._overwrites and self.is_folder and self.path.exists():
            if not self._manifest.exists() and any(self.path.iterdir()):
                raise InvalidInputError(f"{self.path} is a folder, but not of an earlier output: remove it yourself")
            if os.path.ismount(self.path):
                raise InvalidInputError(f"{self.path} is a mounted disk: choose a folder on it, that can be replaced")
        folders = {self._parts, *([self.path] if self.is_folder else [])}
        for path in {self.path, self._parts, *([self._errors] if self._errors else [])}:
            if path.is_dir() and path not in folders:
                raise InvalidInputError(f"{path} is a folder, where a file is to be written: choose another name")
            if path.exists() and not self._overwrites and not (path.is_dir() and not any(path.iterdir())):
                raise InvalidInputError(
                    f"{path} exists already: choose another name, or replace it with overwrite (--overwrite)"
                )

    def _remove_parts(self) -> None:
        """Remove the parts of a job that was interrupted, unless another process is writing them."""
        if self._parts.exists():
            with _locked(self._parts):
                pass
            (self._parts / _MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(self._parts)

    def _write_manifest(self, path: Path) -> None:
        text = json.dumps(self.state, indent=1) + "\n"
        self._write(path, lambda path: path.write_text(text, encoding="utf-8"))

    def _write(self, path: Path, write: Callable[[Path], object]) -> None:
        """Let `write` write a file beside `path`, sync it and rename it to `path`."""
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            write(temporary)
            _sync(temporary)
            _replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if error.errno not in _FULL:
                raise
            raise EdgeBertError(
                f"no room to write {path} ({os.strerror(error.errno)}): {self.state['rows']} rows are done and kept; "
                "make room, then resume the job"
            ) from None


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        state: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict) or not state.keys() >= {"job", "complete", "parts", "rows"}:
        raise InvalidInputError(f"{path} is not the manifest of a scoring job: remove it")
    return state


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder; the system unlocks it when this one ends, however it does.

    Raises:
        InvalidInputError: another process has it.
    """
    if sys.platform == "win32":  # locks files alone, and removes none that is open: the lock's file lies beside
        import msvcrt

        lock = os.open(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_TEMPORARY)
    else:
        import fcntl

        lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            if sys.platform == "win32":
                msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise InvalidInputError(f"{folder} is being written by another process: wait for it") from None
        yield
    finally:
        os.close(lock)


def _replace(temporary: Path, path: Path) -> None:
    """Rename a file to its name, perhaps over another, or a folder; and make the system write that to its disk."""
    if sys.platform != "win32":
        os.replace(temporary, path)
        _sync(path.parent)
        return
    for wait in (0.01, 0.1, 1.0, None):  # it refuses while another program, such as a virus scanner, has either open
        try:
            os.replace(temporary, path)
            return
        except PermissionError:
            if wait is None:
                raise
            time.sleep(wait)


def _sync(path: Path) -> None:
    """Make the system write a file, or a folder, to its disk."""
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_number(part: Path) -> list[int]:
    """The numbers of file and window in a part's name."""
    return [int(number) for number in part.name.split(".")[0].split("-")[1:]]


def _concatenate(parts: Sequence[Path], path: Path) -> None:
    with open(path, "wb") as whole:
        for part in parts:
            whole.write(part.read_bytes())


def _differences(was: dict[str, Any], now: dict[str, Any]) -> str:
    keys = [key for key in now | was if was.get(key) != now.get(key)]
    told = ", ".join(f"{key} was {was.get(key)!r}, is {now.get(key)!r}" for key in keys)
    return f"it cannot be resumed ({told}): choose another output"
