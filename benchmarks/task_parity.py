"""Every task against transformers on real rows: same labels, spans, offsets and order, and how far the scores are.

Heads are those that the compression pipeline has trained (benchmarks.heads), and the file is the pipeline's own.
References run in other Pythons, one a release of transformers; question answering is known to 4.57 alone. A Python with
sentence-transformers answers with its classes: SentenceTransformer, CrossEncoder, its search. The reference half of
this file needs torch and those alone, and is run as a script there.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import shutil
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
    parser.add_argument("--work", type=Path, required=True, help="the folder of benchmarks.heads")
    parser.add_argument("--english", type=Path, required=True, help="a sentence embedding checkpoint of BERT")
    parser.add_argument("--tagger", type=Path, help="a token classifier")
    parser.add_argument("--masked", type=Path, help="a checkpoint with the heads of masked LM and next sentence")
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="Pythons with other transformers")
    parser.add_argument("--backend", default="auto", help="backend to compare")
    parser.add_argument(
        "--only", nargs="+", metavar="START", default=[""], help="cases whose name starts so; --out keeps the others'"
    )
    parser.add_argument("--out", type=Path, help="also write JSON here")
    args = parser.parse_args()

    import edgebert
    from benchmarks import describe_run, write_result
    from edgebert.artifact.writer import build_model
    from edgebert.checkpoints.loading import load_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        result: dict[str, Any] = {**describe_run("benchmarks.task_parity"), "tolerance": TOLERANCE, "rows": []}
        starts = tuple(args.only)
        cases = [case for case in make_cases(args, work) if case["name"].startswith(starts)]
        if args.out and args.out.exists():
            rows = json.loads(args.out.read_text(encoding="utf-8"))["rows"]
            result["rows"] = [row for row in rows if not row["case"].startswith(starts)]
        (work / "cases.json").write_text(json.dumps(cases))
        references = [
            subprocess.Popen(
                [python, "-P", __file__, "--reference", work / "cases.json"], stdout=subprocess.PIPE, text=True
            )
            for python in args.python
        ]
        versions = [json.loads(next(iter_lines(process))) for process in references]
        for case, *lines in zip(cases, *map(iter_lines, references), strict=True):
            file = Path(case["file"] or work / f"{Path(case['folder']).name}-{case['head']}.onnx")
            if not file.exists():
                checkpoint = load_checkpoint(case["folder"], case["head"], case["family"])
                metadata = {"edgebert.tokenizer": checkpoint.tokenizer_json or ""}
                file.write_bytes(build_model(checkpoint.spec, checkpoint.tensors, metadata))
            model = edgebert.load(file, args.backend)
            found = answer(model, case)
            for version, expected in zip(versions, map(json.loads, lines), strict=True):
                if expected is not None:
                    row = {"case": case["name"], "head": case["trained"], "reference": version}
                    row |= compare(found, expected)
                    result["rows"].append(row)
                    print(
                        f"{case['name']:60} {version:28} {row['inputs']:5} {row['different']:5} "
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
    """Each comparison: the model, as our `file` and as transformers' `folder`, the task, its inputs and options."""
    from benchmarks.heads import pair_sentences, read_rows

    def read(data_set: str, count: int) -> list[dict[str, Any]]:
        path = sorted((args.data / data_set).glob("*.jsonl.gz"))[0]
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        return rows[:: max(1, len(rows) // count)][:count]

    def trained(name: str) -> dict[str, Any]:
        folder = args.work / name
        model = {"file": str(folder / "model.onnx"), "folder": str(folder), "family": None}
        return {**model, "trained": "by edgebert compress"}

    def own(folder: Path) -> dict[str, Any]:
        family = None if "model_type" in json.loads((folder / "config.json").read_text()) else "bert"
        return {"file": None, "folder": str(folder), "family": family, "trained": "its own"}

    def case(
        name: str, task: str, model: dict[str, Any], inputs: list[Any], head: str | None = None, **options: Any
    ) -> dict[str, Any]:
        return {"name": name, **model, "task": task, "head": head or task, "inputs": inputs, "options": options}

    wnut = [" ".join(row["tokens"]) for row in read("wnut17", 300)]
    awkward = [
        "Über  die Straße😀 zu Łódź, 北京 und e\u0301cole\u200d!",
        "日本語のテキスト、東京タワー。",
        "مرحبا بالعالم 👩\u200d👩\u200d👧 ok",
        "か\u3099く, مَرْحَبًا, 각 \u1100\u1161\u11a8",
        "",
    ]
    tags: dict[str, Any] = {"task": "token-classification"}
    for strategy in TAGS:
        inputs = wnut + awkward
        yield case(
            f"tags, wnut17, {strategy}", **tags, model=trained("wnut17"), inputs=inputs, aggregation_strategy=strategy
        )
    if args.tagger:
        for strategy in TAGS:
            name = f"tags of grammar, cased DistilBERT, wnut17, {strategy}"
            inputs = wnut[::10] + awkward
            yield case(name, **tags, model=own(args.tagger), inputs=inputs, aggregation_strategy=strategy)
    long = {"aggregation_strategy": "first", "stride": 64}
    yield case(
        "tags, imdb, stride 64", **tags, model=trained("wnut17"), inputs=[r["text"] for r in read("imdb", 20)], **long
    )
    classes = "text-classification"
    pairs = [{"text": row["text_a"], "text_pair": row["text_b"]} for row in read("mrpc", 300)]
    yield case("pairs, mrpc", classes, trained("mrpc"), pairs, top_k=None)
    scored = [{"text": row["text_a"], "text_pair": row["text_b"]} for row in read("stsb", 300)]
    yield case("regression, stsb", classes, trained("stsb-scores"), scored, function_to_apply="none")
    questions = [{"question": row["question"], "context": row["context"]} for row in read("squad-slice", 200)]
    for options in (
        {},
        {"top_k": 3, "handle_impossible_answer": True},
        {"align_to_words": False},
        {"max_seq_len": 96, "doc_stride": 32, "max_answer_len": 30},
    ):
        name = f"answers, squad-slice, {options or 'defaults'}"
        yield case(name, "question-answering", trained("squad-slice"), questions, **options)
    by_question = [
        {"query": row["text_a"], "documents": [other["text_b"] for other in read("qnli", 10)]}
        for row in read("qnli", 20)
    ]
    sigmoid = {"head": classes, "function_to_apply": "sigmoid"}
    yield case("ranking, qnli", "reranking", trained("stsb-scores"), by_question, **sigmoid)
    following = pair_sentences([row["text"] for row in read_rows(args.data / "wikitext2", "train")])
    following = [{key: row[key] for key in ("text", "text_pair")} for row in following[2 :: len(following) // 300]]
    for name, sentences in (("wikitext2", following), ("mrpc", pairs)):
        yield case(f"next sentence, {name}", "next-sentence", trained("next-sentence"), sentences)
    masked, mask = trained("masked"), "fill-mask"
    words = [text.split() for text in wnut[:200]]
    holes = [" ".join([*part[:i], "[MASK]", *part[i + 1 :]]) for part in words for i in [len(part) // 2]]
    yield case("masks, wnut17", mask, masked, holes)
    yield case("masks, two each", mask, masked, [f"{text} [MASK] ." for text in holes[::10]], top_k=3)
    yield case("masks, targets", mask, masked, holes[::10], targets=["good", "bad", "the"])
    minimal = [text for row in read("blimp", 340) for text in (row["good"], row["bad"])]
    yield case("pseudo-log-likelihoods, blimp pairs", "rescoring", masked, minimal, head=mask)
    if args.masked:
        reactions = {"head": "pretraining"}
        name = "pseudo-log-likelihoods, blimp, a model of reactions"
        yield case(name, "rescoring", own(args.masked), minimal[:40], **reactions)
        yield case(
            "next sentence, mrpc, a model of reactions", "next-sentence", own(args.masked), pairs[:40], **reactions
        )
    chinese = [{"question": row["question"], "context": row["context"]} for row in read("cmrc2018", 30)]
    for options in ({"top_k": 2}, {"top_k": 2, "align_to_words": False}):
        yield case(f"answers, cmrc2018, {options}", "question-answering", trained("cmrc2018"), chinese, **options)
    for language, data_set, blank in (("Chinese", "zh-resume-ner", ""), ("German", "wikiann-de", " ")):
        inputs = [blank.join(row["tokens"]) for row in read(data_set, 100)] + awkward
        for strategy in TAGS:
            name = f"tags, {language}, {strategy}"
            yield case(name, **tags, model=trained(data_set), inputs=inputs, aggregation_strategy=strategy)
    yield from make_sentence_cases(args, work, case, own, trained("stsb-scores"), read("stsb", 200), by_question)


def make_sentence_cases(
    args: argparse.Namespace, work: Path, case: Any, own: Any, cross: Any, rows: list[Any], by_question: list[Any]
) -> Iterator[dict[str, Any]]:
    """What sentence-transformers does, on its own classes; prompts on a copy of the folder that names some."""
    plain, embedding = own(args.english), {"head": "embedding"}
    texts = [row[key] for row in rows for key in ("text_a", "text_b")] + ["", "straße 北京 😀", "a long text " * 200]
    for options in ({}, {"truncate_dim": 100}, {"truncate_dim": 100, "normalize_embeddings": True}):
        yield case(f"embeddings, stsb, {options or 'defaults'}", "encode", plain, texts, **embedding, **options)
    folder = work / "prompted"
    shutil.copytree(args.english, folder)
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "passage"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    for options in ({}, {"prompt_name": "query"}, {"prompt": "Represent this: "}):
        name = f"embeddings with prompts, stsb, {options or 'the default one'}"
        yield case(name, "encode", own(folder), texts[::4], **embedding, **options)
    corpus = list(dict.fromkeys(row["text_b"] for row in rows))  # equal texts may come in any order
    search = [{"queries": [row["text_a"] for row in rows], "corpus": corpus}]
    yield case("similarity, stsb", "similarity", plain, search, **embedding)
    yield case("search, stsb", "semantic-search", plain, search, **embedding, top_k=7)
    for options in ({}, {"top_k": 3, "return_documents": True}):
        name = f"CrossEncoder.rank, qnli, {options or 'defaults'}"
        yield case(name, "cross-encoder", cross, by_question, head="text-classification", **options)


# Answers


def answer(model: Any, case: dict[str, Any]) -> list[Any]:
    """EdgeBERT's, one an input; those of all queries at once end to end."""
    import edgebert

    task, inputs, options = case["task"], case["inputs"], case["options"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of texts that are truncated, as they are there
        if task in ("reranking", "cross-encoder"):
            options = {"function_to_apply": "sigmoid", **options}
            return [model.rank(item["query"], item["documents"], **options) for item in inputs]
        if task == "encode":
            return list(model.encode(inputs, **options).tolist())
        if task in ("similarity", "semantic-search"):
            sides = [model.encode(inputs[0][side]) for side in ("queries", "corpus")]
            return edgebert.semantic_search(*sides, **options) if options else edgebert.similarity(*sides).tolist()
        return list(model.answer_each(inputs, task=task, **options)[0])


def run_reference(cases: Path) -> int:
    """Print the library and its release, then its answers to each case, a line each; null for what is not its."""
    import importlib.util

    import torch
    import transformers

    transformers.utils.logging.set_verbosity(logging.ERROR)
    torch.set_grad_enabled(False)
    is_sentence = importlib.util.find_spec("sentence_transformers") is not None
    library: Any = transformers
    if is_sentence:
        import sentence_transformers

        library = sentence_transformers
    print(json.dumps(f"{library.__name__.replace('_', '-')} {library.__version__}"), flush=True)
    for case in json.loads(cases.read_text()):
        answers = answer_with_sentence_transformers(case) if is_sentence else answer_with_transformers(case)
        print(json.dumps(answers, default=lambda value: value.item()), flush=True)
    return 0


def answer_with_sentence_transformers(case: dict[str, Any]) -> list[Any] | None:
    from sentence_transformers import CrossEncoder, SentenceTransformer, util

    task, inputs, options = case["task"], case["inputs"], case["options"]
    if task == "cross-encoder":
        ranker = CrossEncoder(case["folder"], device="cpu")
        return [ranker.rank(item["query"], item["documents"], **options) for item in inputs]
    if task not in ("encode", "similarity", "semantic-search"):
        return None
    model = SentenceTransformer(case["folder"], device="cpu")
    if task == "encode":
        return list(model.encode(inputs, **options).tolist())
    sides = [model.encode(inputs[0][side]) for side in ("queries", "corpus")]
    return util.semantic_search(*sides, **options) if options else model.similarity(*sides).tolist()


def answer_with_transformers(case: dict[str, Any]) -> list[Any] | None:
    import transformers
    from transformers.pipelines import SUPPORTED_TASKS

    own: dict[str, Any] = {"next-sentence": follow, "reranking": rank, "rescoring": score}
    task = case["task"]
    if task in own:
        model, tokenizer = load(case["folder"], case["family"], task)
        return [own[task](model, tokenizer, item) for item in case["inputs"]]
    if task not in SUPPORTED_TASKS:
        return None
    model, tokenizer = load(case["folder"], case["family"], task)
    run = transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu")
    options = case["options"] | ({"truncation": True} if task == "text-classification" else {})
    if task == "question-answering":
        return [run(question=q["question"], context=q["context"], **options) for q in case["inputs"]]
    return [run(item, **options) for item in case["inputs"]]


@cache
def load(folder: str, family: str | None, task: str) -> tuple[Any, Any]:
    """A checkpoint as transformers loads it for a task, and its tokenizer; `family` where its config does not say."""
    import transformers

    kinds = {
        "next-sentence": "ForNextSentencePrediction", "rescoring": "ForMaskedLM",
        "reranking": "ForSequenceClassification", "text-classification": "ForSequenceClassification",
        "token-classification": "ForTokenClassification", "question-answering": "ForQuestionAnswering",
        "fill-mask": "ForMaskedLM",
    }  # fmt: skip
    tokenizer_class = transformers.BertTokenizer if family else transformers.AutoTokenizer
    tokenizer = tokenizer_class.from_pretrained(folder)
    family = family or transformers.AutoConfig.from_pretrained(folder).model_type
    prefix = {"bert": "Bert", "distilbert": "DistilBert"}[family]
    model = getattr(transformers, prefix + kinds[task]).from_pretrained(folder).eval()
    if set(tokenizer("a", "b").get("token_type_ids", ())) == {0}:
        # its second windows have type 1 all the same, and a BERT tells types apart: without, all are 0
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    return model, tokenizer


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
