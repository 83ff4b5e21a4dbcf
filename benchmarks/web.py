"""The npm package in Node beside onnxruntime-web: one text at a time, one thread, in turns.

    npm install --prefix FOLDER onnxruntime-web
    python -m benchmarks.web int8.onnx --portable portable.onnx --package build-wasm/npm --modules FOLDER

Milliseconds are medians of calls in turns, after as many as compile everything. `portable.onnx` is a file of
`edgebert export --int8 --portable`, which the relaxed dot product takes. `--fp32` names the same model in fp32, which
ONNX Runtime's `quantize_dynamic` then makes its own int8 of.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import describe_run, write_result

TOKENS = [16, 128]
GLUE = ("index.js", "engine.js", "worker.js", "error.js")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.web", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="an embedding file")
    parser.add_argument("--portable", type=Path, help="the same model with weights in ±63")
    parser.add_argument("--fp32", type=Path, help="the same model in fp32")
    parser.add_argument("--package", type=Path, default=Path("build-wasm/npm"), help="the npm package, built")
    parser.add_argument("--modules", type=Path, help="a folder with node_modules: the others")
    parser.add_argument("--node", default="node")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path, help="write JSON here instead of printing it")
    args = parser.parse_args()

    result: dict[str, Any] = describe_run("benchmarks.web")
    result["bytes"] = {path.stem: measure_size(args.package, path) for path in sorted(args.package.glob("*.wasm"))}
    result["models"] = {}
    with tempfile.TemporaryDirectory() as folder:
        quantized = quantize(args.fp32, Path(folder)) if args.fp32 else None
        for model in filter(None, (args.model, args.portable)):
            result["models"][model.name] = run_node(args, model, quantized)
    for name, sizes in result["bytes"].items():
        print(f"{name}: {sizes['gzipped'] / 1e3:.1f} KB gzipped with its glue")
    for name, told in result["models"].items():
        for isa, loading in told["loading"].items():
            print(f"{name}, {isa}: {loading['memory_bytes'] / 1e6:.1f} MB, ready in {loading['ready_ms']:.0f} ms")
        for count, taken in told["median_ms"].items():
            for runtime, median in taken.items():
                print(
                    f"{name}, {count} tokens, {runtime}: {median:.2f} ms (cosine {told['cosines'][count][runtime]:.5f})"
                )
    write_result(args.out, result)
    return 0


def measure_size(package: Path, binary: Path) -> dict[str, int]:
    """Bytes of one binary, and of it and what loads it when each is gzipped."""
    files = [binary, *(package / name for name in GLUE)]
    return {
        "binary": binary.stat().st_size,
        "gzipped": sum(len(gzip.compress(file.read_bytes(), 9)) for file in files),
    }


def quantize(fp32: Path, folder: Path) -> Path:
    """The int8 file that ONNX Runtime's own tool makes, as its users do."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(fp32, folder / "dynamic.onnx", weight_type=QuantType.QInt8)
    return folder / "dynamic.onnx"


def run_node(args: argparse.Namespace, model: Path, quantized: Path | None) -> dict[str, Any]:
    """Of one file: how it loaded, and seconds of each runtime's calls at each length."""
    flag = "--experimental-wasm-relaxed-simd"  # which Node 20 asks for, and later ones do not know
    is_known = subprocess.run([args.node, flag, "-e", "0"], capture_output=True, check=False).returncode == 0
    told = {
        "package": str(args.package.resolve()),
        "file": str(model.resolve()),
        "quantized": str(quantized) if quantized else None,
        "modules": str(args.modules.resolve()) if args.modules else None,
        "tokens": TOKENS,
        "rounds": args.rounds,
    }
    command = [args.node, *([flag] if is_known else []), str(Path(__file__).with_suffix(".mjs")), json.dumps(told)]
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    found["median_ms"] = {
        count: {name: float(np.median(times)) * 1e3 for name, times in taken.items()}
        for count, taken in found["seconds"].items()
    }
    return found


if __name__ == "__main__":
    raise SystemExit(main())
