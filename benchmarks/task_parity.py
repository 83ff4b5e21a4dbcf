"""Every task against transformers on real rows: same labels, spans, offsets and order, and how far the scores are.

Heads that nobody has trained are made at random on a real body: what is compared is arithmetic and decoding, not
quality. References run in other Pythons, one a release of transformers; question answering is known to 4.57 alone.
The reference half of this file needs torch and transformers only, and is run as a script there.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4  # of a score, which is a probability, a cosine or, over its size, a sum of log probabilities
TAGS = ("none", "simple", "first", "average", "max")


def main() -> int:
    if sys.argv[1:2] == ["--reference"]:
        return run_reference(Path(sys.argv[2]))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.task_parity", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder of data sets, each with *.jsonl.gz")
    parser.add_argument("--english", type=Path, required=True, help="a BERT checkpoint in the Hugging Face layout")
    parser.add_argument("--multilingual", type=Path, help="one with a SentencePiece tokenizer")
    parser.add_argument("--tagger", type=Path, help="a token classifier")
    parser.add_argument("--masked", type=Path, help="a checkpoint with the heads of masked LM and next sentence")
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="Pythons with other transformers")
    parser.add_argument("--backend", default="auto", help="backend to compare")
    parser.add_argument(
        "--only", metavar="START", default="", help="cases whose name starts so; --out keeps the others'"
    )
    parser.add_argument("--out", type=Path, help="also write JSON here")
    args = parser.parse_args()

    import edgebert
    from benchmarks import describe_run, write_result
    from edgebert.artifact.checkpoint import load_checkpoint
    from edgebert.artifact.writer import build_model

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        result: dict[str, Any] = {**describe_run("benchmarks.task_parity"), "tolerance": TOLERANCE, "rows": []}
        cases = [case for case in make_cases(args, work) if case["name"].startswith(args.only)]
        if args.only and args.out and args.out.exists():
            rows = json.loads(args.out.read_text(encoding="utf-8"))["rows"]
            result["rows"] = [row for row in rows if not row["case"].startswith(args.only)]
        (work / "cases.json").write_text(json.dumps(cases))
        references = [
            subprocess.Popen([python, __file__, "--reference", work / "cases.json"], stdout=subprocess.PIPE, text=True)
            for python in args.python
        ]
        versions = [json.loads(next(iter_lines(process))) for process in references]
        for case, *lines in zip(cases, *map(iter_lines, references), strict=True):
            file = work / f"{Path(case['folder']).name}-{case['head']}.onnx"
            if not file.exists():
                checkpoint = load_checkpoint(case["folder"], case["head"], case["family"])
                metadata = {"edgebert.tokenizer": checkpoint.tokenizer_json or ""}
                file.write_bytes(build_model(checkpoint.spec, checkpoint.tensors, metadata))
            model = edgebert.load(file, args.backend)
            found = answer(model, case)
            for version, expected in zip(versions, map(json.loads, lines), strict=True):
                if expected is not None:
                    row = {"case": case["name"], "reference": f"transformers {version}", **compare(found, expected)}
                    result["rows"].append(row)
                    print(
                        f"{case['name']:60} {version:8} {row['inputs']:5} {row['different']:5} "
                        f"{row['max_difference']:.1e}",
                        flush=True,
                    )
            result["backend"] = model.backend.detail
            if args.out:  # after each case: the run is long
                write_result(args.out, result)
    return int(any(row["different"] or row["max_difference"] > TOLERANCE for row in result["rows"]))


def iter_lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout
    return iter(process.stdout)


# Cases


def make_cases(args: argparse.Namespace, work: Path) -> Iterator[dict[str, Any]]:
    """{"name", "task", "head", "family", "folder", "inputs", "options"} of each comparison."""

    def read(data_set: str, count: int) -> list[dict[str, Any]]:
        path = sorted((args.data / data_set).glob("*.jsonl.gz"))[0]
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        return rows[:: max(1, len(rows) // count)][:count]

    def case(name: str, task: str, folder: Path, inputs: list[Any], head: str | None = None, **options: Any) -> Any:
        family = None if "model_type" in json.loads((folder / "config.json").read_text()) else "bert"
        return {
            "name": name, "task": task, "head": head or task, "family": family, "folder": str(folder),
            "inputs": inputs, "options": options,
        }  # fmt: skip

    def head(body: Path, kind: str, **config: Any) -> Path:
        return make_head(body, work / f"{body.name}-{kind}-{config.get('num_labels', '')}", kind, **config)

    english = args.english
    wnut = [" ".join(row["tokens"]) for row in read("wnut17", 30)]
    awkward = [
        "Über  die Straße😀 zu Łódź, 北京 und e\u0301cole\u200d!",
        "日本語のテキスト、東京タワー。",
        "مرحبا بالعالم 👩\u200d👩\u200d👧 ok",
    ]
    reviews = [row["text"] for row in read("imdb", 2)]
    if args.tagger:
        for strategy in TAGS:
            yield case(
                f"tags, wnut17, {strategy}",
                "token-classification",
                args.tagger,
                wnut + awkward,
                aggregation_strategy=strategy,
            )
        yield case(
            "tags, imdb, stride 64",
            "token-classification",
            args.tagger,
            reviews,
            aggregation_strategy="first",
            stride=64,
        )
    pairs = [{"text": row["text_a"], "text_pair": row["text_b"]} for row in read("mrpc", 40)]
    scored = [{"text": row["text_a"], "text_pair": row["text_b"]} for row in read("stsb", 40)]
    two = head(english, "ForSequenceClassification", num_labels=2)
    yield case("pairs, mrpc", "text-classification", two, pairs, top_k=None)
    one = head(english, "ForSequenceClassification", num_labels=1)
    yield case("regression, stsb", "text-classification", one, scored, function_to_apply="none")
    questions = [{"question": row["question"], "context": row["context"]} for row in read("squad-slice", 12)]
    reader = head(english, "ForQuestionAnswering")
    for options in (
        {},
        {"top_k": 3, "handle_impossible_answer": True},
        {"align_to_words": False},
        {"max_seq_len": 96, "doc_stride": 32, "max_answer_len": 30},
    ):
        yield case(f"answers, squad-slice, {options or 'defaults'}", "question-answering", reader, questions, **options)
    yield case("embeddings, stsb", "embedding", english, [row["text"] for row in scored], head="embedding")
    follows = head(english, "ForNextSentencePrediction")
    yield case("next sentence, mrpc", "next-sentence", follows, pairs)
    by_question = [
        {"query": row["text_a"], "documents": [other["text_b"] for other in read("qnli", 10)]}
        for row in read("qnli", 6)
    ]
    yield case("ranking, qnli", "reranking", one, by_question, head="text-classification")
    masked = head(english, "ForMaskedLM")
    sentences = [
        " ".join(words[:i] + ["[MASK]"] + words[i + 1 :])
        for i, words in enumerate(text.split() for text in wnut)
        if i < len(words)
    ]
    yield case("masks, wnut17", "fill-mask", masked, sentences[:20])
    yield case("masks, two each", "fill-mask", masked, [f"{text} [MASK] ." for text in sentences[:10]], top_k=3)
    yield case("masks, targets", "fill-mask", masked, sentences[:10], targets=["good", "bad", "the"])
    minimal = [text for row in read("blimp", 300) for text in (row["good"], row["bad"])]
    yield case("pseudo-log-likelihoods, blimp pairs", "rescoring", masked, minimal, head="fill-mask")
    if args.masked:
        yield case(
            "pseudo-log-likelihoods, blimp, its own head", "rescoring", args.masked, minimal[:40], head="pretraining"
        )
    if args.multilingual:
        chinese = [{"question": row["question"], "context": row["context"]} for row in read("cmrc2018", 5)]
        reader = head(args.multilingual, "ForQuestionAnswering")
        yield case("answers, cmrc2018", "question-answering", reader, chinese, top_k=2)
        tagger = head(args.multilingual, "ForTokenClassification", num_labels=5)
        many = ["".join(row["tokens"]) for row in read("zh-weibo-ner", 10)] + [
            " ".join(row["tokens"]) for row in read("wikiann-de", 10)
        ]
        for strategy in ("none", "simple", "average"):
            yield case(
                f"tags, Chinese and German, {strategy}",
                "token-classification",
                tagger,
                many + awkward,
                aggregation_strategy=strategy,
            )


def make_head(body: Path, folder: Path, kind: str, **config: Any) -> Path:
    """A checkpoint of the body with a random head, its tokenizer's files beside it."""
    import shutil

    import torch
    import transformers

    if not folder.exists():
        torch.manual_seed(0)
        loaded = transformers.AutoConfig.from_pretrained(body, **config)
        model = getattr(transformers, f"Bert{kind}").from_pretrained(body, config=loaded)
        with torch.no_grad():  # a fresh head is so small that all its answers would be alike
            for name, parameter in model.named_parameters():
                if (
                    name.startswith(("classifier", "qa_outputs", "cls."))
                    and "decoder" not in name
                    and parameter.ndim == 2
                ):
                    parameter.mul_(10)
        model.save_pretrained(folder)
        for file in body.glob("*.json"):
            if "token" in file.name:
                shutil.copy(file, folder)
    return folder


# Answers


def answer(model: Any, case: dict[str, Any]) -> list[Any]:
    """EdgeBERT's, one an input."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of texts that are truncated, as they are there
        if case["task"] == "reranking":
            return [model.rank(item["query"], item["documents"]) for item in case["inputs"]]
        answers, _ = model.answer_each(case["inputs"], task=case["task"], **case["options"])
    return [values.tolist() for values in answers] if case["task"] == "embedding" else list(answers)


def run_reference(cases: Path) -> int:
    """Print the release of transformers, then its answers to each case, a line each; null where it has no pipeline."""
    import torch
    import transformers
    from transformers.pipelines import SUPPORTED_TASKS

    transformers.utils.logging.set_verbosity(logging.ERROR)
    torch.set_grad_enabled(False)
    own: dict[str, Any] = {"embedding": embed, "next-sentence": follow, "reranking": rank, "rescoring": score}
    print(json.dumps(transformers.__version__), flush=True)
    for case in json.loads(cases.read_text()):
        task, answers = case["task"], None
        if task in own:
            model, tokenizer = load(case["folder"], case["family"], task)
            answers = [own[task](model, tokenizer, item) for item in case["inputs"]]
        elif task in SUPPORTED_TASKS:
            model, tokenizer = load(case["folder"], case["family"], task)
            run = transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu")
            options = case["options"] | ({"truncation": True} if task == "text-classification" else {})
            if task == "question-answering":
                answers = [run(question=q["question"], context=q["context"], **options) for q in case["inputs"]]
            else:
                answers = [run(item, **options) for item in case["inputs"]]
        print(json.dumps(answers, default=float), flush=True)
    return 0


@cache
def load(folder: str, family: str | None, task: str) -> tuple[Any, Any]:
    """A checkpoint as transformers loads it for a task, and its tokenizer; `family` where its config does not say."""
    import transformers

    kinds = {
        "embedding": "Model", "next-sentence": "ForNextSentencePrediction", "rescoring": "ForMaskedLM",
        "reranking": "ForSequenceClassification", "text-classification": "ForSequenceClassification",
        "token-classification": "ForTokenClassification", "question-answering": "ForQuestionAnswering",
        "fill-mask": "ForMaskedLM",
    }  # fmt: skip
    tokenizer_class = transformers.BertTokenizer if family else transformers.AutoTokenizer
    tokenizer = tokenizer_class.from_pretrained(folder)
    family = family or transformers.AutoConfig.from_pretrained(folder).model_type
    prefix = {"bert": "Bert", "distilbert": "DistilBert"}[family]
    model = getattr(transformers, prefix + kinds[task]).from_pretrained(folder).eval()
    tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    return model, tokenizer


def embed(model: Any, tokenizer: Any, text: str) -> list[float]:
    """The mean of the hidden states, scaled to length 1."""
    row = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=256)).last_hidden_state[0].mean(0)
    values: list[float] = (row / row.norm()).tolist()
    return values


def follow(model: Any, tokenizer: Any, pair: dict[str, str]) -> dict[str, Any]:
    logits = model(**tokenizer(pair["text"], pair["text_pair"], return_tensors="pt", truncation=True)).logits[0]
    best = int(logits.argmax())
    return {"label": ("is_next", "not_next")[best], "score": float(logits.softmax(-1)[best])}


def rank(model: Any, tokenizer: Any, item: dict[str, Any]) -> list[dict[str, Any]]:
    scores = [
        float(model(**tokenizer(item["query"], text, return_tensors="pt", truncation=True)).logits[0, 0].sigmoid())
        for text in item["documents"]
    ]
    return [{"corpus_id": i, "score": scores[i]} for i in sorted(range(len(scores)), key=lambda i: -scores[i])]


def score(model: Any, tokenizer: Any, text: str) -> dict[str, Any]:
    """The pseudo-log-likelihood, all masked copies of one sentence at once."""
    ids = tokenizer(text, return_tensors="pt", truncation=True).input_ids[0]
    num_tokens = len(ids) - 2
    copies = ids.repeat(num_tokens, 1)
    places = range(1, num_tokens + 1)
    for copy, place in zip(copies, places, strict=True):
        copy[place] = tokenizer.mask_token_id
    hidden = model.bert(copies).last_hidden_state[range(num_tokens), places]  # where the masks are
    logits = model.cls(hidden).log_softmax(-1)
    total = float(logits[range(num_tokens), ids[1:-1]].double().sum())
    return {"score": total, "num_tokens": num_tokens}


# Comparison


def compare(found: list[Any], expected: list[Any]) -> dict[str, Any]:
    """How many inputs are answered otherwise than in a score, and the largest difference of scores."""
    largest = 0.0
    unlike = []
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        scores: list[float] = []
        other_scores: list[float] = []
        if strip(a, scores) == strip(b, other_scores):
            pairs = zip(scores, other_scores, strict=True)
            largest = max([largest, *(abs(x - y) / max(1.0, abs(y)) for x, y in pairs)])
        else:
            unlike.append({"input": i, "found": repr(a)[:300], "expected": repr(b)[:300]})
    return {"inputs": len(found), "different": len(unlike), "max_difference": largest, "examples": unlike[:3]}


def strip(value: Any, scores: list[float]) -> Any:
    """The answer without its floats, which are appended to `scores` in order."""
    if isinstance(value, float):
        scores.append(value)
        return None
    if isinstance(value, dict):
        return {key: strip(part, scores) for key, part in sorted(value.items())}
    return [strip(part, scores) for part in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
