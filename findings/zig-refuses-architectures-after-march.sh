#!/usr/bin/env bash
# Expected: zig cc is clang, so -march takes the architectures that clang and gcc take: armv8.2-a+dotprod, x86-64-v3.
# Happens: the value is read as zig's own -mcpu, a CPU and features in zig's spelling, where a hyphen takes a feature
#   away; architectures are refused as an unknown CPU, and so is clang's cortex-a76. CMake's check of a flag reads that
#   as "this compiler cannot do it", configures without an error, and a library that chooses its kernels at run time
#   silently lacks them. In zig's spelling (generic+v8_2a+dotprod, x86_64_v3, cortex_a76) all are accepted.
# Versions: ziglang 0.17.0, cmake 4.3.4 (PyPI).
# Date run: 2026-11-28. Source: seen by running.
# Output seen:
#   aarch64 -march=armv8.2-a+dotprod: refused, unknown CPU: 'armv8.2'
#   aarch64 -mcpu=cortex-a76: refused, unknown CPU: 'cortex'
#   aarch64 -march=generic+v8_2a+dotprod: accepted
#   aarch64 -mcpu=cortex_a76: accepted
#   x86_64 -march=x86-64-v3: refused, unknown CPU: 'x86'
#   x86_64 -march=x86_64_v3: accepted
#   CMake configures, and finds: armv8.2-a+dotprod 0, generic+v8_2a+dotprod 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile --disable-pip-version-check ziglang==0.17.0 cmake==4.3.4
cd "$folder"
export ZIG_GLOBAL_CACHE_DIR=$folder/cache
zig=$(echo venv/lib/python3*/site-packages/ziglang/zig)

echo 'int one(void) { return 1; }' >one.c
try() { # SYSTEM FLAG
  if "$zig" cc -target "$1-linux-gnu" "$2" -c one.c -o one.o 2>messages; then
    echo "$1 $2: accepted"
  else
    echo "$1 $2: refused, $(sed -n 's/^error: //p' messages)"
  fi
}
{
  try aarch64 -march=armv8.2-a+dotprod
  try aarch64 -mcpu=cortex-a76
  try aarch64 -march=generic+v8_2a+dotprod
  try aarch64 -mcpu=cortex_a76
  try x86_64 -march=x86-64-v3
  try x86_64 -march=x86_64_v3
} >seen

cat >CMakeLists.txt <<'EOC'
cmake_minimum_required(VERSION 3.24)
project(probe C)
include(CheckCCompilerFlag)
check_c_compiler_flag(-march=armv8.2-a+dotprod REFUSED)
check_c_compiler_flag(-march=generic+v8_2a+dotprod TAKEN)
file(WRITE ${CMAKE_BINARY_DIR}/found "${REFUSED}|${TAKEN}\n")
EOC
PATH=$PWD/venv/bin:$PATH venv/bin/cmake -S . -B build -G "Unix Makefiles" -DCMAKE_SYSTEM_NAME=Linux \
  -DCMAKE_SYSTEM_PROCESSOR=aarch64 "-DCMAKE_C_COMPILER=$PWD/$zig;cc;-target;aarch64-linux-gnu" >log || { cat log; exit 1; }
IFS='|' read -r refused taken <build/found
echo "CMake configures, and finds: armv8.2-a+dotprod ${refused:-0}, generic+v8_2a+dotprod ${taken:-0}" >>seen
cat seen
cat >expected <<'EOE'
aarch64 -march=armv8.2-a+dotprod: refused, unknown CPU: 'armv8.2'
aarch64 -mcpu=cortex-a76: refused, unknown CPU: 'cortex'
aarch64 -march=generic+v8_2a+dotprod: accepted
aarch64 -mcpu=cortex_a76: accepted
x86_64 -march=x86-64-v3: refused, unknown CPU: 'x86'
x86_64 -march=x86_64_v3: accepted
CMake configures, and finds: armv8.2-a+dotprod 0, generic+v8_2a+dotprod 1
EOE
cmp -s seen expected || { echo "the behaviour has changed"; exit 1; }
