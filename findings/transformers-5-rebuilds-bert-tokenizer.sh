#!/usr/bin/env bash
# Expected: tokenizer.json is the tokenizer; AutoTokenizer runs the normalizer, the pre_tokenizer and the
#   post_processor that stand in it, as release 4 and the tokenizers library do.
# Happens: under tokenizer_class BertTokenizer, transformers 5 takes only the vocabulary from tokenizer.json and
#   builds the rest anew. A file whose normalizer keeps capitals, whose pre_tokenizer splits at blanks only, whose
#   continuation prefix is another, or that adds no special tokens is read without a word as a standard uncased BERT
#   tokenizer, and gives other ids. (tokenizer_class PreTrainedTokenizerFast keeps them all in both releases.)
# Versions: transformers 4.57.6 with tokenizers 0.22.2, transformers 5.24.0 with tokenizers 0.23.3.
# Date run: 2026-11-27. Source: seen by running.
# Output seen (the columns: tokenizers itself, BertTokenizer, PreTrainedTokenizerFast):
#   4.57.6 normalizer     [CLS] [UNK] a - b [SEP] | [CLS] [UNK] a - b [SEP] | [CLS] [UNK] a - b [SEP]
#   4.57.6 pre_tokenizer  [CLS] hello [UNK] [SEP] | [CLS] hello [UNK] [SEP] | [CLS] hello [UNK] [SEP]
#   4.57.6 prefix         [CLS] b @@s hello [SEP] | [CLS] b @@s hello [SEP] | [CLS] b @@s hello [SEP]
#   4.57.6 post_processor hello | hello | hello
#   5.24.0 normalizer     [CLS] [UNK] a - b [SEP] | [CLS] hello a - b [SEP] | [CLS] [UNK] a - b [SEP]
#   5.24.0 pre_tokenizer  [CLS] hello [UNK] [SEP] | [CLS] hello a - b [SEP] | [CLS] hello [UNK] [SEP]
#   5.24.0 prefix         [CLS] b @@s hello [SEP] | [CLS] b ##s hello [SEP] | [CLS] b @@s hello [SEP]
#   5.24.0 post_processor hello | [CLS] hello [SEP] | hello
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
install() { "$folder/venv/bin/pip" install -q --no-compile --disable-pip-version-check --target "$@"; }
install "$folder/release4" transformers==4.57.6 tokenizers==0.22.2 &
first=$!
install "$folder/release5" transformers==5.24.0 tokenizers==0.23.3
wait "$first"

cat >"$folder/check.py" <<'EOP'
import json
import sys
import tempfile
from pathlib import Path

import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "a", "b", "-", "as", "@@s", "##s"]
vocabulary = {token: i for i, token in enumerate(tokens)}


def bert(prefix="##"):
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", continuing_subword_prefix=prefix))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(tokens[:5])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def load(tokenizer, class_name):
    with tempfile.TemporaryDirectory() as name:
        tokenizer.save(str(Path(name, "tokenizer.json")))
        settings = {"tokenizer_class": class_name, "unk_token": "[UNK]", "pad_token": "[PAD]"}
        Path(name, "tokenizer_config.json").write_text(json.dumps(settings))
        return AutoTokenizer.from_pretrained(name)


cased, blanks, prefix = bert(), bert(), bert("@@")
cased.normalizer = normalizers.NFC()
blanks.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
bare = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
bare.normalizer, bare.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
release = transformers.__version__
as_stated = True
for part, tokenizer, text in (
    ("normalizer", cased, "Hello a-b"),
    ("pre_tokenizer", blanks, "Hello a-b"),
    ("prefix", prefix, "bs hello"),
    ("post_processor", bare, "hello"),
):
    wanted = tokenizer.encode(text).tokens
    found = []
    for class_name in ("BertTokenizer", "PreTrainedTokenizerFast"):
        loaded = load(tokenizer, class_name)
        found.append(loaded.convert_ids_to_tokens(loaded(text)["input_ids"]))
    print(release, f"{part:14}", " | ".join(" ".join(row) for row in [wanted, *found]))
    as_stated &= (found[0] == wanted) == release.startswith("4") and found[1] == wanted
sys.exit(0 if as_stated else "the behaviour has changed")
EOP
export TRANSFORMERS_VERBOSITY=error
for release in 4 5; do
    PYTHONPATH="$folder/release$release" "$folder/venv/bin/python" "$folder/check.py"
done
