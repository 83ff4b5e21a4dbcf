"""One text: from the start of a process to its embedding, and what `encode` adds to `forward`, in turns.

Starts are of the example in C (--search, built from `kernels/examples/search.c`, which embeds two texts), of Python
with EdgeBERT, and of Python with ONNX Runtime and the tokenizers library on the same file. Of each it tells seconds
from the start of the process to its end, those of CPU time, and the peak of memory, all medians.

`encode([text])` and `forward(batch)` of the same tokens are timed call by call in turns; their difference is that of
the lower quartiles, and of the minima. The functions of ours that a text passes on its way are counted once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import edgebert
from benchmarks import describe_run, write_result
from edgebert.artifact.reader import read_artifact
from edgebert.turns import time_in_turns

TEXTS = {
    7: "How to water roses?",
    22: "The water is at the root, and what leaves get in the evening is for the fungus alone.",
}
OURS = "import sys, edgebert; edgebert.load(sys.argv[1], 'native').encode([sys.argv[3]])"
THEIRS = """
import sys
import numpy as np, onnxruntime, tokenizers
tokenizer = tokenizers.Tokenizer.from_file(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
found = tokenizer.encode(sys.argv[3])
feed = {"input_ids": found.ids, "attention_mask": found.attention_mask, "token_type_ids": found.type_ids}
wanted = {value.name for value in session.get_inputs()}
session.run(["sentence_embedding"], {name: np.array([ids], np.int64) for name, ids in feed.items() if name in wanted})
"""
NAMES = ("encode", "forward")
CHOICES: dict[str, Callable[[Any], Any]] = {"quartile": lambda seconds: np.quantile(seconds, 0.25), "least": np.min}
# From a small process: what this one holds would count as the child's peak.
STARTER = """
import os, sys, time
start = time.perf_counter()
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
print(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_text", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="an embedding file with its tokenizer inside")
    parser.add_argument("--search", type=Path, help="the example program in C")
    parser.add_argument("--starts", type=int, default=15, help="of each program")
    parser.add_argument("--rounds", type=int, default=3000, help="of calls")
    parser.add_argument("--threads", type=int, help="of the model whose calls are timed")
    parser.add_argument("--out", type=Path, help="write JSON here instead of printing it")
    args = parser.parse_args()

    result: dict[str, Any] = describe_run("benchmarks.one_text")
    result["starts"] = time_starts(args.model, args.search, args.starts)
    model = edgebert.load(args.model, "native", threads=args.threads)
    result["calls"] = {str(tokens): time_calls(model, text, tokens, args.rounds) for tokens, text in TEXTS.items()}
    result["functions"] = count_functions(model, TEXTS[7])
    write_result(args.out, result)
    return 0


def time_starts(model: Path, search: Path | None, count: int) -> dict[str, Any]:
    """Seconds, seconds of CPU time and peak KiB of each program's whole run."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, line = Path(folder) / "tokenizer.json", Path(folder) / "line.txt"
        tokenizer.write_text(read_artifact(model).tokenizer_json or "", encoding="utf-8")
        line.write_text(f"{TEXTS[22]}\n", encoding="utf-8")
        programs = {
            "edgebert": [sys.executable, "-c", OURS, str(model), str(tokenizer), TEXTS[7]],
            "onnxruntime": [sys.executable, "-c", THEIRS, str(model), str(tokenizer), TEXTS[7]],
        }
        if search is not None:
            programs["c"] = [str(search), str(model), str(line), TEXTS[7]]
        # modules are compiled once, as an installation has them
        env = {**os.environ, "PYTHONPYCACHEPREFIX": f"{folder}/cache", "PYTHONDONTWRITEBYTECODE": ""}
        found: dict[str, list[tuple[float, ...]]] = {name: [] for name in programs}
        for _ in range(1 + count):  # the first is not counted
            for name, program in programs.items():
                run = subprocess.run(
                    [sys.executable, "-S", "-c", STARTER, *program], check=True, capture_output=True, text=True, env=env
                )
                found[name].append(tuple(map(float, run.stderr.split())))
    return {
        name: dict(
            zip(
                ("seconds", "cpu_seconds", "peak_kib"), map(statistics.median, zip(*rows[1:], strict=True)), strict=True
            )
        )
        for name, rows in found.items()
    }


def time_calls(model: edgebert.Model, text: str, tokens: int, rounds: int) -> dict[str, float]:
    """Microseconds of `encode([text])` and of `forward`, and what the one adds to the other."""
    assert model.tokenizer is not None
    batch, _ = model.tokenizer.tokenize([text])
    assert batch.total_tokens == tokens, f"{text!r} has {batch.total_tokens} tokens"
    assert (model.encode([text]) == model.forward(batch)["sentence_embedding"]).all()
    times = time_in_turns([lambda: model.encode([text]), lambda: model.forward(batch)], rounds=rounds)
    lows = {what: [float(choose(seconds)) * 1e6 for seconds in times] for what, choose in CHOICES.items()}
    return {
        **{f"{what}_{name}_us": low for what, pair in lows.items() for name, low in zip(NAMES, pair, strict=True)},
        **{f"{what}_added_us": encode - forward for what, (encode, forward) in lows.items()},
    }


def count_functions(model: edgebert.Model, text: str) -> list[str]:
    """The functions of this package that `encode` of one text passes."""
    package = str(Path(edgebert.__file__).parent)
    passed: dict[str, None] = {}

    def note(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(package):
            passed[f"{frame.f_globals['__name__']}:{frame.f_code.co_qualname}"] = None

    model.encode([text])
    sys.setprofile(note)
    try:
        model.encode([text])
    finally:
        sys.setprofile(None)
    return list(passed)


if __name__ == "__main__":
    raise SystemExit(main())
