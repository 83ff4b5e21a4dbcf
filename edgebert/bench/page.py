"""A result of `edgebert bench` as a page with plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgebert.bench.tables import (
    Result,
    describe_machine,
    explain_columns,
    format_ms,
    label,
    sorted_rows,
    summarize,
    tabulate_busy,
    tabulate_checks,
    tabulate_footprint,
    tabulate_times,
    title_of,
)
from edgebert.report import COLORS, Plot, Section, Table, new_figure, write_page

_RUNTIMES = ("edgebert", "onnxruntime", "openvino", "torch", "ctranslate2")
_PALE = 0.5  # of what is not int8
_WIDEST = 12  # times the fastest: more is off the plot


def write_report(path: Path, result: Result) -> None:
    """Write the page to `path`.

    Raises:
        EdgeBertError: jinja2 or matplotlib is missing.
    """
    workloads = result["workloads"]
    quiet = [workload for workload in workloads if not workload["is_busy"]]
    busy = [workload for workload in workloads if workload["is_busy"]]
    most = max(workload["threads"] for workload in workloads)
    warnings = list(result["provenance"]["warnings"])
    legend = (
        "Bars are medians, strong in colour for int8 and pale for fp32 and bf16. The line after a bar ends at the 90th "
        "percentile, or with a mark at the 99th. An arrow says that a bar goes on beyond the plot."
    )
    sections = [
        Section(
            "Times",
            [
                *summarize(result),
                *([Table(["left out", "why"], list(result["left_out"].items()))] if result["left_out"] else []),
                legend,
                *(plot_bars(result, workload) for workload in quiet if workload["threads"] == most),
                *plot_lengths(result, most),
            ],
        ),
        Section("Every number", [*explain_columns(result), *(tabulate_times(result, workload) for workload in quiet)]),
        Section("Footprint", [tabulate_footprint(result)]),
        Section("Answers", [tabulate_checks(result)]),
        Section("Where and how", describe_machine(result)),
    ]
    if busy:
        text = "With a second process that wants one CPU all the time: few devices have only one thing to do."
        sections.insert(2, Section("Beside a busy process", [text, *(tabulate_busy(result, one) for one in busy)]))
    if warnings:
        sections.insert(
            0, Section("What makes these numbers doubtful", [f"{one[0].upper()}{one[1:]}." for one in warnings])
        )
    write_page(path, f"EdgeBERT benchmark: {', '.join(result['models'])}", sections)


def plot_bars(result: Result, workload: Mapping[str, Any]) -> Plot:
    """Median times, fastest first, a line to the 90th or with a mark to the 99th percentile."""
    rows = sorted_rows(workload)
    most = _WIDEST * rows[0][1]["p50_ms"]
    figure, axes = new_figure(height=0.7 + 0.4 * len(rows))
    for i, (name, row) in enumerate(rows):
        axes.barh(i, row["p50_ms"], height=0.42, **_style(result, name))
        if row["p90_ms"] is not None:
            right, mark = (row["p90_ms"], "") if row["p99_ms"] is None else (row["p99_ms"], "|")
            axes.plot([row["p50_ms"], right], [i, i], marker=mark, markevery=[1], color=COLORS[-1], linewidth=1)
        if row["p50_ms"] > most:
            axes.plot(most, i, marker=">", color="white", markersize=4)
        text = f"{label(result, name)} · {format_ms(row['p50_ms'])} ms"
        weight = "bold" if result["contenders"][name]["is_own"] else "normal"
        offset: dict[str, Any] = {"xytext": (2, 0), "textcoords": "offset points"}
        axes.annotate(text, (0, i - 0.3), fontsize=8.5, va="bottom", weight=weight, **offset)
    axes.set(xlabel="ms", yticks=[], ylim=(len(rows) - 0.5, -0.8), xlim=(0, min(axes.get_xlim()[1], 1.03 * most)))
    axes.spines[["left"]].set_visible(False)
    axes.grid(visible=False, axis="y")
    return Plot(figure, title_of(workload))


def plot_lengths(result: Result, threads: int) -> list[Plot]:
    """Median time over the length of a text; nothing for fewer than three lengths."""
    plots = []
    quiet = [one for one in result["workloads"] if one["length"] and not one["is_busy"] and one["threads"] == threads]
    for size in dict.fromkeys(workload["batch_size"] for workload in quiet):
        group = sorted((one for one in quiet if one["batch_size"] == size), key=lambda one: int(one["length"]))
        if len(group) >= 3:
            plots.append(_plot_group(result, group, threads, size))
    return plots


def _plot_group(result: Result, group: Sequence[Mapping[str, Any]], threads: int, size: int) -> Plot:
    names = list(dict.fromkeys(name for workload in group for name, _ in sorted_rows(workload)))
    figure, axes = new_figure(height=2.6 + 0.18 * len(names))
    for name in names:
        points = [(one["length"], one["rows"][name]["p50_ms"]) for one in group if name in one["rows"]]
        own = result["contenders"][name]["is_own"]
        style = {**_style(result, name), "linewidth": 2.2 if own else 1.2, "linestyle": "-" if own else "--"}
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label(result, name), **style)
    lengths = [one["length"] for one in group]
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms, p50")
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    figure.legend(fontsize=8, loc="outside lower center", ncols=1)
    texts = "one text" if size == 1 else f"{size} texts"
    return Plot(figure, f"{texts} over length, {threads} thread{'s' if threads > 1 else ''}")


def _style(result: Result, name: str) -> dict[str, Any]:
    """Its runtime's colour, paler where it is not int8."""
    runtime = name.partition(" ")[0].partition("/")[0]
    is_int8 = result["contenders"][name]["precision"] == "int8"
    return {"color": COLORS[_RUNTIMES.index(runtime)], "alpha": 1.0 if is_int8 else _PALE}
