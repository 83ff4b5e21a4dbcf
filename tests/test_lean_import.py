"""What may be imported where and when: the base install stays light, and layers do not reach around each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import BACKENDS

import edgebert
from edgebert.artifact.integrity import add_metadata
from edgebert.backends import native

PACKAGE = Path(edgebert.__file__).parent
HEAVY = {"torch", "onnx", "transformers", "numba", "onnxruntime", "safetensors", "huggingface_hub", "scipy"}
if "native" in BACKENDS:  # else texts are the tokenizers library's
    HEAVY |= {"tokenizers"}
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
NUMBA = {"numba", "llvmlite"}
INTEGRATIONS = {  # what a module imports beside the library of its name
    "langchain": {"langchain_core", "pydantic"},
    "duckdb": {"pyarrow"},
    "sentence_transformers": {"torch"},
    "transformers": {"torch"},
}
NUMBA_MODULES = ("edgebert.backends.numba_cpu_", "edgebert.backends.numba_cuda_ops")
NUMBA_KERNELS = (
    "backends/numba_cpu_",
    "backends/numba_cuda_ops",
)  # made of Numba's decorators: only they import one another at load


def loaded_modules(code: str, *arguments: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after running `code`."""
    script = f"import sys\n{code}\nprint('MODULES', *{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-P", "-c", script, *arguments], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("MODULES"))
    return set(line.split()[1:])


def test_import_edgebert_loads_nothing_heavy() -> None:
    assert not loaded_modules("import edgebert") & (HEAVY | {"numpy", "ctypes"})


@pytest.mark.skipif("native" not in BACKENDS, reason="other backends need more")
def test_running_a_model_loads_nothing_that_it_does_not_use(make_file: Callable[..., Path]) -> None:
    code = "import edgebert\nassert edgebert.load(sys.argv[1], 'native').encode('a').shape == (24,)"
    unused = {"hashlib", "shutil", "lzma", "tempfile", "subprocess", "asyncio", "multiprocessing"}
    by_numpy = loaded_modules("import numpy")
    assert not (loaded_modules(code, str(make_file())) - by_numpy) & unused


def test_running_a_model_needs_only_the_base_install(make_file: Callable[..., Path]) -> None:
    block = f"for name in {sorted(HEAVY)}: sys.modules[name] = None\n"  # importing one of them now raises ImportError
    code = block + (
        "import edgebert\n"
        "model = edgebert.load(sys.argv[1])\n"
        "assert model.encode(['a', 'b c']).shape == (2, 24)\n"
        "assert model.tokenizer.decode([5, 6]) and model.tokenizer.make_windows(['a b'], 3, 0)\n"
        "assert model.backend.name in ('native', 'numpy')\n"
        "assert all(edgebert.available_backends()[name] is not None for name in ('numba', 'onnxruntime'))\n"
        f"for name in {sorted(HEAVY)}: del sys.modules[name]"
    )
    assert not loaded_modules(code, str(make_file())) & HEAVY


def test_running_a_model_opens_no_socket(make_file: Callable[..., Path]) -> None:
    code = (
        "def refuse(event, arguments):\n"
        "    assert not event.startswith('socket.'), (event, arguments)\n"
        "sys.addaudithook(refuse)\n"
        "import edgebert\n"
        "for backend, reason in edgebert.available_backends().items():\n"
        "    if reason is None:\n"
        "        model = edgebert.load(sys.argv[1], backend=backend, verify=True)\n"
        "        assert model.encode(['a', 'b c']).shape == (2, 24)"
    )
    path = make_file()
    add_metadata(path, {})  # a content hash
    loaded_modules(code, str(path))
    library = Path(native.load_library()._name).read_bytes()
    for name in (b"socket", b"connect", b"getaddrinfo"):  # the native library imports none of these
        assert name + b"\0" not in library


@pytest.mark.parametrize("command", [["doctor"], ["info", "FILE"], ["run", "FILE", "a b"], ["--version"]])
def test_the_command_line_is_light(command: list[str], make_file: Callable[..., Path]) -> None:
    path = str(make_file())
    arguments = [path if word == "FILE" else word for word in command]
    arguments += ["--backend", "numpy"] if command[0] == "run" else []
    code = f"from edgebert.cli import main\ntry: main({arguments!r})\nexcept SystemExit as end: assert end.code == 0"
    # asked whether they can be used; numba looks for scipy
    allowed = {"numba", "onnxruntime", "scipy"} if command[0] == "doctor" else set()
    assert not loaded_modules(code) & (HEAVY - allowed)


def imports_of(path: Path, *, at_load: bool) -> Iterator[str]:
    """Modules that a file imports: at load (outside functions and TYPE_CHECKING), or anywhere."""

    def visit(node: ast.AST) -> Iterator[str]:
        if at_load and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if at_load and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield module
            if module.startswith("edgebert"):
                yield from (f"{module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")))


def third_party(modules: Iterator[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names) - {"edgebert"}


@pytest.mark.parametrize("module", MODULES)
def test_nothing_heavy_is_imported_at_load(module: str) -> None:
    if module.startswith("compress/"):
        return
    if module.startswith("serve/"):
        modules = set(imports_of(PACKAGE / module, at_load=True))
        assert third_party(iter(modules)) <= {
            "numpy",
            "httptools",
            "orjson",
            "prometheus_client",
            "starlette",
            "uvicorn",
        }
        return
    modules = list(imports_of(PACKAGE / module, at_load=True))
    name = Path(module).stem
    if module.startswith("integrations/"):  # each is there for one library
        assert third_party(iter(modules)) <= {"numpy", name} | INTEGRATIONS.get(name, set())
        return
    is_kernels = module.startswith(NUMBA_KERNELS)
    assert third_party(iter(modules)) <= ({"numpy"} | NUMBA if is_kernels else {"numpy"})
    assert is_kernels or not [name for name in modules if name.startswith(NUMBA_MODULES)]


@pytest.mark.parametrize("module", ["errors.py", "batch.py", "quant.py", "artifact/spec.py", "artifact/names.py"])
def test_contracts_import_numpy_and_the_standard_library_only(module: str) -> None:
    contracts = {
        "edgebert.errors",
        "edgebert.batch",
        "edgebert.quant",
        "edgebert.artifact.spec",
        "edgebert.artifact.names",
    }
    modules = set(imports_of(PACKAGE / module, at_load=False))
    assert third_party(iter(modules)) <= {"numpy"}
    ours = {name for name in modules if name.startswith("edgebert")}
    assert all(any(name == allowed or name.startswith(allowed + ".") for allowed in contracts) for name in ours)


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("backends/")])
def test_backends_import_contracts_and_the_reader_only(module: str) -> None:
    allowed = ("edgebert.errors", "edgebert.batch", "edgebert.quant", "edgebert.artifact", "edgebert.backends")
    modules = set(imports_of(PACKAGE / module, at_load=False))
    ours = {name for name in modules if name.startswith("edgebert")} - {"edgebert", "edgebert.__version__"}
    assert all(name.startswith(allowed) for name in ours)
    own = {"onnxruntime"} if module == "backends/onnxruntime.py" else NUMBA if "/numba_" in module else set()
    assert third_party(iter(modules)) <= {"numpy"} | own


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("tasks/")])
def test_tasks_import_no_backend(module: str) -> None:
    assert not [name for name in imports_of(PACKAGE / module, at_load=False) if name.startswith("edgebert.backends")]


@pytest.mark.parametrize("room", ["compress", "serve"])
@pytest.mark.parametrize("module", MODULES)
def test_only_commands_import_compress_and_serve_and_not_at_load(module: str, room: str) -> None:
    if module.startswith(f"{room}/"):
        return
    is_command = module.startswith("commands/")
    assert not [
        name for name in imports_of(PACKAGE / module, at_load=is_command) if name.startswith(f"edgebert.{room}")
    ]
