"""`edgebert compress`: a checkpoint and task data to a small, fast file within a budget."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

from edgebert.errors import require
from edgebert.files import check_target, write_whole
from edgebert.printing import print_table

HELP = "fine-tune, distil, prune and quantize a model to a budget"

NEEDS = ("safetensors", "scipy", "tomli_w", "torch", "tqdm", "transformers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments; those that are given replace what the recipe says."""
    parser.add_argument("model", nargs="?", help="a Hugging Face folder, a hub name or an installed model package")
    parser.add_argument("--task", help="text-classification, token-classification, question-answering, embedding, …")
    parser.add_argument("--train", metavar="FILE", help="task data: CSV, TSV, JSON lines (.gz too) or Parquet")
    parser.add_argument("--eval", metavar="FILE", help="the same, to judge by (default: two tenths of --train)")
    parser.add_argument("--also-eval", metavar="FILE", action="append", help="other text: what is lost there is told")
    parser.add_argument("--confidence", type=float, help="of what is said of the loss (default: 0.95)")
    parser.add_argument("--unlabelled", metavar="FILE", help="more texts, for distillation and for --trim")
    parser.add_argument("-o", "--output", metavar="FILE", help="the file to write, .onnx; a report is put beside it")
    parser.add_argument("--recipe", metavar="FILE", help="a recipe in TOML")
    parser.add_argument("--write-recipe", metavar="FILE", help="write these arguments as a recipe, and stop")
    parser.add_argument("--column", metavar="ROLE=NAME", action="append", help="the column of a role: text=review")
    parser.add_argument(
        "--label-map",
        metavar="DATA=CHECKPOINT",
        action="append",
        help="the checkpoint's label for one of the data: 1=spam",
    )
    parser.add_argument("--problem-type", help="single_label_classification, multi_label_classification or regression")
    parser.add_argument(
        "--budget",
        metavar="B",
        action="append",
        help="drop=1.0, size=10MB, speed=3x, latency=2ms@128; several with commas",
    )
    parser.add_argument("--epochs", type=int, help="epochs of fine-tuning, and of distillation")
    parser.add_argument("--learning-rate", type=float, help="learning rate of fine-tuning")
    parser.add_argument("--no-finetune", action="store_true", help="take the model as it is")
    parser.add_argument("--layers", type=int, metavar="N", help="distil into a student of N layers")
    parser.add_argument("--hidden-size", type=int, metavar="N", help="with --layers: narrow the student to N features")
    parser.add_argument(
        "--matryoshka", metavar="N,N", help="of embeddings: train their first N dimensions to be good alone, for each N"
    )
    parser.add_argument("--flops", type=float, metavar="SHARE", help="prune to this share of the arithmetic")
    parser.add_argument("--within-drop", action="store_true", help="with --flops: stop before the drop budget is spent")
    parser.add_argument("--retrain", action="store_true", help="after pruning: distil the unpruned model into the rest")
    parser.add_argument("--trim", action="store_true", help="cut the vocabulary to the training and unlabelled texts")
    parser.add_argument("--exits", action="store_true", help="train a head after each layer: texts leave when sure")
    parser.add_argument(
        "--exit-risk",
        type=float,
        metavar="SHARE",
        help="train exits, and let this share of answers differ (default: 0.01)",
    )
    parser.add_argument("--qat", action="store_true", help="train with int8's codes before int8: quantization-aware")
    parser.add_argument("--portable", action="store_true", help="int8 weights in +-63, for x86 CPUs without VNNI")
    parser.add_argument("--no-int8", action="store_true", help="leave weights and activations in fp32")
    parser.add_argument("--work", metavar="FOLDER", help="where finished stages are kept (default: beside the output)")
    parser.add_argument("--seed", type=int, help="the same one gives the same file (default: 0)")


def main(args: argparse.Namespace) -> int:
    """Run the command: 0 if every budget was met, 1 if one was not, 3 if none was missed, but one is not shown."""
    require("compress", *NEEDS)
    from edgebert.compress.ranks import lead

    return lead(partial(_compress, args)) or 0


def _compress(args: argparse.Namespace) -> int:
    recipe = build_recipe(args)
    if args.write_recipe:
        check_target(args.write_recipe)
        write_whole(args.write_recipe, recipe.to_toml())
        return 0
    from edgebert.compress.page import (
        OTHER_COLUMNS,
        WIDTH_COLUMNS,
        describe_budget,
        describe_exits,
        ladder_columns,
        ladder_rows,
        other_rows,
        width_rows,
    )
    from edgebert.compress.pipeline import run

    try:
        result = run(recipe, progress=lambda text: print(f"* {text}", file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        print(f"edgebert: interrupted; the same command goes on from {recipe.work_folder}", file=sys.stderr)
        raise
    print_table([ladder_columns(result.report), *ladder_rows(result.report)])
    if result.report["also"]:
        print_table([OTHER_COLUMNS, *other_rows(result.report)])
    if result.report["exits"]:
        print(describe_exits(result.report["exits"]))
    if result.report["widths"]:
        print_table([WIDTH_COLUMNS, *width_rows(result.report)])
    for name, budget in result.report["budgets"].items():
        print(describe_budget(name, budget))
    print(f"wrote {result.output}, and beside it the report: .json and .html")
    size = sum(path.stat().st_size for path in recipe.work_folder.rglob("*") if path.is_file())
    print(
        f"finished stages, {size / 1e6:.0f} MB, stay in {recipe.work_folder}: another try reuses them; else remove them"
    )
    return {"met": 0, "not met": 1, "not shown": 3}[result.verdict]


def build_recipe(args: argparse.Namespace) -> Any:
    """The recipe of the arguments: what they say over what the recipe's file says.

    Raises:
        InvalidInputError: something is missing or out of range.
    """
    import dataclasses

    from edgebert.compress.recipe import (
        Budget,
        Distillation,
        Exits,
        Pruning,
        QuantizationAware,
        Recipe,
        Training,
        read_recipe,
    )

    names = ("model", "task", "train", "eval", "unlabelled", "output", "problem_type", "work", "seed", "confidence")
    changes: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    changes |= {"also_eval": tuple(args.also_eval)} if args.also_eval else {}
    if args.matryoshka:
        changes["matryoshka"] = _read_widths(args.matryoshka)
    if args.column:
        changes["columns"] = _read_pairs("--column", args.column, "ROLE=NAME, for instance text=review")
    if args.label_map:
        changes["label_map"] = _read_pairs("--label-map", args.label_map, "DATA=CHECKPOINT, for instance 1=spam")
    if args.budget:
        changes["budget"] = Budget.parse(args.budget)
    changes |= {"trim": True} if args.trim else {}
    changes |= {"portable": True} if args.portable else {}
    changes |= {"int8": False} if args.no_int8 else {}
    recipe = read_recipe(args.recipe, **changes) if args.recipe else Recipe.from_toml("", **changes)
    rates = {"epochs": args.epochs, "learning_rate": args.learning_rate}
    given = {name: value for name, value in rates.items() if value is not None}
    if args.no_finetune:
        recipe = dataclasses.replace(recipe, finetune=None)
    elif given:
        recipe = dataclasses.replace(recipe, finetune=dataclasses.replace(recipe.finetune or Training(), **given))
    student = {"num_layers": args.layers, "hidden_size": args.hidden_size}
    if given := {name: value for name, value in student.items() if value is not None}:
        distill = dataclasses.replace(recipe.distill or Distillation(), **given)
        recipe = dataclasses.replace(recipe, distill=distill)
    if args.epochs is not None and recipe.distill is not None:
        training = dataclasses.replace(recipe.distill.training, epochs=args.epochs)
        recipe = dataclasses.replace(recipe, distill=dataclasses.replace(recipe.distill, training=training))
    # A budget of size or time prunes as far as it asks; --flops alone would prune to half.
    is_planned = recipe.budget.prunes and recipe.prune is None
    flops = 1.0 if args.flops is None and args.retrain and is_planned else args.flops
    pruning = {"flops": flops, "within_drop": args.within_drop or None, "retrain": args.retrain or None}
    if given := {name: value for name, value in pruning.items() if value is not None}:
        recipe = dataclasses.replace(recipe, prune=dataclasses.replace(recipe.prune or Pruning(), **given))
    if args.exits or args.exit_risk is not None:
        exits = recipe.exits or Exits()
        risk = exits.risk if args.exit_risk is None else args.exit_risk
        recipe = dataclasses.replace(recipe, exits=dataclasses.replace(exits, risk=risk))
    if args.qat:
        recipe = dataclasses.replace(recipe, qat=recipe.qat or QuantizationAware())
    return recipe


def _read_pairs(option: str, values: list[str], expected: str) -> dict[str, str]:
    """NAME=VALUE, several times."""
    from edgebert.errors import InvalidInputError

    pairs = [value.partition("=") for value in values]
    if wrong := [value for value, (name, _, other) in zip(values, pairs, strict=True) if not (name and other)]:
        raise InvalidInputError(f"{option} {wrong[0]!r}: expected {expected}")
    return {name: other for name, _, other in pairs}


def _read_widths(text: str) -> tuple[int, ...]:
    """Numbers with commas between them."""
    from edgebert.errors import InvalidInputError

    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise InvalidInputError(f"--matryoshka {text!r}: expected numbers of dimensions, for instance 64,128,256")
    return tuple(int(part) for part in text.split(","))
