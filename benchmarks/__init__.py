"""The project's own evidence: programs that check first, then measure, and write JSON with its provenance.

Run from the root of a checkout, for instance `python -m benchmarks.invariance --help`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from edgebert.bench.provenance import Recorder
from edgebert.bench.session import version_of

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("numpy", "tokenizers", "onnxruntime")


def describe_run(module: str) -> dict[str, Any]:
    """Where a result comes from and the state of the machine, before the run; `module` is run with `python -m`."""
    return Recorder(ROOT).describe(
        ["python", "-m", module, *sys.argv[1:]], {name: version_of(name) for name in PACKAGES}
    )


def write_result(path: Path | None, result: dict[str, Any]) -> None:
    """Write `result` as JSON to `path`, or print it where there is none."""
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    if path is None:
        print(text, end="")
    else:
        path.write_text(text, encoding="utf-8")
