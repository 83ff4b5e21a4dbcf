"""A page of tables and plots: one HTML file without outside references, for light and dark, desktop and phone.

The template beside this file holds the looks. Plots are matplotlib figures, written as SVG into the page. They
have no background, and what is black in them takes the page's colour for text; the colours of `new_figure` are readable
on light and on dark.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from edgebert.errors import InvalidInputError, require
from edgebert.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Cell = str | int | float | None

# At least 3:1 against white and against the dark page, in an order in which neighbours are easily told apart.
COLORS = ("#2f7ed8", "#d9603b", "#2a9d6f", "#9065c8", "#b8860b", "#d14d8b", "#5d8a9a", "#8a8f98")

_NUMBER = re.compile(r"[-+−±<>]?\s?\d[\d.,]*(\s?\S{1,5})?(\s\(.*\))?")  # 12, −0.5 %, 1.3x, 3.1 (2.00x)


@dataclass(frozen=True)
class Table:
    """Rows of cells under names of columns.

    None is an empty cell, a float is written with four digits. A column is set to the right if each of its cells is
    empty or a number; that may be text with a short unit and something in brackets.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True)
class Words:
    """A text whose words are coloured by a number: blue above 0, orange and dashed below, the paler the nearer to 0.

    The number is seen when a word is pointed at or reached with the Tab key, and read out after the word.

    Attributes:
        text: all of it.
        values: (start, end, number) of words, by characters, in the order of the text.
        largest: what has the full colour.
        caption: before the text.
    """

    text: str
    values: Sequence[tuple[int, int, float]]
    largest: float
    caption: str = ""


@dataclass(frozen=True)
class Plot:
    """A matplotlib figure. At most five inches wide and with texts of nine points it is readable on a phone."""

    figure: Figure
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and what is under it; a str is a paragraph, one of several lines keeps them."""

    title: str
    parts: Sequence[str | Table | Words | Plot]


def new_figure(height: float = 3.0) -> tuple[Figure, Axes]:
    """An empty figure `height` inches high and its axes, in the page's style.

    Raises:
        BackendUnavailableError: matplotlib is missing.
    """
    require("report", "jinja2", "matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.7, height), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=COLORS)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.35, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def write_page(path: str | os.PathLike[str], title: str, sections: Sequence[Section]) -> None:
    """Write the page to `path`, whole or not at all.

    Raises:
        InvalidInputError: a row of a table has not as many cells as there are columns.
        BackendUnavailableError: jinja2 or matplotlib is missing.
        OSError: the file cannot be written.
    """
    require("report", "jinja2", "matplotlib")
    import jinja2

    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        resources.files("edgebert").joinpath("report.html").read_text(encoding="utf-8")
    )
    parts = [
        {"title": section.title, "parts": [_describe_part(part) for part in section.parts]} for section in sections
    ]
    write_whole(path, template.render(title=title, sections=parts) + "\n")


def _describe_part(part: str | Table | Words | Plot) -> tuple[str, Any]:
    if isinstance(part, str):
        return "text", part
    if isinstance(part, Table):
        return "table", _describe_table(part)
    if isinstance(part, Words):
        return "words", {"caption": part.caption, "pieces": list(_cut_words(part))}
    from markupsafe import Markup

    return "plot", {"caption": part.caption, "svg": Markup(_draw(part))}


def _cut_words(words: Words) -> Iterator[tuple[str, str, str, str]]:
    """(text, class, opacity, number) of words and of what is between them, which has no class."""
    last = 0
    for start, end, value in words.values:
        if start > last:
            yield words.text[last:start], "", "", ""
        opacity = min(abs(value) / words.largest, 1.0) if words.largest else 0.0
        yield words.text[start:end], "plus" if value >= 0 else "minus", f"{opacity:.2f}", format_signed(value)
        last = max(last, end)
    if last < len(words.text):
        yield words.text[last:], "", "", ""


def format_signed(value: float) -> str:
    """A number with its sign, to four decimals: +0.0123, −4.5600."""
    return f"{round(value, 4) + 0.0:+.4f}".replace("-", "−")  # 0.0 makes a zero of -0.0


def _describe_table(table: Table) -> dict[str, Any]:
    from markupsafe import Markup

    rows = [[_format(cell) for cell in row] for row in table.rows]
    for i, row in enumerate(rows):
        if len(row) != len(table.columns):
            raise InvalidInputError(f"row {i} of a table has {len(row)} cells, expected {len(table.columns)}")
    styles = [
        Markup(' class="number"')
        if any(cells) and all(not cell or _NUMBER.fullmatch(cell) for cell in cells)
        else Markup("")
        for cells in ([row[i] for row in rows] for i in range(len(table.columns)))
    ]
    return {
        "caption": table.caption,
        "columns": list(zip(table.columns, styles, strict=True)),
        "rows": [list(zip(row, styles, strict=True)) for row in rows],
    }


def _format(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):  # never in the form 1e+04
        return f"{cell:.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return str(cell)


def _draw(plot: Plot) -> str:
    """The figure as an <svg> element whose texts stay texts."""
    import html

    import matplotlib
    from matplotlib.legend import Legend

    for legend in plot.figure.findobj(Legend):
        legend.set_frame_on(False)
    with matplotlib.rc_context({"svg.fonttype": "none"}), io.StringIO() as file:
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        plot.figure.savefig(file, format="svg", transparent=True, metadata=nothing)
        text = file.getvalue()
    label = html.escape(plot.caption or "plot")
    text = re.sub(r"^.*?<svg ", f'<svg role="img" aria-label="{label}" ', text, count=1, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in every figure, and nothing refers to them
    return text.replace("#000000", "currentColor")
