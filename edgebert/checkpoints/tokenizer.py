"""A checkpoint's tokenizer as the JSON of the `tokenizers` package, exactly as transformers reads the folder.

What a folder's tokenizer does is decided by the class it names, that class's defaults, the settings that it reads and
the tokens declared in any of five files, and releases 4 and 5 of transformers read some of it differently. So where
transformers is installed, it loads the tokenizer. Without it, what both releases read alike is read here, and anything
else is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from edgebert.checkpoints.families import FAMILY_TABLES
from edgebert.checkpoints.files import read_object, refuse_lfs_pointer
from edgebert.checkpoints.with_transformers import has_transformers, load_tokenizer
from edgebert.errors import ModelFormatError, UnsupportedModelError, require

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "*.model", "*.spm", "bpe.codes")
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_SETTINGS = ("lowercase", "strip_accents", "handle_chinese_chars", "add_prefix_space", "trim_offsets")


@dataclass(frozen=True)
class CheckpointTokenizer:
    """A tokenizer, and what its JSON does not hold.

    Attributes:
        parts: of the JSON, without truncation and padding; types of tokens are 0 where the tokenizer returns none.
        truncation_side: where texts that are too long lose tokens, "right" or "left".
        mask_token: None if it names none.
        max_length: tokens that its JSON cuts texts to, None if it does not say.
    """

    parts: dict[str, Any]
    truncation_side: str
    mask_token: str | None
    max_length: int | None = None


def read_plain_tokenizer(folder: Path) -> CheckpointTokenizer:
    """The tokenizer of a tokenizer.json that stands alone, as the tokenizers library runs it.

    Raises:
        ModelFormatError: the file is damaged.
        UnsupportedModelError: a setting that is not understood.
    """
    parts = _read_parts(folder)
    truncation = parts.get("truncation") or {"direction": "Right", "max_length": None}
    tokenizer = _finish(
        parts,
        truncation_side=truncation["direction"].lower(),
        mask_token=None,
        returns_types=True,
        splits_special_tokens=False,
    )
    return replace(tokenizer, max_length=truncation["max_length"])


def read_tokenizer(
    folder: Path, family: str, config: dict[str, Any], has_token_types: bool
) -> CheckpointTokenizer | None:
    """The tokenizer of a checkpoint's folder; None if it has no vocabulary.

    Args:
        folder: with tokenizer.json, or the vocabulary files of the tokenizer's class.
        family: one of families.FAMILY_TABLES.
        config: of config.json.
        has_token_types: whether the model takes types of tokens.

    Raises:
        ModelFormatError: a file is damaged.
        UnsupportedModelError: a class or setting that is not understood, or that two releases read differently.
    """
    settings = read_object(folder / "tokenizer_config.json", {})
    vocabularies = [path for pattern in _VOCABULARIES for path in folder.glob(pattern)]
    if not vocabularies:
        return None
    for path in vocabularies:
        refuse_lfs_pointer(path)
    if has_transformers():
        return _read_with_transformers(folder, family, config)
    return _read_files(folder, family, config, settings, has_token_types)


def _read_with_transformers(folder: Path, family: str, config: dict[str, Any]) -> CheckpointTokenizer:
    expected = _count_entries(folder)
    loaded = load_tokenizer(folder, family, config)
    parts = json.loads(loaded.backend_tokenizer.to_str())
    num_entries = len(parts["model"]["vocab"])
    if num_entries < expected:  # release 5 makes up a tokenizer of five tokens if the class's file is missing
        raise UnsupportedModelError(
            f"transformers' {type(loaded).__name__} reads {num_entries} of the {expected} entries of the vocabulary in "
            f"{folder}: the files are another class's, put the right one's name into tokenizer_config.json"
        )
    return _finish(
        parts,
        truncation_side=loaded.truncation_side,
        mask_token=loaded.special_tokens_map.get("mask_token"),
        returns_types="token_type_ids" in loaded.model_input_names,
        splits_special_tokens=loaded.split_special_tokens,
    )


def _count_entries(folder: Path) -> int:
    """Number of entries of the vocabulary, as far as it shows without knowing the tokenizer's class."""
    if (folder / "tokenizer.json").is_file():
        model = read_object(folder / "tokenizer.json").get("model")
        return len(model.get("vocab") or ()) if isinstance(model, dict) else 0
    if (folder / "vocab.txt").is_file():
        return len(set(_read_lines(folder / "vocab.txt")))
    return len(read_object(folder / "vocab.json", {}))


def _finish(
    parts: dict[str, Any],
    *,
    truncation_side: Any,
    mask_token: str | None,
    returns_types: bool,
    splits_special_tokens: bool,
) -> CheckpointTokenizer:
    if truncation_side not in ("left", "right"):
        raise UnsupportedModelError(f"truncation_side {truncation_side!r} is not supported; supported: left, right")
    model = parts["model"]
    unknown = model.get("unk_token")
    if model["type"] in ("WordPiece", "WordLevel") and unknown not in model["vocab"]:
        raise ModelFormatError(f"the tokenizer's unknown token {unknown!r} is not in its vocabulary: name one that is")
    offsets = parts["post_processor"] or {}
    if truncation_side == "left" and offsets.get("add_prefix_space") and offsets.get("trim_offsets"):
        raise UnsupportedModelError(
            "truncation_side left with add_prefix_space is not supported: offsets then depend on where a text was cut"
        )
    parts["truncation"] = parts["padding"] = None
    if splits_special_tokens:  # in a text they are characters like any others
        parts["added_tokens"] = [token for token in parts["added_tokens"] if not token["special"]]
    if not returns_types:
        parts["post_processor"] = _without_types(parts["post_processor"])
    return CheckpointTokenizer(parts, truncation_side, mask_token)


def _without_types(processor: dict[str, Any] | None) -> dict[str, Any] | None:
    """A post-processor that gives every token the type 0."""
    kind = processor["type"] if processor else None
    if processor and kind == "RobertaProcessing":  # gives no other
        return processor
    if processor and kind == "BertProcessing":
        return _bert_template(processor["cls"], processor["sep"], second_type=0)
    if processor and kind == "TemplateProcessing":
        parts = {name: [_with_type(piece, 0) for piece in processor[name]] for name in ("single", "pair")}
        return {**processor, **parts}
    if processor and kind == "Sequence" and processor["processors"]:
        *before, last = processor["processors"]
        return {**processor, "processors": [*before, _without_types(last)]}
    if processor is None or kind == "ByteLevel":  # neither adds tokens, both give the second text's the type 1
        pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}]
        template = {"type": "TemplateProcessing", "single": pair[:1], "pair": pair, "special_tokens": {}}
        return template if processor is None else {"type": "Sequence", "processors": [processor, template]}
    raise UnsupportedModelError(f"the post-processor {kind} is not supported for a tokenizer without token types")


def _with_type(piece: dict[str, Any], type_id: int) -> dict[str, Any]:
    return {kind: {**value, "type_id": type_id} for kind, value in piece.items()}


def _bert_template(cls: tuple[str, int], sep: tuple[str, int], second_type: int = 1) -> dict[str, Any]:
    """The post-processor of [CLS] A [SEP], and of [CLS] A [SEP] B [SEP] with types of their own for B and its [SEP]."""

    def special(token: tuple[str, int], type_id: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token[0], "type_id": type_id}}

    def text(name: str, type_id: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": type_id}}

    single = [special(cls, 0), text("A", 0), special(sep, 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, text("B", second_type), special(sep, second_type)],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in (cls, sep)},
    }


# Without transformers


def _read_files(
    folder: Path, family: str, config: Mapping[str, Any], settings: Mapping[str, Any], has_token_types: bool
) -> CheckpointTokenizer:
    """The tokenizer as both releases of transformers read it; refused where they might not."""

    def refuse(why: str) -> NoReturn:
        raise UnsupportedModelError(
            f"the tokenizer of {folder} cannot be read without transformers ({why}): install it, or save the tokenizer "
            "with it (save_pretrained), and export again"
        )

    if "added_tokens_decoder" not in settings:
        settings = {**settings, **read_object(folder / "special_tokens_map.json", {})}
    class_of_family = f"{FAMILY_TABLES[family].class_prefix}Tokenizer"
    stated = [names["tokenizer_class"] for names in (settings, config) if names.get("tokenizer_class") is not None]
    name = str(stated[0] if stated else class_of_family)
    found = _CLASSES.get(name.removesuffix("Fast"))
    if found is None or "auto_map" in settings:
        refuse(f"its class {name!r} is not one of {', '.join(_CLASSES)}")
    known = {f"{role}_token" for role in _ROLES}
    further = [key for key in ("additional_special_tokens", "extra_special_tokens") if settings.get(key)]
    further += [key for key in settings if key.endswith("_token") and key not in known and settings[key] is not None]
    if further or (folder / "added_tokens.json").is_file():
        refuse(f"it declares further tokens, in {(*further, 'added_tokens.json')[0]}")
    has_json = (folder / "tokenizer.json").is_file()
    special = dict(found.special)
    for role in _ROLES:
        token = settings.get(f"{role}_token")
        if isinstance(token, dict) and (token.get("lstrip") or token.get("rstrip")) and not has_json:
            refuse(f"its {role} token takes in blanks")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            special[role] = token
    if has_json:
        parts = _agreed_parts(_read_parts(folder), settings, special, found, refuse)
    elif settings.get("added_tokens_decoder"):
        refuse("it declares further tokens, in added_tokens_decoder")
    elif (folder / "vocab.txt").is_file() and found.parts is _bert_parts:
        parts = _read_vocabulary(folder, settings, special)
    else:
        refuse(f"{name} without tokenizer.json")
    inputs = settings.get("model_input_names", found.inputs)
    if "model_input_names" in settings and not isinstance(inputs, list):
        raise ModelFormatError(
            f"{folder / 'tokenizer_config.json'}: model_input_names must be a list of names, got {inputs!r:.100}"
        )
    if inputs is None:
        if has_token_types and _without_types(parts["post_processor"]) != parts["post_processor"]:
            refuse(f"its releases differ about the token types of {name}: state model_input_names")
        inputs = ()
    truncation = parts.get("truncation") or {"direction": "Right"}
    return _finish(
        parts,
        truncation_side=settings.get("truncation_side", truncation["direction"].lower()),
        mask_token=special.get("mask"),
        returns_types="token_type_ids" in inputs,
        splits_special_tokens=bool(settings.get("split_special_tokens")),
    )


def _agreed_parts(
    stored: dict[str, Any],
    settings: Mapping[str, Any],
    special: Mapping[str, str],
    tokenizer_class: _Class,
    refuse: Callable[[str], NoReturn],
) -> dict[str, Any]:
    """tokenizer.json with the settings in place, where release 5 would make the same from the vocabulary alone."""
    listed = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in stored["added_tokens"]}
    if settings.get("added_tokens_decoder") not in (None, listed):
        refuse("added_tokens_decoder in tokenizer_config.json differs from tokenizer.json")
    ids = {token["content"]: token["id"] for token in stored["added_tokens"] if token["special"]}
    if missing := sorted(set(special.values()) - set(ids)):
        refuse(f"tokenizer.json does not list {missing[0]!r} as a special token")
    parts = dict(stored)
    for key, made in tokenizer_class.parts(settings, special, ids, stored).items():
        if _compared(stored[key], made) != _compared(made, made):
            refuse(f"its releases differ about the {key}: tokenizer.json has another than the class makes by itself")
        parts[key] = {**stored[key], **made} if key == "model" else made
    before = parts["pre_tokenizer"] or {}
    if "add_prefix_space" in before and before["add_prefix_space"] != settings.get("add_prefix_space", False):
        refuse("its releases differ about add_prefix_space: state it in tokenizer_config.json")
    return parts


def _compared(part: dict[str, Any] | None, expected: dict[str, Any] | None) -> dict[str, Any] | None:
    """What both releases take from a part of tokenizer.json: all but settings, which both overwrite in the same way."""
    if part and expected and part["type"] == "BertProcessing":
        part = _bert_template(part["cls"], part["sep"])
    if not part or not expected or part["type"] in ("Sequence", "TemplateProcessing", "Precompiled"):
        return part
    return {key: value for key, value in part.items() if key in expected and key not in _SETTINGS}


def _read_parts(folder: Path) -> dict[str, Any]:
    """tokenizer.json in the form of the installed tokenizers library."""
    require("export", "tokenizers")
    import tokenizers

    text = json.dumps(read_object(folder / "tokenizer.json"))
    try:
        return dict(json.loads(tokenizers.Tokenizer.from_str(text).to_str()))
    except Exception as error:  # the library raises nothing narrower
        raise ModelFormatError(f"{folder / 'tokenizer.json'} is not a tokenizer's ({error})") from None


def _read_vocabulary(folder: Path, settings: Mapping[str, Any], special: dict[str, str]) -> dict[str, Any]:
    """A BertTokenizer from vocab.txt."""
    vocabulary = {token: i for i, token in enumerate(_read_lines(folder / "vocab.txt"))}
    ids = dict(vocabulary)
    for token in special.values():
        ids.setdefault(token, len(ids))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    made = _bert_parts(settings, special, ids, None)
    return {
        "version": "1.0",
        **made,
        "added_tokens": [
            {"id": i, "content": token, **flags}
            for i, token in sorted((ids[token], token) for token in set(special.values()))
        ],
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {**made["model"], "vocab": vocabulary},
    }


def _read_lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as lines:
            return [line.rstrip("\n") for line in lines]
    except ValueError as error:
        raise ModelFormatError(f"{path} is not UTF-8 text ({error}): download it again") from None


Parts = Callable[[Mapping[str, Any], Mapping[str, str], Mapping[str, int], dict[str, Any] | None], dict[str, Any]]


@dataclass(frozen=True)
class _Class:
    """A tokenizer class of transformers: what it takes where the folder says nothing.

    Attributes:
        special: its special tokens by role.
        inputs: its model_input_names; None where the releases differ.
        parts: makes all parts but the vocabulary as release 5 does, which takes from tokenizer.json at most a
            normalizer of SentencePiece's (release 4 takes everything from there). Called with the folder's settings,
            special tokens by role, ids by token, and tokenizer.json.
    """

    special: Mapping[str, str]
    inputs: tuple[str, ...] | None
    parts: Parts


def _bert_parts(
    settings: Mapping[str, Any], special: Mapping[str, str], ids: Mapping[str, int], stored: dict[str, Any] | None
) -> dict[str, Any]:
    cls, sep = special["cls"], special["sep"]
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
            "strip_accents": settings.get("strip_accents"),
            "lowercase": settings.get("do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _bert_template((cls, ids[cls]), (sep, ids[sep])),
        "model": {
            "type": "WordPiece",
            "unk_token": special["unk"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
    }


def _mpnet_parts(
    settings: Mapping[str, Any], special: Mapping[str, str], ids: Mapping[str, int], stored: dict[str, Any] | None
) -> dict[str, Any]:
    cls, sep = special["cls"], special["sep"]
    processor = {
        "type": "RobertaProcessing",
        "sep": [sep, ids[sep]],
        "cls": [cls, ids[cls]],
        "trim_offsets": True,
        "add_prefix_space": False,
    }
    return {**_bert_parts(settings, special, ids, stored), "post_processor": processor}


def _roberta_parts(
    settings: Mapping[str, Any], special: Mapping[str, str], ids: Mapping[str, int], stored: dict[str, Any] | None
) -> dict[str, Any]:
    space, trims = settings.get("add_prefix_space", False), settings.get("trim_offsets", True)
    cls, sep = special["cls"], special["sep"]
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": True, "use_regex": True},
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [sep, ids[sep]],
            "cls": [cls, ids[cls]],
            "trim_offsets": trims,
            "add_prefix_space": space,
        },
        "model": {"type": "BPE", "dropout": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False},
    }


def _sentencepiece_parts(
    settings: Mapping[str, Any], special: Mapping[str, str], ids: Mapping[str, int], stored: dict[str, Any] | None
) -> dict[str, Any]:
    scheme = "always" if settings.get("add_prefix_space", True) else "never"
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}
    bos, eos = special["bos"], special["eos"]
    template = _bert_template((bos, ids[bos]), (eos, ids[eos]), second_type=0)
    *first, text, last = template["pair"]
    normalizer = (stored or {}).get("normalizer") or {}
    return {
        "normalizer": normalizer if normalizer.get("type") == "Precompiled" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {**template, "pair": [*first, last, text, last]},
        "model": {"type": "Unigram", "unk_id": ids[special["unk"]], "byte_fallback": False},
    }


_BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_ROBERTA = {role: f"<{role}>" for role in ("unk", "pad", "mask")} | {
    "bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>",
}  # fmt: skip
_MPNET = _ROBERTA | {"unk": "[UNK]"}
_INPUTS = ("input_ids", "token_type_ids", "attention_mask")
_CLASSES = {
    "BertTokenizer": _Class(_BERT, _INPUTS, _bert_parts),
    "DistilBertTokenizer": _Class(_BERT, _INPUTS[::2], _bert_parts),
    "ElectraTokenizer": _Class(_BERT, _INPUTS, _bert_parts),
    "MPNetTokenizer": _Class(_MPNET, _INPUTS[::2], _mpnet_parts),
    "RobertaTokenizer": _Class(_ROBERTA, _INPUTS[::2], _roberta_parts),
    "XLMRobertaTokenizer": _Class(_ROBERTA, _INPUTS[::2], _sentencepiece_parts),
    "CamembertTokenizer": _Class(_ROBERTA, _INPUTS[::2], _sentencepiece_parts),
    "PreTrainedTokenizer": _Class({}, None, lambda *_: {}),
    "TokenizersBackend": _Class({}, None, lambda *_: {}),
}
