"""Heads that the compression pipeline trains on real rows, each also written as a checkpoint that transformers loads.

    python -m benchmarks.heads --data FOLDER --english FOLDER --multilingual FOLDER --work FOLDER [NAME ...]

benchmarks.task_parity and benchmarks.blimp compare answers on them. WORK/NAME.work has the run's stages; a finished run
of benchmarks.ladder of the same name is taken as it is. WORK/NAME is the checkpoint, with the tokenizer of its body and
`model.onnx`, the pipeline's own file; next sentence, which the pipeline knows as a classification of pairs, is exported
from its checkpoint.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edgebert
from edgebert.artifact.reader import read_artifact
from edgebert.artifact.spec import EncoderSpec
from edgebert.checkpoints.loading import ARCHITECTURES, NEXT_SENTENCE_LABELS


@dataclass(frozen=True)
class Head:
    """What a head is trained on: rows evenly spread over the training files of data sets, gone over `epochs` times.

    `task` is the checkpoint's, of a body that is the `english` or the `multilingual` one.
    """

    data: tuple[str, ...]
    task: str
    rows: int
    epochs: int
    learning_rate: float
    body: str = "english"
    max_length: int = 384
    trim: bool = False
    context: int | None = None  # characters that contexts are cut to: windows without an answer teach little


HEADS = {
    "wnut17": Head(("wnut17",), "token-classification", 3394, 3, 3e-4),
    "mrpc": Head(("mrpc",), "text-classification", 4076, 5, 1e-4),
    "stsb-scores": Head(("stsb",), "text-classification", 1500, 2, 2e-4),
    "squad-slice": Head(("squad-slice",), "question-answering", 1000, 2, 3e-4),
    "masked": Head(("commonvoice-transcripts", "cola", "multi30k-en-de"), "fill-mask", 9000, 2, 4e-4),
    "next-sentence": Head(("wikitext2",), "next-sentence", 1000, 3, 2e-4, max_length=96),
    "cmrc2018": Head(("cmrc2018",), "question-answering", 250, 5, 3e-4, "multilingual", 192, trim=True, context=160),
    "zh-resume-ner": Head(("zh-resume-ner",), "token-classification", 400, 3, 3e-4, "multilingual", 128, trim=True),
    "wikiann-de": Head(("wikiann-de",), "token-classification", 500, 3, 3e-4, "multilingual", 64),
}
STAGE = "{}.work/*-finetune-*/model.onnx"
EVALUATED = 60  # rows, for the record; what is compared needs none


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.heads", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(HEADS)} (default: all)")
    parser.add_argument("--data", type=Path, required=True, help="a folder of data sets")
    parser.add_argument("--english", type=Path, required=True, help="a BERT checkpoint in the Hugging Face layout")
    parser.add_argument("--multilingual", type=Path, help="one with a SentencePiece tokenizer")
    parser.add_argument("--work", type=Path, required=True, help="of finished stages and checkpoints")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.names or HEADS:
        head, folder = HEADS[name], args.work / name
        body = getattr(args, head.body)
        if body is None:
            parser.error(f"{name} needs --{head.body}")
        if not (files := list(args.work.glob(STAGE.format(name)))):
            train(name, body, args.data, args.work)
            files = list(args.work.glob(STAGE.format(name)))
        write_checkpoint(files[0], head.task, body, folder)
        if head.task == "next-sentence":
            edgebert.export(folder, folder / "model.onnx")
        else:
            shutil.copy(files[0], folder / "model.onnx")
    return 0


def train(name: str, body: Path, data: Path, work: Path) -> None:
    """Fine-tune the body, with a new head, as `edgebert compress` does."""
    from edgebert.compress.pipeline import run
    from edgebert.compress.recipe import Recipe, Training

    head = HEADS[name]
    if head.task == "fill-mask":
        body = add_masked_head(body, work / "masked-start")
    files = {}
    for part, count in (("train", head.rows), ("dev", EVALUATED)):
        rows = [row for data_set in head.data for row in read_rows(data / data_set, part)]
        if head.task == "next-sentence":
            rows = pair_sentences([row["text"] for row in rows])
        if head.context is not None:
            rows = [cut_context(row, head.context) for row in rows if len(row["answers"][0]["text"]) < head.context / 2]
        if rows:
            files[part] = work / f"{name}-{part}.jsonl"
            rows = rows[:: max(1, len(rows) // count)][:count]
            files[part].write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    training = Training(
        epochs=head.epochs,
        learning_rate=head.learning_rate,
        batch_size=16,
        max_length=head.max_length,
        patience=head.epochs,
    )
    recipe = Recipe(
        str(body),
        "text-classification" if head.task == "next-sentence" else head.task,
        str(files["train"]),
        str(work / f"{name}.onnx"),
        eval=str(files["dev"]) if "dev" in files else None,
        finetune=training,
        trim=head.trim,
        int8=False,
    )
    run(recipe, progress=lambda text: print(f"{name}: {text}", flush=True))


def read_rows(folder: Path, part: str) -> list[dict[str, Any]]:
    """Rows of a data set's train or dev file, an English text as `text`; of plain text every line is for training."""
    for path in folder.glob("*.txt.gz"):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return [{"text": line.strip()} for line in lines if line.strip()] if part == "train" else []
    path = folder / f"{part}.jsonl.gz"
    if not path.exists():
        return []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [{"text": row["en"]} if "en" in row else row for row in rows]


def pair_sentences(paragraphs: Sequence[str]) -> list[dict[str, str]]:
    """Neighbouring sentences of running text, and as many with one from anywhere; which of both is the label."""
    rng = random.Random(0)
    split = [[f"{part.strip(' .')}." for part in text.split(" . ") if len(part) > 20] for text in paragraphs]
    everywhere = [sentence for sentences in split for sentence in sentences]
    rows = []
    for sentences in split:
        for text, following in zip(sentences, sentences[1:], strict=False):
            label = rng.choice(NEXT_SENTENCE_LABELS)
            is_next = label == NEXT_SENTENCE_LABELS[0]
            rows.append({"text": text, "text_pair": following if is_next else rng.choice(everywhere), "label": label})
    return rows


def cut_context(row: dict[str, Any], size: int) -> dict[str, Any]:
    """A question whose context is `size` characters of it, its first answer beginning anywhere in their first half."""
    answer = row["answers"][0]
    begin = answer["start"] % (size // 2)
    first = answer["start"] - begin
    answers = [{"text": answer["text"], "start": begin}]
    return {"question": row["question"], "context": row["context"][first : first + size], "answers": answers}


def add_masked_head(body: Path, folder: Path) -> Path:
    """A checkpoint of the body with a masked-LM head that hands its hidden states on, to be trained."""
    import torch
    import transformers

    model = transformers.BertForMaskedLM.from_pretrained(body)
    transform = model.cls.predictions.transform
    with torch.no_grad():
        transform.dense.weight.copy_(torch.eye(model.config.hidden_size))
        transform.dense.bias.zero_()
        model.cls.predictions.bias.zero_()
    return save(model, body, folder)


def write_checkpoint(file: Path, task: str, body: Path, folder: Path) -> None:
    """The weights of one of our files as a BERT checkpoint for a task; refused if any is missing or left over."""
    import torch
    import transformers

    artifact = read_artifact(file)
    spec = artifact.spec.replace(task=task)
    kind = next(kind for kind, of_task in ARCHITECTURES.items() if of_task == task)
    labels = dict(enumerate(spec.labels)) or None
    changes: dict[str, Any] = {"id2label": labels, "label2id": {label: i for i, label in (labels or {}).items()}}
    if task == "text-classification":
        changes["problem_type"] = spec.problem_type
    sizes = {"vocab_size": spec.vocab_size, "pad_token_id": spec.pad_token_id}
    config = transformers.AutoConfig.from_pretrained(body, **sizes, **(changes if labels else {}))
    model = getattr(transformers, f"Bert{kind}")(config)
    state = {name: torch.from_numpy(value) for name, value in name_as_bert(artifact.tensors, spec).items()}
    model.load_state_dict(state)
    save(model, body, folder)
    (folder / "tokenizer.json").write_text(artifact.tokenizer_json or "", encoding="utf-8")


def save(model: Any, body: Path, folder: Path) -> Path:
    """A model of transformers in a folder, with the body's tokenizer."""
    model.save_pretrained(folder)
    for path in body.glob("*.json"):
        if "token" in path.name:
            shutil.copy(path, folder)
    return folder


def name_as_bert(tensors: Mapping[str, Any], spec: EncoderSpec) -> dict[str, Any]:
    """Canonical tensors under the names and in the shapes of transformers' BERT."""
    heads = {"question-answering": "qa_outputs", "next-sentence": "cls.seq_relationship"}
    names = {
        "embeddings.word": "bert.embeddings.word_embeddings",
        "embeddings.position": "bert.embeddings.position_embeddings",
        "embeddings.token_type": "bert.embeddings.token_type_embeddings",
        "embeddings.layer_norm": "bert.embeddings.LayerNorm",
        "head.dense": "bert.pooler.dense",
        "head.out": heads.get(spec.task, "classifier"),
        "mlm.dense": "cls.predictions.transform.dense",
        "mlm.layer_norm": "cls.predictions.transform.LayerNorm",
        "mlm": "cls.predictions",
    }
    parts = {
        "attention.output": "attention.output.dense",
        "attention.layer_norm": "attention.output.LayerNorm",
        "ffn.up": "intermediate.dense",
        "ffn.down": "output.dense",
        "ffn.layer_norm": "output.LayerNorm",
    }
    state: dict[str, Any] = {}
    for name, tensor in tensors.items():
        prefix, _, kind = name.rpartition(".")
        value = np.array(tensor.T if tensor.ndim == 2 and not prefix.startswith("embeddings.") else tensor, order="C")
        if not prefix.startswith("layer."):
            state[f"{names[prefix]}.{kind}"] = value
            continue
        _, i, part = prefix.split(".", 2)
        layer = f"bert.encoder.layer.{i}"
        if part == "attention.qkv":
            for key, third in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                state[f"{layer}.attention.self.{key}.{kind}"] = third
        else:
            state[f"{layer}.{parts[part]}.{kind}"] = value
    if spec.has_decoder:  # tied
        state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
        state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"]
    return state


if __name__ == "__main__":
    raise SystemExit(main())
