"""Training in two processes: the losses and weights of one, for every loss that there is, also when it goes on."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import random_spec, random_tensors

torch = pytest.importorskip("torch")

from edgebert.batch import PackedBatch  # noqa: E402
from edgebert.checkpoints.loading import Checkpoint  # noqa: E402
from edgebert.compress.distill import distil, narrow_student  # noqa: E402
from edgebert.compress.encode import Examples  # noqa: E402
from edgebert.compress.finetune import Progress, TaskLoss, train  # noqa: E402
from edgebert.compress.ranks import is_leader, lead, run_everywhere, run_share  # noqa: E402
from edgebert.compress.recipe import Distillation, Training  # noqa: E402
from edgebert.compress.torch_encoder import TorchEncoder  # noqa: E402

COUNT = 19  # in batches of 6, so that the last one has fewer examples than there are processes
TRAINING = Training(epochs=2, batch_size=6, dropout=0.0, learning_rate=1e-3, precision="f32")
DISTILLATION = Distillation(relation_weight=0.5, training=TRAINING)
# spec, target of example i, sequences an example, settings of a distillation into a narrower student
CASES: dict[str, tuple[dict[str, Any], Callable[[int], Any], int, Distillation | None]] = {
    "labels": ({"task": "text-classification", "num_labels": 4}, lambda i: np.int64(i % 4), 1, None),
    "tags": ({"task": "token-classification"}, lambda i: np.array([-100, i % 3, 1]), 1, None),
    "contrastive": ({}, lambda i: np.float32(np.nan), 2, None),
    "masked": ({"task": "fill-mask"}, lambda i: None, 1, None),
    "distilled": ({}, lambda i: None if i % 3 else np.float32(i % 2), 2, DISTILLATION),
}


def make_case(name: str) -> tuple[Checkpoint, Examples]:
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "[MASK]": 4, "a": 5}, unk_token="a"))
    tokenizer.add_special_tokens(["[PAD]", "[MASK]"])
    settings, target, width, _ = CASES[name]
    spec = random_spec(**{"vocab_size": 60, "num_positions": 20, **settings})
    rng = np.random.default_rng(0)
    rows = [[5 + i % 4, *rng.integers(10, 60, rng.integers(2, 9)).tolist()] for i in range(COUNT * width)]
    targets = [target(i) for i in range(COUNT)]
    checkpoint = Checkpoint(spec, random_tensors(spec), tokenizer.to_str(), {}, {}, Path())
    return checkpoint, Examples(PackedBatch.from_lists(rows), targets, width, {})


def train_case(name: str, **options: Any) -> tuple[Progress, dict[str, Any]]:
    """How a case's training went, and the weights after it."""
    checkpoint, examples = make_case(name)
    if (settings := CASES[name][3]) is not None:
        student, progress = distil(
            checkpoint, narrow_student(checkpoint, 16, 2), examples, settings, widths=(8,), **options
        )
        return progress, student.tensors
    model = TorchEncoder(checkpoint.spec, checkpoint.tensors)
    progress = train(model, examples, TaskLoss(checkpoint), TRAINING, **options)
    return progress, model.tensors()


def train_all(folder: Path) -> None:
    """What both processes do: all cases, one of them twice, the second time from where the first epoch ended."""
    for name in CASES:
        progress, tensors = train_case(name)
        np.savez(folder / f"{name}.npz", losses=progress.losses, **tensors)
    state, kept = folder / "state.pt", folder / "kept.pt"

    def score(_: Any) -> float:
        if state.exists():  # it is of the epoch before
            shutil.copyfile(state, kept)
        return float(len(list(folder.iterdir())))

    whole, expected = train_case("labels", evaluate=score, state_file=state)
    assert kept.exists()
    again, found = train_case("labels", evaluate=lambda _: 9.0 + whole.best_epoch, state_file=kept)
    np.savez(folder / "again.npz", losses=again.losses, expected_losses=whole.losses)
    assert all(np.array_equal(expected[tensor], found[tensor]) for tensor in found)
    run_everywhere(see_dropout, {"folder": folder}, {})


def see_dropout(folder: Path) -> None:
    """The same text twice, once in each process."""
    checkpoint, examples = make_case("labels")
    ids, mask, types = map(torch.from_numpy, examples.batch.take([0, 0]).pad())
    model = TorchEncoder(checkpoint.spec, checkpoint.tensors, dropout=0.5).train()
    torch.manual_seed(0)
    rows = run_share(model, ids, mask, types)["logits"].detach().numpy()
    after = torch.rand(1).item()  # what is random beside dropout is the same everywhere
    np.savez(folder / f"dropout-{int(is_leader())}.npz", rows=rows, after=after)


def run_two(logs: Path, *command: str) -> tuple[int, dict[str, str]]:
    """torchrun's exit status, and what each process said, by its number."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*torchrun, "--redirects", "3", "--log-dir", str(logs), *command],
        env=environment,
        capture_output=True,
        timeout=300,
        check=False,
    )
    return done.returncode, {path.parent.name: path.read_text() for path in logs.rglob("stderr.log")}


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    folder = tmp_path / "found"
    folder.mkdir()
    status, told = run_two(tmp_path / "logs", __file__, str(folder))
    assert status == 0, told
    assert "batch" in told["0"] and "batch" not in told["1"]  # one progress bar

    for name in CASES:
        progress, expected = train_case(name)
        found = np.load(folder / f"{name}.npz")
        np.testing.assert_allclose(found["losses"], progress.losses, rtol=1e-5, err_msg=name)
        for tensor, values in expected.items():
            if "qkv.bias" not in tensor:  # a key's bias has a gradient of rounding alone, which AdamW makes a full step
                np.testing.assert_allclose(found[tensor], values, atol=2e-4, err_msg=f"{name}, {tensor}")
    again = np.load(folder / "again.npz")
    np.testing.assert_array_equal(again["losses"], again["expected_losses"])

    (one, other), *after = (
        np.load(folder / "dropout-1.npz")["rows"],
        *(np.load(p)["after"] for p in folder.glob("dropout*")),
    )
    assert not np.array_equal(one, other) and after[0] == after[1]
    np.testing.assert_array_equal(np.load(folder / "dropout-0.npz")["rows"], [one, other])


def test_the_first_process_says_alone_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,1\nb,0\n")
    arguments = ("compress", str(tmp_path), "--task", "text-classification", "--train", str(tmp_path / "train.csv"))
    status, told = run_two(tmp_path / "logs", "-m", "edgebert", *arguments, "-o", str(tmp_path / "small.onnx"))
    assert status == 1
    assert "too few rows (2)" in told["0"]
    assert "Traceback" not in told["0"] + told["1"] and "edgebert:" not in told["1"]


if __name__ == "__main__":
    lead(lambda: train_all(Path(sys.argv[1])))
