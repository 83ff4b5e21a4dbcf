"""Tokenizers of checkpoints: what transformers makes of a folder's files, or a refusal by name; never anything else."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from checkpoints import add_sentence_modules, change_config, make_checkpoint, write_json

import edgebert
from edgebert.checkpoints import tokenizer as checkpoint_tokenizer
from edgebert.checkpoints.loading import load_checkpoint
from edgebert.errors import BackendUnavailableError, ModelFormatError, UnsupportedModelError
from edgebert.exporting import export, reference
from edgebert.exporting.check import Encoded, GateError, check_tokenizer
from edgebert.tokenizer import Tokenizer

MEAN = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}


@pytest.fixture(scope="module")
def parity() -> Any:
    """The module benchmarks.import_parity, which makes checkpoints that differ in their tokenizers."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from benchmarks import import_parity

    yield import_parity
    sys.path.pop(0)


@pytest.fixture
def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and check as if transformers were not installed."""
    for module in (checkpoint_tokenizer, reference, export):
        monkeypatch.setattr(module, "has_transformers", lambda: False)


# Variants of benchmarks.import_parity, one or two of a kind, and whether they can be read without transformers.
VARIANTS = {
    "no class, json": True,
    "no class, json cased": True,
    "no class, json without template": False,
    "BertTokenizer, json, do_lower_case False": True,
    "BertTokenizerFast, json, tokenize_chinese_chars False": True,
    "BertTokenizer, json, split specials": True,
    "BertTokenizer, vocab, cased": True,
    "DistilBertTokenizer, json": True,
    "DistilBertTokenizer in config, vocab": True,
    "PreTrainedTokenizerFast, json cased": False,
    "TokenizersBackend, json, strip_accents False": False,
    "MPNetTokenizer, json": False,
    "mpnet, no class, json": True,
    "mpnet, MPNetTokenizer, json": True,
    "electra, no class, json cased": True,
    "distilbert, PreTrainedTokenizerFast, json": True,
    "BertTokenizer, other normalizer in json": False,
    "PreTrainedTokenizerFast, other pre_tokenizer in json": False,
    "BertTokenizer, json, additional_special_tokens": False,
    "BertTokenizer, vocab, extra_special_tokens, list": False,
    "BertTokenizer, json, added_tokens_decoder, plain": False,
    "BertTokenizer, vocab, added_tokens.json, special": False,
    "BertTokenizer, json, special_tokens_map.json": False,
    "BertTokenizer, vocab, mask takes in blanks": False,
    "BertTokenizer, vocab, cls and sep renamed in map": True,
    "BertTokenizer, json, no types": True,
    "PreTrainedTokenizerFast, json, no types": True,
    "PreTrainedTokenizerFast, json, types": True,
    "BertTokenizer, json, truncation left": True,
    "byte pairs, no class, json, as it is": True,
    "byte pairs, RobertaTokenizer, json with prefix space, prefix space": True,
    "byte pairs, RobertaTokenizer, json, untrimmed": True,
    "byte pairs, RobertaTokenizer, json, truncation left": True,
    "byte pairs, RobertaTokenizer, merges, mask named": False,
    "byte pairs, GPT2Tokenizer, json, as it is": False,
    "unigram, xlm-roberta, no class, as it is": True,
    "unigram, xlm-roberta, XLMRobertaTokenizer, other pre_tokenizer": False,
    "unigram, camembert, CamembertTokenizer, truncation left": True,
    "unigram, bert, PreTrainedTokenizerFast, as it is": True,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_transformers(name: str, parity: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [variant] = [variant for variant in parity.list_variants() if variant.name == name]
    [folder] = parity.write_variants(tmp_path, [variant])
    expected = parity.run_reference(tmp_path / folder)
    assert parity.compare(tmp_path / folder, expected) == "equal"
    for module in (checkpoint_tokenizer, reference, export):
        monkeypatch.setattr(module, "has_transformers", lambda: False)
    found = parity.compare(tmp_path / folder, expected)
    assert found == "equal" if VARIANTS[name] else found.startswith("refused: the tokenizer of FOLDER cannot be read")


REFUSED = {
    "BertJapaneseTokenizer, vocab": "tokenizer class BertJapaneseTokenizer is written in Python",
    "BertweetTokenizer, json": "transformers .* cannot load the tokenizer",
    "NoSuchTokenizer, vocab": "transformers .* cannot load the tokenizer",
    "RobertaTokenizer, vocab": "transformers",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_other_classes_by_name(name: str, parity: Any, tmp_path: Path) -> None:
    [variant] = [variant for variant in parity.list_variants() if variant.name == name]
    [folder] = parity.write_variants(tmp_path, [variant])
    with pytest.raises(UnsupportedModelError, match=REFUSED[name]):
        load_checkpoint(tmp_path / folder)


@pytest.mark.usefixtures("without_transformers")
def test_refuses_by_name_what_it_cannot_read_alone(parity: Any, tmp_path: Path) -> None:
    [variant] = [variant for variant in parity.list_variants() if variant.name == "HerbertTokenizer, json"]
    [folder] = parity.write_variants(tmp_path, [variant])
    with pytest.raises(UnsupportedModelError, match="'HerbertTokenizer' is not one of BertTokenizer, Distil"):
        load_checkpoint(tmp_path / folder)


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "roberta", "xlm-roberta", "camembert", "mpnet"])
def test_mutated_configurations(family: str, parity: Any, tmp_path: Path) -> None:
    """Each is exported with transformers' outputs, or refused with an error of ours."""
    mutations = list(parity.list_mutations(tmp_path / "models", 15))
    for variant in mutations:
        if variant.family == family:
            [folder] = parity.write_variants(tmp_path, [variant])
            try:
                expected = parity.run_reference(tmp_path / folder)
            except Exception as error:  # transformers' own, of any kind
                expected = str(error)
            found = parity.compare(tmp_path / folder, expected)
            assert found.startswith(("equal", "refused", "alone")), (variant.name, found)


def test_no_input_names_are_no_types(parity: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [variant] = [variant for variant in parity.list_variants() if variant.name == "BertTokenizer, json, no types"]
    variant.files["tokenizer_config.json"]["model_input_names"] = []
    [folder] = parity.write_variants(tmp_path, [variant])
    monkeypatch.setattr(checkpoint_tokenizer, "has_transformers", lambda: False)
    assert parity.compare(tmp_path / folder, parity.run_reference(tmp_path / folder)) == "equal"


@pytest.mark.parametrize("change", [{"chunk_size_feed_forward": "x"}, {"hidden_dropout_prob": float("nan")}], ids=str)
def test_a_config_that_transformers_cannot_run_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    change_config(tmp_path, **change)
    with pytest.raises(GateError, match="transformers .* cannot (load|run) the source"):
        edgebert.export(tmp_path, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_sentencepiece_model_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path, "camembert")
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"model")
    with pytest.raises(UnsupportedModelError, match="transformers .* cannot load the tokenizer"):
        load_checkpoint(tmp_path)
    monkeypatch.setattr(checkpoint_tokenizer, "has_transformers", lambda: False)
    with pytest.raises(UnsupportedModelError, match="CamembertTokenizer without tokenizer.json"):
        load_checkpoint(tmp_path)


def test_deberta_tokenizers_are_those_of_the_installed_release(tmp_path: Path) -> None:
    """Release 5 makes a normalizer of its own, release 4 takes the file's; the native tokenizer runs both."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    words = ["▁the", "▁", *"theca sr.é!", "▁cat", "at", "[MASK]"]
    model = tokenizers.models.Unigram([(word, -float(i)) for i, word in enumerate(dict.fromkeys(special + words))], 3)
    made = tokenizers.Tokenizer(model)
    normalizers = tokenizers.normalizers
    made.normalizer = normalizers.Sequence(
        [normalizers.Strip(), normalizers.Replace(tokenizers.Regex(" {2,}"), " "), normalizers.NFC()]
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    made.add_special_tokens([*special, "[MASK]"])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    make_checkpoint(tmp_path, "deberta-v2", "fill-mask", type_vocab_size=2)
    made.save(str(tmp_path / "tokenizer.json"))
    settings = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "cls", "sep", "unk", "mask")}
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "DebertaV2Tokenizer"} | settings)
    edgebert.export(tmp_path, tmp_path / "model.onnx")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = edgebert.load(tmp_path / "model.onnx", backend="numpy").tokenizer
    assert "native" in ours.detail
    texts = ["The cat.", " the  cat\n\tat\r ", "the\u3000\u3000[MASK]!", "", "e\u0301  \n", ("the cat", " at  the ")]
    for text, row in zip(texts, ours.make_rows(texts)[0], strict=True):
        expected = theirs(text) if isinstance(text, str) else theirs(*text)
        assert (row.input_ids.tolist(), row.token_type_ids.tolist()) == (
            expected["input_ids"],
            expected["token_type_ids"],
        )


def test_json_is_cleared_and_lower_casing_put_first(tmp_path: Path, tokenizer_json: str) -> None:
    make_checkpoint(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=128)
    tokenizer.save(str(tmp_path / "tokenizer.json"), pretty=True)
    write_json(tmp_path / "tokenizer_config.json", {"do_lower_case": False})
    add_sentence_modules(tmp_path, MEAN)
    stored = json.loads(str(load_checkpoint(tmp_path).tokenizer_json))
    assert (stored["truncation"], stored["padding"]) == (None, None)
    assert stored["normalizer"]["lowercase"] is False  # transformers lets tokenizer_config.json win
    write_json(tmp_path / "sentence_bert_config.json", {"do_lower_case": True})
    edgebert.export(tmp_path, tmp_path / "model.onnx")  # the gate puts its texts in lower case, as the library does
    lowered = edgebert.load(tmp_path / "model.onnx", "numpy").tokenizer
    assert lowered is not None
    assert (
        lowered.tokenize(["THE Router"])[0].input_ids.tolist() == lowered.tokenize(["the router"])[0].input_ids.tolist()
    )


# The gate


@pytest.fixture
def exported(tmp_path: Path, tokenizer_json: str) -> Path:
    """A checkpoint with a tokenizer, and its export."""
    make_checkpoint(tmp_path, "bert", "fill-mask", vocab_size=len(json.loads(tokenizer_json)["model"]["vocab"]))
    (tmp_path / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["transformers", "tokenizers"])
def test_the_gate_compares_texts(name: str, exported: Path, request: pytest.FixtureRequest) -> None:
    if name == "tokenizers":
        request.getfixturevalue("without_transformers")
    report = edgebert.export(exported, exported / "model.onnx")
    assert report["tokenizer"]["agreed"].startswith(name)
    assert report["tokenizer"]["num_texts"] > 20


@pytest.mark.usefixtures("without_transformers")
def test_reading_a_tokenizer_says_what_to_install(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BackendUnavailableError, match=r"tokenizers is not installed: pip install 'edgebert\[export\]'"):
        edgebert.export(exported, exported / "model.onnx")


@pytest.mark.parametrize("field", Encoded._fields)
def test_the_gate_refuses_with_the_first_text_that_differs(field: str, exported: Path) -> None:
    checkpoint = load_checkpoint(exported)
    name, encode = reference.make_encoder(checkpoint)
    tokenizer = Tokenizer.for_spec(str(checkpoint.tokenizer_json), checkpoint.spec)
    assert check_tokenizer(tokenizer, checkpoint.spec, name, encode)["agreed"] == name

    def encode_otherwise(text: Any, limit: int) -> Encoded:
        row = encode(text, limit)
        if not isinstance(text, str) or "Café" not in text:
            return row
        changed = {field: [*getattr(row, field)[:-1], (7, 7) if field == "offsets" else 1]}
        return row._replace(**changed)

    with pytest.raises(GateError, match=f"transformers .* differ in {field} of .*Café"):
        check_tokenizer(tokenizer, checkpoint.spec, name, encode_otherwise)


def test_nothing_is_written_where_the_tokenizers_differ(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_encoder = reference.make_encoder

    def make_other(checkpoint: Any) -> Any:
        (exported / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8")
        return make_encoder(checkpoint)

    monkeypatch.setattr(export, "make_encoder", make_other)
    with pytest.raises(GateError, match="differ in input_ids of 'The ferry leaves"):
        edgebert.export(exported, exported / "model.onnx")
    assert not (exported / "model.onnx").exists()


# What a file keeps beside the JSON


def test_a_mask_token_of_another_name(exported: Path) -> None:
    write_json(exported / "tokenizer_config.json", {"mask_token": "[GAP]"})
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    vocab_size = len(tokenizer)
    make_checkpoint(exported, "bert", "fill-mask", vocab_size=vocab_size)
    edgebert.export(exported, exported / "model.onnx")
    model = edgebert.load(exported / "model.onnx", "numpy")
    assert model.tokenizer is not None and model.tokenizer.mask_id == tokenizer.mask_token_id
    expected = transformers.pipeline("fill-mask", model=str(exported))("the [GAP] is slow", top_k=3)
    found = model("the [GAP] is slow", top_k=3)
    assert [answer["token"] for answer in found] == [answer["token"] for answer in expected]


def test_truncation_on_the_left_stays_in_an_exported_folder(exported: Path) -> None:
    write_json(exported / "tokenizer_config.json", {"truncation_side": "left", "model_max_length": 9})
    edgebert.export(exported, exported / "out")
    text = "the router is slow . restart the modem"
    tokenizer = edgebert.load(exported / "out", "numpy").tokenizer
    assert tokenizer is not None
    ids = tokenizer.tokenize([text])[0].input_ids.tolist()
    for folder in (exported, exported / "out"):
        assert transformers.AutoTokenizer.from_pretrained(folder)(text, truncation=True)["input_ids"] == ids
    assert ids != tokenizer.tokenize([text[:20]])[0].input_ids.tolist()


def test_types_of_pairs_stay_zero_in_an_exported_folder(exported: Path) -> None:
    write_json(exported / "tokenizer_config.json", {"model_input_names": ["input_ids", "attention_mask"]})
    edgebert.export(exported, exported / "out")
    tokenizer = edgebert.load(exported / "out", "numpy").tokenizer
    assert tokenizer is not None
    batch, _ = tokenizer.tokenize([("the router", "is slow")])
    found = transformers.AutoTokenizer.from_pretrained(exported / "out")("the router", "is slow")
    assert found["input_ids"] == batch.input_ids.tolist()
    assert found["token_type_ids"] == batch.token_type_ids.tolist() == [0] * batch.total_tokens


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"truncation_side": "both"}, "truncation_side"),
        ({"model_max_length": "many"}, "longest text must be a number"),
        ({"model_input_names": 7}, "model_input_names must be a list of names, got 7"),
        ({"tokenizer_class": ""}, "class .. is not one of BertTokenizer"),
        ({"unk_token": "[NONE]"}, "unknown token .* not in its vocabulary"),
    ],
)
@pytest.mark.usefixtures("without_transformers")
def test_refuses_settings_that_mean_nothing(settings: dict[str, Any], message: str, exported: Path) -> None:
    tokenizer = json.loads((exported / "tokenizer.json").read_text(encoding="utf-8"))
    if "unk_token" in settings:
        tokenizer["model"]["unk_token"] = settings["unk_token"]
        tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": 60, "content": "[NONE]"})
        (exported / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    write_json(exported / "tokenizer_config.json", settings)
    with pytest.raises((ModelFormatError, UnsupportedModelError), match=message):
        load_checkpoint(exported)
