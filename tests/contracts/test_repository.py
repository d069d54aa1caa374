"""What holds for the repository as a whole."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from components.cli.main import app
from components.common.closure import closure
from flows.deps import code_deps, is_code

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
WORLD = yaml.safe_load((ROOT / "params.yaml").read_text())["world"]
PRODUCT = ("components", "expunge", "flows")
FILES = sorted(p.relative_to(ROOT) for folder in PRODUCT for p in (ROOT / folder).rglob("*.py"))


def spec(stage):
    return stage.get("do", stage)


@pytest.mark.parametrize("name", list(STAGES))
def test_stage_deps_are_the_files_that_it_reaches(name):
    """The code that dvc.yaml says a stage depends on is exactly the code that its module can reach, file by file; `make deps` writes it."""
    stage = spec(STAGES[name])
    module = re.search(r"-m (\S+)", stage["cmd"])[1]

    assert [d for d in stage["deps"] if is_code(d)] == code_deps(module, WORLD, ROOT)


@pytest.mark.parametrize("name", list(STAGES))
def test_a_stage_reaches_all_that_it_imports(name):
    """An independent look: in a fresh interpreter the stage's module loads no file of ours that dvc.yaml does not list."""
    stage = spec(STAGES[name])
    module = re.search(r"-m (\S+)", stage["cmd"])[1]
    program = (
        f"import sys, {module}\n"
        "print('\\n'.join(m.__file__ for m in list(sys.modules.values()) if (getattr(m, '__file__', None) or '').startswith(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {str(Path(f).relative_to(ROOT)) for f in done.stdout.split() if f"{ROOT}/components" in f}

    assert loaded
    assert loaded <= set(stage["deps"])


def test_closure_follows_imports_inside_functions_and_packages(tmp_path):
    """What a function imports counts, so does a package on the way, and nothing that is merely there."""
    for name, text in {
        "components/__init__.py": "", "components/a/__init__.py": "from components.c import x\n",
        "components/a/one.py": "def f():\n    from components.b import two\n", "components/b/__init__.py": "",
        "components/b/two.py": "import os\n", "components/c.py": "x = 1\n", "components/d.py": "",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = [path.as_posix() for path in closure("components.a.one", tmp_path)]

    assert found == [
        "components/__init__.py", "components/a/__init__.py", "components/a/one.py", "components/b/__init__.py",
        "components/b/two.py", "components/c.py",
    ]  # fmt: skip


def test_every_stage_has_its_section():
    """A stage's key is its section of params.yaml."""
    sections = set(yaml.safe_load((ROOT / "params.yaml").read_text()))

    assert set(STAGES) <= sections


def test_imports_are_layered():
    """The import contracts of pyproject.toml hold."""
    done = subprocess.run([BIN / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", FILES, ids=str)
def test_public_functions_are_documented(path):
    """Every module, and every public function and class in it, says what it is."""
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.ClassDef)
    bare = [
        n.name for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_") and not ast.get_docstring(n)
    ]

    assert bare == []
    assert ast.get_docstring(tree) or not tree.body


def test_expunge_exports_what_it_promises():
    """Every name in `expunge.__all__` can be imported from there."""
    import expunge

    assert sorted(expunge.__all__) == sorted(expunge._HOME)
    assert [name for name in expunge.__all__ if getattr(expunge, name).__name__ != name] == []
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = expunge.Nothing


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
        for folder in ("components", "expunge", "flows", "research", "tests", "training")
        for path in (ROOT / folder).rglob("*.py")
        for word in words
        if word in path.read_text()
    ]

    assert found == []


def commands(group, prefix=()):
    """Every command of the command line, as a tuple of words."""
    for name, command in group.commands.items():
        yield (*prefix, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*prefix, name))


def used(text):
    """The `expunge` commands that stand in a document's code, as tuples of words."""
    for block in re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL):
        for line in re.findall(r"(?:^|[\n`$ ])expunge((?: [a-z]+)+)", block):
            if not line.startswith(" import"):
                yield tuple(line.split())


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_commands_that_there_are(path):
    """Every `expunge` and `make` command in a document is one that there is."""
    known = set(commands(typer.main.get_command(app)))
    makefile = (ROOT / "Makefile").read_text()
    text = path.read_text()
    wrong = [
        words
        for words in used(text)
        if words[:1] not in known or (words[:1] in {k[:1] for k in known if len(k) > 1} and words[:2] not in known)
    ]

    assert wrong == []
    assert [
        t for t in re.findall(r"`make (\w+)", text) if not re.search(rf"^[\w ]*\b{t}\b[\w ]*:", makefile, re.MULTILINE)
    ] == []


def test_readme_shows_commands():
    """The test above has something to look at: the README names both make commands and several of expunge."""
    text = (ROOT / "README.md").read_text()

    assert {("retrain",), ("generate",), ("request", "add")} <= {
        w[:2] if w[0] == "request" else w[:1] for w in used(text)
    }
    assert "make run" in text
    assert "make test" in text


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    """Every relative link and picture of a document is there."""
    found = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text())

    assert [link for link in found if "://" not in link and not (path.parent / link).exists()] == []


def test_tables_are_those_of_the_reports():
    """Generated tables in documents are what the reports in git say."""
    names = [str(path) for path in DOCUMENTS if "[[[cog" in path.read_text()]
    done = subprocess.run([BIN / "cog", "--check", *names], cwd=ROOT, capture_output=True, text=True, check=False)

    assert names
    assert done.returncode == 0, done.stdout


def test_documents_are_short():
    """README 120 lines at most, a decision one page (60)."""
    long = {p.name: n for p in (ROOT / "docs/decisions").glob("*.md") if (n := len(p.read_text().splitlines())) > 60}

    assert long == {}
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_ci_runs_the_readmes_test_command():
    """CI and a newcomer run the same thing, and CI the checks too."""
    ci = (ROOT / ".ci" / "run").read_text()

    assert "make test" in ci
    assert "make check" in ci


@pytest.fixture
def copy(tmp_path):
    """The project's own files, without artifacts, as a DVC project."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, tracked):
        if (ROOT / name).is_file() and not name.startswith(("reports/", "docs/", "research/results/")):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


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
