"""Quantizing a checkpoint: smoothing keeps the function, GPTQ is GPTQ and pays, everything is deterministic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import random_batch, random_spec, random_tensors
from numpy.typing import NDArray

import edgebert
from edgebert import quant
from edgebert.artifact.names import ONNX_DTYPES, linear_name, weight_tensors
from edgebert.artifact.spec import LINEARS, EncoderSpec
from edgebert.backends.numpy_backend import NumpyBackend
from edgebert.batch import PackedBatch
from edgebert.errors import InvalidInputError, UnsupportedModelError
from edgebert.exporting.quantize import DAMPING, SMOOTHING_LIMIT, gptq, quantize, smoothing_factors

F32 = NDArray[np.float32]
Tensors = dict[str, NDArray[Any]]

LENGTHS = (3, 1, 40, 17, 64, 9, 30, 50)
DATA = Path(edgebert.__file__).parent / "data"


def make_model(**arguments: Any) -> tuple[EncoderSpec, Tensors, PackedBatch]:
    spec = random_spec(**arguments)
    return spec, random_tensors(spec), random_batch(spec, LENGTHS)


def cosine(a: F32, b: F32) -> float:
    return float((a.ravel() @ b.ravel()) / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("task", ["embedding", "pretraining", "token-classification"])
def test_quantized_model_is_whole_and_close(task: str, portable: bool) -> None:
    spec, tensors, batch = make_model(task=task, embedding_size=16 if task == "pretraining" else None)
    before = {name: tensor.copy() for name, tensor in tensors.items()}
    int8, codes, report = quantize(spec, tensors, [batch.take([0, 1, 2]), batch.take(range(3, 8))], portable=portable)
    assert all(np.array_equal(before[name], tensor) for name, tensor in tensors.items())

    numpy_dtypes = {"f32": np.float32, "s8": np.int8, "s32": np.int32}
    assert numpy_dtypes.keys() <= ONNX_DTYPES.keys()
    expected = {name: (numpy_dtypes[dtype], shape) for name, (dtype, shape) in weight_tensors(int8).items()}
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in codes.items()} == expected
    assert (int8.embedding_dtype, int8.portable) == ("s8", portable)
    assert all(layer.dtype(name) == "s8" for layer in int8.layers for name in LINEARS)
    assert all("attention_output" not in layer.smoothed for layer in int8.layers)  # its smoothing is folded

    limit = 63 if portable else 127
    products = [f"{linear_name(i, name)}.weight" for i in range(spec.num_layers) for name in LINEARS]
    products += ["embeddings.word.weight"] if spec.has_decoder else []
    assert max(np.abs(codes[name].astype(int)).max() for name in products) == limit
    assert np.abs(codes["embeddings.position.weight"].astype(int)).max() == 127  # in no product
    for name in products[: 4 * spec.num_layers]:
        prefix = name.removesuffix(".weight")
        assert np.array_equal(codes[f"{prefix}.colsum"], codes[name].astype(int).sum(axis=0))
    if spec.has_decoder:
        assert np.array_equal(codes["mlm.colsum"], codes["embeddings.word.weight"].astype(int).sum(axis=1))

    assert report["calibration_tokens"] == batch.total_tokens
    assert set(report["linears"]) == {linear_name(i, name) for i in range(spec.num_layers) for name in LINEARS}
    fp32_outputs = NumpyBackend(spec, tensors).run(batch, spec.outputs)
    int8_outputs = NumpyBackend(int8, codes).run(batch, spec.outputs)
    for name in spec.outputs:
        assert cosine(int8_outputs[name], fp32_outputs[name]) > (0.998 if portable else 0.9995), name


def test_same_input_same_bits() -> None:
    spec, tensors, batch = make_model()
    first, second = (quantize(spec, tensors, [batch]) for _ in range(2))
    assert first[0] == second[0]
    assert first[2] == second[2]
    assert all(first[1][name].tobytes() == tensor.tobytes() for name, tensor in second[1].items())


def test_pruned_layers() -> None:
    layers = ((0, 8, 40), (2, 8, 0), (0, 8, 0), (1, 6, 12))
    spec, tensors, batch = make_model(layers=layers)
    int8, codes, _ = quantize(spec, tensors, [batch])
    assert set(codes) == set(weight_tensors(int8))
    outputs = [NumpyBackend(*model).run(batch, ["sentence_embedding"]) for model in ((spec, tensors), (int8, codes))]
    assert cosine(*(output["sentence_embedding"] for output in outputs)) > 0.999


def test_linears_kept_in_f32() -> None:
    spec, tensors, batch = make_model()
    kept = {"layer.0.attention.output", "layer.1.attention.qkv", "layer.1.ffn.down"}
    int8, codes, report = quantize(spec, tensors, [batch], keep_f32=kept)
    assert {name: tensor.shape for name, tensor in codes.items()} == {
        n: s for n, (_, s) in weight_tensors(int8).items()
    }
    names = {linear_name(i, name): layer.dtype(name) for i, layer in enumerate(int8.layers) for name in LINEARS}
    assert {name for name, dtype in names.items() if dtype == "f32"} == kept == names.keys() - report["linears"].keys()
    assert np.array_equal(codes["layer.1.ffn.down.weight"], tensors["layer.1.ffn.down.weight"])

    def distance(**options: Any) -> float:
        model = quantize(spec, tensors, [batch], **options)[:2]
        found, wanted = (NumpyBackend(*m).run(batch, ["last_hidden_state"]) for m in (model, (spec, tensors)))
        return float(np.linalg.norm(found["last_hidden_state"] - wanted["last_hidden_state"]))

    assert distance(keep_f32=list(names)) < 0.7 * distance()
    with pytest.raises(InvalidInputError, match="no linear layer.9.ffn.up"):
        quantize(spec, tensors, [batch], keep_f32=["layer.9.ffn.up"])


def test_smoothing_where_calibration_shows_a_gain() -> None:
    """With relu a unit may be made 50 times larger and its output 50 times smaller: smoothing undoes just that."""
    spec, tensors, batch = make_model(activation="relu", layers=((2, 8, 40),))
    _, _, report = quantize(spec, tensors, [batch])
    plain = report["linears"]["layer.0.ffn.down"]
    for unit in (3, 11, 29):
        tensors["layer.0.ffn.up.weight"][:, unit] *= 50
        tensors["layer.0.ffn.up.bias"][unit] *= 50
        tensors["layer.0.ffn.down.weight"][unit] /= 50
    int8, codes, report = quantize(spec, tensors, [batch])
    assert report["linears"]["layer.0.ffn.down"]["smoothed"]
    assert "ffn_down" in int8.layers[0].smoothed
    assert codes["layer.0.ffn.down.inv_smooth"].shape == (40,)
    assert report["linears"]["layer.0.ffn.down"]["error"] < 3 * plain["error"]


def test_refused() -> None:
    spec, tensors, batch = make_model()
    with pytest.raises(InvalidInputError, match="calibration has no tokens"):
        quantize(spec, tensors, [batch.take([])])
    int8, codes, _ = quantize(spec, tensors, [batch])
    with pytest.raises(UnsupportedModelError, match="int8 already"):
        quantize(int8, codes, [batch])


def test_smoothing_factors() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 8)).astype(np.float32) * np.float32([1, 1, 4, 1, 100, 1, 1e-9, 0])
    weight = rng.standard_normal((8, 6)).astype(np.float32)
    weight[5] = 0
    smooth = smoothing_factors(x, weight)
    assert smooth[5] == smooth[7] == 1.0  # nothing to balance
    assert smooth[6] == np.float32(1 / SMOOTHING_LIMIT)  # hardly seen in calibration: must not explode
    ratio = np.sqrt(np.abs(x).max(axis=0) / np.abs(weight).max(axis=1, initial=1e-30))
    others = [0, 1, 2, 3, 4]
    assert np.allclose(smooth[others] / smooth[0], ratio[others] / ratio[0], rtol=1e-5)
    assert np.isclose(np.delete(smooth, [5, 7]).mean(), 1.0, atol=0.01)


def gptq_by_elimination(weight: F32, x: F32, scale: F32, limit: int) -> NDArray[np.int64]:
    """GPTQ without Cholesky or blocks: after each input its row is eliminated from the inverse Hessian (f64)."""
    hessian = x.T.astype(np.float64) @ x
    diagonal = hessian.diagonal().copy()
    inverse = np.linalg.inv(hessian + DAMPING * diagonal.mean() * np.eye(len(hessian)))
    open_weight, codes = weight.astype(np.float64), np.zeros(weight.shape, np.int64)
    for k in np.argsort(-diagonal, kind="stable"):
        codes[k] = np.clip(np.rint(open_weight[k] / scale), -limit, limit)
        error = (open_weight[k] - codes[k] * scale) / inverse[k, k]
        open_weight -= inverse[:, k][:, None] * error
        inverse -= np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
        inverse[k], inverse[:, k] = 0.0, 0.0
        inverse[k, k] = 1.0
    return codes


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 3), (63, 5), (65, 24), (200, 7)])
@pytest.mark.parametrize("limit", [127, 63])
def test_gptq_against_elimination(inputs: int, outputs: int, limit: int) -> None:
    rng = np.random.default_rng(inputs)
    mixing = rng.standard_normal((inputs, inputs)) / np.sqrt(inputs)
    x = (rng.standard_normal((300, inputs)) @ mixing).astype(np.float32)  # correlated inputs
    weight = rng.standard_normal((inputs, outputs)).astype(np.float32)
    scale = quant.weight_scale(weight, limit)
    codes = gptq(weight, x, scale, limit)
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max() <= limit
    expected = gptq_by_elimination(weight, x, scale, limit)
    # f32 updates may tip a tie, and one tipped code moves the rest of its column
    assert np.mean(codes == expected) > 0.95

    def error(q: NDArray[Any]) -> float:
        return float(np.linalg.norm(x @ (q * scale - weight)))

    nearest = error(quant.round_weight(weight, scale, limit))
    assert error(codes) <= 1.01 * error(expected)
    assert inputs == 1 or error(codes) < 0.9 * nearest


def test_gptq_of_inputs_never_seen_is_nearest() -> None:
    weight = np.random.default_rng(0).standard_normal((70, 4)).astype(np.float32)
    scale = quant.weight_scale(weight)
    codes = gptq(weight, np.zeros((5, 70), np.float32), scale)
    assert np.array_equal(codes, quant.round_weight(weight, scale))


def test_calibration_texts() -> None:
    texts = (DATA / "calibration.txt").read_text(encoding="utf-8").splitlines()
    assert len(texts) == len(set(texts)) >= 200
    assert all(text == text.strip() != "" for text in texts)
    assert not set(texts) & set((DATA / "demo_sentences.txt").read_text(encoding="utf-8").splitlines())
