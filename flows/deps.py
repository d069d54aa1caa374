"""Writes the code that each stage depends on into dvc.yaml: `make deps`.

A stage's code is the import closure of its module, file by file (components/common/closure.py). Worlds and judges are
opened by name, which no import shows: where a stage's code can open them, the files of the world that params.yaml names
are among its dependencies too.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from components.common.closure import closure
from components.common.sections import read_yaml

GRAPH, PARAMS = Path("dvc.yaml"), Path("params.yaml")
WORLDS = Path("components/worlds")
OPENS_WORLD, OPENS_JUDGE, OPENS_REFERENCES = WORLDS / "load.py", WORLDS / "judges.py", WORLDS / "references.py"
DRAWN_FROM = ("world.yaml", "templates.yaml", "drawings.yaml")
"""What a world's modules read beside their own code."""


def code_deps(module: str, world: str, root: Path) -> list[str]:
    """The files that a stage's code can reach; those of the world have `${world}` in its place."""
    found = set(closure(module, root))
    own = WORLDS / world
    if OPENS_WORLD in found:
        found |= {
            path.relative_to(root)
            for path in (root / own).glob("*.yaml")
            if path.name in ("world.yaml", "templates.yaml")
        }
    if OPENS_JUDGE in found and (root / own / "judge.py").is_file():
        found |= set(closure(f"components.worlds.{world}.judge", root))
    if OPENS_REFERENCES in found and (root / own / "references.py").is_file():
        found |= set(closure(f"components.worlds.{world}.references", root))
        found |= {path.relative_to(root) for path in (root / own).glob("*.yaml") if path.name in DRAWN_FROM}
    return sorted(_templated(path, own) for path in found)


def _templated(path: Path, own: Path) -> str:
    return f"{WORLDS}/${{world}}/{path.relative_to(own)}" if path.is_relative_to(own) else path.as_posix()


def is_code(dep: str) -> bool:
    """Whether a dependency is one of ours to write: code, or a world's templates."""
    return dep.startswith(("components/", "flows/", "expunge/"))


def with_deps(graph: dict[str, Any], world: str, root: Path) -> dict[str, Any]:
    """`graph`, the content of dvc.yaml, with the code of every stage; other dependencies stay."""
    for stage in graph["stages"].values():
        spec = stage.get("do", stage)
        found = re.search(r"-m (\S+)", spec["cmd"])
        if found is not None:
            data = [dep for dep in spec["deps"] if not is_code(dep)]
            spec["deps"] = sorted([*data, *code_deps(found[1], world, root)])
    return graph


def main(root: Path = Path()) -> int:
    """Rewrites dvc.yaml in place, comments and order kept; with `--check` only says whether it would change."""
    path, yaml = root / GRAPH, YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    before = path.read_text(encoding="utf-8")
    world = read_yaml(root / PARAMS)["world"]
    graph = with_deps(yaml.load(before), world, root)
    if "--check" in sys.argv:
        return int(graph != YAML(typ="safe").load(before))
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(graph, file)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
