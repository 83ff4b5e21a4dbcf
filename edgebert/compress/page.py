"""The report of a run as one page: the ladder, accuracy against latency, layers, quantization, the worst examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgebert.report import Plot, Section, Table, new_figure, write_page


def ladder_rows(report: dict[str, Any]) -> list[list[str]]:
    """A row a stage and one for the file, in the columns of `ladder_columns`; speed is against the first."""
    rows: list[list[str]] = []
    rungs = [*report["stages"], report["final"]]
    first = rungs[0]["speed"]["latency_p50"]
    for rung in rungs:
        speed = rung["speed"]
        rows.append(
            [
                rung["name"],
                *(f"{100 * value:.2f}" for value in rung["metrics"].values()),
                f"{rung['bytes'] / 1e6:.1f}",
                f"{rung['parameters'] / 1e6:.2f}",
                f"{speed['latency_p50'] * 1e3:.2f}",
                f"{speed['latency_p95'] * 1e3:.2f}",
                f"{speed['tokens_per_second']:.0f}",
                f"{first / speed['latency_p50']:.2f}x",
            ]
        )
    return rows


def ladder_columns(report: dict[str, Any]) -> list[str]:
    """Names of the columns of `ladder_rows`."""
    metrics = [name.replace("_", " ") for name in report["final"]["metrics"]]
    return ["stage", *metrics, "MB", "M parameters", "p50 ms", "p95 ms", "tokens/s", "speed"]


def write_report(path: Path, report: dict[str, Any], worst: list[dict[str, Any]]) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        report: of a run, as its JSON file has it.
        worst: the worst examples: badness, text, expected, found.
    """
    final = report["final"]
    speed = final["speed"]
    workload = f"{speed['batch']} x {speed['tokens']} tokens, {speed['threads']} thread(s), {speed['backend']}"
    sections = [
        Section(
            "The ladder",
            [
                f"Every row is a file, measured through edgebert.load: {workload}. {report['rows']['train']} rows were "
                f"trained on; the best epoch was chosen on the {report['rows']['eval']} rows that the metrics are of.",
                Table(ladder_columns(report), ladder_rows(report)),
                _plot_ladder(report),
                *_describe_budgets(report),
                *report["messages"],
            ],
        ),
        Section("Layers", [_plot_layers(report)]),
    ]
    if report["quantization"]:
        linears = report["quantization"]["linears"]
        rows = [
            [name, linear["rounding"], str(linear["smoothed"]), linear["error"]] for name, linear in linears.items()
        ]
        caption = "Relative error of each linear's output on the calibration texts, root mean square."
        sections.append(Section("Quantization", [Table(["linear", "rounding", "smoothed", "error"], rows, caption)]))
    if worst:
        cells = [[example["text"], example["expected"], example["found"]] for example in worst]
        sections.append(Section("Worst examples", [Table(["text", "expected", "found"], cells)]))
    sections.append(Section("Recipe", [report["recipe"]]))
    write_page(path, "Compression report", sections)


def _describe_budgets(report: dict[str, Any]) -> list[str]:
    return [describe_budget(name, budget) for name, budget in report["budgets"].items()]


def describe_budget(name: str, budget: dict[str, Any]) -> str:
    """One budget in words."""
    formats = {
        "drop": lambda value: f"{value:.2f} points",
        "size": lambda value: f"{value / 1e6:.2f} MB",
        "latency": lambda value: f"{value * 1e3:.3f} ms",
    }
    found, limit = formats[name](budget["found"]), formats[name](budget["limit"])
    return f"Budget {name}: {found}, at most {limit}: {'met' if budget['met'] else 'NOT met'}."


def _plot_ladder(report: dict[str, Any]) -> Plot:
    figure, axes = new_figure()
    for rung in [*report["stages"], report["final"]]:
        x, y = rung["speed"]["latency_p50"] * 1e3, 100 * next(iter(rung["metrics"].values()))
        axes.plot([x], [y], "o")
        axes.annotate(rung["name"], (x, y), textcoords="offset points", xytext=(5, 4), fontsize=9)
    axes.set_xlabel("latency, p50, ms")
    axes.set_ylabel(next(iter(report["final"]["metrics"])).replace("_", " "))
    return Plot(figure, "Accuracy against latency.")


def _plot_layers(report: dict[str, Any]) -> Plot:
    final = report["final"]
    figure, axes = new_figure()
    layers = range(len(final["num_heads"]))
    axes.bar([i - 0.2 for i in layers], final["intermediate_size"], width=0.4, label="intermediate size")
    axes.set_xlabel("layer")
    axes.set_ylabel("intermediate size")
    heads = axes.twinx()
    heads.bar([i + 0.2 for i in layers], final["num_heads"], width=0.4, color="tab:gray", label="heads")
    heads.set_ylabel("heads")
    return Plot(figure, "What is left of each layer: intermediate size (left), heads (right, grey).")
