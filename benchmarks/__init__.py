"""The project's own evidence: programs that check first, then measure, and write JSON with its provenance.

Run from the root of a checkout, for instance `python -m benchmarks.invariance --help`.
"""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import edgebert
from edgebert.backends import cpus

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("numpy", "tokenizers", "onnxruntime")


def describe_run(module: str) -> dict[str, Any]:
    """Where a result comes from: command (files without their folders), commit, machine, versions.

    `module` is the one run with `python -m`.
    """
    return {
        "command": shlex.join(["python", "-m", module, *(Path(word).name or word for word in sys.argv[1:])]),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "cpu": cpus.cpu_name(),
        "usable_cpus": cpus.usable_cpus(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {"edgebert": edgebert.__version__, **{name: _version(name) for name in PACKAGES}},
    }


def write_result(path: Path | None, result: dict[str, Any]) -> None:
    """Write `result` as JSON to `path`, or print it where there is none."""
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    if path is None:
        print(text, end="")
    else:
        path.write_text(text, encoding="utf-8")


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
