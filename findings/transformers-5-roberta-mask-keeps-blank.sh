#!/usr/bin/env bash
# Expected: a RoBERTa folder with vocab.json and merges.txt gives the same ids for "the <mask> red" under any release.
# Happens: transformers 4 makes the mask token take in the blank before it (lstrip);
#   transformers 5 does not, so a lone blank token stands before <mask>, and each later token is one place on: a
#   fill-mask model reads another input.
# Versions: transformers 4.57.6 with tokenizers 0.22.2, transformers 5.24.0 with tokenizers 0.23.3.
# Date run: 2026-11-27. Source: seen by running.
# Output seen:
#   4.57.6 <s> t h e <mask> Ġ r e d </s>
#   5.24.0 <s> t h e Ġ <mask> Ġ r e d </s>
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
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
with tempfile.TemporaryDirectory() as name:
    Path(name, "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    Path(name, "merges.txt").write_text("#version: 0.2\n")
    Path(name, "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    tokenizer = AutoTokenizer.from_pretrained(name)
found = tokenizer.convert_ids_to_tokens(tokenizer("the <mask> red")["input_ids"])
print(transformers.__version__, *found)
blank = [] if transformers.__version__.startswith("4") else ["Ġ"]
wanted = ["<s>", "t", "h", "e", *blank, "<mask>", "Ġ", "r", "e", "d", "</s>"]
sys.exit(0 if found == wanted else "the behaviour has changed")
EOP
export TRANSFORMERS_VERBOSITY=error
for release in 4 5; do
    PYTHONPATH="$folder/release$release" "$folder/venv/bin/python" "$folder/check.py"
done
