"""A checkpoint's tokenizer as the JSON of the `tokenizers` package, built as transformers builds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgebert.artifact.checkpoint_files import read_object
from edgebert.errors import UnsupportedModelError


def read_tokenizer_json(folder: Path, config: dict[str, Any], lowercase: bool) -> str | None:
    """The tokenizer of a folder, minified, truncation and padding cleared; None if it has none.

    Args:
        folder: with tokenizer.json, or vocab.txt (WordPiece), or vocab.json and merges.txt (byte-level BPE).
        config: of tokenizer_config.json.
        lowercase: put lower-casing before everything else.

    Raises:
        UnsupportedModelError: files that only transformers can turn into a tokenizer.json.
    """
    if (folder / "tokenizer.json").is_file():
        tokenizer = read_object(folder / "tokenizer.json")
        _apply_normalizer_config(tokenizer, config)
    elif (folder / "vocab.txt").is_file():
        tokenizer = _bert_tokenizer(folder, config)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = _roberta_tokenizer(folder, config)
    elif list(folder.glob("*.model")):
        raise UnsupportedModelError(
            f"{folder} has a SentencePiece model but no tokenizer.json: load its tokenizer with transformers, save it "
            "there with save_pretrained, and export again"
        )
    else:
        return None
    tokenizer["truncation"] = tokenizer["padding"] = None
    if lowercase:
        normalizers = [{"type": "Lowercase"}] + [tokenizer["normalizer"]] * bool(tokenizer.get("normalizer"))
        tokenizer["normalizer"] = {"type": "Sequence", "normalizers": normalizers}
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))


def _apply_normalizer_config(tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    """tokenizer_config.json wins over a BertNormalizer stored in tokenizer.json, as in transformers."""
    normalizer = tokenizer.get("normalizer") or {}
    if normalizer.get("type") != "BertNormalizer":
        return
    keys = {
        "lowercase": "do_lower_case",
        "strip_accents": "strip_accents",
        "handle_chinese_chars": "tokenize_chinese_chars",
    }
    normalizer.update({key: config[name] for key, name in keys.items() if name in config})


def _special_tokens(folder: Path, config: dict[str, Any], defaults: dict[str, str]) -> dict[str, str]:
    """The special tokens by name: transformers' defaults, then special_tokens_map.json, then the tokenizer's config."""
    extra = {**read_object(folder / "special_tokens_map.json", {}), **config}
    if (folder / "added_tokens.json").is_file() or any(
        extra.get(key) for key in ("additional_special_tokens", "extra_special_tokens")
    ):
        raise UnsupportedModelError(
            f"{folder} has added tokens but no tokenizer.json: load its tokenizer with transformers, save it there "
            "with save_pretrained, and export again"
        )

    def content(value: Any) -> str:
        return str(value["content"] if isinstance(value, dict) else value)

    return {name: content(extra.get(name) or default) for name, default in defaults.items()}


def _bert_tokenizer(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    defaults = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    special = _special_tokens(folder, config, {f"{name}_token": token for name, token in defaults.items()})
    unk, sep, cls = special["unk_token"], special["sep_token"], special["cls_token"]
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    vocab = {token: i for i, token in enumerate(lines[:-1] if lines[-1] == "" else lines)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=unk))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special.values()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, tokenizer.token_to_id(cls)), (sep, tokenizer.token_to_id(sep))],
    )
    return dict(json.loads(tokenizer.to_str()))


def _roberta_tokenizer(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    defaults = {
        "bos": "<s>",
        "eos": "</s>",
        "unk": "<unk>",
        "sep": "</s>",
        "pad": "<pad>",
        "cls": "<s>",
        "mask": "<mask>",
    }
    special = _special_tokens(folder, config, {f"{name}_token": token for name, token in defaults.items()})
    add_prefix_space, trim_offsets = config.get("add_prefix_space", False), config.get("trim_offsets", True)
    model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    model.continuing_subword_prefix = model.end_of_word_suffix = ""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, lstrip=name == "mask_token") for name, token in special.items()]
    )
    ids = tokenizer.get_vocab(with_added_tokens=True)
    sep, cls = ((special[name], ids[special[name]]) for name in ("sep_token", "cls_token"))
    tokenizer.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets, add_prefix_space)
    return dict(json.loads(tokenizer.to_str()))
