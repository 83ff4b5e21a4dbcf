"""Pages: everything is in the one file, nothing is markup that was text, and half a page is never left."""

import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgebert.errors import EdgeBertError, InvalidInputError
from edgebert.files import write_whole
from edgebert.report import COLORS, Plot, Section, Table, Words, new_figure, write_page

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

VOID = {"meta"}


class Page(HTMLParser):
    """What a page holds: its elements in balance, their attributes, its cells and paragraphs."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.cells: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append((dict(attrs).get("class") or "", ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] = (self.cells[-1][0], self.cells[-1][1] + data)
        elif data.strip():
            self.text.append(data.strip())


def make_plot(label: str = "line", caption: str = "a caption") -> Plot:
    figure, axes = new_figure()
    axes.plot([1, 2, 3], [3, 1, 2], marker="o", label=label)
    axes.set(xlabel="x", ylabel="y")
    figure.legend(loc="outside upper center")
    return Plot(figure, caption)


def test_page_holds_everything_and_refers_to_nothing_outside(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    table = Table(["name", "ms"], [["a", 1.5], ["b", None]], "times")
    write_page(path, "A title", [Section("One", ["words", table, make_plot()]), Section("Two", [make_plot("other")])])
    page = Page(path)
    assert [page.tags.count(tag) for tag in ("h1", "h2", "table", "svg")] == [1, 2, 1, 2]
    assert {"A title", "One", "Two", "words", "times", "a caption", "line", "other"} <= set(page.text)
    references = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert references and all(value and value.startswith("#") for value in references)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)) and {f"#{name}" for name in ids} >= set(references)
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"url\((?!#)|@import|<script|<link", text)
    assert ("name", "viewport") in page.attributes and "prefers-color-scheme: dark" in text


def test_texts_are_never_markup(tmp_path: Path) -> None:
    path, evil = tmp_path / "page.html", '<b onclick="x">&\'</b>'
    table = Table([evil], [[evil]], evil)
    write_page(path, evil, [Section(evil, [evil, table, make_plot(evil, evil)])])
    page = Page(path)
    assert "b" not in page.tags and "onclick" not in dict(page.attributes)
    assert page.cells == [("", evil), ("", evil)]
    assert ("aria-label", evil) in page.attributes
    assert page.text.count(evil) == 2 + 1 + 1 + 2 + 1  # title twice, heading, paragraph, captions, legend


def test_columns_of_numbers_stand_to_the_right(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    rows = [
        ["1 of 2 words", 1, 0.123456, "−3 %", "7.1 (2.0x)", None, "8"],
        ["y", 20000, 12345.6, "", "1.5x", None, "word"],
    ]
    write_page(path, "t", [Section("s", [Table(list("abcdefg"), rows)])])
    cells = Page(path).cells
    assert [style for style, _ in cells[:7]] == ["", "number", "number", "number", "number", "", ""]
    assert [text for _, text in cells[7:14]] == ["1 of 2 words", "1", "0.1235", "−3 %", "7.1 (2.0x)", "", "8"]
    assert [text for _, text in cells[15:17]] == ["20000", "12346"]


def test_plots_suit_light_and_dark(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(path, "t", [Section("s", [make_plot()])])
    svg = re.findall(r"<svg .*</svg>", path.read_text(encoding="utf-8"), re.DOTALL)[0]
    assert "currentColor" in svg and "#000000" not in svg and "#ffffff" not in svg


@pytest.mark.parametrize("page", ["#ffffff", "#14171a"])
def test_colors_are_seen_on_both_pages(page: str) -> None:
    def luminance(color: str) -> float:  # relative luminance, WCAG 2.1
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for color in COLORS:
        darker, lighter = sorted((luminance(color), luminance(page)))
        assert (lighter + 0.05) / (darker + 0.05) >= 3.0, color


def test_nothing_is_left_of_a_page_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(InvalidInputError, match="row 1 of a table has 1 cells, expected 2"):
        write_page(path, "t", [Section("s", [Table(["a", "b"], [[1, 2], [3]])])])
    with pytest.raises(UnicodeEncodeError):
        write_page(path, "\ud800", [])
    assert path.read_text(encoding="utf-8") == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError):
        write_page(tmp_path / "no" / "page.html", "t", [])


def test_what_is_no_file_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, "é")
    assert os.read(reader, 10) == "é".encode() and pipe.is_fifo()
    os.close(reader)


def test_words_keep_their_text_and_say_their_numbers(tmp_path: Path) -> None:
    path, text = tmp_path / "page.html", "a <b> c\n d"
    values = [(0, 1, 0.5), (2, 5, -0.25), (9, 10, -0.00001)]
    write_page(path, "t", [Section("s", [Words(text, values, 0.5, "caption")])])
    page = Page(path)
    shown = [part for part in page.text if part not in ("t", "s", "caption")]
    assert shown[1:] == ["a", "+0.5000", "<b>", "−0.2500", "c", "d", "+0.0000"]  # after the styles
    shares = [value for name, value in page.attributes if name == "style"]
    assert shares == ["--share:1.00", "--share:0.50", "--share:0.00"]
    assert [value for name, value in page.attributes if name == "tabindex"] == ["0"] * 3
    assert re.sub(r'<span class="spoken">.*?</span>|</?span.*?>', "", path.read_text().split("<p>")[1]).startswith(
        "a &lt;b&gt; c\n d</p>"
    )


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(EdgeBertError, match=r"pip install 'edgebert\[report\]'"):
        write_page(tmp_path / "page.html", "t", [])


def test_lines_of_a_text_stay_lines(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(path, "t", [Section("s", ["a = 1\nb = 2", "one paragraph"])])
    assert Page(path).tags.count("pre") == Page(path).tags.count("p") == 1
    assert "<pre>a = 1\nb = 2</pre>" in path.read_text(encoding="utf-8")
