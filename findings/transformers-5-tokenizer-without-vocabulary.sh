#!/usr/bin/env bash
# Expected: AutoTokenizer raises an error where the folder lacks the vocabulary that the tokenizer class reads, say
#   a BertTokenizer in a folder without vocab.txt and tokenizer.json (a wrong name, a half-finished copy).
# Happens: transformers 5 returns a tokenizer that knows the five special tokens only, without an error or a warning
#   at the default log level, as long as tokenizer_config.json is there. Every word is then [UNK], and a model still
#   gives numbers. Release 4 raised (which error depends on what else is installed; with protobuf, a TypeError).
# Versions: transformers 4.57.6 with tokenizers 0.22.2, transformers 5.24.0 with tokenizers 0.23.3.
# Date run: 2026-11-27. Source: seen by running.
# Output seen:
#   4.57.6 BertTokenizer: raises ImportError
#   4.57.6 XLMRobertaTokenizer: raises ImportError
#   5.24.0 BertTokenizer: 5 tokens, "hello world" is [CLS] [UNK] [UNK] [SEP]
#   5.24.0 XLMRobertaTokenizer: 5 tokens, "hello world" is <s> <unk> <unk> </s>
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
from transformers import AutoTokenizer

release = transformers.__version__
as_stated = True
for class_name in ("BertTokenizer", "XLMRobertaTokenizer"):
    with tempfile.TemporaryDirectory() as name:
        # The vocabulary is there, under a name that no tokenizer class reads.
        Path(name, "bert-vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nworld\n")
        Path(name, "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": class_name}))
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except Exception as error:
            print(release, f"{class_name}: raises {type(error).__name__}")
            as_stated &= release.startswith("4")
            continue
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("hello world")["input_ids"])
    print(release, f'{class_name}: {len(tokenizer)} tokens, "hello world" is', *tokens)
    as_stated &= release.startswith("5") and len(tokenizer) < 7 and tokens[1:3] == [tokenizer.unk_token] * 2
sys.exit(0 if as_stated else "the behaviour has changed")
EOP
export TRANSFORMERS_VERBOSITY=error
for release in 4 5; do
    PYTHONPATH="$folder/release$release" "$folder/venv/bin/python" "$folder/check.py"
done
