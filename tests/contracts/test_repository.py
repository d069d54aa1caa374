"""What holds for the repository as a whole."""

import ast
import importlib
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import components

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
SLICES = {p.name for p in (ROOT / "components").iterdir() if p.is_dir() and (p / "__init__.py").exists()}


def modules():
    return [
        m.name for m in pkgutil.walk_packages(components.__path__, "components.") if not m.name.endswith("__main__")
    ]


def imports(module):
    """Modules of ours that a module imports, read from its source."""
    path = ROOT / Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("components"):
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.startswith("components")]
        for name in names:
            target = ROOT / Path(*name.split("."))
            if target.is_dir() or target.with_suffix(".py").exists():
                found.add(name)
    return found


def reach(module):
    """Slices in the closure of a module's imports, packages' own __init__ included."""
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name in seen or name == "components":
            continue
        seen.add(name)
        parent = name.rpartition(".")[0]
        todo += [*imports(name), *([parent] if parent else [])]
    return {name.split(".")[1] for name in seen if name.count(".")} & SLICES


def spec(stage):
    return stage.get("do", stage)


@pytest.mark.parametrize("name", [n for n, s in STAGES.items() if not spec(s).get("frozen")])
def test_stage_deps_are_the_slices_that_it_reaches(name):
    """The code that dvc.yaml says a stage depends on is exactly the code that its module imports."""
    stage = spec(STAGES[name])
    module = re.search(r"-m (\S+)", stage["cmd"]).group(1)
    declared = {d.removeprefix("components/") for d in stage["deps"] if d.startswith("components/")}

    assert declared == reach(module)


def test_every_stage_has_its_section():
    """A stage's key is its section of params.yaml."""
    sections = set(yaml.safe_load((ROOT / "params.yaml").read_text()))

    assert set(STAGES) <= sections


def test_imports_are_layered():
    """The import contracts of pyproject.toml hold."""
    done = subprocess.run([BIN / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", modules())
def test_public_names_exist(name):
    """Whatever __all__ promises can be imported."""
    module = importlib.import_module(name)

    assert [n for n in getattr(module, "__all__", []) if not hasattr(module, n)] == []


@pytest.mark.parametrize("name", modules())
def test_public_functions_are_documented(name):
    """Every module, and every public function and class in it, says what it is."""
    path = ROOT / Path(*name.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(file.read_text())
    kinds = (ast.FunctionDef, ast.ClassDef)
    bare = [
        n.name for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_") and not ast.get_docstring(n)
    ]

    assert bare == []
    assert ast.get_docstring(tree) or not tree.body


def test_every_test_states_its_fact():
    """Every test function has a docstring."""
    bare = [
        f"{path.name}:{node.name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]

    assert bare == []


def test_no_pickle_and_nothing_left_undone():
    """No pickle, no torch.load, no remote code, and no note of something left to do."""
    words = ("torch" + ".load(", "import " + "pickle", "trust_remote" + "_code=True", "TO" + "DO", "FIX" + "ME")
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for folder in ("components", "flows", "tests")
        for path in (ROOT / folder).rglob("*.py")
        for word in words
        if word in path.read_text()
    ]

    assert found == []


def test_readme_commands_exist():
    """Every `expunge` and `make` command in the README is one that there is."""
    readme = (ROOT / "README.md").read_text()
    helped = subprocess.run([BIN / "expunge", "--help"], capture_output=True, text=True, check=True).stdout
    makefile = (ROOT / "Makefile").read_text()

    used = set(re.findall(r"^(?:\$ )?expunge (\w+)", readme, re.MULTILINE))
    assert used
    assert [c for c in used if c not in helped] == []
    assert [t for t in re.findall(r"\bmake (\w+)", readme) if not re.search(rf"^{t}:", makefile, re.MULTILINE)] == []


def test_readme_tables_are_those_of_the_reports():
    """The README's tables are what the reports in git say."""
    done = subprocess.run([BIN / "cog", "--check", "README.md"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


def test_ci_runs_the_readmes_test_command():
    """CI and a newcomer run the same thing."""
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()


@pytest.fixture
def copy(tmp_path):
    """The project's own files, without artifacts, as a DVC project."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


def changed(folder):
    """Stages whose dependencies or parameters dvc finds changed against dvc.lock, missing outputs aside."""
    done = subprocess.run([BIN / "dvc", "status", "--json"], cwd=folder, capture_output=True, text=True, check=True)
    status = json.loads(done.stdout)
    return {
        stage
        for stage, reasons in status.items()
        if any(
            "changed deps" in r and any(v != "deleted" for v in _values(r["changed deps"]))
            for r in reasons
            if isinstance(r, dict)
        )
    }


def _values(found):
    for value in found.values():
        yield from _values(value) if isinstance(value, dict) else [value]


def test_changing_an_anchor_touches_that_request_and_never_the_sae(copy):
    """A request's new anchor re-runs its own adapter and what follows, neither the SAE nor the other adapter."""
    path = copy / "requests.yaml"
    content = yaml.safe_load(path.read_text())
    first, second = list(content["requests"])[:2]
    before = changed(copy)
    content["requests"][first]["anchor"] = "horse"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    found = changed(copy) - before

    assert {"concepts", f"guidance@{first}"} <= found
    assert not found & {"corpus", "sae", f"guidance@{second}"}


def reproduced(folder, *stages):
    """Runs `dvc repro` with nothing cached and returns (outputs found, outputs locked) of every stage that is locked."""
    wanted = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([BIN / "dvc", "repro", "--quiet", *stages], cwd=folder, env=environment, check=True)
    found = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    return {s: found[s]["outs"] for s in wanted}, {s: wanted[s]["outs"] for s in wanted}


def test_prompts_are_reproduced_byte_by_byte(copy):
    """`dvc repro` of the prompt stages on a clean tree gives the bytes that the flow locked."""
    found, wanted = reproduced(copy, "concepts")

    assert {s: found[s] for s in ("corpus", "concepts")} == {s: wanted[s] for s in ("corpus", "concepts")}
    assert (copy / "data" / "concepts").is_dir()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_stage_is_reproduced_byte_by_byte(copy):
    """The same for everything: autoencoder, filter, adapters, metrics, verdict, page and graph."""
    found, wanted = reproduced(copy)

    assert found == wanted
    assert (copy / "models" / "onnx").is_dir()
