"""The rooms: packages and top modules of edgebert/ stand in one order, and nothing imports what stands after it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import edgebert

PACKAGE = Path(edgebert.__file__).parent

# Each room may import itself and the rooms before it. edgebert/__init__.py is no room but the door: who takes a public
# name from it is counted as importing the module that defines the name.
ROOMS = (
    "errors", "files", "quant", "batch", "report", "printing", "turns", "artifact", "backends", "tokenizer", "tasks",
    "runner", "model", "checkpoints", "exporting", "doctor", "demo", "web", "scoring", "serve", "bench", "compress",
    "commands", "cli", "__main__", "integrations",
)  # fmt: skip


def _imports_of(path: Path) -> Iterator[str]:
    """Full names of what a file of ours imports of ours: at the top, in functions, for type checkers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "edgebert":
            yield f"edgebert.{node.attr}"


def _find_module(name: str) -> str:
    """The module that a full name is or belongs to, without "edgebert."; "" for the door and for others' names."""
    package, *parts = name.split(".")
    if package != "edgebert":
        return ""
    if parts and parts[0] in edgebert._MODULES:
        parts = edgebert._MODULES[parts[0]].split(".")[1:]
    while parts and not (PACKAGE.joinpath(*parts).is_dir() or PACKAGE.joinpath(*parts).with_suffix(".py").is_file()):
        parts.pop()
    return ".".join(parts)


def _draw() -> dict[str, set[str]]:
    """Module -> the other modules of this package that it imports."""
    drawing = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")
        drawing[name] = {_find_module(imported) for imported in _imports_of(path)} - {"", name}
    del drawing[""]
    return drawing


IMPORTS = _draw()


def _place(module: str) -> int:
    return ROOMS.index(module.partition(".")[0])


def test_every_module_is_in_a_room_and_the_guide_names_them_in_order() -> None:
    assert {module.partition(".")[0] for module in IMPORTS} == set(ROOMS)
    guide = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    line = re.search(r"^`errors` → .*(?:\n.+)*", guide, re.MULTILINE)
    assert line and tuple(re.findall(r"`(\w+)`", line[0])) == ROOMS


def test_no_import_runs_upwards() -> None:
    upward = {(module, name) for module, names in IMPORTS.items() for name in names if _place(name) > _place(module)}
    assert upward == set(), "these import a room that stands after their own"


def test_no_imports_are_circular() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        raise AssertionError(f"these modules import in a circle: {' ← '.join(error.args[1])}") from None
