#!/usr/bin/env bash
# Expected: a pair of texts encodes to the same ids alone and in a batch of one.
# Happens: not where the second text is empty. tokenizer(text, "") is encoded as one text, with one [SEP], while
#   tokenizer([text], [""]) is a pair with two. An empty first text is a pair both ways. A cross-encoder served pair
#   by pair therefore scores a document without text differently from the same model over batches.
# Versions: transformers 4.57.6 with tokenizers 0.22.2, transformers 5.24.0 with tokenizers 0.23.3 (both alike).
# Date run: 2026-11-27. Source: seen by running.
# Output seen (5.24.0 the same):
#   4.57.6 alone    [CLS] hello [SEP]
#   4.57.6 in batch [CLS] hello [SEP] [SEP]
#   4.57.6 empty first text: alone [CLS] [SEP] hello [SEP] in batch [CLS] [SEP] hello [SEP]
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
import sys
import tempfile
from pathlib import Path

import transformers
from transformers import BertTokenizerFast

with tempfile.TemporaryDirectory() as name:
    Path(name, "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\n")
    tokenizer = BertTokenizerFast.from_pretrained(name)


def both_ways(first, second):
    alone = tokenizer(first, second)["input_ids"]
    batch = tokenizer([first], [second])["input_ids"][0]
    return tokenizer.convert_ids_to_tokens(alone), tokenizer.convert_ids_to_tokens(batch)


alone, batch = both_ways("hello", "")
print(transformers.__version__, "alone   ", *alone)
print(transformers.__version__, "in batch", *batch)
mirrored = both_ways("", "hello")
print(transformers.__version__, "empty first text: alone", *mirrored[0], "in batch", *mirrored[1])
as_stated = (
    alone == ["[CLS]", "hello", "[SEP]"]
    and batch == ["[CLS]", "hello", "[SEP]", "[SEP]"]
    and mirrored[0] == mirrored[1] == ["[CLS]", "[SEP]", "hello", "[SEP]"]
)
sys.exit(0 if as_stated else "the behaviour has changed")
EOP
export TRANSFORMERS_VERBOSITY=error
for release in 4 5; do
    PYTHONPATH="$folder/release$release" "$folder/venv/bin/python" "$folder/check.py"
done
