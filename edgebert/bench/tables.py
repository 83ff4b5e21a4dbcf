"""A result of `edgebert bench` as tables, for the terminal and for the page; and two results side by side."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgebert.errors import InvalidInputError
from edgebert.report import Cell, Table

Result = Mapping[str, Any]

COMPARISON_RULE = (
    "change: the second median over the first. It is called faster or slower where what the two medians may be is "
    "apart: between the ends of their 95 % intervals, each further out by the share that the speed of a CPU changed "
    "during its run."
)
_SAME_MACHINE = ("cpu", "isa", "cpus", "cgroup_quota", "governor", "platform", "python", "packages", "commit")


def read_result(path: Path) -> dict[str, Any]:
    """What `edgebert bench --json` wrote.

    Raises:
        InvalidInputError: it cannot be read, or is something else.
    """
    from edgebert.bench.run import RESULT_VERSION

    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        version = result.get("edgebert_bench") if isinstance(result, dict) else None
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"{path} cannot be read as JSON ({error}): give what `edgebert bench --json` wrote"
        ) from None
    if version != RESULT_VERSION:
        raise InvalidInputError(
            f"{path} is not a result of this version of edgebert bench (form {version!r}, expected {RESULT_VERSION}): "
            "measure again, with --json"
        )
    return dict(result)


def label(result: Result, name: str) -> str:
    """A contender's name for people; with its file where there are several."""
    contender = result["contenders"][name]
    return f"{contender['title']}, {contender['model']}" if len(result["models"]) > 1 else str(contender["title"])


def format_ms(value: float | None) -> str | None:
    """Three figures, and all before the point."""
    if value is None:
        return None
    return f"{value:#.3g}" if value < 99.95 else f"{value:.0f}"


def title_of(workload: Mapping[str, Any]) -> str:
    """A workload with its threads."""
    threads = workload["threads"]
    busy = ", beside a busy process" if workload["is_busy"] else ""
    return f"{workload['name']}, {threads} thread{'s' if threads > 1 else ''}{busy}"


def sorted_rows(workload: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Contenders and their numbers, the fastest first."""
    return sorted(workload["rows"].items(), key=lambda item: float(item[1]["p50_ms"]))


def _is_own(result: Result, name: str) -> bool:
    return bool(result["contenders"][name]["is_own"])


def tabulate_times(result: Result, workload: Mapping[str, Any]) -> Table:
    """Every contender's times and rates on one workload."""
    rows = sorted_rows(workload)
    columns = ["", "p50 ms", "p90", "p99", "texts/s", "tokens/s", "fill", "GOP/s", "of the roof", "mJ a text"]
    cells: list[list[Cell]] = [
        [
            label(result, name),
            *(format_ms(row[key]) for key in ("p50_ms", "p90_ms", "p99_ms")),
            _rate(row["texts_per_s"]),
            _rate(row["tokens_per_s"]),
            f"{row['fill']:.0%}",
            _rate(row["gops"]),
            f"{row['share_of_roof']:.0%}" if row["share_of_roof"] is not None else None,
            f"{row['mj_per_text']:.3g}" if row["mj_per_text"] is not None else None,
        ]
        for name, row in rows
    ]
    used = [i for i in range(len(columns)) if i == 0 or any(row[i] is not None for row in cells)]
    return Table([columns[i] for i in used], [[row[i] for i in used] for row in cells], title_of(workload))


def explain_columns(result: Result) -> list[str]:
    """What the columns of `tabulate_times` say, a line each."""
    lines = [
        "fill: the share of the computed tokens that are the texts'; the others pad them to one length.",
        "GOP/s: additions and multiplications that the model needs for the texts, without padding, in 10^9 a second.",
    ]
    if result["roof"]:
        lines.append(
            "of the roof: that, as a share of the most that this machine's units of the same precision did in a loop "
            "that touches no memory."
        )
    return lines


def tabulate_busy(result: Result, workload: Mapping[str, Any]) -> Table:
    """A workload beside a busy process, next to the same alone."""
    alone = next(
        other
        for other in result["workloads"]
        if not other["is_busy"] and all(other[key] == workload[key] for key in ("name", "threads"))
    )
    rows: list[list[Cell]] = [
        [
            label(result, name),
            *(format_ms(part[key]) for part in (alone["rows"][name], row) for key in ("p50_ms", "p90_ms")),
            f"{row['p50_ms'] / alone['rows'][name]['p50_ms']:.2f}x",
        ]
        for name, row in sorted_rows(workload)
    ]
    columns = ["", "alone, p50 ms", "p90", "beside it, p50 ms", "p90", "slower"]
    return Table(columns, rows, title_of(workload))


def tabulate_footprint(result: Result) -> Table:
    """Cold start, memory and sizes on disk."""
    cold = result["cold_start"]
    names = sorted(result["contenders"], key=lambda name: float(cold.get(name, {}).get("seconds", 1e9)))
    rows: list[list[Cell]] = []
    for name in names:
        start, contender = cold.get(name), result["contenders"][name]
        rows.append(
            [
                label(result, name),
                f"{start['seconds']:.2f}" if start else None,
                f"{start['peak_mb']:.0f}" if start else None,
                f"{contender['peak_mb']:.0f}",
                f"{contender['model_mb']:.1f}",
                f"{contender['installed_mb']:.0f}",
            ]
        )
    columns = ["", "first answer, s", "memory then, MB", "most memory, MB", "model, MB", "installed, MB"]
    return Table(columns, rows, "From the start of a process to its first answer, memory (resident), and sizes on disk")


def tabulate_checks(result: Result) -> Table:
    """How near each contender's answers are to the oracle's."""
    rows: list[list[Cell]] = []
    for name, check in result["checks"].items():
        keys = ("mean", "min", "base_mean", "base_min")
        rows.append([label(result, name), *(f"{check[key]:.5f}" if key in check else None for key in keys)])
    columns = ["", "same file, mean", "least", f"{result['base']}, mean", "least"]
    return Table(columns, rows, "Cosine with the answers of the numpy backend, text by text, checked before any timing")


def summarize(result: Result) -> list[Table]:
    """One table: of each undisturbed workload ours against the fastest of the others; none where there are none."""
    rows: list[list[Cell]] = []
    for workload in result["workloads"]:
        own, others = (
            [item for item in sorted_rows(workload) if _is_own(result, item[0]) is side] for side in (True, False)
        )
        if own and others and not workload["is_busy"]:
            (a, ours), (b, theirs) = own[0], others[0]
            times = f"{theirs['p50_ms'] / ours['p50_ms']:.2f}x"
            names = label(result, a), label(result, b)
            rows.append(
                [title_of(workload), names[0], format_ms(ours["p50_ms"]), names[1], format_ms(theirs["p50_ms"]), times]
            )
    columns = ["p50, ms", "fastest of EdgeBERT", "", "fastest of the others", "", "as fast"]
    return [Table(columns, rows)] if rows else []


def describe_machine(result: Result) -> list[str]:
    """Where and with what it was measured, and how."""
    found = result["provenance"]
    quota = found["cgroup_quota"]
    versions = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    changed = " with changes" if found["uncommitted_changes"] else ""
    commit = f", commit {found['commit'][:12]}{changed}" if found["commit"] else ""
    roof = result["roof"] and {
        threads: next(iter(entry["isas"].items())) for threads, entry in result["roof"].items() if entry["isas"]
    }
    lines = [
        f"{found['cpu']}, {found['cpus']} CPUs, of which {len(found['affinity'])} may be used; "
        f"{f'a limit of {quota:g} CPUs; ' if quota else ''}governor {found['governor'] or 'unknown'}; "
        f"{', '.join(found['isa'])}.",
        f"{found['platform']}, Python {found['python']}, {versions}{commit}.",
        f"{found['date']}, {found['seconds']:.0f} s: {found['command']}",
        "Each runtime in a process of its own on as many CPUs as it has threads, with its own fastest settings, all in "
        f"turns; about {result['seconds_each']:g} s of counted runs each. p90 needs 10 samples, p99 a hundred.",
    ]
    if roof:
        figures = "; ".join(
            f"{threads} thread{'s' if threads != '1' else ''}: {rates['int8_gops']:.0f} GOP/s int8, "
            f"{rates['fp32_gops']:.0f} fp32 ({isa})"
            for threads, (isa, rates) in roof.items()
        )
        lines.append(f"The roof, measured on registers before and after: {figures}.")
    return lines


def format_result(result: Result) -> str:
    """The tables as text for a terminal, with what makes the numbers doubtful at the end."""
    workloads = result["workloads"]
    tables = [tabulate_times(result, workload) for workload in workloads if not workload["is_busy"]]
    tables += [tabulate_busy(result, workload) for workload in workloads if workload["is_busy"]]
    tables += [tabulate_footprint(result), tabulate_checks(result), *summarize(result)]
    parts = [format_table(table) for table in tables]
    parts.insert(sum(not workload["is_busy"] for workload in workloads), "\n".join(explain_columns(result)))
    parts += ["\n".join(f"left out: {name}: {reason}" for name, reason in result["left_out"].items())]
    parts += ["\n".join(f"warning: {warning}" for warning in result["provenance"]["warnings"])]
    return "\n\n".join(filter(None, parts))


def format_table(table: Table) -> str:
    """Aligned columns, the first to the left, under the caption."""
    rows = [[str(cell if cell is not None else "") for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join([*textwrap.wrap(table.caption, 100), *(line.rstrip() for line in lines)])


def compare_results(a: Result, b: Result) -> tuple[list[Table], list[str]]:
    """Two results: a table for each workload that both have, and what makes them hard to compare.

    COMPARISON_RULE says what is called a change.

    Raises:
        InvalidInputError: they have nothing in common.
    """
    keys = ("name", "threads", "is_busy")
    firsts = {tuple(workload[key] for key in keys): workload for workload in a["workloads"]}
    tables = []
    for second in b["workloads"]:
        first = firsts.get(tuple(second[key] for key in keys))
        names = [name for name, _ in sorted_rows(second) if first and name in first["rows"]]
        if first and names:
            rows = [
                _compare_rows(label(b, name), (a, first["rows"][name]), (b, second["rows"][name])) for name in names
            ]
            tables.append(
                Table(["", "first, p50 ms", "between", "second", "between", "change", ""], rows, title_of(second))
            )
    if not tables:
        raise InvalidInputError("the two results have no workload and runtime in common: measure with equal options")
    return tables, list(_find_differences(a, b))


def _compare_rows(name: str, *runs: tuple[Result, Mapping[str, Any]]) -> list[Cell]:
    """Of each of two runs (its result, its numbers)."""
    (low_a, high_a), (low_b, high_b) = (_find_bounds(*run) for run in runs)
    a, b = (row["p50_ms"] for _, row in runs)
    verdict = "faster" if high_b < low_a else "slower" if low_b > high_a else "the same"
    bounds = [f"{format_ms(low)} and {format_ms(high)}" for low, high in ((low_a, high_a), (low_b, high_b))]
    return [name, format_ms(a), bounds[0], format_ms(b), bounds[1], f"{b / a:.3f}x", verdict]


def _find_bounds(result: Result, row: Mapping[str, Any]) -> tuple[float, float]:
    """Milliseconds between which a run's median lies: see COMPARISON_RULE."""
    doubt = 1.0 + result["provenance"]["clock_change"]
    return row["p50_low_ms"] / doubt, row["p50_high_ms"] * doubt


def _find_differences(a: Result, b: Result) -> Iterator[str]:
    first, second = a["provenance"], b["provenance"]
    for key in _SAME_MACHINE:
        if first[key] != second[key]:
            yield f"{key} differs: {_difference(first[key], second[key])}"
    for name in a["models"].keys() & b["models"].keys():
        if a["models"][name]["sha256"] != b["models"][name]["sha256"]:
            yield f"{name} is not the same file"
    for title, found in (("first", first), ("second", second)):
        for warning in found["warnings"]:
            yield f"in the {title} {warning}"


def _difference(a: Any, b: Any) -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
        return ", ".join(f"{key} {a.get(key)} and {b.get(key)}" for key in keys)
    return f"{a} and {b}"


def _rate(value: float) -> str:
    return f"{value:#.3g}" if value < 99.95 else f"{value:,.0f}"
