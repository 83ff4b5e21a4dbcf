"""`edgebert demo --compress`: an embedding model becomes a small, fast classifier of sentences that come along."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import edgebert
from edgebert.compress.page import ladder_columns, ladder_rows
from edgebert.compress.pipeline import run
from edgebert.compress.recipe import Distillation, Pruning, Recipe, Training
from edgebert.demo import MODEL_PACKAGE, SENTENCES_FILE
from edgebert.exporting.export import CALIBRATION_FILE
from edgebert.printing import print_table

LABELLED_FILE = SENTENCES_FILE.with_name("demo_labelled.tsv")
EVALUATED = 3  # one sentence in so many is for evaluation
QUESTIONS = (
    "Could I have the atlas for another month?",
    "Is the reading room open at night?",
    "It is so cold in here!",
)


def main(keep: str | None) -> int:
    """Compress all-MiniLM-L6-v2 into a classifier of letters to a library, and show the ladder.

    Args:
        keep: a folder for the files; None takes a temporary one, which stays.
    """
    folder = Path(keep if keep is not None else tempfile.mkdtemp(prefix="edgebert-compress-"))
    folder.mkdir(parents=True, exist_ok=True)
    recipe = build_recipe(folder)
    (folder / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    started = time.perf_counter()
    result = run(recipe, progress=lambda text: print(f"[{time.perf_counter() - started:5.1f} s] {text}", flush=True))
    print()
    print_table([ladder_columns(result.report), *ladder_rows(result.report)])
    model = edgebert.load(result.output)
    print()
    for text, answer in zip(QUESTIONS, model(list(QUESTIONS)), strict=True):
        print(f"{answer['label']:>9} {answer['score']:.2f}  {text}")
    print(f"\nThe report: {result.output.with_suffix('.html')}\nThe recipe: {folder / 'recipe.toml'}")
    return 0


def build_recipe(folder: Path) -> Recipe:
    """The demo's recipe; writes its data files into the folder."""
    header, *rows = LABELLED_FILE.read_text(encoding="utf-8").splitlines()
    held = rows[::EVALUATED]
    for name, part in (("train", [row for row in rows if row not in held]), ("eval", held)):
        (folder / f"{name}.tsv").write_text("\n".join([header, *part]) + "\n", encoding="utf-8")
    texts = [path.read_text(encoding="utf-8") for path in (SENTENCES_FILE, CALIBRATION_FILE)]  # not about libraries
    (folder / "texts.txt").write_text("".join(texts), encoding="utf-8")
    return Recipe(
        MODEL_PACKAGE,
        "text-classification",
        str(folder / "train.tsv"),
        str(folder / "letters.onnx"),
        eval=str(folder / "eval.tsv"),
        unlabelled=str(folder / "texts.txt"),
        finetune=Training(epochs=10, batch_size=16, learning_rate=3e-4, patience=4),
        distill=Distillation(num_layers=3, training=Training(epochs=10, batch_size=16, learning_rate=4e-4, patience=9)),
        prune=Pruning(flops=0.6, retrain=True, training=Training(epochs=3, batch_size=16, learning_rate=2e-4)),
    )
