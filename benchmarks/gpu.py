"""The CUDA library on an NVIDIA GPU: built, checked, then timed beside PyTorch, in one go.

    python -m benchmarks.gpu --work FOLDER --out benchmarks/results/gpu.json

It needs a GPU, nvcc, CMake, and PyTorch's CUDA build with transformers; without them it says so and measures nothing.

Checks, all before any clock: the kernels' own test compiled for this GPU, the tests of tests/test_cuda.py on it, both
also under compute-sanitizer where that is installed; each timed model against the native backend's fp32 on the CPU, its
bits alone and in a batch and from run to run, and PyTorch's rows against ours.

Then, in turns: our f16 and int8, and PyTorch's f16 with scaled-dot-product attention, compiled, and unpadded (varlen
attention). A call takes token ids in host memory and ends with mean-pooled rows there. Batches are the same for all:
texts sorted by length and cut so that, padded, they hold no more than --tokens. What the GPU can do at most is measured
as well: f16 and int8 matrix products, and copies.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import ROOT, describe_run, write_result
from benchmarks.shapes import (
    BERT_BASE,
    BERT_LARGE,
    LENGTH_HISTOGRAM,
    MINILM,
    SQUAD_HISTOGRAM,
    Shape,
    draw_lengths,
)
from edgebert import quant
from edgebert.artifact.names import linear_name
from edgebert.artifact.spec import LINEARS
from edgebert.backends.base import Backend
from edgebert.batch import PackedBatch
from edgebert.turns import time_in_turns

F32 = NDArray[np.float32]
Run = Callable[[PackedBatch], F32]

OUTPUT = "sentence_embedding"
F16_LIMIT = 2e-3  # of the largest value: f16 has 11 bits
INT8_COSINE = 0.998
SINGLE_LENGTHS = (16, 128, 384)
SECONDS = 3.0  # for one workload, all runtimes together
MIN_ROUNDS = 5


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for the build and the models, kept")
    parser.add_argument("--tokens", type=int, default=32_768, help="the most tokens of a batch, padding included")
    parser.add_argument("--texts", type=int, default=4096, help="texts of an offline workload")
    parser.add_argument("--out", type=Path, help="write JSON here instead of printing it")
    args = parser.parse_args()

    torch = require_gpu()
    args.work.mkdir(parents=True, exist_ok=True)
    library, kernel_test = build(torch, args.work)
    os.environ["EDGEBERT_CUDA_LIBRARY"] = str(library)
    result: dict[str, Any] = {**describe_run("benchmarks.gpu"), "gpu": describe_gpu(torch)}
    result["checks"] = run_checks(kernel_test)
    result["ceilings"] = ceilings = measure_ceilings(torch)
    result["models"] = []
    for shape in (MINILM, BERT_BASE, BERT_LARGE):
        print(f"-- {shape.name}", file=sys.stderr)
        result["models"].append(measure_model(torch, shape, args, ceilings))
    result["goals"] = judge(result["models"])
    write_result(args.out, result)
    return 0


def require_gpu() -> Any:
    """PyTorch with a GPU; without one the program ends here."""
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"{error}: PyTorch (its CUDA build) and transformers are what this compares with") from error
    if not torch.cuda.is_available():
        raise SystemExit(
            f"there is no GPU that PyTorch {torch.__version__} can use: nothing was measured. This benchmark needs an "
            "NVIDIA GPU, its driver, and PyTorch's CUDA build"
        )
    for program in ("nvcc", "cmake"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is not on PATH: it builds the CUDA library; nothing was measured")
    return torch


def describe_gpu(torch: Any) -> dict[str, Any]:
    found = torch.cuda.get_device_properties(0)
    fields = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader", "--id=0"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    return {
        "name": found.name,
        "compute_capability": f"{found.major}.{found.minor}",
        "memory_gb": round(found.total_memory / 2**30, 1),
        "multiprocessors": found.multi_processor_count,
        "driver, highest clock, power limit": fields,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
    }


# Build and check


def build(torch: Any, work: Path) -> tuple[Path, Path]:
    """The library and the kernels' test for this GPU."""
    major, minor = torch.cuda.get_device_capability(0)
    architecture = f"{major}{minor}{'a' if (major, minor) == (9, 0) else ''}-real"
    folder = work / "build"
    options = ["-DEDGEBERT_CUDA=ON", "-DEDGEBERT_TESTS=ON", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"]
    run(["cmake", "-S", ROOT, "-B", folder, *options])
    run(["cmake", "--build", folder, "-j", str(os.cpu_count()), "--target", "edgebert_cuda", "cuda_kernel_test_gpu"])
    return folder / "libedgebert_cuda.so", folder / "cuda_kernel_test_gpu"


def run(command: Sequence[str | Path], **environment: str) -> str:
    """What the command printed; if it fails, the program ends with that."""
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}\n{done.stderr}\nnothing was timed")
    return done.stdout


def run_checks(kernel_test: Path) -> dict[str, str]:
    """The kernels one by one and the whole library at awkward shapes, also under compute-sanitizer if it is there."""
    tests = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_cuda.py"]
    blocking = {"CUDA_LAUNCH_BLOCKING": "1"}  # the test reads what a kernel wrote without waiting for it
    checks = {"kernels": run([kernel_test], **blocking), "library": run(tests).strip().splitlines()[-1]}
    sanitizer = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        name = f"compute-sanitizer {tool}"
        if sanitizer is None:
            checks[name] = "not run: compute-sanitizer is not installed"
            continue
        report = run([sanitizer, "--tool", tool, "--error-exitcode", "1", kernel_test], **blocking)
        checks[name] = report.strip().splitlines()[-1]
    return checks


# Models


def make_model(torch: Any, shape: Shape, work: Path) -> tuple[Any, dict[str, Path]]:
    """A random BERT of that shape, as transformers' model and as our fp32 and int8 files of the same weights."""
    from transformers import BertConfig, BertModel

    from edgebert.artifact.writer import build_model
    from edgebert.checkpoints.loading import load_checkpoint

    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.intermediate_size,
        initializer_range=0.04,  # as wide as trained ones, so that rows tell texts apart
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    folder = work / shape.name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    checkpoint = load_checkpoint(folder, task="embedding")
    spec = dataclasses.replace(checkpoint.spec, pooling="mean", normalize=False)
    tensors: dict[str, Any] = dict(checkpoint.tensors)
    files = {"f16": folder / "fp32.onnx", "int8": folder / "int8.onnx"}
    files["f16"].write_bytes(build_model(spec, tensors, {}))
    dtypes = dict.fromkeys(LINEARS, "s8")
    spec = dataclasses.replace(
        spec, embedding_dtype="s8", layers=tuple(dataclasses.replace(layer, **dtypes) for layer in spec.layers)
    )
    for i in range(shape.num_layers):
        for linear in LINEARS:
            prefix = linear_name(i, linear)
            weight = tensors[f"{prefix}.weight"]
            scale = quant.weight_scale(weight)
            codes = quant.round_weight(weight, scale)
            tensors |= {f"{prefix}.weight": codes, f"{prefix}.scale": scale}
            tensors[f"{prefix}.colsum"] = quant.column_sums(codes)
    for table in ("word", "position", "token_type"):
        name = f"embeddings.{table}"
        tensors[f"{name}.weight"], tensors[f"{name}.scale"] = quant.quantize_table(tensors[f"{name}.weight"])
    files["int8"].write_bytes(build_model(spec, tensors, {}))
    return model, files


def ours(backend: Backend) -> Run:
    return lambda batch: backend.run(batch, [OUTPUT])[OUTPUT]


def torch_padded(torch: Any, model: Any) -> Run:
    """The model on padded batches, mean pooling with the mask."""

    def forward(batch: PackedBatch) -> F32:
        ids, mask, _ = (torch.from_numpy(array).cuda(non_blocking=True) for array in batch.pad())
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        weights = mask.unsqueeze(2).float()
        rows: F32 = ((hidden * weights).sum(1) / weights.sum(1)).cpu().numpy()
        return rows

    return forward


def torch_unpadded(torch: Any, model: Any) -> Run:
    """The model's weights on packed tokens, with PyTorch's own attention over sequences of several lengths."""
    from torch.nn.attention.varlen import varlen_attn
    from torch.nn.functional import gelu, layer_norm, linear

    weights = model.state_dict()
    config = model.config

    def apply(name: str, x: Any) -> Any:
        return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Any) -> Any:
        return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], config.layer_norm_eps)

    tables = {name: weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")}
    names = [f"encoder.layer.{i}" for i in range(config.num_hidden_layers)]
    for name in names:  # one product for the three
        for part in ("weight", "bias"):
            parts = [weights[f"{name}.attention.self.{which}.{part}"] for which in ("query", "key", "value")]
            weights[f"{name}.qkv.{part}"] = torch.cat(parts)

    def forward(batch: PackedBatch) -> F32:
        arrays = (batch.input_ids, batch.position_ids(), batch.cu_seqlens)
        ids, positions, bounds = (torch.from_numpy(array).cuda(non_blocking=True) for array in arrays)
        x = norm("embeddings.LayerNorm", tables["word"][ids] + tables["token_type"][0] + tables["position"][positions])
        for name in names:
            heads = apply(f"{name}.qkv", x).view(len(x), 3, config.num_attention_heads, -1).unbind(1)
            context = varlen_attn(*heads, bounds, bounds, batch.max_seqlen, batch.max_seqlen).reshape(len(x), -1)
            x = norm(f"{name}.attention.output.LayerNorm", apply(f"{name}.attention.output.dense", context) + x)
            inner = gelu(apply(f"{name}.intermediate.dense", x))
            x = norm(f"{name}.output.LayerNorm", apply(f"{name}.output.dense", inner) + x)
        return segment_means(torch, x.float(), bounds).cpu().numpy()  # type: ignore[no-any-return]

    return forward


def segment_means(torch: Any, x: Any, bounds: Any) -> Any:
    lengths = bounds.diff()
    owners = torch.repeat_interleave(torch.arange(len(lengths), device=x.device), lengths, output_size=len(x))
    return torch.zeros(len(lengths), x.shape[1], device=x.device).index_add_(0, owners, x) / lengths.unsqueeze(1)


# Workloads


def make_workloads(shape: Shape, texts: int, tokens: int) -> dict[str, list[PackedBatch]]:
    rng = np.random.default_rng(0)

    def batch(lengths: Sequence[int]) -> PackedBatch:
        return PackedBatch.from_lists([rng.integers(1000, 30_000, n).tolist() for n in lengths])

    def offline(lengths: list[int]) -> list[PackedBatch]:
        lengths = sorted(lengths, reverse=True)
        batches = []
        while lengths:
            count = max(1, tokens // lengths[0])
            batches.append(batch(lengths[:count]))
            lengths = lengths[count:]
        return batches

    workloads = {f"one text of {n} tokens": [batch([n])] for n in SINGLE_LENGTHS}
    for longest in (128, 384):  # lengths evenly spread, so that a fifth more than half of a padded batch is text
        count = max(1, tokens // longest)
        lengths = np.linspace(0.2 * longest, longest, count).round().astype(int)
        workloads[f"{count} texts of up to {longest} tokens, 60 % fill"] = [batch(lengths.tolist())]
    name, histogram = ("SQuAD", SQUAD_HISTOGRAM) if shape is BERT_LARGE else ("STS-B", LENGTH_HISTOGRAM)
    workloads[f"offline, {texts} texts, lengths of {name}"] = offline(draw_lengths(texts, histogram=histogram))
    return workloads


# Measuring


def measure_model(torch: Any, shape: Shape, args: argparse.Namespace, ceilings: dict[str, float]) -> dict[str, Any]:
    from edgebert.backends.registry import load_backend

    model, files = make_model(torch, shape, args.work)
    backends = {name: load_backend(path, "native", "cuda") for name, path in files.items()}
    half = model.half().cuda()
    with torch.inference_mode():
        runs: dict[str, Run] = {f"EdgeBERT {name}": ours(backend) for name, backend in backends.items()}
        runs["PyTorch f16, sdpa"] = torch_padded(torch, half)
        runs["PyTorch f16, compiled"] = torch_padded(torch, torch.compile(half, dynamic=True))
        runs["PyTorch f16, unpadded"] = torch_unpadded(torch, half)
        agreement = check_model(shape, load_backend(files["f16"], "native"), backends, runs)
        workloads = []
        for name, batches in make_workloads(shape, args.texts, args.tokens).items():
            workloads.append({"workload": name, **measure(shape, runs, batches, ceilings)})
            print(json.dumps(workloads[-1]), file=sys.stderr)
    return {"model": shape.name, "agreement": agreement, "workloads": workloads}


def check_model(shape: Shape, oracle: Backend, backends: dict[str, Backend], runs: dict[str, Run]) -> dict[str, Any]:
    """Distances from fp32 on the CPU, which is held against the oracle elsewhere; bits alone, together, and again."""
    rng = np.random.default_rng(1)
    lengths = (1, 2, 16, 63, 64, 65, 128, 200, 384)
    batch = PackedBatch.from_lists([rng.integers(1000, 30_000, n).tolist() for n in lengths])
    expected = ours(oracle)(batch)
    found: dict[str, Any] = {}
    for name, forward in runs.items():
        rows = forward(batch)
        cosine = (rows * expected).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(expected, axis=1)
        error = float(np.abs(rows - expected).max() / np.abs(expected).max())
        found[name] = {"relative_error": error, "least_cosine": float(cosine.min())}
        if cosine.min() < INT8_COSINE:
            raise SystemExit(f"{shape.name}, {name}: {found[name]} is not the same model; nothing was timed")
    # a deep random model may be beyond the limit in anybody's f16: then PyTorch's is the limit
    limit = max(F16_LIMIT, found["PyTorch f16, sdpa"]["relative_error"])
    if found["EdgeBERT f16"]["relative_error"] > limit:
        raise SystemExit(f"{shape.name}: {found['EdgeBERT f16']}, expected at most {limit}; nothing was timed")
    for name, backend in backends.items():
        together = ours(backend)(batch)
        again = [ours(backend)(batch) for _ in range(5)]  # queued, recorded, replayed
        alone = np.concatenate([ours(backend)(batch.take([i])) for i in range(len(lengths))])
        if not all(np.array_equal(rows.view(np.uint32), together.view(np.uint32)) for rows in (*again, alone)):
            raise SystemExit(f"{shape.name}, {name}: a text's bits differ from run to run or with its batch")
    return found


def measure(
    shape: Shape, runs: dict[str, Run], batches: list[PackedBatch], ceilings: dict[str, float]
) -> dict[str, Any]:
    def run_all(forward: Run) -> None:
        for batch in batches:
            forward(batch)

    calls = [partial(run_all, forward) for forward in runs.values()]
    for call in calls:
        for _ in range(3):  # compiled and recorded
            call()
    samples = time_in_turns(calls, warm_up=False, seconds=SECONDS, least=MIN_ROUNDS)
    tokens = sum(batch.total_tokens for batch in batches)
    texts = sum(batch.num_sequences for batch in batches)
    padded = sum(batch.num_sequences * batch.max_seqlen for batch in batches)
    operations = shape.count_operations([n for batch in batches for n in batch.lengths.tolist()])
    rows = {}
    for name, times in zip(runs, samples, strict=True):
        median = float(np.median(times))
        ceiling = ceilings["int8_tops" if name == "EdgeBERT int8" else "f16_tflops"]
        rows[name] = {
            "median_ms": round(1e3 * median, 4),
            "p95_ms": round(1e3 * float(np.percentile(times, 95)), 4),
            "tokens_per_s": round(tokens / median),
            "texts_per_s": round(texts / median, 1),
            "share_of_ceiling": round(operations / median / 1e12 / ceiling, 4),
        }
    return {
        "texts": texts,
        "tokens": tokens,
        "fill": round(tokens / padded, 3),
        "rounds": len(samples[0]),
        "runtimes": rows,
    }


def measure_ceilings(torch: Any) -> dict[str, float]:
    """The best of many: f16 and int8 products of 8192 x 8192 matrices, and a copy of 1 GiB within the device."""

    def best_seconds(work: Callable[[], object]) -> float:
        times = []
        for _ in range(20):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return min(times)

    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.float16) for _ in range(2))
    p, q = (torch.randint(-127, 128, (n, n), device="cuda", dtype=torch.int8) for _ in range(2))
    source = torch.empty(2**30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    return {
        "f16_tflops": round(2 * n**3 / best_seconds(lambda: a @ b) / 1e12, 1),
        "int8_tops": round(2 * n**3 / best_seconds(lambda: torch._int_mm(p, q.t())) / 1e12, 1),
        "copy_gb_per_s": round(2 * 2**30 / best_seconds(lambda: target.copy_(source)) / 1e9, 1),  # read and written
    }


def judge(models: list[dict[str, Any]]) -> dict[str, Any]:
    """What was aimed at, and what was found."""

    def find(model: str, workload: str) -> dict[str, Any]:
        rows = next(found["workloads"] for found in models if found["model"] == model)
        return next(row["runtimes"] for row in rows if workload in row["workload"])  # type: ignore[no-any-return]

    base, large = find("bert-base", "one text of 128"), find("bert-large", "offline")
    fills = {
        found["model"]: min(
            row["runtimes"]["PyTorch f16, compiled"]["median_ms"] / row["runtimes"]["EdgeBERT f16"]["median_ms"]
            for row in found["workloads"]
            if "60 % fill" in row["workload"]
        )
        for found in models
    }
    return {
        "at least 1.5 times torch.compile f16 at 60 % fill": {name: round(ratio, 2) for name, ratio in fills.items()},
        "60 % of the f16 ceiling, BERT-large offline": large["EdgeBERT f16"]["share_of_ceiling"],
        "BERT-base, one text of 128 tokens, under 0.6 ms": base["EdgeBERT f16"]["median_ms"],
    }


if __name__ == "__main__":
    raise SystemExit(main())
