"""Tables of README.md, benchmarks/README.md and docs/ from the committed results.

A table stands between `<!-- table:NAME -->` and `<!-- /table -->`.

    python -m benchmarks.render                    every table whose marker and result file exist
    python -m benchmarks.render --check            say which are out of date, exit status 1
    python -m benchmarks.render --plots FOLDER     also draw SVG plots (needs matplotlib)

A marker without an end gets one. Markers with other names are left alone.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT

Result = Mapping[str, Any]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
MODEL_TITLES = {"minilm-l6": "MiniLM-L6", "bert-base": "BERT-base shape"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.render", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with the results' JSON files")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if a table is out of date")
    parser.add_argument("--plots", type=Path, help="folder to draw SVG plots into")
    args = parser.parse_args()

    tables: dict[str, str] = {}
    for name, render in RENDERERS.items():
        path = args.results / f"{name}.json"
        if path.exists():
            result = json.loads(path.read_text(encoding="utf-8"))
            tables |= render(result)
            if args.plots and name == "peers":
                draw_plots(result, args.plots)
    outdated = []
    for document in DOCUMENTS:
        before = document.read_text(encoding="utf-8")
        after = fill_markers(before, tables)
        if before != after:
            outdated.append(str(document.relative_to(ROOT)))
            if not args.check:
                document.write_text(after, encoding="utf-8")
    if args.check:
        print(f"out of date: {', '.join(outdated)}; run python -m benchmarks.render" if outdated else "up to date")
        return int(bool(outdated))
    print(f"tables: {', '.join(tables) or 'no results found'}")
    return 0


def fill_markers(text: str, tables: Mapping[str, str]) -> str:
    """The text with each of `tables` between its markers; other markers stay as they are."""

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- table:{name} -->\n\n{tables[name]}\n\n<!-- /table -->" if name in tables else match[0]

    pattern = r"<!-- table:(?P<name>[\w-]+) -->(?:(?:(?!<!-- table:).)*?<!-- /table -->)?"
    return re.sub(pattern, fill, text, flags=re.DOTALL)


def render_result(result: Result) -> dict[str, str]:
    """Every table of a result of benchmarks.peers: `peers-MODEL-THREADS` each, `busy`, `footprint`, `accuracy`."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for workload in result["workloads"]:
        groups.setdefault((workload["model"], workload["threads"]), []).append(workload)
    tables = {f"peers-{model}-{threads}": render_peers(result, group) for (model, threads), group in groups.items()}
    busy = [workload for workload in result["workloads"] if workload["kind"] == "busy"]
    if busy:
        tables["busy"] = render_busy(result, busy[0])
    if result["cold_start"]:
        tables["footprint"] = render_footprint(result)
    if result["accuracy"]:
        tables["accuracy"] = render_accuracy(result)
    return tables


def render_peers(result: Result, workloads: Sequence[Mapping[str, Any]]) -> str:
    """One model and count of threads: milliseconds a text and texts a second, with the share of the roof."""
    columns = [workload for workload in workloads if workload["kind"] != "busy"]
    threads, model = columns[0]["threads"], columns[0]["model"]
    header = [f"{MODEL_TITLES[model]}, {threads} thread{'s' if threads > 1 else ''}"]
    header += ["texts/s" if workload["kind"] == "throughput" else workload["name"] for workload in columns]

    def cell(workload: Mapping[str, Any], name: str) -> str:
        row = workload["peers"].get(name)
        if row is None:
            return ""
        share = f" ({row['share_of_roof']:.0%})" if row["share_of_roof"] is not None else ""
        if workload["kind"] == "throughput":
            return f"{workload['texts'] / row['median_ms'] * 1e3:.0f}{share}"
        return f"{format_ms(row['median_ms'])}{share}"

    def ratio(workload: Mapping[str, Any], name: str) -> str:
        row = workload["peers"].get(name, {})
        return f"{1 / row['ratio_to_fastest_peer']:.2f}x" if row.get("ratio_to_fastest_peer") else ""

    names = sorted(
        dict.fromkeys(name for workload in columns for name in workload["peers"]),
        key=lambda name: (not name.startswith("edgebert"), columns[0]["peers"].get(name, {}).get("median_ms", 1e9)),
    )
    rows = [[title_of(result, name), *(cell(workload, name) for workload in columns)] for name in names]
    for name, words in (("edgebert-int8", "EdgeBERT int8 over the fastest peer"), ("edgebert-fp32", "fp32 over fp32")):
        ratios = [ratio(workload, name) for workload in columns]
        if any(ratios):
            rows.append([words, *ratios])
    return format_table(header, rows)


def render_busy(result: Result, busy: Mapping[str, Any]) -> str:
    """Latency alone and beside a second process that wants a CPU all the time."""
    alone = next(
        workload
        for workload in result["workloads"]
        if workload["kind"] == "latency" and (workload["model"], workload["threads"], workload["tokens"])
        == (busy["model"], busy["threads"], busy["tokens"])
    )  # fmt: skip
    title = f"{MODEL_TITLES[busy['model']]}, {busy['tokens']} tokens, {busy['threads']} threads, ms"
    rows = [
        [title_of(result, name), *(format_ms(part[key]) for part in (alone["peers"][name], row) for key in KEYS)]
        for name, row in sorted(busy["peers"].items(), key=lambda item: float(item[1]["median_ms"]))
        if name in alone["peers"]
    ]
    return format_table([title, "alone, p50", "p95", "beside a busy process, p50", "p95"], rows)


KEYS = ("median_ms", "p95_ms")


def render_footprint(result: Result) -> str:
    """Cold start, memory, and sizes on disk."""
    peers = result["peers"]
    rows = [
        [
            title_of(result, name),
            f"{row['median_s']:.2f}",
            f"{row['peak_mb']:.0f}",
            f"{peers[name]['model_mb']:.0f}",
            f"{peers[name]['installed_mb']:.0f}",
        ]
        for name, row in sorted(result["cold_start"].items(), key=lambda item: float(item[1]["median_s"]))
    ]
    header = ["MiniLM-L6", "start to first embedding, s", "peak memory, MB", "model, MB", "installed, MB"]
    return format_table(header, rows)


def render_accuracy(result: Result) -> str:
    """Cosine of sentence embeddings with those of PyTorch in fp32."""
    models = list(result["accuracy"])
    texts = result["accuracy"][models[0]]["texts"]
    header = [f"cosine with fp32, {texts} sentences"]
    header += [f"{MODEL_TITLES[model]}, {word}" for model in models for word in ("mean", "least")]
    names = dict.fromkeys(name for model in models for name in result["accuracy"][model]["cosine"])
    rows = []
    for name in names:
        cosines = [result["accuracy"][model]["cosine"].get(name) for model in models]
        cells = [f"{cosine[key]:.5f}" if cosine else "" for cosine in cosines for key in ("mean", "min")]
        rows.append([title_of(result, name), *cells])
    return format_table(header, rows)


def render_kernels(result: Result) -> dict[str, str]:
    """The table `kernels`: each kernel's rate and share of the roof, a column for each instruction set."""
    isas = list(dict.fromkeys(row["isa"] for row in result["kernels"]))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in result["kernels"]:
        rate = f"{row['gops']:.0f} GOP/s ({row['share']:.0%})" if "gops" in row else f"{row['gb_per_s']:.0f} GB/s"
        lines.setdefault((row["kernel"], row["shape"]), {})[row["isa"]] = f"{row['us']:.1f} µs, {rate}"
    rows = [[f"`{kernel}`", shape, *(cells.get(isa, "") for isa in isas)] for (kernel, shape), cells in lines.items()]
    return {"kernels": format_table(["kernel, one thread", "shape", *isas], rows)}


def render_engine_ladder(result: Result) -> dict[str, str]:
    """Tables `engine-ladder-THREADS`: a rung a row, milliseconds and the gain over the rung before."""
    tables = {}
    for threads in dict.fromkeys(workload["threads"] for workload in result["ladder"]):
        group = [workload for workload in result["ladder"] if workload["threads"] == threads]
        medians = [[rung["median_ms"] for rung in workload["rungs"]] for workload in group]
        rows = [
            [
                rung["title"],
                *(
                    f"{format_ms(column[i])}" + (f" ({column[i - 1] / column[i]:.2f}x)" if i else "")
                    for column in medians
                ),
            ]
            for i, rung in enumerate(result["rungs"])
        ]
        names = [
            f"{workload['texts']} texts, ms" if workload["texts"] > 1 else f"{workload['name']}, ms"
            for workload in group
        ]
        header = [f"MiniLM-L6, {threads} thread{'s' if threads > 1 else ''}", *names]
        tables[f"engine-ladder-{threads}"] = format_table(header, rows)
    return tables


def render_ladder(result: Result) -> dict[str, str]:
    """The rungs of every compression run, each once: the metric that counts, size, and one text of 128 tokens."""
    rows: dict[tuple[Any, ...], list[str]] = {}
    for run in result["runs"]:
        for task in run["tasks"]:
            stages: list[str] = []
            recipe = tomllib.loads(task["recipe"])
            tuned = next((rung for rung in task["rungs"] if rung["name"] == "finetune"), task["rungs"][0])
            for rung in task["rungs"]:
                stages += [describe_stage(rung["name"], recipe)] * (rung["name"] != "start")
                name, value = next(iter(rung["metrics"].items()))
                speeds = [tuned["seconds"]["128"] / rung["seconds"]["128"] if "seconds" in rung else None]
                speeds += [rung.get(key, {}).get("128") for key in ("over_teacher_in_onnxruntime", "over_bert_base")]
                speeds += [rung.get("over_bert_base", {}).get("batch")]
                cells = [f"{task['data']}: {' + '.join(stages) or 'start'}"]
                cells += [f"{name.replace('_', ' ')} {100 * value:.2f}"]
                cells += [f"{rung['bytes'] / 1e6:.1f}", f"{rung['parameters'] / 1e6:.1f}"]
                cells += [f"{speed:.1f}x" if speed else "" for speed in speeds]
                rows.setdefault((cells[0], rung["bytes"], value), cells)
    header = [
        "data: steps",
        "metric",
        "MB",
        "M parameters",
        "over it fine-tuned here in fp32",
        "in ONNX Runtime",
        "over BERT-base's shape there",
        "the same, 32 texts packed",
    ]
    groups = list(dict.fromkeys(task["data"] for run in result["runs"] for task in run["tasks"]))
    in_groups = sorted(rows.values(), key=lambda cells: groups.index(cells[0].partition(":")[0]))
    return {"ladder": format_table(header, in_groups)}


def describe_stage(name: str, recipe: Mapping[str, Any]) -> str:
    """A stage's name, and what is special in it."""
    if name == "distill" and "hidden_size" in recipe["distill"]:
        return f"distill ({recipe['distill']['num_layers']} layers of {recipe['distill']['hidden_size']})"
    return f"{name} (portable)" if name in ("qat", "int8") and recipe["portable"] else name


def render_vocabulary_finetuned(result: Result) -> dict[str, str]:
    """The table `vocabulary-finetuned`: the model before and after trimming, a row a set of texts."""
    rows = []
    for run in result["runs"]:
        cells = [f"{run['data']}, {run['train_texts']:,}", f"{run['files']['trimmed int8']['vocab_size']:,}"]
        cells.append(f"{100 * run['unknown_share']:.2f}%")
        for file in run["files"].values():
            value = next(iter(file["metrics"].values()))
            cells.append(f"{100 * value:.2f}, {file['bytes'] / 1e6:.1f} MB")
        rows.append(cells)
    header = ["data, texts trimmed to", "pieces", "unknown", *result["runs"][0]["files"]]
    return {"vocabulary-finetuned": format_table(header, rows)}


def render_trainer_parity(result: Result) -> dict[str, str]:
    """The table `trainer-parity`: best scores of both sides, a row a task, the mean of its seeds and each of them."""
    rows = []
    for task in (task for run in result["runs"] for task in run["tasks"]):
        training = task["training"]
        name = f"{task['data']}, {task['metric'].replace('_', ' ')}"
        name += "" if training["precision"] == "auto" else f", in {training['precision']}"
        cells = [name, *(str(task["rows"][part]) for part in ("train", "eval")), str(training["epochs"])]
        for side in ("edgebert", "trainer"):
            scores = [100 * run[side]["best"] for run in task["runs"]]
            each = f" ({', '.join(f'{score:.2f}' for score in scores)})" if len(scores) > 1 else ""
            cells.append(f"{sum(scores) / len(scores):.2f}{each}")
        points = [run["points"] for run in task["runs"]]
        for epoch in (0, -1):
            losses = [sum(run[side]["losses"][epoch] for run in task["runs"]) for side in ("edgebert", "trainer")]
            cells.append(", ".join(f"{loss / len(task['runs']):.4f}" for loss in losses))
        rows.append([*cells, f"{sum(points) / len(points):+.2f}"])
    header = [
        "data, metric",
        "rows",
        "evaluated on",
        "epochs",
        "`edgebert compress`",
        "transformers' Trainer",
        "losses of the first epoch",
        "of the last",
        "points",
    ]
    return {"trainer-parity": format_table(header, rows)}


def render_task_parity(result: Result) -> dict[str, str]:
    """The table `task-parity`: a comparison a row, the largest difference of scores with each reference."""
    cases: dict[str, list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        cases.setdefault(row["case"], []).append(row)
    rows = [
        [
            name,
            found[0]["head"],
            str(found[0]["inputs"]),
            str(max(row["different"] for row in found)),
            ", ".join(f"{row['reference']}: {row['max_difference']:.0e}" for row in found),
        ]
        for name, found in cases.items()
    ]
    header = ["case", "head", "inputs", "answered otherwise", "largest difference of a score"]
    return {"task-parity": format_table(header, rows)}


def render_embedding_dtypes(result: Result) -> dict[str, str]:
    """The table `embedding-dtypes`: bytes, neighbours found again and Spearman's correlation of each dtype."""
    rows = [
        [row["dtype"], str(row["bytes"]), f"{100 * row['recall_at_10']:.1f} %", f"{100 * row['spearman']:.2f}"]
        for row in result["rows"]
    ]
    header = ["stored as", f"bytes of {result['width']} numbers", "nearest 10 found again", "STS-B dev, Spearman"]
    return {"embedding-dtypes": format_table(header, rows)}


def render_exits(result: Result) -> dict[str, str]:
    """The table `exits`: on rows that nobody had used, where texts leave, what differs, and how much faster it is."""
    rows = []
    for row in result["tasks"]:
        unseen, speed = row["unseen"], row["seconds"]["speed"]
        depth = max(map(int, unseen["shares"]))
        accuracy = [f"{100 * unseen['metrics'][name]['accuracy']:.2f}" for name in ("exits", "full_depth")]
        rows.append(
            [
                f"{row['data']}, {unseen['texts']} rows",
                f"{unseen['mean_depth']:.2f} of {depth}",
                " / ".join(accuracy),
                f"{100 * unseen['differ']:.2f} %",
                f"{100 * unseen['kept']:.0f} %",
                f"{speed['all_texts']:.2f}x",
                f"{speed['one_p50']:.2f}x / {speed['one_p95']:.2f}x",
            ]
        )
    header = [
        "",
        "layers a text",
        "accuracy with exits / without",
        "other answers",
        f"calibrations that keep {100 * result['tasks'][0]['exits']['risk']:g} %",
        "all texts",
        "one text, p50 / p95",
    ]
    return {"exits": format_table(header, rows)}


def render_web(result: Result) -> dict[str, str]:
    """The table `web`: milliseconds of one text in Node, by file and runtime."""
    rows = []
    for model, told in result["models"].items():
        counts = list(told["median_ms"])
        for runtime in told["median_ms"][counts[0]]:
            times = [told["median_ms"][count][runtime] for count in counts]
            rows.append([model, runtime, *(f"{ms:.2f}" for ms in times)])
    header = ["file", "runtime", *(f"{count} tokens, ms" for count in counts)]
    return {"web": format_table(header, rows)}


def render_blimp(result: Result) -> dict[str, str]:
    """The table `blimp`: the paradigms of each phenomenon, pairs ranked right here and in transformers."""
    rows = [
        [
            f"{row['phenomenon']}: {row['paradigm']}".replace("_", " "),
            str(row["pairs"]),
            str(row["right"]),
            str(row["right_in_transformers"]),
            str(row["ranked_differently"]),
            f"{row['max_difference']:.0e}",
        ]
        for row in sorted(result["rows"], key=lambda row: (row["phenomenon"], row["paradigm"]))
    ]
    sums = [
        sum(row[key] for row in result["rows"])
        for key in ("pairs", "right", "right_in_transformers", "ranked_differently")
    ]
    rows.append(["all", *map(str, sums), f"{max(row['max_difference'] for row in result['rows']):.0e}"])
    header = [
        "phenomenon: paradigm",
        "pairs",
        "ranked right",
        "by transformers",
        "differently",
        "largest difference of a score",
    ]
    return {"blimp": format_table(header, rows)}


def render_rescoring(result: Result) -> dict[str, str]:
    """The table `rescoring`: milliseconds of each way for a masked copy, a column a file, and what packing gains."""
    files = result["rows"]
    rows = []
    for name in files[0]["milliseconds_a_copy"]:
        cells = []
        for file in files:
            gain = file["times_faster_than"].get(name)
            cells.append(f"{file['milliseconds_a_copy'][name]:.2f}" + (f" ({gain:.1f}x)" if gain else ""))
        rows.append([name, *cells])
    for size in files[0]["peak_megabytes_after_lists_of"]:
        rows.append(
            [
                f"most memory after a list of {size}, MB",
                *(str(file["peak_megabytes_after_lists_of"][size]) for file in files),
            ]
        )
    header = [f"{files[0]['hypotheses']} hypotheses, ms for a masked copy", *(file["file"] for file in files)]
    return {"rescoring": format_table(header, rows)}


def render_scoring(result: Result) -> dict[str, str]:
    """The table `scoring`: rows a second of each loop over the same file, in the median, and ours over it."""
    peers = result["peers"]
    names = {
        "edgebert": "`edgebert score`, int8",
        "onnxruntime-int8": "ONNX Runtime int8, batches as they come",
        "onnxruntime-int8-sorted": "ONNX Runtime int8, sorted by length",
        "sentence-transformers": "sentence-transformers",
    }
    rows = [
        [
            names[name],
            f"{statistics.median(loop['rows_per_second']):.0f}",
            f"{peers['edgebert_over']['rows_per_second'][name]:.2f}x",
            f"{peers['edgebert_over']['rows_per_cpu_second'][name]:.2f}x",
        ]
        for name, loop in peers["loops"].items()
    ]
    header = ["loop", "rows/s", "`edgebert score` over it", "by CPU time"]
    return {"scoring": format_table(header, rows)}


def render_serving(result: Result) -> dict[str, str]:
    """The table `serving`: texts a second and p50 / p99 of each server, by clients at once x texts a request."""
    servers = result["servers"]
    loads = [load for load in servers["edgebert"] if load != "peak_mb"]
    rows = [
        [
            name,
            *(f"{server[load]['texts_per_second']:.0f} ({format_latencies(server[load])})" for load in loads),
            f"{server['peak_mb']:.0f}",
        ]
        for name, server in servers.items()
    ]
    return {"serving": format_table(["clients x texts: texts/s (p50 / p99, ms)", *loads, "peak memory, MB"], rows)}


def format_latencies(load: Mapping[str, Any]) -> str:
    return f"{format_ms(load['p50_ms'])} / {format_ms(load['p99_ms'])}"


def render_integrations(result: Result) -> dict[str, str]:
    """The table `integrations`: texts a second of each way to encode and over sentence-transformers' own by threads."""
    runs = result["runs"]
    rows = [
        [names[0]["name"], *(f"{way['texts_per_s']:.0f} ({way['over_torch']:.2f}x)" for way in names)]
        for names in zip(*(run["contenders"] for run in runs), strict=True)
    ]
    header = [f"{result['texts']} texts, texts/s", *(f"threads: {run['threads']}" for run in runs)]
    return {"integrations": format_table(header, rows)}


def title_of(result: Result, name: str) -> str:
    """A peer's name for people, with its forced instruction set."""
    peer, _, isa = name.partition(" ")
    title = result["peers"].get(peer, {}).get("title", peer)
    return f"{title}, {isa} forced" if isa else str(title)


def format_ms(value: float) -> str:
    """Three figures."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, all columns but the first to the right."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    lines.insert(1, "|---|" + "---:|" * (len(header) - 1))
    return "\n".join(lines)


# By the name of the result's file.
RENDERERS = {
    "peers": render_result,
    "kernels": render_kernels,
    "engine_ladder": render_engine_ladder,
    "ladder": render_ladder,
    "task_parity": render_task_parity,
    "blimp": render_blimp,
    "embedding_dtypes": render_embedding_dtypes,
    "exits": render_exits,
    "web": render_web,
    "rescoring": render_rescoring,
    "scoring": render_scoring,
    "trainer_parity": render_trainer_parity,
    "vocabulary-finetuned": render_vocabulary_finetuned,
    "serving": render_serving,
    "integrations": render_integrations,
}


def draw_plots(result: Result, folder: Path) -> None:
    """One SVG a model and count of threads: latency over length, one line a peer."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    latencies = [workload for workload in result["workloads"] if workload["kind"] == "latency"]
    for model, threads in dict.fromkeys((workload["model"], workload["threads"]) for workload in latencies):
        figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
        group = [workload for workload in latencies if (workload["model"], workload["threads"]) == (model, threads)]
        for name in dict.fromkeys(name for workload in group for name in workload["peers"]):
            points = [(work["tokens"], work["peers"][name]["median_ms"]) for work in group if name in work["peers"]]
            style: dict[str, Any] = {"linewidth": 2.5} if name.startswith("edgebert") else {"linewidth": 1}
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=title_of(result, name), **style)
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms, median")
        axes.set_title(f"{MODEL_TITLES[model]}, one text, {threads} thread{'s' if threads > 1 else ''}")
        tokens = [workload["tokens"] for workload in group]
        axes.set_xticks(tokens, [str(count) for count in tokens])
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter("{x:g}")
        figure.legend(fontsize=7, loc="outside right upper")
        axes.grid(alpha=0.3)
        figure.savefig(folder / f"latency-{model}-{threads}.svg", metadata={"Date": None})
        pyplot.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
