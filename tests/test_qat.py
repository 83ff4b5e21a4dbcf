"""Quantization-aware training: what PyTorch computes is what the int8 file computes, and learning through it pays."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import ROTARY, random_batch, random_spec, random_tensors
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from edgebert import quant  # noqa: E402
from edgebert.backends.numpy_backend import NumpyBackend  # noqa: E402
from edgebert.batch import PackedBatch, unpad  # noqa: E402
from edgebert.checkpoints.loading import Checkpoint  # noqa: E402
from edgebert.compress import finetune  # noqa: E402
from edgebert.compress.distill import distil  # noqa: E402
from edgebert.compress.encode import Examples  # noqa: E402
from edgebert.compress.evaluate import TorchBackend  # noqa: E402
from edgebert.compress.finetune import Batch  # noqa: E402
from edgebert.compress.qat import QuantizedEncoder, settle  # noqa: E402
from edgebert.compress.recipe import Distillation, Training  # noqa: E402
from edgebert.compress.torch_encoder import TorchEncoder  # noqa: E402
from edgebert.exporting.quantize import quantize  # noqa: E402

LENGTHS = (7, 1, 30, 2, 17)
SPECS: dict[str, dict[str, Any]] = {
    "embedding": {},
    "labels": {"task": "text-classification", "num_labels": 4},
    "one-type": {"task": "token-classification", "num_token_types": 1, "position_offset": 2, "family": "roberta"},
    "tied-decoder": {"task": "fill-mask"},
    "projected": {"task": "fill-mask", "family": "electra", "embedding_size": 16},
    "rotary": ROTARY | {"task": "fill-mask"},
    "pruned": {"layers": ((1, 8, 5), (0, 8, 40), (3, 8, 0), (0, 8, 0))},
}
F32 = NDArray[np.float32]


def make_checkpoint(**spec: Any) -> Checkpoint:
    made = random_spec(**spec)
    return Checkpoint(made, random_tensors(made), None, {}, {}, Path())


def quantized(checkpoint: Checkpoint, batches: list[PackedBatch], **options: Any) -> NumpyBackend:
    """The oracle with the int8 file's tensors."""
    spec, tensors, _ = quantize(
        checkpoint.spec, checkpoint.tensors, batches, smooth=checkpoint.smooth or None, **options
    )
    return NumpyBackend(spec, tensors)


def rows(outputs: dict[str, F32]) -> F32:
    first = next(iter(outputs.values()))
    return first.reshape(len(first), -1)


def distance(a: F32, b: F32) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_training_sees_what_the_file_gives(name: str, portable: bool) -> None:
    checkpoint = make_checkpoint(**SPECS[name])
    batch = random_batch(checkpoint.spec, LENGTHS)
    settled = settle(checkpoint, [batch])
    model = QuantizedEncoder(settled.spec, settled.tensors, smooth=settled.smooth, portable=portable)
    file = quantized(settled, [batch], portable=portable)
    seen, given = (rows(backend.run(batch, file.spec.outputs)) for backend in (TorchBackend(model), file))
    cosines = (seen * given).sum(1) / np.linalg.norm(seen, axis=1) / np.linalg.norm(given, axis=1)
    assert cosines.min() >= 0.998  # two int8 implementations
    exact = rows(NumpyBackend(checkpoint.spec, checkpoint.tensors).run(batch, checkpoint.spec.outputs))
    assert distance(seen, given) < 0.2 * distance(exact, given)  # far less than what quantization changes
    assert set(settled.smooth) == {
        f"layer.{i}.{linear}"
        for i, layer in enumerate(checkpoint.spec.layers)
        for linear, size in (("attention.qkv", layer.num_heads), ("ffn.up", layer.intermediate_size))
        if size
    }


@pytest.mark.parametrize("name", SPECS)
def test_settled_smoothing_changes_no_function(name: str) -> None:
    checkpoint = make_checkpoint(**SPECS[name])
    batch = random_batch(checkpoint.spec, LENGTHS)
    settled = settle(checkpoint, [batch])
    before, after = (rows(NumpyBackend(c.spec, c.tensors).run(batch, c.spec.outputs)) for c in (checkpoint, settled))
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()


def test_a_linear_is_the_contract_s() -> None:
    checkpoint = make_checkpoint()
    settled = settle(checkpoint, [random_batch(checkpoint.spec, LENGTHS)])
    model = QuantizedEncoder(settled.spec, settled.tensors, smooth=settled.smooth)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 24)).astype(np.float32)
    x[3], x[4] = 0.0, np.abs(x[4])
    for prefix in ("layer.0.attention.qkv", "layer.1.attention.output"):
        inputs = x[:, : len(settled.tensors[f"{prefix}.weight"])]
        weight, bias = settled.tensors[f"{prefix}.weight"], settled.tensors[f"{prefix}.bias"]
        smooth = settled.smooth.get(prefix, np.ones(len(weight), np.float32))
        scale = quant.weight_scale(weight * smooth[:, None])
        codes = quant.round_weight(weight * smooth[:, None], scale)
        coded = quant.quantize_rows(inputs, np.float32(1.0) / smooth)
        expected = quant.linear_u8s8_f32(*coded, codes, scale, quant.column_sums(codes), bias)
        found = model._linear(prefix, torch.from_numpy(inputs)).detach().numpy()
        assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


def test_gradients_go_straight_through() -> None:
    checkpoint = make_checkpoint()
    settled = settle(checkpoint, [random_batch(checkpoint.spec, LENGTHS)])
    model = QuantizedEncoder(settled.spec, settled.tensors, smooth=settled.smooth)
    prefix = "layer.0.ffn.up"
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((9, 24)).astype(np.float32)).requires_grad_()
    back = torch.from_numpy(rng.standard_normal((9, 40)).astype(np.float32))
    (model._linear(prefix, x) * back).sum().backward()
    smooth = settled.smooth[prefix]
    weight = settled.tensors[f"{prefix}.weight"] * smooth[:, None]
    scale = quant.weight_scale(weight)
    codes = quant.round_weight(weight, scale)
    q, a_scale, zn = quant.quantize_rows(x.detach().numpy(), np.float32(1.0) / smooth)
    seen = (q + zn[:, None]) * a_scale[:, None]
    assert x.grad is not None
    expected = (back.numpy() @ (codes * scale).T) / smooth
    assert np.abs(x.grad.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    expected = (seen.T @ back.numpy()) * smooth[:, None]
    found = model.tensor(f"{prefix}.weight").grad
    assert found is not None and np.abs(found.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


def test_every_parameter_learns() -> None:
    settled = settle(make_checkpoint(task="text-classification"), [random_batch(random_spec(), LENGTHS)])
    model = QuantizedEncoder(settled.spec, settled.tensors, smooth=settled.smooth, dropout=0.1).train()
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in TorchEncoder(settled.spec, settled.tensors).named_parameters()
    ]
    ids, mask, types = (torch.from_numpy(part) for part in random_batch(settled.spec, LENGTHS).pad())
    model(ids, mask, types)["logits"].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_learning_through_codes_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few levels for the weights rounding hurts; a model that has learnt with it is closer to its f32 self."""
    monkeypatch.setattr(quant, "WEIGHT_LIMIT", 5)
    teacher = make_checkpoint(task="text-classification", num_labels=4)
    batch = random_batch(teacher.spec, [9] * 64)
    examples = Examples(batch, [None] * 64, 1, {})
    settled = settle(teacher, [batch])
    settings = Distillation(
        label_weight=0.0, temperature=1.0, training=Training(epochs=15, batch_size=8, learning_rate=1e-3, dropout=0.0)
    )
    build = functools.partial(QuantizedEncoder, smooth=settled.smooth)
    trained, _ = distil(teacher, settled, examples, settings, build=build)
    exact = rows(NumpyBackend(teacher.spec, teacher.tensors).run(batch, ("logits",)))
    after, before = (rows(quantized(c, [batch]).run(batch, ("logits",))) for c in (trained, teacher))
    assert distance(after, exact) < 0.7 * distance(before, exact)


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "_SAVE_EVERY", 3)
    teacher = make_checkpoint(task="text-classification", num_labels=4)
    batch = random_batch(teacher.spec, [5, 9, 3, 7] * 8)
    examples = Examples(batch, [np.int64(i % 4) for i in range(32)], 1, {})
    settled = settle(teacher, [batch])
    training = Training(epochs=2, batch_size=8, learning_rate=1e-3)

    def go(state_file: Path | None, fail_after: int = 10**6) -> dict[str, F32]:
        calls = iter(range(10**6))

        class Failing(QuantizedEncoder):
            def forward(self, *args: Any, **options: Any) -> dict[str, Any]:
                if next(calls) == fail_after:
                    raise KeyboardInterrupt
                return super().forward(*args, **options)

        build = functools.partial(Failing, smooth=settled.smooth)
        return distil(teacher, settled, examples, Distillation(training=training), state_file=state_file, build=build)[
            0
        ].tensors

    whole = go(None)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "state.pt", fail_after=5)
    resumed = go(tmp_path / "state.pt")
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


def test_linears_that_stay_f32_keep_the_trained_weights() -> None:
    settled = settle(make_checkpoint(), [random_batch(random_spec(), LENGTHS)])
    spec, tensors, report = quantize(
        settled.spec,
        settled.tensors,
        [random_batch(settled.spec, LENGTHS)],
        keep_f32=["layer.0.attention.qkv"],
        smooth=settled.smooth,
    )
    name = "layer.0.attention.qkv.weight"
    assert spec.layers[0].qkv == "f32" and np.array_equal(tensors[name], settled.tensors[name])
    assert {linear["rounding"] for linear in report["linears"].values()} == {"nearest"}
    assert spec.layers[1].smoothed == ("qkv", "ffn_up")


def test_outputs_of_padded_and_packed_batches() -> None:
    """Codes are made row by row: padding changes nothing."""
    settled = settle(make_checkpoint(task="token-classification"), [random_batch(random_spec(), LENGTHS)])
    model = QuantizedEncoder(settled.spec, settled.tensors, smooth=settled.smooth).eval()
    batch = random_batch(settled.spec, LENGTHS)
    ids, mask, types = batch.pad()
    together = Batch(*(torch.from_numpy(part) for part in (ids, mask, types)), [], [])
    found = unpad(together.run(model)["logits"].detach().numpy(), mask)
    alone = np.concatenate(
        [TorchBackend(model).run(batch.take([i]), ["logits"])["logits"] for i in range(len(LENGTHS))]
    )
    cosines = (found * alone).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(alone, axis=1)
    assert cosines.min() >= 0.998


def test_bf16_sees_nearly_the_same() -> None:
    settled = settle(make_checkpoint(task="text-classification"), [random_batch(random_spec(), LENGTHS)])
    model = QuantizedEncoder(settled.spec, settled.tensors, smooth=settled.smooth).eval()
    backend, batch = TorchBackend(model), random_batch(settled.spec, LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        half = backend.run(batch, ["logits"])["logits"]
    assert distance(half, backend.run(batch, ["logits"])["logits"]) < 0.05


def test_checkpoints_keep_their_smoothing(tmp_path: Path) -> None:
    from edgebert.compress.stages import load_saved, save_checkpoint

    base = make_checkpoint()
    settled = settle(base, [random_batch(base.spec, LENGTHS)])
    save_checkpoint(tmp_path, settled)
    loaded = load_saved(tmp_path, base)
    assert all(np.array_equal(loaded.smooth[name], factors) for name, factors in settled.smooth.items())
    assert loaded.tensors.keys() == settled.tensors.keys() and loaded.smooth.keys() == settled.smooth.keys()
    save_checkpoint(tmp_path, replace(settled, smooth={}))
    assert not load_saved(tmp_path, base).smooth
