#!/usr/bin/env bash
# Expected: zig cc for macOS takes the linker's -exported_symbols_list FILE, so the library exports what FILE lists.
# Happens: the option is accepted and the file is read (a file that is missing is an error), and then every symbol is
#   exported all the same. The option for a single symbol, -exported_symbol, is refused. A library that relies on the
#   list shows all of its internals, and builds without a warning; hidden visibility at compile time works.
# Versions: ziglang 0.17.0 (PyPI); on Linux, for aarch64-macos.11.0.
# Date run: 2026-11-28. Source: seen by running.
# Output seen:
#   a list that is missing: refused
#   with a list of one symbol: _listed and _unlisted are exported
#   with hidden visibility: _listed is exported
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile --disable-pip-version-check ziglang==0.17.0
cd "$folder"
export ZIG_GLOBAL_CACHE_DIR=$folder/cache

cat >both.c <<'EOC'
__attribute__((visibility("default"))) int listed(void) { return 1; }
int unlisted(void) { return 2; }
EOC
echo _listed >list
build() { venv/bin/python -m ziglang cc -target aarch64-macos.11.0 -shared both.c "$@"; }
if build -o never.dylib -Wl,-exported_symbols_list,missing 2>/dev/null; then
  echo "the behaviour has changed: a missing list is accepted"
  exit 1
fi
echo "a list that is missing: refused"
build -o with_list.dylib -Wl,-exported_symbols_list,list
build -o hidden.dylib -fvisibility=hidden

venv/bin/python - <<'EOP'
import struct
import sys


def exported(path):
    """Names of the external symbols that are defined, out of a Mach-O file's symbol table (LC_SYMTAB)."""
    data = open(path, "rb").read()
    at = 32
    for _ in range(struct.unpack_from("<I", data, 16)[0]):
        command, size, symbols, count, strings = struct.unpack_from("<5I", data, at)
        at += size
        if command == 2:
            break
    entries = [struct.unpack_from("<IBBHQ", data, symbols + 16 * i) for i in range(count)]
    starts = [strings + entry[0] for entry in entries if entry[1] & 0x1F == 0x0F]  # external, in a section
    return {data[start : data.index(b"\0", start)].decode() for start in starts}


found = {name: sorted(exported(f"{name}.dylib") & {"_listed", "_unlisted"}) for name in ("with_list", "hidden")}
print("with a list of one symbol:", " and ".join(found["with_list"]), "are exported")
print("with hidden visibility:", " and ".join(found["hidden"]), "is exported")
sys.exit(0 if found == {"with_list": ["_listed", "_unlisted"], "hidden": ["_listed"]} else "the behaviour has changed")
EOP
