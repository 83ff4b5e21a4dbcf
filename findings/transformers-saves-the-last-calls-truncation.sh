#!/usr/bin/env bash
# Expected: calling a tokenizer does not change it; save_pretrained writes the same tokenizer.json before and after.
# Happens: truncation and padding given to one call are set on the tokenizer underneath, stay there, and are saved.
#   tokenizer.json then says "cut to 4 tokens, pad to 4": AutoTokenizer resets that at each call, but the
#   tokenizers library, which takes the file as it is, cuts every text to the length that the last call before saving
#   happened to use.
# Versions: transformers 5.24.0, tokenizers 0.23.3 (transformers 4.57.6 with tokenizers 0.22.2 was seen to do the same).
# Date run: 2026-11-27. Source: seen by running.
# Output seen:
#   saved before the call: [CLS] a b c a b [SEP]
#   saved after the call:  [CLS] a b [SEP]
#   AutoTokenizer on it:   [CLS] a b c a b [SEP]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3

TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - "$folder" <<'EOP'
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertTokenizerFast

text = "a b c a b"
with tempfile.TemporaryDirectory() as name:
    Path(name, "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\n")
    tokenizer = BertTokenizerFast.from_pretrained(name)
    tokenizer.save_pretrained(str(Path(name, "before")))
    tokenizer(["c c c c c", "a"], truncation=True, max_length=4, padding="max_length")
    tokenizer.save_pretrained(str(Path(name, "after")))
    before = Tokenizer.from_file(str(Path(name, "before", "tokenizer.json"))).encode(text).tokens
    after = Tokenizer.from_file(str(Path(name, "after", "tokenizer.json"))).encode(text).tokens
    reloaded = AutoTokenizer.from_pretrained(str(Path(name, "after")))
    auto = reloaded.convert_ids_to_tokens(reloaded(text)["input_ids"])
print("saved before the call:", *before)
print("saved after the call: ", *after)
print("AutoTokenizer on it:  ", *auto)
whole = ["[CLS]", "a", "b", "c", "a", "b", "[SEP]"]
as_stated = before == auto == whole and after == ["[CLS]", "a", "b", "[SEP]"]
sys.exit(0 if as_stated else "the behaviour has changed")
EOP
