"""`edgebert run`: texts in, a line of answer each."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from edgebert.commands.arguments import add_model_arguments, read_option
from edgebert.commands.explained import check_html, name_texts, print_explanation, write_explanations
from edgebert.errors import InvalidInputError
from edgebert.printing import format_value

HELP = "run texts through a model file and print a line for each"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("file", help="a model file, or a folder that holds model.onnx")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts; none or - reads lines from standard input")
    parser.add_argument(
        "--task",
        help="another task that fits the file's head: reranking, rescoring, explain, … (default: the file's own)",
    )
    add_model_arguments(parser)
    parser.add_argument("--max-length", type=int, metavar="N", help="truncate to N tokens (default: the file's limit)")
    parser.add_argument(
        "--stride", type=int, metavar="N", help="cut long texts into windows that share N tokens, instead of truncating"
    )
    parser.add_argument(
        "--prompt-name", metavar="NAME", help="of an embedding file: the prompt to put before every text"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument(
        "--pairs", action="store_true", help="each text is a pair: first, tab, second; a question, tab, its context"
    )
    shape.add_argument(
        "--json", action="store_true", help="each text given is JSON: a pair, a question, an n-best list, …"
    )
    parser.add_argument(
        "--format",
        choices=("json", "text"),
        help="JSON lines, or columns (default: json; of explanations text)",
    )
    parser.add_argument("--html", metavar="FILE", help="with --task explain, also a page with the words in colours")
    parser.add_argument("--verbose", action="store_true", help="say on standard error what runs the model")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    import edgebert
    from edgebert.tasks import TASKS, find_limit
    from edgebert.tasks.base import warn

    model = edgebert.load(args.file, backend=args.backend, device=args.device, threads=args.threads)
    if model.tokenizer is None:
        raise InvalidInputError(
            f"{args.file} has no tokenizer, and texts need one: export it from a folder that has one"
        )
    if args.verbose:
        print(f"backend: {model.backend.detail}\ntokenizer: {model.tokenizer.detail}", file=sys.stderr)
    task = model.choose_task(args.task)
    check_html(args.html, task)
    texts = list(_read_lines(skip_blank=args.json)) if args.texts in ([], ["-"]) else args.texts
    asked = model.choose_task(None) if task == "explain" else task  # whose inputs it takes
    options: dict[str, Any] = {"max_length": args.max_length, "stride": args.stride}
    options |= dict(map(read_option, args.option))
    if args.prompt_name is not None:
        options["prompt_name"] = args.prompt_name
    inputs = [_read_input(i, text, asked, args) for i, text in enumerate(texts)]
    if task == "reranking":
        if "query" not in options:
            raise InvalidInputError("reranking needs a query, the texts are its documents: --option query=TEXT")
        answers, is_truncated = model(documents=inputs, task=task, return_truncated=True, **options)
    elif task == "explain":
        answers, is_truncated = model.explain(inputs, return_truncated=True, **options)
    else:
        answers, is_truncated = model.answer_each(inputs, task=task, **options)
    if is_truncated.any():
        limit = find_limit(task, model.spec, model.tokenizer, options)
        windows = ": --stride N answers from all of a text" if TASKS[task].has_windows else ""
        warn(f"{is_truncated.sum()} of {len(inputs)} texts were truncated to {limit} tokens{windows}")
    if task == "reranking":  # an answer a document, best first
        ranking = [answer["corpus_id"] for answer in answers]
        inputs, is_truncated = [inputs[i] for i in ranking], is_truncated[ranking]
    if args.html is not None:
        write_explanations(args.html, f"{args.file}: why", [*map(name_texts, inputs)], answers)
    for item, answer, is_long in zip(inputs, answers, is_truncated, strict=True):
        if task == "embedding":
            answer = {"embedding": [float(value) for value in answer]}
        elif task == "sparse-embedding":
            answer = {"weights": answer if isinstance(answer, dict) else _name_arrays(answer)}
        elif task == "multi-vector":
            answer = {"embeddings": answer.tolist()}
        echo = item if isinstance(item, dict) else {"text": item if isinstance(item, str) else "\t".join(item)}
        if args.format == "json" or (args.format is None and task != "explain"):
            line = {**echo, **(answer if isinstance(answer, dict) else {"answers": answer})}
            print(json.dumps(line | ({"truncated": True} if is_long else {}), ensure_ascii=False))
        elif task == "explain":
            print_explanation(name_texts(item), answer)
        else:
            others = [value for key, value in echo.items() if key != "hypotheses"]  # these are in the answer
            for row in _flatten(answer):
                print("\t".join(map(format_value, [*row.values(), *others])))


def _name_arrays(answer: Any) -> dict[str, Any]:
    return {name: values.tolist() for name, values in answer._asdict().items()}


def _read_input(i: int, text: str, task: str, args: argparse.Namespace) -> Any:
    if args.json:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(
                f"text {i} is not JSON ({error}): {text!r:.100}. With --json every text is; the answers are in any case"
            ) from None
    if not args.pairs:
        if task in ("question-answering", "next-sentence"):
            raise InvalidInputError(
                f"text {i} is one text, {task} takes two: use --pairs (first, tab, second) or --json"
            )
        return text
    first, second = _split_pair(i, text)
    return {"question": first, "context": second} if task == "question-answering" else (first, second)


def _flatten(answer: Any) -> Iterator[dict[str, Any]]:
    if isinstance(answer, dict) and "hypotheses" in answer:
        yield from answer["hypotheses"]
    elif isinstance(answer, dict):
        yield answer
    else:
        for part in answer:
            yield from _flatten(part)


def _read_lines(skip_blank: bool) -> Iterator[str]:
    if sys.stdin.buffer.isatty():
        print("reading texts, one a line, until the end of input (Ctrl-D)", file=sys.stderr)
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"line {number} of standard input is not UTF-8 ({error}): convert it") from None
        if text.strip() or not skip_blank:
            yield text


def _split_pair(i: int, text: str) -> tuple[str, str]:
    first, tab, second = text.partition("\t")
    if not tab:
        raise InvalidInputError(f"text {i} has no tab: with --pairs each is first, tab, second")
    return first, second
