"""How fast is batch encoding inside sentence-transformers: our module beside its own ways and fastembed, in turns.

Every contender gets the same texts in one process, and must first give the original's embeddings: a cosine of 0.9999
for every text with fp32, 0.98 with int8. The ONNX backend of sentence-transformers is Optimum's; what is not installed
is left out, and said. Exit status 1 if one differs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import edgebert
from benchmarks import describe_run, write_result
from benchmarks.invariance import read_texts
from edgebert.bench.session import version_of
from edgebert.turns import time_in_turns

LIBRARIES = ("sentence-transformers", "transformers", "torch", "optimum-onnx", "onnxruntime", "fastembed")
Encode = Callable[[list[str]], Any]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.integrations", description=__doc__.splitlines()[0])
    parser.add_argument("original", type=Path, help="a folder that sentence-transformers loads")
    parser.add_argument("folder", type=Path, help="what `edgebert export original -o folder` wrote, fp32")
    parser.add_argument("int8", type=Path, help="the same as a file in int8")
    parser.add_argument("--sentences", type=Path, required=True, help="JSON lines, *.jsonl or *.jsonl.gz")
    parser.add_argument("--count", type=int, default=1000, help="sentences (default: 1000)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (default: 7)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, help="write JSON here instead of printing it")
    args = parser.parse_args()

    texts = read_texts(args.sentences, args.count)
    result: dict[str, Any] = describe_run("benchmarks.integrations")
    result |= {"libraries": {name: version_of(name) for name in LIBRARIES}, "texts": len(texts), "runs": []}
    is_wrong = False
    for threads in args.threads:
        contenders, left_out = load_contenders(args.original, args.folder, args.int8, threads)
        expected = np.asarray(contenders["sentence-transformers torch"](texts))
        cosines = {name: least_cosine(encode(texts), expected) for name, encode in contenders.items()}
        is_wrong |= any(value < (0.98 if "int8" in name else 0.9999) for name, value in cosines.items())
        calls = [lambda encode=encode: encode(texts) for encode in contenders.values()]
        seconds = time_in_turns(calls, rounds=args.rounds, warm_up=False)
        speeds = {name: len(texts) / float(np.median(taken)) for name, taken in zip(contenders, seconds, strict=True)}
        own = speeds["sentence-transformers torch"]
        result["runs"].append(
            {
                "threads": threads,
                "left_out": left_out,
                "contenders": [
                    {"name": name, "texts_per_s": speed, "over_torch": speed / own, "least_cosine": cosines[name]}
                    for name, speed in speeds.items()
                ],
            }
        )
        for entry in result["runs"][-1]["contenders"]:
            print(
                f"{threads} threads  {entry['name']:32} {entry['texts_per_s']:8.0f} texts/s  "
                f"{entry['over_torch']:5.2f}x  least cosine {entry['least_cosine']:.6f}"
            )
    write_result(args.out, result)
    return int(is_wrong)


def load_contenders(original: Path, folder: Path, int8: Path, threads: int) -> tuple[dict[str, Encode], dict[str, str]]:
    """(name -> texts to embeddings; name -> why it is not here)."""
    import torch
    from sentence_transformers import SentenceTransformer

    from edgebert.integrations.sentence_transformers import load

    torch.set_num_threads(threads)
    contenders: dict[str, Encode] = {
        "sentence-transformers torch": SentenceTransformer(str(original), device="cpu").encode,
        "EdgeBERT module, fp32": load(edgebert.load(folder, threads=threads)).encode,
        "EdgeBERT module, int8": load(edgebert.load(int8, threads=threads)).encode,
        "edgebert.Model, int8": edgebert.load(int8, threads=threads).encode,
    }
    left_out = {}
    for name, make in (("sentence-transformers onnx", make_onnx), ("fastembed", make_fastembed)):
        try:
            contenders[name] = make(folder, threads)
        except Exception as error:  # whatever it is, the others go on
            left_out[name] = f"{type(error).__name__}: {error}".split("\n")[0]
    return contenders, left_out


def make_onnx(folder: Path, threads: int) -> Encode:
    """sentence-transformers' own ONNX backend on the same fp32 graph."""
    import onnxruntime
    from sentence_transformers import SentenceTransformer

    session = onnxruntime.SessionOptions()
    session.intra_op_num_threads = threads
    options = {"file_name": "onnx/model.onnx", "session_options": session, "provider": "CPUExecutionProvider"}
    return SentenceTransformer(str(folder), backend="onnx", device="cpu", model_kwargs=options).encode


def make_fastembed(folder: Path, threads: int) -> Encode:
    """fastembed on the same fp32 graph."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    name = f"exported/model-{threads}"
    width = edgebert.load(folder).spec.output_width("sentence_embedding")[1]
    TextEmbedding.add_custom_model(
        model=name,
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="exported/folder"),
        dim=width,
        model_file="onnx/model.onnx",
    )
    model = TextEmbedding(name, specific_model_path=str(folder), threads=threads)
    return lambda texts: np.stack(list(model.embed(texts, batch_size=32)))


def least_cosine(rows: Any, expected: Any) -> float:
    """The smallest cosine of a row with its counterpart."""
    a, b = (np.asarray(part, np.float64) for part in (rows, expected))
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


if __name__ == "__main__":
    raise SystemExit(main())
