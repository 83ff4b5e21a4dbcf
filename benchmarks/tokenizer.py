"""The native tokenizer beside the tokenizers library: the same results on many strings first, then the time of both.

    python -m benchmarks.tokenizer TOKENIZER_JSON ... --data FOLDER --count 1000000 --out RESULT.json

Each TOKENIZER_JSON is a file of the tokenizers library, or a folder with tokenizer.json. Strings are the texts under
FOLDER (*.jsonl.gz, *.txt), each assigned character, and random ones: characters of several blocks with marks, blanks,
emoji sequences and the tokenizer's own added tokens among them. Ids, types, offsets and word ids are compared, of texts
and of pairs. Then both are timed on real texts in turns, on one thread: the library, the native one fresh from loading
("cold"), and again ("warm"); once for ids alone, once with offsets. Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import statistics
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import describe_run, write_result
from edgebert.tokenizer.native import NativeTokenizer

CHUNK = 5000  # strings compared at a time
CLUSTERS = [
    "e\u0301",
    "\r\n",
    "👩\u200d👩\u200d👧",
    "👍🏽",
    "🇩🇪",
    "क्षि",
    "각",
    "\u1112\u1161\u11ab",
    "ไม้",
    "a\u0323\u0302",
    "\ufdfa",
]
BLANKS = " \t\n\xa0\u3000\u200b\u2028\x85\x00\u2581\ufeff\xad\ufffd"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenizer", description=__doc__.splitlines()[0])
    parser.add_argument("tokenizers", type=Path, nargs="+", help="files of the tokenizers library, or their folders")
    parser.add_argument("--data", type=Path, required=True, help="a folder with texts: *.jsonl.gz and *.txt")
    parser.add_argument("--count", type=int, default=100_000, help="strings compared (default: 100000)")
    parser.add_argument("--timed", type=int, default=20_000, help="texts timed (default: 20000)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of the timing; 0 for none (default: 9)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write JSON here instead of printing it")
    args = parser.parse_args()

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # before the library's first call: one thread
    result: dict[str, Any] = {**describe_run("benchmarks.tokenizer"), "tokenizers": {}}
    texts = list(dict.fromkeys(read_texts(args.data)))
    for path in args.tokenizers:
        file = path / "tokenizer.json" if path.is_dir() else path
        content = file.read_text(encoding="utf-8")
        report: dict[str, Any] = {"bytes": len(content.encode())}
        report["compared"] = compare(content, make_strings(content, texts, args.count, args.seed))
        if args.rounds:
            report["timed"] = time_both(content, texts, args.timed, args.rounds)
        result["tokenizers"][path.name] = report
        print(path.name, json.dumps(report), flush=True)
    result["differences"] = sum(
        count for report in result["tokenizers"].values() for count in report["compared"]["differences"].values()
    )
    write_result(args.out, result)
    return 1 if result["differences"] else 0


def read_texts(folder: Path) -> Iterator[str]:
    """Every string in the rows of a folder's JSON lines, and every line of its other texts."""
    for path in sorted(folder.rglob("*")):
        if path.name.endswith(".jsonl.gz"):
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                for line in lines:
                    yield from (value for value in json.loads(line).values() if isinstance(value, str) and value)
        elif path.suffix == ".txt":
            yield from path.read_text(encoding="utf-8").splitlines()


def make_strings(content: str, texts: list[str], count: int, seed: int) -> Iterator[str]:
    """A third real texts, all assigned characters, and random strings for the rest, `count` in all."""
    random_ = random.Random(seed)
    added = [token["content"] for token in json.loads(content)["added_tokens"] or []]
    assigned = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    special = [*added, *(f" {token} " for token in added), *CLUSTERS, *CLUSTERS]
    blocks = [assigned[i : i + 100] for i in range(0, len(assigned), 100)]
    letters = [list("abcdefghijklmnopqrstuvwxyz"), list("ABCDEFGH0123456789"), list(".,;:!?'\"-_#@$%&/()[]{}<>")]

    def strings() -> Iterator[str]:
        yield from ("", " ", "a" * 100_000, "中" * 5000, "\u0301" * 5000, " " * 5000, "é" * 100, "é" * 101)
        yield from random_.sample(texts, min(len(texts), count // 3))
        characters = random_.sample(assigned, min(len(assigned), count // 3))
        yield from (random_.choice(["a{}b", "{}", "a {} b", "{0}{0}1"]).format(character) for character in characters)
        while True:
            pools = random_.choices([*letters, list(BLANKS), special, *random_.sample(blocks, 3)], k=4)
            yield "".join(random_.choice(random_.choice(pools)) for _ in range(random_.randrange(40)))

    return islice(strings(), count)


def compare(content: str, strings: Iterator[str]) -> dict[str, Any]:
    """How many texts and pairs were compared, and in how many of them each part differs; the first few that do."""
    import tokenizers

    library = tokenizers.Tokenizer.from_str(content)
    library.no_truncation()
    library.no_padding()
    native = NativeTokenizer(content)
    differences = Counter({"input_ids": 0, "token_type_ids": 0, "offsets": 0, "word_ids": 0})
    examples: list[str] = []
    num_texts = num_pairs = 0
    while chunk := list(islice(strings, CHUNK)):
        pairs = list(zip(chunk[: len(chunk) // 10], chunk[::-1], strict=False))
        rows: list[Any] = [*chunk, *pairs]
        num_texts, num_pairs = num_texts + len(chunk), num_pairs + len(pairs)
        found = native.tokenize(rows, offsets="characters")
        assert found.offsets is not None and found.word_ids is not None
        for i, encoding in enumerate(library.encode_batch(rows)):
            part = slice(found.cu_seqlens[i], found.cu_seqlens[i + 1])
            words = [-1 if word is None else word for word in encoding.word_ids]
            for name, ours, theirs in (
                ("input_ids", found.input_ids[part].tolist(), encoding.ids),
                ("token_type_ids", found.token_type_ids[part].tolist(), encoding.type_ids),
                ("offsets", list(map(tuple, found.offsets[part].tolist())), encoding.offsets),
                ("word_ids", found.word_ids[part].tolist(), words),
            ):
                if ours != theirs:
                    differences[name] += 1
                    if len(examples) < 5:
                        examples.append(f"{name}: {rows[i]!a}"[:500])
    return {"texts": num_texts, "pairs": num_pairs, "differences": dict(differences), "examples": examples}


def time_both(content: str, texts: list[str], count: int, rounds: int) -> dict[str, Any]:
    """Seconds to load and MB a second of both, taken in turns, and the median of the turns' ratios."""
    import tokenizers

    kinds = {"ASCII": [text for text in texts if text.isascii()], "other": [t for t in texts if not t.isascii()]}
    report: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {}

    def clock(name: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        result = call(*args, **options)
        seconds.setdefault(name, []).append(time.perf_counter() - started)
        return result

    def library_ids(library: Any, chosen: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in library.encode_batch_fast(chosen)]

    def library_offsets(library: Any, chosen: list[str]) -> list[Any]:
        return [(encoding.ids, encoding.offsets) for encoding in library.encode_batch(chosen)]

    for kind, candidates in kinds.items():
        chosen = random.Random(1).sample(candidates, min(count, len(candidates)))
        if not chosen:
            continue
        megabytes = sum(len(text.encode()) for text in chosen) / 1e6
        seconds.clear()
        for _ in range(rounds):
            library = clock("library load", tokenizers.Tokenizer.from_str, content)
            library.no_truncation()
            library.no_padding()
            native = clock("native load", NativeTokenizer, content)
            clock("library ids", library_ids, library, chosen)
            clock("native ids cold", native.tokenize, chosen)
            clock("native ids warm", native.tokenize, chosen)
            clock("library offsets", library_offsets, library, chosen)
            clock("native offsets warm", native.tokenize, chosen, offsets="characters")
        row: dict[str, Any] = {"texts": len(chosen), "megabytes": megabytes}
        for name, times in seconds.items():
            value = statistics.median(times)
            row[name] = {"seconds": value} if name.endswith("load") else {"megabytes_per_second": megabytes / value}
        for theirs, ours in (
            ("library load", "native load"),
            ("library ids", "native ids cold"),
            ("library ids", "native ids warm"),
            ("library offsets", "native offsets warm"),
        ):
            ratios = [a / b for a, b in zip(seconds[theirs], seconds[ours], strict=True)]
            row[ours]["times_as_fast"] = statistics.median(ratios)
        report[kind] = row
    return report


if __name__ == "__main__":
    raise SystemExit(main())
