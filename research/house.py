"""What the structure of the repository is worth, measured: which edit re-runs what, what can be gutted unnoticed, seconds.

    python -m research.house edits      # in a clone with everything reproduced: which stages each edit re-runs
    python -m research.house gut        # every stage and flow function without its body: does the default suite notice?
    python -m research.house seconds    # `expunge --help`, `expunge request list`, an instant adapter, adding a request at 100
    python -m research.house run        # `make run` on a fresh clone, after the install
    python -m research.house suite      # the default suite
    python -m research.house text       # README lines, product files that name a particular world
    python -m research.house picture    # no row: draws docs/before-and-after.png from the last evaluation

Each writes its rows of `reports/house/show.json` and leaves the others as they are.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from research.show import publish, row

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
OUT = ROOT / "reports" / "house" / "show.json"
OUTPUTS = ("data", "models", "reports")
COMMENT = "\n# a comment\n"
NONE: frozenset[str] = frozenset()


def say(text: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def seconds_of(action: Callable[[], object], times: int) -> list[float]:
    """Seconds that each of `times` runs took."""
    spent = []
    for _ in range(times):
        begun = time.perf_counter()
        action()
        spent.append(time.perf_counter() - begun)
    return spent


def timed(what: str, spent: list[float], most: float, command: str) -> dict[str, Any]:
    """A row of seconds: the median, with quartiles."""
    low, value, high = (round(float(v), 3) for v in np.quantile(spent, (0.25, 0.5, 0.75)))
    return row(what, value, goal=f"≤ {most:g} s", met=value <= most, command=command, n=len(spent), low=low, high=high)


@contextmanager
def clone(*, outputs: bool) -> Iterator[Path]:
    """A clone of HEAD, with what was reproduced here if `outputs`."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "expunge"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
        for name in OUTPUTS if outputs else ():
            shutil.copytree(ROOT / name, copy / name, dirs_exist_ok=True)
        (copy / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {ROOT / '.dvc' / 'cache'}\n", encoding="utf-8")
        yield copy


def changed(folder: Path) -> set[str]:
    """Stages that `dvc repro` would run again, by `dvc status`."""
    done = subprocess.run([BIN / "dvc", "status", "--json"], cwd=folder, capture_output=True, text=True, check=True)
    return {stage.split("@")[0] for stage in json.loads(done.stdout)}


def append(*names: str) -> Callable[[Path], None]:
    """An edit that puts a comment at the end of some files."""

    def edit(folder: Path) -> None:
        for name in names:
            path = folder / name
            path.write_text(path.read_text(encoding="utf-8") + COMMENT, encoding="utf-8")

    return edit


def create(*names: str) -> Callable[[Path], None]:
    """An edit that writes new files."""

    def edit(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text('"""New."""\n', encoding="utf-8")

    return edit


def new_section(folder: Path) -> None:
    """An edit that adds a section to params.yaml."""
    path = folder / "params.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "\ngateway:\n  port: 8080\n", encoding="utf-8")


EDITS: dict[str, tuple[Callable[[Path], None], frozenset[str]]] = {
    "a comment in purify, cli, export/merged, registry, flows": (
        append(
            "components/purify/purify.py", "components/cli/main.py", "components/export/merged.py",
            "components/registry/registry.py", "flows/retrain.py",
        ),
        NONE,
    ),
    "a comment in research and docs": (append("research/house.py", "docs/pipeline.md"), NONE),
    "a new file in ledger/, serve/, common/log.py": (
        create("components/ledger/deadlines.py", "components/serve/gateway.py", "components/common/log.py"),
        NONE,
    ),
    "a new config section": (new_section, NONE),
    "a comment in the judge of the world that ships": (
        lambda folder: append(f"components/worlds/{world_of(folder)}/judge.py")(folder),
        frozenset({"evaluate", "attack"}),
    ),
    "a comment in guidance's training": (append("components/guidance/train.py"), frozenset({"guidance", "evaluate", "attack"})),
    "a comment in filter's run time": (append("components/filter/edit.py"), frozenset({"features", "evaluate", "attack", "export"})),
}  # fmt: skip
"""Each edit and the stages that it may re-run."""


def world_of(folder: Path) -> str:
    """The world that params.yaml names."""
    found = re.search(r"^world: (\w+)", (folder / "params.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def edits() -> list[dict[str, Any]]:
    """The stages that each edit re-runs, in a clone in which nothing was to be run before."""
    rows = []
    with clone(outputs=True) as folder:
        before = changed(folder)
        if before:
            raise SystemExit(f"not everything is reproduced: {', '.join(sorted(before))}; run dvc repro first")
        for what, (edit, allowed) in EDITS.items():
            edit(folder)
            found = changed(folder)
            subprocess.run(["git", "checkout", "--quiet", "."], cwd=folder, check=True)
            subprocess.run(["git", "clean", "-fdq", "components", "flows"], cwd=folder, check=True)
            said = ", ".join(sorted(found)) or "none"
            goal = f"within {', '.join(sorted(allowed)) or 'none'}"
            rows.append(
                row(
                    f"stages re-run by {what}",
                    said,
                    goal=goal,
                    met=found <= allowed,
                    command="python -m research.house edits",
                )
            )
    return rows


FLOW_FILES = ("flows/retrain.py", "flows/dag.py", "flows/deps.py")


def functions() -> list[tuple[Path, str]]:
    """(file, function) of every stage's and every flow's functions."""
    graph = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    stages = [Path(*m.split(".")).with_suffix(".py") for m in re.findall(r"-m (\S+)", graph)]
    return [
        (path, node.name)
        for path in (*stages, *map(Path, FLOW_FILES))
        for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    ]


def gutted(source: str, name: str) -> str:
    """The source with the body of one function, its docstring aside, replaced by `return None`."""
    lines = source.splitlines(keepends=True)
    node = next(n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == name)
    yields = any(isinstance(n, ast.Yield | ast.YieldFrom) for n in ast.walk(node))
    body = "    yield\n" if yields else "    return None\n"
    first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
    return "".join([*lines[: first.lineno - 1], body, *lines[node.end_lineno :]])


def tests_of(path: Path) -> list[str]:
    """The parts of the default suite that look at a file, the quick ones first."""
    own = [f"tests/components/{path.parts[1]}"] if path.parts[0] == "components" else ["tests/flows", "tests/contracts"]
    return [*own, "tests/test_pipeline.py"]


def gut() -> list[dict[str, Any]]:
    """Every function of a stage or flow without its body, one at a time: does the default suite fail?"""
    unnoticed, listed = [], functions()
    for path, name in listed:
        with clone(outputs=False) as folder:
            file = folder / path
            file.write_text(gutted(file.read_text(encoding="utf-8"), name), encoding="utf-8")
            done = subprocess.run(
                [BIN / "python", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests_of(path)], cwd=folder,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            first = next((line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
            say(f"{path}:{name}: {first or 'UNNOTICED'}")
            if done.returncode == 0:
                unnoticed.append(f"{path}:{name}")
    value = len(unnoticed) if not unnoticed else ", ".join(unnoticed)
    return [
        row(
            "stage and flow functions that can be gutted unnoticed",
            value,
            goal="0",
            met=not unnoticed,
            n=len(listed),
            command="python -m research.house gut",
        )
    ]


def seconds() -> list[dict[str, Any]]:
    """Start-up of the command line, an instant adapter, and one request more beside a hundred."""
    command = "python -m research.house seconds"

    def run(*arguments: str) -> Callable[[], object]:
        return lambda: subprocess.run([BIN / "expunge", *arguments], cwd=ROOT, capture_output=True, check=True)

    rows = [
        timed("seconds of expunge --help", seconds_of(run("--help"), 7), 0.7, command),
        timed("seconds of expunge request list", seconds_of(run("request", "list"), 7), 0.7, command),
    ]
    with clone(outputs=True) as folder:
        path = folder / "params.yaml"
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"(guidance:\n(?:  .*\n)*?  steps: )\d+", r"\g<1>0", text), encoding="utf-8")
        ids = re.findall(r"^  (\S+):$", (folder / "requests.yaml").read_text(encoding="utf-8"), re.MULTILINE)
        spent = [instant(folder, request_id) for request_id in ids * 3]
    what = "seconds of an instant adapter (guidance.steps: 0)"
    rows.append(timed(f"{what}, from the model's folder to the adapter's", [own for own, _ in spent], 5, command))
    rows.append(timed(f"{what}, the process and its imports included", [whole for _, whole in spent], 5, command))
    from research.filter.adding import time_additions  # noqa: PLC0415 - torch, which the rows above do not need

    for fit in ("sample", "exact"):
        spent, what = (
            time_additions(100, fit),
            f"seconds to add one request at 100, its prompts read, features.fit: {fit}",
        )
        rows.append(timed(f"{what}: to fit it", [each.fit for each in spent], 0.1, command))
        rows.append(
            timed(f"{what}: to fit it and to write the filter of all", [sum(each) for each in spent], 0.1, command)
        )
    return rows


INSTANT = """
import sys, time
from components.common.stage import run_stage
from components.guidance.stage import guidance
begun = time.perf_counter()
run_stage(guidance, sys.argv[1])
print(time.perf_counter() - begun)
"""


def instant(folder: Path, request_id: str) -> tuple[float, float]:
    """(seconds of the stage, of the whole process) for one adapter in closed form."""
    begun = time.perf_counter()
    command = [BIN / "python", "-c", INSTANT, request_id]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return float(done.stdout), time.perf_counter() - begun


def make_run() -> list[dict[str, Any]]:
    """`make run` on a fresh clone whose install is done."""
    with clone(outputs=False) as folder:
        (folder / ".venv").symlink_to(ROOT / ".venv")
        (folder / ".venv" / "installed").touch()
        (folder / ".dvc" / "config.local").unlink()  # a fresh machine has no cache
        begun = time.perf_counter()
        environment = os.environ | {"PYTHONPATH": str(folder)}
        done = subprocess.run(["make", "run"], cwd=folder, env=environment, capture_output=True, text=True, check=False)
        spent = time.perf_counter() - begun
        say(done.stdout[-1500:])
        if done.returncode != 0:
            raise SystemExit(done.stderr[-3000:])
    return [timed("seconds of make run after the install", [spent], 360, "python -m research.house run")]


def suite() -> list[dict[str, Any]]:
    """The default suite as `make test` runs it, and its longest test."""
    environment = os.environ | {"PYTEST_ADDOPTS": "-q --durations=3"}
    begun = time.perf_counter()
    done = subprocess.run(["make", "test"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    spent = time.perf_counter() - begun
    say(done.stdout[-3000:])
    longest = max(float(s) for s in re.findall(r"^(\d+\.\d+)s (?:call|setup)", done.stdout, re.MULTILINE))
    command = "python -m research.house suite"
    green = row("failures of the default suite", done.returncode, goal="0", met=done.returncode == 0, command=command)
    return [
        timed("seconds of the default suite", [spent], 480, command),
        timed("seconds of its longest test", [longest], 60, command),
        green,
    ]


def text() -> list[dict[str, Any]]:
    """README lines, and product files that name a particular world."""
    command = "python -m research.house text"
    lines = len((ROOT / "README.md").read_text(encoding="utf-8").splitlines())
    name = world_of(ROOT)
    files = [p for folder in ("components", "flows", "expunge", "deploy") for p in (ROOT / folder).rglob("*.py")]
    found = [p for p in files if name in p.read_text(encoding="utf-8").lower() and p.parent.parent.name != "worlds"]
    return [
        row("README lines", lines, goal="≤ 120", met=lines <= 120, command=command),
        row(
            "product files that name the embedded world",
            len(found),
            goal="0",
            met=not found,
            n=len(files),
            command=command,
        ),
    ]


SHOWN = ((0, 1), (0, 2), (1, 1), (2, 1))
"""Which pictures of the evaluation's page stand in the README: (grid, column), the last of an unrelated prompt."""


def picture() -> list[dict[str, Any]]:
    """The README's picture: some of those that the evaluation's page opens with, side by side."""
    grids = [Image.open(ROOT / f"reports/evaluate/grids/{i:02d}.png") for i in range(3)]
    margin, step = 64, 262  # as components/evaluate/page.py lays them out
    sheet = Image.new("RGB", (margin + step * len(SHOWN), grids[0].height), "white")
    sheet.paste(grids[0].crop((0, 0, margin, grids[0].height)), (0, 0))
    for place, (index, column) in enumerate(SHOWN):
        left = margin + column * step
        sheet.paste(grids[index].crop((left, 0, left + step, grids[index].height)), (margin + place * step, 0))
    sheet.quantize(128, dither=Image.Dither.NONE).save(ROOT / "docs/before-and-after.png", optimize=True)
    return []


COMMANDS = {
    "edits": edits,
    "gut": gut,
    "seconds": seconds,
    "run": make_run,
    "suite": suite,
    "text": text,
    "picture": picture,
}

if __name__ == "__main__":
    publish(COMMANDS[sys.argv[1]](), OUT)
