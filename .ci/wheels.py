"""Builds a wheel for every platform on one machine, with zig's C++ compiler; see docs/platforms.md.

    pip install ziglang==0.17.0 auditwheel lief cmake
    python .ci/wheels.py --out dist [--work FOLDER] [TARGET ...]

Each is the pure wheel and, in edgebert/lib, what CMake builds for that platform, so `pip wheel` makes the rest once.
Ends with an error where a library lacks an ISA, exports more than the C API or cannot load where pages have 16 KB, and
where a wheel needs what its platform may lack; says which wheels have more than a megabyte.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# zig's name of a target: the wheel's tag, and the files that are built
_LINUX = ("libedgebert.so", "edgebert_roof")
_MACOS = ("libedgebert.dylib", "edgebert_roof")
TARGETS = {
    "x86_64-linux-gnu.2.17": ("manylinux_2_17_x86_64.manylinux2014_x86_64", _LINUX),
    "aarch64-linux-gnu.2.17": ("manylinux_2_17_aarch64.manylinux2014_aarch64", _LINUX),
    "x86_64-linux-musl": ("musllinux_1_2_x86_64", _LINUX),
    "aarch64-linux-musl": ("musllinux_1_2_aarch64", _LINUX),
    "aarch64-macos.11.0": ("macosx_11_0_arm64", _MACOS),
    "x86_64-macos.10.15": ("macosx_10_15_x86_64", _MACOS),
    "x86_64-windows-gnu": ("win_amd64", ("edgebert.dll", "edgebert_roof.exe")),
}
_MAX_BYTES = 1_000_000
_DATE = (2020, 1, 1, 0, 0, 0)  # of every file, so that the same sources give the same wheel


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default all: {', '.join(TARGETS)}")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder for the wheels")
    parser.add_argument("--work", type=Path, help="folder for the builds, kept (default: a temporary one)")
    args = parser.parse_args()
    if unknown := set(args.targets) - set(TARGETS):
        parser.error(f"unknown target {', '.join(unknown)}: choose from {', '.join(TARGETS)}")
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        args.out.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--config-settings", "wheel.cmake=false"]
        run(*pip, "-w", scratch, ROOT)
        (pure,) = Path(scratch).glob("edgebert-*-py3-none-any.whl")
        for target in args.targets or TARGETS:
            tag, files = TARGETS[target]
            build(target, work / target, "edgebert", "edgebert_roof")
            check_library(target, work / target / files[0])
            wheel = make_wheel(pure, tag, [work / target / name for name in files], args.out)
            library = (work / target / files[0]).stat().st_size
            print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB, {files[0]} {library / 1e6:.2f} MB", flush=True)
            if wheel.stat().st_size > _MAX_BYTES:
                print(f"{wheel.name} is larger than the {_MAX_BYTES} bytes that wheels should keep to", flush=True)
            if "manylinux" in tag:
                audit(wheel, tag.split(".")[0])


def build(target: str, folder: Path, *what: str) -> None:
    """Compile for a target of zig's; what was compiled before is kept."""
    import ziglang

    zig = Path(ziglang.__file__).with_name("zig")
    toolchain = ROOT / ".ci" / "zig.cmake"
    options = [f"-DZIG={zig}", f"-DEDGEBERT_TARGET={target}", "-DEDGEBERT_TESTS=ON", "-DSKBUILD=ON"]
    run("cmake", "-S", ROOT, "-B", folder, "--toolchain", toolchain, *options)
    run("cmake", "--build", folder, "-j", str(os.cpu_count()), "--target", *what)


def make_wheel(pure: Path, tag: str, files: list[Path], out: Path) -> Path:
    """The pure wheel with these files in edgebert/lib, for the platforms of a tag.

    The format: https://packaging.python.org/specifications/binary-distribution-format
    """
    version = pure.name.split("-")[1]
    info = f"edgebert-{version}.dist-info"
    wheel = out / f"edgebert-{version}-py3-none-{tag}.whl"
    members: dict[str, bytes] = {f"edgebert/lib/{file.name}": file.read_bytes() for file in files}
    with zipfile.ZipFile(pure) as source:
        members |= {name: source.read(name) for name in source.namelist() if not name.endswith("/")}
    header = [line for line in members[f"{info}/WHEEL"].decode().splitlines() if line]
    header = [line for line in header if not line.startswith(("Tag:", "Root-Is-Purelib:"))]
    header += ["Root-Is-Purelib: false", *(f"Tag: py3-none-{platform}" for platform in tag.split("."))]
    members[f"{info}/WHEEL"] = ("\n".join(header) + "\n").encode()
    record = f"{info}/RECORD"
    del members[record]
    lines = [f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in members.items()]
    members[record] = "".join([*lines, f"{record},,\n"]).encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in members.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100755 if name.startswith("edgebert/lib/") else 0o100644) << 16
            archive.writestr(entry, data)
    return wheel


def check_library(target: str, path: Path) -> None:
    """Check a library: its ISAs, exports, alignment, and for musl, which auditwheel cannot judge here, its needs."""
    import lief

    rows = (ROOT / "kernels" / "cpu" / "isas.inc").read_text(encoding="utf-8")
    isas = re.findall(r'^EB_ISA_ENTRY\((\w+), "(.+?)"', rows, re.MULTILINE)
    expected = [isa for isa, processors in isas if re.fullmatch(processors, target.split("-")[0])]
    built = re.findall(r"\((\w+)\)", (path.parent / "include" / "built_isas.inc").read_text(encoding="utf-8"))
    if built != expected:
        raise SystemExit(f"{path} has {built}, expected {expected}: the compiler refused the flags of the others")
    library = lief.parse(path)
    if isinstance(library, lief.PE.Binary):
        exported = {str(entry.name) for entry in library.get_export().entries}
        alignments = []
    elif isinstance(library, lief.MachO.Binary):
        # the last two are the linker's own, for each library
        exported = {str(entry.symbol.name).removeprefix("_") for entry in library.dyld_info.exports}
        exported -= {"__dso_handle", "_mh_dylib_header"}
        # Intel's have pages of 4 KB
        alignments = [segment.virtual_address for segment in library.segments if target.startswith("aarch64")]
    else:
        exported = {str(symbol.name) for symbol in library.exported_symbols}
        alignments = [segment.alignment for segment in library.segments if segment.type == lief.ELF.Segment.TYPE.LOAD]
        if target.endswith("musl") and list(library.libraries) != ["libc.so"]:
            raise SystemExit(f"{path} needs {list(library.libraries)}, expected musl's libc.so alone")
    header = (ROOT / "kernels" / "include" / "edgebert.h").read_text(encoding="utf-8")
    declared = set(re.findall(r"^EB_API .*?(eb_\w+)\(", header, re.MULTILINE))
    if exported != declared:
        raise SystemExit(f"{path} exports {sorted(exported - declared)} and lacks {sorted(declared - exported)}")
    if any(alignment % 2**14 for alignment in alignments):
        raise SystemExit(f"{path} has segments at {alignments}, expected multiples of 16 KB")


def audit(wheel: Path, tag: str) -> None:
    """Check that a wheel needs no symbol or library that its platform may lack."""
    command = [sys.executable, "-m", "auditwheel", "show", wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if f'"{tag}"' not in done.stdout:
        raise SystemExit(f"{wheel} is not what its name says:\n{done.stdout}{done.stderr}")


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def run(*command: str | Path) -> None:
    """Run a command, and end with what it printed if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout}\n{' '.join(map(str, command))} failed with {done.returncode}")


if __name__ == "__main__":
    main()
