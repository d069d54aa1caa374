"""Writes the code that each stage depends on into dvc.yaml: `make deps`, and `expunge init` for a project of its own.

A stage's code is the import closure of its module, file by file (components/common/closure.py). Worlds and judges are
opened by name, which no import shows: where a stage's code can open them, the files of the world and the readers of the judges
that params.yaml names are among its dependencies too, and so are the judges' own files and those of prompts (`corpus`).

In a project outside this repository the code lies in the installed package, at a path that differs between machines. There
dvc.yaml is the product's without its files, and each stage depends on its own key of code.json, a digest of the same files.
"""

from __future__ import annotations

import hashlib
import io
import re
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from components.collect.params import CorpusParams
from components.common.closure import ROOT, closure
from components.common.errors import ArtifactError
from components.common.files import canonical, write_text
from components.common.sections import read_section
from components.evaluate.attacks.params import AttackParams
from components.worlds.judges import READERS, reader_module
from components.worlds.params import JudgeParams

GRAPH, PARAMS, CODE = Path("dvc.yaml"), Path("params.yaml"), Path("code.json")
WORLDS = Path("components/worlds")
OPENS_WORLD, OPENS_JUDGE, OPENS_REFERENCES = WORLDS / "load.py", WORLDS / "judges.py", WORLDS / "references.py"
READS_REQUESTS = Path("components/collect/record.py")
READS_PROMPTS = Path("components/collect/sources.py")
ATTACK = "attack"
"""Section of params.yaml that names the second judge, and that the stage of the same name reads."""
INPUTS = "inputs"
"""Folder of a project for what its requests bring along: prompts and reference images."""
DRAWN_FROM = ("world.yaml", "templates.yaml", "drawings.yaml")
"""What a world's modules read beside their own code."""


def code_deps(
    module: str, world: str, root: Path, judge: JudgeParams | None = None, project: Path | None = None
) -> list[str]:
    """The files that a stage's code can reach; those of the world have `${world}` in its place.

    A world of one's own is named by its path in `project`, by default the same folder as the code's, `root`.
    """
    found, at = set(closure(module, root)), root if project is None else project
    own = WORLDS / world if (root / WORLDS / world).is_dir() else Path(world)
    if OPENS_WORLD in found:
        found |= {
            own / name
            for name in ("world.yaml", "templates.yaml")
            if (root / own / name).is_file() or (at / own / name).is_file()
        }
    if OPENS_JUDGE in found:
        if own.is_relative_to(WORLDS) and (root / own / "judge.py").is_file():
            found |= set(closure(f"components.worlds.{world}.judge", root))
        elif (at / own / "judge.py").is_file():
            found.add(own / "judge.py")
        for reader in judge.readers() if judge is not None else ():
            found |= set(closure(reader_module(reader.reader), root)) if reader.reader in READERS else set()
    if OPENS_REFERENCES in found and own.is_relative_to(WORLDS) and (root / own / "references.py").is_file():
        found |= set(closure(f"components.worlds.{world}.references", root))
        found |= {own / name for name in DRAWN_FROM if (root / own / name).is_file()}
    return sorted(_templated(path, own) for path in found)


def _templated(path: Path, own: Path) -> str:
    if not path.is_relative_to(own):
        return path.as_posix()
    before = f"{WORLDS}/" if own.is_relative_to(WORLDS) else ""
    return f"{before}${{world}}/{path.relative_to(own)}"


def is_code(dep: str) -> bool:
    """Whether a dependency is one of ours to write: code, or a world's files."""
    return dep.startswith(("components/", "flows/", "expunge/", "${world}/"))


def is_data(dep: str) -> bool:
    """Whether a dependency is an artifact of a stage or part of the base; the others are judges' files."""
    return dep.startswith(("data/", "models/", "reports/", "${base"))


def with_deps(
    graph: dict[str, Any],
    world: str,
    root: Path,
    judge: JudgeParams | None = None,
    project: Path | None = None,
    second_judge: Path | None = None,
    prompts: Sequence[str] = (),
) -> dict[str, Any]:
    """`graph`, the content of dvc.yaml, with the code of every stage, the files of its judges and of `prompts`; other dependencies stay.

    The second judge is the attacks' alone.
    """
    for stage in graph["stages"].values():
        spec = stage.get("do", stage)
        found = re.search(r"-m (\S+)", spec["cmd"])
        if found is not None:
            code = code_deps(found[1], world, root, judge, project)
            data = [dep for dep in spec["deps"] if is_data(dep)]
            judges = (
                [p.as_posix() for p in judge.files()] if judge is not None and OPENS_JUDGE.as_posix() in code else []
            )
            second = (
                [second_judge.as_posix()] if second_judge is not None and ATTACK in (spec.get("params") or ()) else []
            )
            read = [name for name in prompts if not name.startswith("hf:")] if READS_PROMPTS.as_posix() in code else []
            spec["deps"] = sorted({*data, *judges, *second, *read, *code})
    return graph


def for_project(graph: dict[str, Any], world: str, package: Path = ROOT) -> tuple[dict[str, Any], dict[str, str]]:
    """(the graph of a project outside `package`, a digest of each stage's code); `graph` has dependencies on the package.

    Files of a world that lies in the project stay.
    """
    codes: dict[str, str] = {}
    for name, stage in graph["stages"].items():
        spec = stage.get("do", stage)
        code, rest = [d for d in spec["deps"] if is_code(d)], [d for d in spec["deps"] if not is_code(d)]
        rest += [d for d in code if d.startswith("${world}/")]
        if READS_REQUESTS.as_posix() in code and {p.as_posix() for p in (OPENS_WORLD, OPENS_JUDGE)} & set(code):
            rest.append(INPUTS)
        spec["deps"] = sorted(dict.fromkeys(rest))
        spec["params"] = [*(spec.get("params") or []), {CODE.as_posix(): [name]}]
        whole = hashlib.sha256()
        for dep in (d.replace("${world}", world) for d in code if not d.startswith("${world}/")):
            whole.update(f"{dep}\0{hashlib.sha256((package / dep).read_bytes()).hexdigest()}\n".encode())
        codes[name] = whole.hexdigest()
    return graph, codes


def product_graph() -> Path:
    """The product's dvc.yaml: in the checkout, or where the installed package put it."""
    for path in (ROOT / GRAPH, Path(sysconfig.get_path("data")) / "share" / "expunge" / GRAPH):
        if path.is_file():
            return path
    raise ArtifactError(
        "the installed package has no dvc.yaml", "install it again: pip install --force-reinstall expunge"
    )


def main(root: Path = Path()) -> int:
    """Rewrites dvc.yaml in place, comments and order kept; with `--check` only says whether it would change."""
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    world, judge = read_section("world", str, root / PARAMS), read_section("judge", JudgeParams, root / PARAMS)
    at_home = (root / "components").is_dir()
    before = (root / GRAPH if at_home else product_graph()).read_text(encoding="utf-8")
    codes: dict[str, str] = {}
    second = read_section(ATTACK, AttackParams, root / PARAMS).second_judge
    corpus = read_section("corpus", CorpusParams, root / PARAMS)
    prompts = (*corpus.sources, *corpus.benign.real)
    graph = with_deps(yaml.load(before), world, root if at_home else ROOT, judge, root, second, prompts)
    if not at_home:
        graph, codes = for_project(graph, world)
    if "--check" in sys.argv:
        return int(graph != YAML(typ="safe").load((root / GRAPH).read_text(encoding="utf-8")))
    text = io.StringIO()
    yaml.dump(graph, text)
    write_text(root / GRAPH, text.getvalue())
    if not at_home:
        write_text(root / CODE, canonical(codes))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
