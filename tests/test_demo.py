"""The demo's pieces on tiny models and hand-made numbers; the whole demo runs from the command line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from artifacts import random_batch

import edgebert
from edgebert import demo
from edgebert.errors import BackendUnavailableError, require

DATA = Path(demo.__file__).parent / "data"


def test_sentences_are_300_of_the_right_size_and_not_for_calibration() -> None:
    sentences = demo.read_sentences()
    assert len(sentences) == len(set(sentences)) == 300
    assert all(5 <= len(sentence.split()) <= 35 for sentence in sentences)
    calibration = (DATA / "calibration.txt").read_text(encoding="utf-8").splitlines()
    assert not {" ".join(s.lower().split()) for s in sentences} & {" ".join(s.lower().split()) for s in calibration}


def test_neighbour_flips_are_counted_by_direction_not_length() -> None:
    alone = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float32)
    assert demo.nearest_neighbours(alone).tolist() == [1, 0, 3, 2]
    assert demo.count_neighbour_flips(alone, 3 * alone) == 0
    together = alone.copy()
    together[3] = [1.0, 0.05]  # now beside the first two: row 0's neighbour changes, row 2's and its own as well
    assert demo.nearest_neighbours(together).tolist() == [3, 3, 1, 0]
    assert demo.count_neighbour_flips(alone, together) == 4


def test_quality_is_cosine_to_the_reference_and_flips_between_alone_and_together() -> None:
    rng = np.random.default_rng(0)
    reference, alone = rng.standard_normal((2, 6, 5)).astype(np.float32)
    quality = demo.measure_quality(reference, alone, alone)
    cosine = [
        np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(reference.astype(float), alone.astype(float), strict=True)
    ]
    assert quality.cosine_mean == pytest.approx(np.mean(cosine), abs=1e-6)
    assert quality.cosine_min == pytest.approx(min(cosine), abs=1e-6)
    assert quality.neighbour_flips == 0


def test_table_shows_every_contender_against_the_first(tmp_path: Path) -> None:
    for name, size in (("a", 2_000_000), ("b", 500_000)):
        (tmp_path / name).write_bytes(bytes(size))
    contenders = [demo.Contender(name, tmp_path / name, lambda batch: lambda: np.zeros(0, np.float32)) for name in "ab"]
    qualities = [demo.Quality(1.0, 1.0, 0), demo.Quality(0.99912345, 0.98765, 17)]
    speeds = [demo.Speed([0.004, 0.030], 100.0), demo.Speed([0.002, 0.010], 350.0)]
    lines = demo.render_table(contenders, qualities, speeds).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == [
        *("runtime and file", "size MB", "16 tokens, ms", "128 tokens, ms"),
        *("sentences/s", "cosine mean", "min", "neighbour flips"),
    ]
    assert cells[2] == ["a", "2.0", "4.00 (1.00x)", "30.00 (1.00x)", "100 (1.00x)", "1.00000", "1.0000", "0"]
    assert cells[3] == ["b", "0.5", "2.00 (2.00x)", "10.00 (3.00x)", "350 (3.50x)", "0.99912", "0.9877", "17"]
    assert len({len(line) for line in lines}) == 1


def test_contenders_embed_the_same_texts_alike(make_file: Callable[..., Path]) -> None:
    pytest.importorskip("onnxruntime")
    path = make_file()
    ours, peer = (bind("name", path, 1) for bind in (demo.bind_edgebert, demo.bind_onnxruntime))
    batch = random_batch(edgebert.load(path).spec, [3, 9, 1, 5, 7])
    batch = edgebert.PackedBatch(batch.input_ids, np.zeros_like(batch.token_type_ids), batch.cu_seqlens)
    alone = ours.embed(batch, 1)
    assert alone.shape == (5, 24)
    for rows in (ours.embed(batch, 2), ours.embed(batch, 5), peer.embed(batch, 1), peer.embed(batch, 3)):
        np.testing.assert_allclose(rows, alone, rtol=0, atol=1e-5 * np.abs(alone).max())


def test_usual_int8_is_made_from_our_fp32_file(make_file: Callable[..., Path], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    fp32, usual = make_file(), tmp_path / "usual.onnx"
    demo.quantize_usual(fp32, usual)
    operators = [node.op_type for node in onnx.load(usual).graph.node]
    assert operators.count("MatMulInteger") == 8  # four linears in each of two layers
    batch = edgebert.PackedBatch.from_lists([[2, 5, 6, 3]])
    rows = [demo.bind_onnxruntime("name", path, 1).embed(batch, 1)[0] for path in (fp32, usual)]
    assert np.dot(*rows) > 0.9


def test_search_finds_the_sentence_itself_first(make_file: Callable[..., Path]) -> None:
    sentences = ["the router is slow", "water the roses at the root", "the modem restarts", "very good bad query"]
    found = demo.search(edgebert.load(make_file()), sentences[2], sentences, 3)
    assert [sentence for _, sentence in found][0] == sentences[2]
    assert len(found) == 3
    scores = [score for score, _ in found]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(1, abs=1e-5)


def test_missing_extras_are_named_with_the_way_to_get_them() -> None:
    require("demo", "numpy")
    with pytest.raises(BackendUnavailableError, match=r"^no_such_module is not .*pip install 'edgebert\[demo\]'"):
        require("demo", "numpy", "no_such_module")
