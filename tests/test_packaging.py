"""What is installed: versions that agree, few dependencies, pins for what the documents install, one exported API."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import edgebert
from edgebert.backends import native

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def requirements(extra: str) -> list[Requirement]:
    """What an extra installs, the extras that it names resolved."""
    found = []
    for text in EXTRAS[extra]:
        requirement = Requirement(text)
        if requirement.name == "edgebert":
            found += [inner for name in requirement.extras for inner in requirements(name)]
        else:
            found.append(requirement)
    return found


def test_the_version_is_written_once() -> None:
    version = edgebert.__version__
    assert native.load_library().eb_version().decode() == version
    for name in ("CMakeLists.txt", "pyproject.toml"):
        assert not re.search(rf"\bversion\W+{re.escape(version)}\b", (ROOT / name).read_text(encoding="utf-8"), re.I)


def test_the_base_install_is_light() -> None:
    assert {Requirement(text).name for text in PROJECT["dependencies"]} == {"numpy"}


def test_what_the_documents_install_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)) for pin in pins}
    assert {pin.operator for pin in versions.values()} == {"=="}
    for requirement in [*map(Requirement, PROJECT["dependencies"]), *requirements("demo"), *requirements("dev")]:
        assert versions[canonicalize_name(requirement.name)].version in requirement.specifier


def test_no_extra_installs_both_packages_of_onnxruntime() -> None:
    for extra in EXTRAS:
        assert not {"onnxruntime", "onnxruntime-gpu"} <= {requirement.name for requirement in requirements(extra)}


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm lists the library's symbols")
def test_the_library_exports_the_c_api_and_nothing_else() -> None:
    header = (ROOT / "kernels" / "include" / "edgebert.h").read_text(encoding="utf-8")
    declared = set(re.findall(r"^EB_API .*?(eb_\w+)\(", header, re.MULTILINE))
    library = native.load_library()._name
    result = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    assert {line.split()[-1] for line in result.stdout.splitlines()} == declared


def test_the_ci_script_can_be_run() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
