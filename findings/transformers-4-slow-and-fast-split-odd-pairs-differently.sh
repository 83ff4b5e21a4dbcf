#!/usr/bin/env bash
# Expected: BertTokenizer and BertTokenizerFast give the same ids; the fast one is only faster.
# Happens: where a pair is cut ("longest_first", what truncation=True means) and the room left for the two texts is
#   an odd number of tokens, the Python tokenizer gives the odd token to the first text, and the Rust tokenizer to
#   the second. max_length 512 leaves 509, so every pair of two long texts differs, at the end of both.
# Versions: transformers 4.57.6, tokenizers 0.22.2.
# Date run: 2026-11-27. Source: seen by running.
# Output seen:
#   5 and 5 tokens, max_length 8: slow keeps (3, 2), fast keeps (2, 3)
#   5 and 5 tokens, max_length 9: slow keeps (3, 3), fast keeps (3, 3)
#   600 and 600 tokens, max_length 512: slow keeps (255, 254), fast keeps (254, 255)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile --disable-pip-version-check transformers==4.57.6 tokenizers==0.22.2

TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - "$folder" <<'EOP'
import sys
import tempfile
from pathlib import Path

from transformers import BertTokenizer, BertTokenizerFast

with tempfile.TemporaryDirectory() as name:
    Path(name, "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")
    tokenizers = BertTokenizer.from_pretrained(name), BertTokenizerFast.from_pretrained(name)
as_stated = True
for length, limit, wanted in (
    (5, 8, [(3, 2), (2, 3)]),
    (5, 9, [(3, 3), (3, 3)]),
    (600, 512, [(255, 254), (254, 255)]),
):
    found = []
    for tokenizer in tokenizers:
        ids = tokenizer("a " * length, "b " * length, truncation=True, max_length=limit)["input_ids"]
        found.append((ids.count(5), ids.count(6)))
    print(f"{length} and {length} tokens, max_length {limit}: slow keeps {found[0]}, fast keeps {found[1]}")
    as_stated &= found == wanted
sys.exit(0 if as_stated else "the behaviour has changed")
EOP
