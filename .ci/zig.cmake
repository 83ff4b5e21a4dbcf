# A CMake toolchain: the C++ compiler of zig, which brings every system's headers and libraries, for one of its targets.
#   cmake -B build --toolchain .ci/zig.cmake -DEDGEBERT_TARGET=aarch64-linux-gnu.2.17
# zig is found on PATH or named with -DZIG=PATH; `pip install ziglang` installs it, inside the package.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES EDGEBERT_TARGET ZIG)
find_program(ZIG zig REQUIRED)

string(REGEX MATCH "^([a-z0-9_]+)-([a-z]+)" _ "${EDGEBERT_TARGET}")
set(CMAKE_SYSTEM_PROCESSOR ${CMAKE_MATCH_1})
set(EDGEBERT_RUNTIME ${CMAKE_CURRENT_LIST_DIR}/zig_runtime.cc)
if(CMAKE_MATCH_2 STREQUAL "linux")
  set(CMAKE_SYSTEM_NAME Linux)
elseif(CMAKE_MATCH_2 STREQUAL "windows")
  set(CMAKE_SYSTEM_NAME Windows)
  set(CMAKE_RC_COMPILER ${ZIG}) # which CMake wants to know of; there are no resources
elseif(CMAKE_MATCH_2 STREQUAL "wasi") # no threads, and exceptions that zig's C++ library lacks there
  set(CMAKE_SYSTEM_NAME Generic)
  set(EDGEBERT_THREADS OFF)
  set(EDGEBERT_RUNTIME ${CMAKE_CURRENT_LIST_DIR}/zig_wasm.cc)
  cmake_path(GET ZIG PARENT_PATH zig)
  set(CMAKE_C_FLAGS_INIT "-mcpu=generic+exception_handling+multivalue+reference_types")
  string(JOIN " " CMAKE_CXX_FLAGS_INIT "${CMAKE_C_FLAGS_INIT}" -fwasm-exceptions
    "-I${zig}/lib/libcxx/src" "-I${zig}/lib/libunwind/include")
elseif(CMAKE_MATCH_2 STREQUAL "macos")
  set(CMAKE_SYSTEM_NAME Darwin)
  set(CMAKE_OSX_SYSROOT "")
  set(CMAKE_INSTALL_NAME_TOOL true)
else()
  message(FATAL_ERROR "EDGEBERT_TARGET is '${EDGEBERT_TARGET}', expected a target of zig's for linux, windows, macos or wasi")
endif()

set(EDGEBERT_FLAGS_neon_dotprod -mcpu=generic+v8_2a+dotprod) # zig knows no -march=armv8.2-a+dotprod
set(CMAKE_SHARED_LINKER_FLAGS_INIT -s)
set(CMAKE_EXE_LINKER_FLAGS_INIT -s)
set(CMAKE_C_COMPILER ${ZIG} cc -target ${EDGEBERT_TARGET})
set(CMAKE_CXX_COMPILER ${ZIG} c++ -target ${EDGEBERT_TARGET})
