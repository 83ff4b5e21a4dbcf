"""From process start to the first embedding, and the memory it took: EdgeBERT beside ONNX Runtime on the same file.

Every run is a fresh process; the cases take turns (A B C A B C …) and the median counts. Times are seconds on the
system's monotonic clock from just before the process is started; memory is the peak resident set (VmHWM), MB.
The two embeddings are compared before any time is shown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ROOT, describe_run, write_result

REPORT = """
import json, re, time
done = time.monotonic()
peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read()).group(1))
print(json.dumps({"done": done, "peak_mb": peak * 1024 / 1e6, "row": row}))
"""
CASES = {
    "python": "row = None",
    "import numpy": "import numpy; row = None",
    "import edgebert": "import edgebert; row = None",
    "from edgebert import load": "from edgebert import load; row = None",
    "edgebert": """
import sys, edgebert
model = edgebert.load(sys.argv[1], backend=sys.argv[3])
row = model.encode(sys.argv[2]).tolist()
""",
    "onnxruntime": """
import sys, numpy, onnxruntime, tokenizers
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
tokenizer = tokenizers.Tokenizer.from_str(session.get_modelmeta().custom_metadata_map["edgebert.tokenizer"])
text = tokenizer.encode(sys.argv[2])
arrays = {"input_ids": text.ids, "attention_mask": text.attention_mask, "token_type_ids": text.type_ids}
feed = {value.name: numpy.array([arrays[value.name]], numpy.int64) for value in session.get_inputs()}
row = session.run(["sentence_embedding"], feed)[0][0].tolist()
""",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coldstart", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="+", help="an exported embedding file with its tokenizer inside")
    parser.add_argument("--text", default="The first train to the coast leaves a little before six in the morning.")
    parser.add_argument("--backend", default="auto", help="EdgeBERT's backend (default: auto)")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write JSON here instead of printing it")
    args = parser.parse_args()

    result: dict[str, Any] = {
        **describe_run("benchmarks.coldstart"),
        "runs": args.runs,
        "text": args.text,
        "models": {},
    }
    for model in args.model:
        result["models"][model.name] = measure(model, args.text, args.backend, args.runs)
    write_result(args.out, result)
    return 0


def measure(model: Path, text: str, backend: str, runs: int) -> dict[str, Any]:
    """Median, least and greatest seconds and the median peak MB of each case."""
    first = {case: start(case, model, text, backend) for case in CASES}  # also warms the file cache
    ours, theirs = (np.array(first[case]["row"]) for case in ("edgebert", "onnxruntime"))
    cosine = float(ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs))
    if cosine < 0.998:
        raise SystemExit(
            f"{model}: the embeddings differ, cosine {cosine:.5f}, expected at least 0.998: nothing was timed"
        )
    samples: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    for _ in range(runs):
        for case in CASES:
            samples[case].append(start(case, model, text, backend))
    cases = {}
    for case, rows in samples.items():
        seconds = [row["seconds"] for row in rows]
        cases[case] = {
            "median_s": round(statistics.median(seconds), 4),
            "min_s": round(min(seconds), 4),
            "max_s": round(max(seconds), 4),
            "peak_mb": round(statistics.median(row["peak_mb"] for row in rows), 1),
        }
    extra_ms = {
        case: round(1e3 * (cases[case]["median_s"] - cases["import numpy"]["median_s"]), 1)
        for case in ("import edgebert", "from edgebert import load")
    }
    return {"cosine": round(cosine, 6), "ms_more_than_import_numpy": extra_ms, "cases": cases}


def start(case: str, model: Path, text: str, backend: str) -> dict[str, Any]:
    """Run one case in a fresh process: {"seconds", "peak_mb", "row"}."""
    command = [sys.executable, "-c", CASES[case] + REPORT, str(model.resolve()), text, backend]
    begun = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{case} failed on {model}:\n{done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": report["done"] - begun, "peak_mb": report["peak_mb"], "row": report["row"]}


if __name__ == "__main__":
    raise SystemExit(main())
