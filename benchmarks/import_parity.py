"""Checkpoint variants against transformers: tokenizer classes and settings, added tokens, truncation, types, families.

Each variant is a tiny random checkpoint in a folder of its own, with a tokenizer that differs in one thing. In every
Python given, this file is run as a script: it loads the folder as that release of transformers does, exports it as
EdgeBERT does beside that release and again as if none were installed, and compares ids, types, offsets and logits of a
text set, and a cross-encoder's order and scores with sentence-transformers' where that is installed. An export equals
them in everything, or is refused by name. With `--mutations N`, each family has N more variants, whose config.json or
tokenizer_config.json had values changed at random.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

Files = dict[str, Any]  # what to write into a checkpoint's folder, by file name


class Variant(NamedTuple):
    """A checkpoint: a random model of a family, and files beside it."""

    name: str
    family: str
    files: Files
    num_labels: int = 3


TOLERANCE = 1e-5  # of the largest logit or score
LENGTH = 24  # model_max_length of the variants: some texts are too long
TEXTS: list[str | tuple[str, str]] = [
    "the router is slow",
    "The Router is SLOW",
    "Café déjà vu, naïve Ångström e\u0301",
    "",
    "  the   modem\t\nis  slow ",
    "[MASK] the <mask> router [SEP] is</s>[UNK] slow <s>[CLS]",
    "[E1] modem [/E1] is e1 slow<e2>, Modem[E1]slow",
    "日本語のルータを再起動する 東京",
    "مرحبا بالعالم हिन्दी ไทย 한국어",
    "restart-the.modem! it's 100% slow (really) don't DON'T",
    "a\u200bb\u00a0c\u00ad d\ufeff ﬁne ① Ⅷ",
    "the modem is slow " * 12 + "restart the router",
    ("the router is slow", "restart the modem"),
    ("the router " * 10, "restart the modem"),
    ("restart", "the modem is slow " * 9),
    ("the modem is slow " * 9, "restart the router " * 9),
    ("The Café", ""),
]
QUERY, DOCUMENTS = "slow router", ["restart the modem", "is the router slow", "the router is slow", "東京"]
FAMILIES = {
    "bert": "Bert",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "mpnet": "MPNet",
}


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        return run_worker(Path(sys.argv[2]))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.import_parity", description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="Pythons with other transformers")
    parser.add_argument("--only", default="", help="variants whose name holds this")
    parser.add_argument("--mutations", type=int, default=0, metavar="N", help="N mutated configurations a family")
    parser.add_argument("--out", type=Path, help="also write JSON here")
    args = parser.parse_args()

    from benchmarks import describe_run, write_result

    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        variants = [*list_variants(), *list_mutations(make_model(work, "bert").parent, args.mutations)]
        variants = [variant for variant in variants if args.only in variant.name]
        names = list(write_variants(work, variants))
        (work / "names.json").write_text(json.dumps(names))
        for python in args.python:
            process = subprocess.Popen(
                [python, "-P", __file__, "--worker", work / "names.json"], stdout=subprocess.PIPE, text=True
            )
            assert process.stdout
            version, *results = map(json.loads, process.stdout)
            if process.wait() or len(results) != len(names):
                raise SystemExit(f"{python} gave {len(results)} of {len(names)} results")
            for name, result in zip(names, results, strict=True):
                rows.setdefault(name, {"variant": name})[version] = result
    columns = [(version, how) for version in list(rows[names[0]])[1:] for how in ("beside", "without")]
    counts = {
        f"{version}, {how}": Counter(row[version][how].partition(":")[0] for row in rows.values())
        for version, how in columns
    }
    for row in rows.values():
        for version, how in columns:
            if row[version][how].startswith(("different", "raw")):
                print(f"{row['variant']}, {how} {version}: {row[version][how]}")
    for name, found in counts.items():
        print(f"{name}: {dict(found)}")
    if args.out:
        result = {**describe_run("benchmarks.import_parity"), "texts": len(TEXTS), "tolerance": TOLERANCE}
        write_result(args.out, {**result, "variants": len(rows), "counts": counts, "rows": list(rows.values())})
    return int(any(found["different"] or found["raw"] for found in counts.values()))


# Variants


def write_variants(work: Path, variants: Iterable[Variant]) -> Iterator[str]:
    """Write variants into a folder each below `work`, and give the folders' names."""
    for name, family, files, num_labels in variants:
        folder = work / name
        shutil.copytree(make_model(work, family, num_labels), folder)
        for file, value in files.items():
            if file == "config.json" and not isinstance(value, str):
                value = json.loads((folder / file).read_text()) | value
            (folder / file).write_text(value if isinstance(value, str) else json.dumps(value))
        yield name


@cache
def make_model(work: Path, family: str, num_labels: int = 3) -> Path:
    import torch
    import transformers

    sizes: dict[str, Any] = {"vocab_size": 700, "max_position_embeddings": 40, "num_labels": num_labels}
    if family == "distilbert":
        sizes |= {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 48}
    else:
        sizes |= {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48}
    if family in ("roberta", "xlm-roberta", "camembert"):
        sizes |= {"type_vocab_size": 1, "pad_token_id": 1}
    torch.manual_seed(0)
    config = getattr(transformers, f"{FAMILIES[family]}Config")(**sizes, initializer_range=0.3)
    folder = work / "models" / (family if num_labels == 3 else f"{family} {num_labels}")
    getattr(transformers, f"{FAMILIES[family]}ForSequenceClassification")(config).save_pretrained(folder)
    return folder


def list_variants() -> Iterator[Variant]:
    """(name, family, files) of each variant."""
    yield from list_word_pieces()
    yield from list_declared_tokens()
    yield from list_byte_pairs()
    yield from list_unigrams()
    yield from list_cross_encoders()


def with_settings(files: Files, **settings: Any) -> Files:
    return {**files, "tokenizer_config.json": {"model_max_length": LENGTH, **settings}}


def of_class(name: str | None) -> dict[str, str]:
    return {} if name is None else {"tokenizer_class": name}


def list_word_pieces() -> Iterator[Variant]:
    json_file, vocab_file = {"tokenizer.json": word_piece()}, {"vocab.txt": "\n".join(word_pieces()) + "\n"}
    cased, bare = {"tokenizer.json": word_piece(lowercase=False)}, {"tokenizer.json": word_piece(has_template=False)}
    classes = [None, "BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "ElectraTokenizer"]
    classes += ["PreTrainedTokenizerFast", "TokenizersBackend", "MPNetTokenizer", "BertJapaneseTokenizer"]
    classes += ["BertweetTokenizer", "HerbertTokenizer", "RobertaTokenizer", "NoSuchTokenizer"]
    for name in classes:
        chosen, prefix = of_class(name), name or "no class"
        for kind, files in (("json", json_file), ("json cased", cased), ("json without template", bare)):
            yield Variant(f"{prefix}, {kind}", "bert", with_settings(files, **chosen))
        settings = {"do_lower_case": False, "strip_accents": False, "tokenize_chinese_chars": False}
        for key, value in settings.items():
            yield Variant(f"{prefix}, json, {key} {value}", "bert", with_settings(json_file, **chosen, **{key: value}))
        yield Variant(
            f"{prefix}, json, split specials", "bert", with_settings(json_file, **chosen, split_special_tokens=True)
        )
        yield Variant(f"{prefix}, vocab", "bert", with_settings(vocab_file, **chosen))
        yield Variant(f"{prefix}, vocab, cased", "bert", with_settings(vocab_file, **chosen, do_lower_case=False))
        yield Variant(f"{prefix} in config, json", "bert", with_settings(json_file) | {"config.json": chosen})
        yield Variant(f"{prefix} in config, vocab", "bert", with_settings(vocab_file) | {"config.json": chosen})
    for family in ("distilbert", "electra"):
        for name in (None, "DistilBertTokenizer", "ElectraTokenizer", "BertTokenizer", "PreTrainedTokenizerFast"):
            for kind, files in (("json", json_file), ("json cased", cased), ("vocab", vocab_file)):
                yield Variant(f"{family}, {name or 'no class'}, {kind}", family, with_settings(files, **of_class(name)))
    for name in (None, "MPNetTokenizer"):
        mpnet = {"tokenizer.json": mpnet_word_piece()}
        yield Variant(f"mpnet, {name or 'no class'}, json", "mpnet", with_settings(mpnet, **of_class(name)))
    left = {"direction": "Left", "max_length": 12, "strategy": "LongestFirst", "stride": 0}
    fixed = {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    changes: dict[str, Any] = {
        "truncation": left,
        "padding": {**fixed, "pad_type_id": 0, "pad_token": "[PAD]"},
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Whitespace"},
    }
    for name in ("BertTokenizer", "PreTrainedTokenizerFast"):
        for key, value in changes.items():
            files = {"tokenizer.json": word_piece() | {key: value}}
            yield Variant(f"{name}, other {key} in json", "bert", with_settings(files, **of_class(name)))
        yield Variant(
            f"{name}, other prefix in json",
            "bert",
            with_settings({"tokenizer.json": word_piece(prefix="@@")}, **of_class(name)),
        )


def list_declared_tokens() -> Iterator[Variant]:
    """Tokens, names of special ones, and sides, in each of the places that may declare them."""
    extra = ["[E1]", "[/E1]"]
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    ids = {token: len(word_pieces()) + i for i, token in enumerate(extra)}
    decoder = {str(i): {"content": token, **flags} for token, i in ids.items()}
    plain = {i: token | {"special": False, "normalized": True} for i, token in decoder.items()}
    typed = [{"content": token, **flags, "__type": "AddedToken"} for token in extra]
    mask = {"content": "[MASK]", **flags, "lstrip": True}
    settings: dict[str, dict[str, Any]] = {
        "additional_special_tokens": {"additional_special_tokens": extra},
        "additional_special_tokens as objects": {"additional_special_tokens": typed},
        "extra_special_tokens, list": {"extra_special_tokens": extra},
        "extra_special_tokens, dict": {"extra_special_tokens": {"e_token": extra[0], "f_token": extra[1]}},
        "a token of its own name": {"entity_token": extra[0]},
        "added_tokens_decoder": {"added_tokens_decoder": decoder},
        "added_tokens_decoder, plain": {"added_tokens_decoder": plain},
        "added_tokens_decoder, gap": {"added_tokens_decoder": {str(int(i) + 5): t for i, t in decoder.items()}},
        "mask takes in blanks": {"mask_token": mask | {"__type": "AddedToken"}},
        "mask renamed": {"mask_token": "<mask>"},
        "unknown renamed": {"unk_token": "the"},
        "cls and sep renamed": {"cls_token": "<s>", "sep_token": "</s>"},
        "no types": {"model_input_names": ["input_ids", "attention_mask"]},
        "types": {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
        "truncation left": {"truncation_side": "left"},
        "padding left": {"padding_side": "left"},
        "do_basic_tokenize": {"do_basic_tokenize": False},
        "never_split": {"never_split": ["slow"]},
        "max_len": {"max_len": 12},
    }
    files: dict[str, Files] = {
        "added_tokens.json": {"added_tokens.json": ids},
        "added_tokens.json, special": {
            "added_tokens.json": ids,
            "special_tokens_map.json": {"additional_special_tokens": extra},
        },
        "special_tokens_map.json": {"special_tokens_map.json": {"additional_special_tokens": extra}},
        "mask takes in blanks in map": {"special_tokens_map.json": {"mask_token": mask}},
        "cls and sep renamed in map": {"special_tokens_map.json": {"cls_token": "<s>", "sep_token": "</s>"}},
    }
    json_file, vocab_file = {"tokenizer.json": word_piece()}, {"vocab.txt": "\n".join(word_pieces()) + "\n"}
    for name, kind, base in (
        ("BertTokenizer", "json", json_file),
        ("BertTokenizer", "vocab", vocab_file),
        ("PreTrainedTokenizerFast", "json", json_file),
    ):
        for what, chosen in settings.items():
            yield Variant(f"{name}, {kind}, {what}", "bert", with_settings(base, **of_class(name), **chosen))
        for what, more in files.items():
            yield Variant(f"{name}, {kind}, {what}", "bert", with_settings(base | more, **of_class(name)))


def list_byte_pairs() -> Iterator[Variant]:
    stored = byte_pairs()
    merges = "".join(f"{left} {right}\n" for left, right in stored["model"]["merges"])
    merged = {"vocab.json": stored["model"]["vocab"], "merges.txt": "#version: 0.2\n" + merges}
    mask = {"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    settings: dict[str, dict[str, Any]] = {
        "as it is": {},
        "prefix space": {"add_prefix_space": True},
        "no prefix space": {"add_prefix_space": False},
        "untrimmed": {"trim_offsets": False},
        "truncation left": {"truncation_side": "left"},
        "types": {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
        "additional_special_tokens": {"additional_special_tokens": ["<e2>"]},
        "mask named": {"mask_token": "<mask>"},
    }
    for name in (None, "RobertaTokenizer", "RobertaTokenizerFast", "PreTrainedTokenizerFast", "GPT2Tokenizer"):
        for what, chosen in settings.items():
            for kind, files in (
                ("json", {"tokenizer.json": stored}),
                ("json with prefix space", {"tokenizer.json": byte_pairs(add_prefix_space=True)}),
                ("merges", merged),
            ):
                yield Variant(
                    f"byte pairs, {name or 'no class'}, {kind}, {what}",
                    "roberta",
                    with_settings(files, **of_class(name), **chosen),
                )
        mapped = {"special_tokens_map.json": {"mask_token": mask}}
        prefix = f"byte pairs, {name or 'no class'}"
        yield Variant(f"{prefix}, merges, mask in map", "roberta", with_settings(merged | mapped, **of_class(name)))
        yield Variant(
            f"{prefix}, json without template",
            "roberta",
            with_settings({"tokenizer.json": stored | {"post_processor": None}}, **of_class(name)),
        )


def list_unigrams() -> Iterator[Variant]:
    whole = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    changes: dict[str, Any] = {
        "as it is": {},
        "without template": {"post_processor": None},
        "other normalizer": {"normalizer": {"type": "NFKC"}},
        "other pre_tokenizer": {"pre_tokenizer": whole},
    }
    settings = {"truncation left": {"truncation_side": "left"}, "no prefix space": {"add_prefix_space": False}}
    for family, name in (
        ("xlm-roberta", None),
        ("xlm-roberta", "XLMRobertaTokenizer"),
        ("xlm-roberta", "PreTrainedTokenizerFast"),
        ("camembert", None),
        ("camembert", "CamembertTokenizer"),
        ("bert", "XLMRobertaTokenizer"),
        ("bert", "PreTrainedTokenizerFast"),
        ("bert", "AlbertTokenizer"),
        ("bert", "DebertaV2Tokenizer"),
        ("bert", "T5Tokenizer"),
    ):
        prefix = f"unigram, {family}, {name or 'no class'}"
        for what, change in changes.items():
            files = {"tokenizer.json": unigram() | change}
            yield Variant(f"{prefix}, {what}", family, with_settings(files, **of_class(name)))
        for what, chosen in settings.items():
            yield Variant(
                f"{prefix}, {what}", family, with_settings({"tokenizer.json": unigram()}, **of_class(name), **chosen)
            )


def list_cross_encoders() -> Iterator[Variant]:
    """A single logit, and what sentence-transformers makes of it by its releases' keys."""
    linear, activation = "torch.nn.modules.linear", "torch.nn.modules.activation"
    names = [f"{linear}.Identity", f"{activation}.Sigmoid", f"{activation}.Tanh", f"{activation}.GELU"]
    files = {"tokenizer.json": word_piece()}
    for family in ("bert", "electra", "distilbert"):
        for name in [None, *names]:
            keys: dict[str, dict[str, Any]] = {"no key": {}}
            if name:
                keys = {"new key": {"sentence_transformers": {"activation_fn": name, "version": "5.0.0"}}}
                keys["old key"] = {"sbert_ce_default_activation_function": name}
            for key, config in keys.items():
                what = f"cross-encoder, {family}, {str(name).rpartition('.')[2]}, {key}"
                yield Variant(what, family, with_settings(files) | {"config.json": config}, 1)
    for problem in ("regression", "single_label_classification"):
        config = {"problem_type": problem}
        yield Variant(f"cross-encoder, bert, {problem}", "bert", with_settings(files) | {"config.json": config}, 1)


def list_mutations(models: Path, count: int) -> Iterator[Variant]:
    """Of every family, configurations with values taken away, added and changed; the same ones each time."""
    odd: list[Any] = [
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        7,
        1.5,
        1e30,
        float("nan"),
        "",
        "x",
        "2",
        [],
        ["x"],
        {},
        {"0": "x"},
    ]
    odd += [{"0": "a", "2": "b", "5": "c"}, "gelu_new", "gelu_fast", "silu", "relative_key", "regression", "left"]
    keys = [
        "id2label",
        "num_labels",
        "hidden_act",
        "activation",
        "position_embedding_type",
        "is_decoder",
        "prune_heads",
    ]
    keys += [
        "pruned_heads",
        "embedding_size",
        "pad_token_id",
        "type_vocab_size",
        "problem_type",
        "label2id",
        "sinusoidal_pos_embds",
    ]
    keys += ["tokenizer_class", "architectures", "model_type", "layer_norm_eps", "max_position_embeddings", "dtype"]
    keys += [
        "chunk_size_feed_forward",
        "add_cross_attention",
        "sentence_transformers",
        "summary_type",
        "attention_bias",
    ]
    text_keys = ["tokenizer_class", "do_lower_case", "strip_accents", "tokenize_chinese_chars", "model_max_length"]
    text_keys += [
        "truncation_side",
        "padding_side",
        "model_input_names",
        "added_tokens_decoder",
        "mask_token",
        "max_len",
    ]
    text_keys += ["additional_special_tokens", "extra_special_tokens", "split_special_tokens", "add_prefix_space"]
    text_keys += [
        "cls_token",
        "sep_token",
        "unk_token",
        "pad_token",
        "auto_map",
        "trim_offsets",
        "clean_up_tokenization_spaces",
    ]
    for family, name in FAMILIES.items():
        tokenizer = {"roberta": byte_pairs, "xlm-roberta": unigram, "camembert": unigram}.get(family, word_piece)()
        make_model(models.parent, family)
        for i in range(count):
            draw = random.Random(f"{family} {i}")
            config = json.loads((models / family / "config.json").read_text())
            settings: Files = {"model_max_length": LENGTH, **of_class(draw.choice([None, f"{name}Tokenizer"]))}
            for _ in range(draw.choice([1, 1, 2, 3])):
                changed, more = (config, keys) if draw.random() < 0.6 else (settings, text_keys)
                key = draw.choice([*changed, *more])
                if draw.random() < 0.15:
                    changed.pop(key, None)
                else:
                    changed[key] = draw.choice(odd)
            files = {"tokenizer.json": tokenizer, "tokenizer_config.json": settings}
            yield Variant(f"mutated {family} {i}", family, {**files, "config.json": json.dumps(config)})


# Tokenizers


def word_pieces(prefix: str = "##") -> list[str]:
    """A vocabulary that spells the texts."""
    characters = sorted(set("".join(flatten_texts()).lower() + "".join(flatten_texts())) - set(" \t\n"))
    words = ["the", "router", "is", "slow", "restart", "The", "Router", "cafe", "Café", "##s", "##er", "##ing"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *characters, *words, *(prefix + c for c in characters), "<mask>", "<s>", "</s>"]
    return list(dict.fromkeys(pieces))


def word_piece(lowercase: bool = True, has_template: bool = True, prefix: str = "##") -> dict[str, Any]:
    """A WordPiece tokenizer's JSON."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocab = {token: i for i, token in enumerate(word_pieces(prefix))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", continuing_subword_prefix=prefix))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    if has_template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
        )
    return dict(json.loads(tokenizer.to_str()))


def mpnet_word_piece() -> dict[str, Any]:
    """A WordPiece tokenizer's JSON, laid out as MPNet's."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["<s>", "<pad>", "</s>", "[UNK]"]
    pieces = dict.fromkeys([*special, "<mask>", *(piece for piece in word_pieces() if piece[:1] + piece[-1:] != "[]")])
    vocab = {token: i for i, token in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([*special, AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    return dict(json.loads(tokenizer.to_str()))


def byte_pairs(add_prefix_space: bool = False) -> dict[str, Any]:
    """A byte-level BPE tokenizer's JSON."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    special = ["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True, special=True)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(flatten_texts(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, add_prefix_space)
    return dict(json.loads(tokenizer.to_str()))


def unigram() -> dict[str, Any]:
    """A Unigram tokenizer's JSON, laid out as XLM-R's."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=180, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(flatten_texts(), trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return dict(json.loads(tokenizer.to_str()))


def flatten_texts() -> list[str]:
    return [part for text in TEXTS for part in ([text] if isinstance(text, str) else text)]


# The worker: run as a script, in a Python with another transformers


def run_worker(names: Path) -> int:
    """Write the version of transformers, and what came of each variant, as JSON lines."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    import torch
    import transformers

    from edgebert.checkpoints import tokenizer as reading
    from edgebert.exporting import export as exporting
    from edgebert.exporting import reference

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(json.dumps(f"transformers {transformers.__version__}"))
    for name in json.loads(names.read_text()):
        folder = names.parent / name
        try:
            expected: Any = run_reference(folder)
        except Exception as error:
            reason = str(error).strip().partition(". ")[0][:100]
            expected = f"{type(error).__name__}: {reason}"
        result = {"reference": expected if isinstance(expected, str) else "loads"}
        for how in ("beside", "without"):
            for module in (reading, reference, exporting):
                module.has_transformers = lambda how=how: how == "beside"  # type: ignore[attr-defined]
            result[how] = compare(folder, expected)
        (folder / "model.onnx").unlink(missing_ok=True)
        print(json.dumps(result), flush=True)
    return 0


def run_reference(folder: Path) -> list[dict[str, Any]]:
    """Of each text the ids, types, offsets and logits that transformers gives."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = []
    for text in TEXTS:
        batch = [[text]] if isinstance(text, str) else [[part] for part in text]
        found = tokenizer(*batch, truncation=True, return_offsets_mapping=tokenizer.is_fast)
        ids, types = found["input_ids"][0], (found.get("token_type_ids") or [None])[0]
        inputs = {"input_ids": ids} | (
            {"token_type_ids": types} if model.config.model_type != "distilbert" and types else {}
        )
        with torch.no_grad():
            try:
                logits = model(**{key: torch.tensor([value]) for key, value in inputs.items()}).logits[0].tolist()
            except (IndexError, RuntimeError):  # an id beyond the table, or no token at all
                logits = None
        offsets = [
            list(pair)
            for pair, i in zip(found["offset_mapping"][0], found.sequence_ids(0), strict=True)
            if i is not None and isinstance(text, str)
        ]
        rows.append({"ids": ids, "types": types or [0] * len(ids), "offsets": offsets, "logits": logits})
    if model.config.num_labels == 1 and importlib.util.find_spec("sentence_transformers"):
        from sentence_transformers import CrossEncoder

        rows[0]["ranks"] = CrossEncoder(str(folder), device="cpu").rank(QUERY, DOCUMENTS)
    return rows


def compare(folder: Path, expected: list[dict[str, Any]] | str) -> str:
    """What comes of exporting a folder: "equal", "refused: …", "raw: …", "alone: …" or "different: …"."""
    import numpy as np

    import edgebert

    try:
        edgebert.export(folder, folder / "model.onnx")
    except edgebert.EdgeBertError as error:
        return f"refused: {error}".replace(str(folder), "FOLDER")[:140]
    except Exception as error:
        return f"raw: {type(error).__name__}: {error}"
    if isinstance(expected, str):
        return "alone: exported, where transformers does not load"
    model = edgebert.load(folder / "model.onnx", threads=1)
    largest = max((np.abs(row["logits"]).max() for row in expected if row["logits"]), default=1.0)
    for text, row in zip(TEXTS, expected, strict=True):
        try:
            batch, _ = model.tokenizer.tokenize([text])
            found = {"ids": batch.input_ids.tolist(), "types": batch.token_type_ids.tolist(), "offsets": []}
            if isinstance(text, str):
                found["offsets"] = model.tokenizer.make_windows([text])[0][0].offsets.tolist()
            logits = model.forward(batch)["logits"][0]
        except edgebert.InvalidInputError as error:
            if row["logits"] is not None:
                return f"different: {text!r:.40} is refused: {error}"
            continue
        if row["logits"] is None:  # transformers' model takes no such row: what its tokenizer gives is of no use
            continue
        for key, value in found.items():
            if value != row[key] and (key != "types" or model.spec.has_token_types):
                return f"different: {key} of {text!r:.40}: {value} and {row[key]}"
        if np.abs(logits - row["logits"]).max() > TOLERANCE * largest:
            return f"different: logits of {text!r:.40}"
    if ranks := expected[0].get("ranks"):
        found = model.rank(QUERY, DOCUMENTS)
        places, scores = zip(*((rank["corpus_id"], rank["score"]) for rank in found), strict=True)
        expected_scores = [float(rank["score"]) for rank in ranks]
        if list(places) != [rank["corpus_id"] for rank in ranks] or not np.allclose(
            scores, expected_scores, rtol=0, atol=TOLERANCE * np.abs(expected_scores).max()
        ):
            return f"different: ranks {found} and {ranks}"
    return "equal"


if __name__ == "__main__":
    sys.exit(main())
