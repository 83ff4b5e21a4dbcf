#!/usr/bin/env bash
# Expected: a tokenizer folder gives a model the same inputs under any release that reads it. Its BERT template
#   marks the second text of a pair with type 1, so token_type_ids come along.
# Happens: with tokenizer_class PreTrainedTokenizerFast and no model_input_names in tokenizer_config.json,
#   transformers 4 returns token_type_ids and transformers 5 returns none. A BERT model then takes type 0 for
#   every token, so each cross-encoder score of a pair changes, without an error or a warning. The ids are the same.
#   Writing model_input_names into tokenizer_config.json brings the types back.
# Versions: transformers 4.57.6 with tokenizers 0.22.2, transformers 5.24.0 with tokenizers 0.23.3.
# Date run: 2026-11-27. Source: seen by running.
# Output seen:
#   4.57.6 [2, 5, 6, 3, 7, 3] types [0, 0, 0, 0, 1, 1]
#   4.57.6 with model_input_names: types [0, 0, 0, 0, 1, 1]
#   5.24.0 [2, 5, 6, 3, 7, 3] types None
#   5.24.0 with model_input_names: types [0, 0, 0, 0, 1, 1]
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
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer

tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "apple", "fruit"]
tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
tokenizer.add_special_tokens(tokens[:5])
tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS]:0 $A:0 [SEP]:0",
    pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
    special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
)


def encode(**settings):
    with tempfile.TemporaryDirectory() as name:
        tokenizer.save(str(Path(name, "tokenizer.json")))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", **settings}
        Path(name, "tokenizer_config.json").write_text(json.dumps(settings))
        return AutoTokenizer.from_pretrained(name)("red apple", "fruit")


version, plain = transformers.__version__, encode()
named = encode(model_input_names=["input_ids", "token_type_ids", "attention_mask"])
print(version, plain["input_ids"], "types", plain.get("token_type_ids"))
print(version, "with model_input_names: types", named["token_type_ids"])
types = [0, 0, 0, 0, 1, 1]
as_stated = (
    plain["input_ids"] == [2, 5, 6, 3, 7, 3]
    and plain.get("token_type_ids") == (types if version.startswith("4") else None)
    and named["token_type_ids"] == types
)
sys.exit(0 if as_stated else "the behaviour has changed")
EOP
export TRANSFORMERS_VERBOSITY=error
for release in 4 5; do
    PYTHONPATH="$folder/release$release" "$folder/venv/bin/python" "$folder/check.py"
done
