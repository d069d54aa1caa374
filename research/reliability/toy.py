"""A project of sleeping stages: the product's stage runner, lock and flow around three programs that compute nothing.

Each stage writes bytes that depend on its input alone, sleeps, and keeps a checkpoint, so that an interrupted run can be compared
with an undisturbed one.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

from components.common.files import write_text
from components.common.stage import run_stage

ROOT = Path(__file__).parents[2]
STAGES = ("one", "two", "three")
STEPS = 20
SECONDS = "TOY_SECONDS"
"""Seconds of one step; a stage has `STEPS`."""
REGISTERED = "registered.txt"


def make(folder: Path) -> Path:
    """Writes the project: dvc.yaml with a chain of stages, in a git repository."""
    folder.mkdir(parents=True)
    lines = ["stages:"]
    for before, name in zip(("start", *STAGES), STAGES, strict=False):
        source = "start.txt" if before == "start" else f"out/{before}.txt"
        lines += [f"  {name}:", f"    cmd: python -m research.reliability.toy {name} {source}", f"    deps: [{source}]", f"    outs: [out/{name}.txt]"]  # fmt: skip
    (folder / "dvc.yaml").write_text("\n".join(lines) + "\n")
    (folder / "start.txt").write_text("start\n")
    (folder / ".gitignore").write_text("/out\n/.cache\n")
    for command in (["git", "init", "--quiet"], [str(Path(sys.executable).parent / "dvc"), "init", "--quiet"]):
        subprocess.run(command, cwd=folder, check=True, env=environment())
    return folder


def environment(seconds: float = 0.0, **more: str) -> dict[str, str]:
    """The environment of a program that acts on the project."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PYTHONPATH": str(ROOT), "PATH": path, SECONDS: str(seconds), "DVC_NO_ANALYTICS": "1"} | more


def outputs(folder: Path) -> dict[str, bytes]:
    """The bytes that the stages wrote."""
    return {path.name: path.read_bytes() for path in sorted((folder / "out").glob("*.txt"))}


def stage(name: str, source: str) -> None:
    """Hashes its input over and over, one checkpoint a step; goes on from the checkpoint of the same input."""
    checkpoint, text = Path(".cache") / f"{name}.txt", Path(source).read_text()
    key = hashlib.sha256(text.encode()).hexdigest()
    begun = checkpoint.read_text().split() if checkpoint.is_file() else []
    done, value = (int(begun[0]), begun[1]) if begun[2:] == [key] else (0, key)
    for step in range(done, STEPS):
        time.sleep(float(os.environ.get(SECONDS, "0")))
        value = hashlib.sha256(f"{value}{step}".encode()).hexdigest()
        write_text(checkpoint, f"{step + 1} {value} {key}")
    write_text(Path("out") / f"{name}.txt", f"{value}\n")


if __name__ == "__main__":
    run_stage(stage, *sys.argv[1:])
