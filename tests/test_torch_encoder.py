"""The PyTorch encoder against the oracle: every task and head, pruned layers, masks, and the way back to tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from artifacts import POSITION_TABLES, ROTARY, random_batch, random_spec, random_tensors

from edgebert.artifact.names import weight_tensors
from edgebert.backends.numpy_backend import NumpyBackend
from edgebert.batch import PackedBatch, unpad
from edgebert.compress.torch_encoder import TorchEncoder
from edgebert.errors import InvalidInputError, UnsupportedModelError

LENGTHS = (7, 1, 30, 2, 17)
SPECS: dict[str, dict[str, Any]] = {
    "mean": {},
    "cls-dense": {"pooling": "cls", "dense_size": 10, "normalize": False},
    "hidden-states-only": {"pooling": "none"},
    "poolings": {"pooling": "cls+max+mean+mean_sqrt_len+weighted_mean+last", "dense_size": 10},
    "sparse": {"sparse_pooling": "max", "token_size": 9, "has_token_weights": True},
    "sparse sum": {"sparse_pooling": "sum", "num_sparse_logs": 2, "pooling": "none"},
    "sequence": {"task": "text-classification"},
    "relu-head": {"task": "text-classification", "family": "distilbert", "num_token_types": 0, "activation": "relu"},
    "offset-one-type": {"task": "text-classification", "family": "roberta", "num_token_types": 1, "position_offset": 2},
    "padding-position": {"family": "roberta", "position_offset": 2, "has_padding_position": True},
    "token": {"task": "token-classification", "num_labels": 5, "activation": "gelu_tanh"},
    "question-answering": {"task": "question-answering"},
    "fill-mask": {"task": "fill-mask"},
    "projected-fill-mask": {"task": "fill-mask", "family": "electra", "embedding_size": 16},
    "next-sentence": {"task": "next-sentence"},
    "pretraining": {"task": "pretraining"},
    "gates-after-norms": ROTARY | {"is_pre_norm": False, "activation": "silu"},
    "rotary": ROTARY | {"task": "token-classification", "dense_size": 10, "has_dense_norm": True},
    "rotary-pruned": ROTARY
    | {"layers": ((1, 8, 5), (0, 8, 40), (3, 8, 0)), "windows": (5, 0, 2), "rotary_bases": (10.0,) * 3},
    "pruned": {"layers": ((1, 8, 5), (0, 8, 40), (3, 8, 0), (0, 8, 0))},
    "shared-layers": {"repeats": 2},
    "position-bias": {"layers": ((1, 8, 5), (0, 8, 40), (3, 8, 0)), "max_relative_distance": 9},
    "position-tables": POSITION_TABLES | {"layers": ((1, 8, 5), (0, 8, 40), (3, 8, 0))},
}


def run(model: TorchEncoder, batch: PackedBatch, **options: Any) -> dict[str, Any]:
    ids, mask, types = (torch.from_numpy(part) for part in batch.pad())
    return model(ids, mask, types, **options)


@pytest.mark.parametrize("name", SPECS)
def test_equals_the_oracle(name: str) -> None:
    spec = random_spec(**SPECS[name])
    tensors = random_tensors(spec)
    batch = random_batch(spec, LENGTHS)
    model = TorchEncoder(spec, tensors).eval()
    with torch.no_grad():
        outputs = run(model, batch)
    assert set(outputs) == set(spec.outputs)
    mask = batch.pad()[1]
    for key, expected in NumpyBackend(spec, tensors).run(batch, spec.outputs).items():
        found = outputs[key].numpy()
        found = unpad(found, mask) if spec.output_width(key)[0] else found
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_tensors_come_back_to_the_bit() -> None:
    spec = random_spec(task="pretraining")
    tensors = random_tensors(spec)
    model = TorchEncoder(spec, dict(sorted(tensors.items(), reverse=True)))
    back = model.tensors()
    assert list(back) == list(weight_tensors(spec))
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    assert shapes == [shape for _, shape in weight_tensors(spec).values()]  # whatever order the tensors came in
    assert all(back[name].dtype == np.float32 and (back[name] == tensors[name]).all() for name in back)


def test_every_parameter_learns() -> None:
    spec = random_spec(task="text-classification")
    model = TorchEncoder(spec, random_tensors(spec), dropout=0.1, attention_dropout=0.1).train()
    run(model, random_batch(spec, LENGTHS))["logits"].square().sum().backward()
    for name in weight_tensors(spec):
        assert model.tensor(name).grad is not None, name
        assert model.tensor(name).grad.abs().sum() > 0, name


def test_masks_equal_zeroed_weights_and_carry_gradients() -> None:
    spec = random_spec(layers=((3, 8, 12), (2, 8, 10)))
    tensors = random_tensors(spec)
    batch = random_batch(spec, LENGTHS)
    heads = [torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.5, 1.0])]
    neurons = [torch.ones(12), torch.ones(10)]
    neurons[1][3] = 0.0
    for mask in heads + neurons:
        mask.requires_grad_(True)
    masked = run(TorchEncoder(spec, tensors), batch, head_masks=heads, neuron_masks=neurons)["sentence_embedding"]
    changed = {name: tensor.copy() for name, tensor in tensors.items()}
    changed["layer.0.attention.output.weight"][8:16] = 0.0
    changed["layer.1.attention.output.weight"][:8] *= 0.5
    changed["layer.1.ffn.down.weight"][3] = 0.0
    expected = run(TorchEncoder(spec, changed), batch)["sentence_embedding"]
    torch.testing.assert_close(masked, expected, rtol=1e-5, atol=1e-6)
    masked[:, 0].sum().backward()
    assert all(mask.grad is not None and mask.grad.abs().sum() > 0 for mask in heads + neurons)


def test_hidden_states_and_qkv() -> None:
    spec = random_spec(layers=((2, 8, 5), (0, 8, 40)))
    tensors = random_tensors(spec)
    outputs = run(TorchEncoder(spec, tensors).eval(), random_batch(spec, (4, 4)), keep_hidden=True)
    first, second, last = outputs["hidden_states"]
    assert torch.equal(last, outputs["last_hidden_state"])
    expected = first @ torch.from_numpy(tensors["layer.0.attention.qkv.weight"])
    expected += torch.from_numpy(tensors["layer.0.attention.qkv.bias"])
    assert outputs["qkv"][0].shape == (2, 4, 3, 2, 8) and outputs["qkv"][1] is None
    torch.testing.assert_close(outputs["qkv"][0].flatten(2), expected)


def test_heads_over_some_tokens() -> None:
    spec = random_spec(task="fill-mask")
    model = TorchEncoder(spec, random_tensors(spec)).eval()
    batch = random_batch(spec, (5, 3))
    only = torch.zeros(2, 5, dtype=torch.bool)
    only[0, 2] = only[1, 1] = True
    torch.testing.assert_close(run(model, batch, only=only)["logits"], run(model, batch)["logits"][only])


def test_refuses_int8_and_wrong_tensors() -> None:
    spec = random_spec(int8=True)
    with pytest.raises(UnsupportedModelError, match="int8"):
        TorchEncoder(spec, random_tensors(spec))
    spec = random_spec()
    tensors = random_tensors(spec)
    del tensors["layer.1.ffn.up.bias"]
    with pytest.raises(InvalidInputError, match=r"layer\.1\.ffn\.up\.bias"):
        TorchEncoder(spec, tensors)
