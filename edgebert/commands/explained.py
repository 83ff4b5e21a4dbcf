"""Answers of `explain` as people read them: in a terminal, and as a page."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from edgebert.errors import InvalidInputError
from edgebert.files import check_target
from edgebert.printing import format_value, print_table
from edgebert.report import Section, Table, Words, format_signed, write_page

Texts = Mapping[str, str]  # of an input: "text", or the two that its words are on the sides of

# Backgrounds of 256-colour terminals, for black letters, from pale to strong.
_BLUE, _ORANGE = (195, 153, 117, 75), (230, 223, 216, 209)


def name_texts(item: Any) -> Texts:
    """The texts of an input by the names that an answer has for them."""
    if isinstance(item, str):
        return {"text": item}
    return item if isinstance(item, dict) else dict(zip(("text", "text_pair"), item, strict=True))


def print_explanation(texts: Texts, answer: Mapping[str, Any]) -> None:
    """What is explained, the text in colours where a terminal shows them, and a line a word."""
    print(_describe(answer))
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        for name, text in texts.items():
            print(_color(text, _take_side(answer["words"], name), _find_largest(answer)))
    parts = [(word["word"], word) for word in answer["words"]] + [(one["span"], one) for one in answer.get("spans", ())]
    if parts:
        print_table(
            [
                [" ".join(text.split()), *([one["side"]] if "side" in one else []), format_signed(one["contribution"])]
                for text, one in parts
            ]
        )
    for name, value in answer.get("faithfulness", {}).items():
        if name != "random":
            print(f"{name}: {format_value(value)}, {format_value(answer['faithfulness']['random'][name])} at random")


def write_explanations(
    path: str | os.PathLike[str], title: str, items: Sequence[Texts], answers: Sequence[Mapping[str, Any]]
) -> None:
    """A page with the words of each input in colours.

    Raises:
        BackendUnavailableError: jinja2 or matplotlib is missing.
        OSError: the file cannot be written.
    """
    write_page(path, title, [_make_section(*both) for both in zip(items, answers, strict=True)])


def _make_section(texts: Texts, answer: Mapping[str, Any]) -> Section:
    largest = _find_largest(answer)
    parts: list[Any] = [
        Words(
            text,
            [(word["start"], word["end"], word["contribution"]) for word in _take_side(answer["words"], name)],
            largest,
            name if len(texts) > 1 else "",
        )
        for name, text in texts.items()
    ]
    parts.append(
        "A word's number is what the score loses when the word is masked: blue words speak for it, orange dashed ones "
        "against it."
    )
    for key, name in (("words", "word"), ("spans", "span")):
        ranked = sorted(answer.get(key, ()), key=lambda one: -abs(one["contribution"]))
        sides = ["side"] * any("side" in one for one in ranked)
        if ranked:
            rows = [[one[name], *(one[side] for side in sides), format_signed(one["contribution"])] for one in ranked]
            parts.append(Table([name, *sides, "contribution"], rows, f"{key}, the strongest first"))
    if "faithfulness" in answer:
        measured = answer["faithfulness"]
        rows = [[name, measured[name], measured["random"][name]] for name in measured["random"]]
        parts.append(Table(["what the score loses", "in this order", "in random order"], rows, "faithfulness"))
    return Section(_describe(answer), parts)


def _describe(answer: Mapping[str, Any]) -> str:
    """What is explained, with its score: positive 0.98, 0.4 with every word masked."""
    what = [str(answer[name]) for name in ("label", "word", "answer") if answer.get(name)] or ["similarity"]
    return f"{', '.join(what)}: {answer['score']:.4g}, with every word masked {answer['base']:.4g}"


def _take_side(words: Sequence[Mapping[str, Any]], side: str) -> list[Mapping[str, Any]]:
    return [word for word in words if word.get("side", "text") == side]


def _find_largest(answer: Mapping[str, Any]) -> float:
    return max((abs(word["contribution"]) for word in answer["words"]), default=0.0)


def _color(text: str, words: Sequence[Mapping[str, Any]], largest: float) -> str:
    pieces, last = [], 0
    for word in words:
        level = int(4 * abs(word["contribution"]) / largest) if largest else 0
        code = (_BLUE if word["contribution"] >= 0 else _ORANGE)[min(level, 3)]
        shown = text[word["start"] : word["end"]]
        pieces += [text[last : word["start"]], f"\x1b[30;48;5;{code}m{shown}\x1b[0m"]
        last = word["end"]
    return "".join([*pieces, text[last:]])


def check_html(html: str | None, task: str) -> None:
    """Raise InvalidInputError for a page of another task, or one that cannot be written."""
    if html is None:
        return
    if task != "explain":
        raise InvalidInputError(f"--html writes explanations, and the task is {task}: add --task explain")
    check_target(html)
