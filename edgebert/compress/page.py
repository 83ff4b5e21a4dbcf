"""The report of a run as one page: the ladder, accuracy against latency, layers, quantization, the worst examples."""

from __future__ import annotations

import tomllib
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
                describe_loss(rung["loss"]) if "loss" in rung else "",
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
    return ["stage", *metrics, "lost (at most)", "MB", "M parameters", "p50 ms", "p95 ms", "tokens/s", "speed"]


def other_rows(report: dict[str, Any]) -> list[list[str]]:
    """A row for each file that was judged besides, in the columns OTHER_COLUMNS."""
    return [
        [
            found["file"],
            str(found["rows"]),
            f"{100 * found['reference']:.2f}",
            f"{100 * found['score']:.2f}",
            describe_loss(found["loss"]),
        ]
        for found in report["also"]
    ]


def width_rows(report: dict[str, Any]) -> list[list[str]]:
    """A row for each number of leading dimensions that was trained to be good alone, in the columns WIDTH_COLUMNS."""
    return [
        [str(found["width"]), f"{100 * found['score']:.2f}", describe_loss(found["loss"])] for found in report["widths"]
    ]


WIDTH_COLUMNS = ("dimensions", "compressed", "lost (at most)")
OTHER_COLUMNS = ("also judged on", "rows", "fine-tuned", "compressed", "lost (at most)")


def describe_loss(loss: dict[str, Any]) -> str:
    """Points lost, and in brackets their bound."""
    bound = "?" if loss["upper"] is None else f"{loss['upper']:.2f}"
    return f"{loss['estimate']:.2f} ({bound})"


def write_report(path: Path, report: dict[str, Any], worst: list[dict[str, Any]]) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        report: of a run, as its JSON file has it.
        worst: the worst examples: badness, text, expected, found.
    """
    final = report["final"]
    speed = final["speed"]
    workload = f"{speed['batch']} x {speed['tokens']} tokens, {speed['backend']}"
    sections = [
        Section(
            "The ladder",
            [
                f"Every row is a file, measured through edgebert.load: {workload}. {report['rows']['train']} rows were "
                f"trained on, {report['rows']['choice']} others chose the best epoch and candidate, and the metrics "
                f"are of {report['rows']['eval']} that did neither.",
                Table(ladder_columns(report), ladder_rows(report)),
                f"Lost: points of the metric against {report['reference']}, on the same rows, and in brackets what the "
                f"loss is at most, with a confidence of {100 * final['loss']['confidence']:g} %.",
                *([Table(OTHER_COLUMNS, other_rows(report))] if report["also"] else []),
                *([Table(WIDTH_COLUMNS, width_rows(report))] if report["widths"] else []),
                _plot_rungs(report),
                _plot_accuracy(report),
                *([describe_exits(report["exits"])] if report["exits"] else []),
                *(describe_budget(name, budget) for name, budget in report["budgets"].items()),
                *report["messages"],
            ],
        ),
        Section("Layers", [_plot_layers(report)]),
    ]
    for stage in report["stages"]:
        if "candidates" in stage:
            sections.append(Section("Candidates", [_tabulate_candidates(stage)]))
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
    recipe = tomllib.loads(report["recipe"])
    write_page(path, f"{Path(recipe['output']).name}: {Path(recipe['model']).name} for {recipe['task']}", sections)


def describe_exits(exits: dict[str, Any]) -> str:
    """Where texts leave, in words."""
    shares = [f"{100 * share:.1f} % after layer {after}" for after, share in exits["shares"].items()]
    return (
        f"Exits: {', '.join(shares)}; {exits['mean_depth']:.2f} layers a text. {100 * exits['differ']:.2f} % of "
        f"{exits['texts']} texts have another answer than at full depth, and of all at most {100 * exits['risk']:g} % "
        f"with a confidence of {100 * exits['confidence']:g} %, by {exits['rows']} rows kept for that."
    )


def describe_budget(name: str, budget: dict[str, Any]) -> str:
    """One budget in words."""
    formats = {
        "drop": lambda value: f"{value:.2f} points",
        "size": lambda value: f"{value / 1e6:.2f} MB",
        "latency": lambda value: f"{value * 1e3:.3f} ms",
        "speed": lambda value: f"{value:.2f}x the fine-tuned fp32 file's",
    }
    found, limit = formats[name](budget["found"]), formats[name](budget["limit"]).split(" the ")[0]
    bound = "at least" if name == "speed" else "at most"
    text = f"Budget {name}: {found}, {bound} {limit}: {budget['verdict'].replace('not met', 'NOT met')}"
    if name == "drop":
        if budget["upper"] is None:
            text += f"; {budget['num_groups']} different texts are too few to say anything: give more rows with --eval"
        else:
            text += f"; with a confidence of {100 * budget['confidence']:g} % it is at most {budget['upper']:.2f}"
        if budget["verdict"] == "not shown" and budget["more_rows"]:
            text += f", and some {budget['more_rows']} more rows in --eval would show it if the loss stays"
    return f"{text}; {budget['advice']}." if "advice" in budget else f"{text}."


def _tabulate_candidates(stage: dict[str, Any]) -> Table:
    rows = [
        [
            candidate["name"],
            f"{100 * candidate['score']:.2f}",
            " ".join(map(str, candidate["num_heads"])),
            " ".join(map(str, candidate["intermediate_size"])),
        ]
        for candidate in stage["candidates"]
    ]
    caption = f"What was tried, before any retraining; chosen: {stage['chosen']}."
    return Table(["candidate", "metric", "heads", "intermediate sizes"], rows, caption)


def _plot_rungs(report: dict[str, Any]) -> Plot:
    rungs = [*report["stages"], report["final"]]
    first = rungs[0]["speed"]["latency_p50"], rungs[0]["bytes"]
    figure, axes = new_figure()
    places = range(len(rungs))
    for shift, label, values in (
        (0.2, "times faster", [first[0] / rung["speed"]["latency_p50"] for rung in rungs]),
        (-0.2, "times smaller", [first[1] / rung["bytes"] for rung in rungs]),
    ):
        bars = axes.barh([-place + shift for place in places], values, height=0.4, label=label)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=9)
    axes.set_yticks([-place for place in places], [rung["name"] for rung in rungs])
    axes.margins(x=0.1)  # room for the numbers
    axes.set_xlabel(f"against {rungs[0]['name']}")
    axes.legend(fontsize=9, frameon=False)
    return Plot(figure, "The ladder: how much faster and smaller each file is.")


def _plot_accuracy(report: dict[str, Any]) -> Plot:
    figure, axes = new_figure()
    names = [stage["name"] for stage in report["stages"]]
    for rung in [*report["stages"][names.index(report["reference"]) :], report["final"]]:  # not an untrained head
        x, y = rung["speed"]["latency_p50"] * 1e3, 100 * next(iter(rung["metrics"].values()))
        axes.plot([x], [y], "o", label=rung["name"])
    axes.set_xlabel("latency, p50, ms")
    axes.set_ylabel(next(iter(report["final"]["metrics"])).replace("_", " "))
    axes.figure.legend(loc="outside upper center", ncols=4, fontsize=9)  # names beside the points would overlap
    return Plot(figure, "Accuracy against latency.")


def _plot_layers(report: dict[str, Any]) -> Plot:
    final = report["final"]
    figure, axes = new_figure()
    layers = range(len(final["num_heads"]))
    axes.bar([i - 0.2 for i in layers], final["intermediate_size"], width=0.4, label="intermediate size")
    axes.set_xticks(layers)
    axes.set_xlabel("layer")
    axes.set_ylabel("intermediate size")
    heads = axes.twinx()
    heads.bar([i + 0.2 for i in layers], final["num_heads"], width=0.4, color="tab:gray", label="heads")
    heads.set_ylabel("heads")
    return Plot(figure, "What is left of each layer: intermediate size (left), heads (right, grey).")
