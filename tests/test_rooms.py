"""The rooms of the package: what may import what. docs/design.md says what lives in each."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import jasper_jax

PACKAGE = Path(jasper_jax.__file__).parent
ROOMS = [
    "runtime",
    "parameters",
    "losses",
    "recipe",
    "encoders",
    "assets",
    "vision",
    "data",
    "embedder",
    "teachers",
    "student",
    "checkpoints",
    "batches",
    "planning",
    "training",
    "evaluation",
    "export",
    "reporting",
    "benchmarks",
    "publishing",
    "run",
    "commands",
    "cli",
    "__init__",
]
"""From the ground up: a room imports itself and those before it."""


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> set[str]:
    """The rooms that a file imports, also within functions and for type checking."""
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "jasper_jax" else [f"jasper_jax.{a.name}" for a in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("jasper_jax.")}
    return rooms


def test_every_file_is_in_a_room() -> None:
    assert {room_of(path) for path in PACKAGE.rglob("*.py")} == set(ROOMS)


def test_no_room_imports_a_room_above_it() -> None:
    upwards = [
        f"{path.relative_to(PACKAGE)} imports {room}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if "remote" not in path.parts  # code that leaves with an export
        for room in sorted(imports(path))
        if ROOMS.index(room) > ROOMS.index(room_of(path))
    ]
    assert upwards == []


def test_no_files_import_each_other() -> None:
    """Packages' own ``__init__`` hand names on and are left out."""
    files = {
        ".".join(("jasper_jax", *path.relative_to(PACKAGE).with_suffix("").parts)): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" and "remote" not in path.parts
    }
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jasper_jax"):
                submodules = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= (submodules | {node.module or ""}) & set(files)
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the files
