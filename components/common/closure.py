"""Which files of ours the import of a module reaches: what a stage's bytes can depend on, and nothing else.

Imports are read from the source, those inside functions too. A package's own `__init__` is part of the way to its modules.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = ("components", "expunge", "flows", "training", "research")


def closure(module: str, root: Path = ROOT) -> list[Path]:
    """The files, relative to `root` and sorted, that importing `module` reads, its own and its packages' included."""
    seen: set[Path] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            file = _file(root, ".".join(parts[:depth]))
            if file is not None and file not in seen:
                seen.add(file)
                todo += _imports(root / file)
    return sorted(seen)


def code_of(module: str, root: Path = ROOT) -> str:
    """A digest of all code that `module` reaches: part of the key of what that code has made."""
    whole = hashlib.sha256()
    for file in closure(module, root):
        whole.update(f"{file.as_posix()}\0{_digest(root / file)}\n".encode())
    return whole.hexdigest()


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _file(root: Path, module: str) -> Path | None:
    """The file of a module of ours, or None: a name that is no module, or is not ours."""
    if module.split(".", maxsplit=1)[0] not in OURS:
        return None
    path = Path(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if (root / file).is_file():
            return file
    return None


@lru_cache(maxsize=1024)
def _imports(file: Path) -> tuple[str, ...]:
    """Every module, or name of a module, that a file imports."""
    return tuple(_named(ast.parse(file.read_text(encoding="utf-8"))))


def _named(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
