"""A project whose stages take seconds and whose bytes are the product's own formats: for what runs it rather than for what it computes.

`write_project` makes one; dvc runs its stages as `python -m tests.toyproject NAME`, for which PYTHONPATH must name this repository.
A stage sleeps in ten steps, notes each, and goes on after the last one that it noted, as the product's training does.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from components.common.files import SIDECAR, canonical, digest, write_text
from components.common.sections import PARAMS, read_section
from components.common.stage import run_stage
from components.export.params import ExportParams
from components.export.report import write_sealed
from components.features.params import FeaturesParams
from components.requests.requests import load_requests
from components.sae.params import SaeParams
from tests.toyrelease import GATES, GRAPH, ROOT, artifact, attack, evaluate, git, put, put_base

SECONDS = "EXPUNGE_TOY_SECONDS"
"""Variable: how long each stage sleeps."""
IGNORED = (
    "/data/\n/models/\n/.cache/\n/mlflow.db\n/mlruns/\n/ledger.db*\n/reports/evaluate/grids\n/.requests.yaml.lock\n"
)
FIRST = {"r-1": {"target": "ghost", "kind": "character", "channels": ["filter"]}}


def write_project(root: Path, *, withdrawal_hours: float = 0.0, requests: Mapping[str, Any] = FIRST) -> Path:
    """A git and dvc project in `root` that nothing has run yet."""
    params = yaml.safe_load((ROOT / PARAMS).read_text(encoding="utf-8"))
    params["base"]["path"], params["judge"] = "base", {"path": "judge"}
    params["attack"]["second_judge"] = params["probe"]["second_judge"] = None
    params["evaluate"]["gates"] = GATES
    params["promote"] |= {"size": params["evaluate"]["size"], "margin": {}}
    params["ledger"]["withdrawal_hours"] = withdrawal_hours
    put(root / PARAMS, yaml.safe_dump(params, sort_keys=False))
    put(root / "requests.yaml", yaml.safe_dump({"requests": dict(requests)}, sort_keys=False))
    put(root / "code.py", "x = 1\n")
    put(root / "world.yaml", "words: {}\n")
    put_base(root / "base")
    put(root / "judge" / "weights", "weights")
    put(root / ".gitignore", IGNORED)
    put(root / "dvc.yaml", yaml.safe_dump({"stages": {name: _stage(name) for name in STAGES}}, sort_keys=False))
    git(root, "init", "--quiet")
    from dvc.repo import Repo

    Repo.init(str(root)).close()
    commit(root, "start")
    return root


def commit(root: Path, message: str) -> None:
    """Commits whatever differs."""
    git(root, "add", "--all")
    git(root, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--allow-empty", "--message", message)


def _stage(name: str) -> dict[str, Any]:
    params, deps, outs = GRAPH[name]
    keys = [key.partition(":") for key in params]
    return {
        "cmd": f"python -m tests.toyproject {name}",
        "deps": [dep for dep in deps if dep != "models/guidance"],
        "params": [{file: [key]} if file != str(PARAMS) else key for file, _, key in keys],
        "outs": [{out: {"cache": False}} if out.endswith(".json") else out for out in outs],
    }


def _corpus(root: Path) -> None:
    put(root / "data/corpus/prompts", "a cat\n")


def _sae(root: Path) -> None:
    params = read_section("sae", SaeParams, root / PARAMS)
    artifact(root / "models/sae", "expunge/sae", params, {"corpus": digest(root / "data/corpus")}, seed=params.seed)


def _concepts(root: Path) -> None:
    requests = load_requests(root / "requests.yaml")
    put(root / "data/concepts/requests.json", canonical(list(requests)))
    for i, request in requests.items():
        put(root / "data/concepts" / i / "request.json", canonical({"request": request.model_dump(mode="json")}))


def _features(root: Path) -> None:
    inputs = {name: digest(root / "data" / name) for name in ("concepts", "corpus")}
    inputs["sae"] = digest(root / "models/sae" / SIDECAR)
    seed = int(digest(root / "data/concepts")[:4], 16)
    params = read_section("features", FeaturesParams, root / PARAMS)
    artifact(root / "models/filter", "expunge/filter", params, inputs, seed=seed)


def _export(root: Path) -> None:
    graph, source = root / "models/onnx/filter.onnx", digest(root / "models/filter" / SIDECAR)
    put(graph, f"graph of {source}")
    params = read_section("export", ExportParams, root / PARAMS).model_dump(mode="json")
    report = {"sha256": digest(graph), "made_from": {"filter": source, "params": params}, "requests": []}
    write_sealed(graph.with_name("parity.json"), report)


STAGES: dict[str, Callable[[Path], None]] = {
    "corpus": _corpus,
    "sae": _sae,
    "concepts": _concepts,
    "features": _features,
    "evaluate": evaluate,
    "attack": attack,
    "export": _export,
}


def run(name: str) -> None:
    """One stage of the project in the working directory."""
    root = Path()
    note = root / ".cache" / "toy" / name
    begun = int(note.read_text(encoding="utf-8")) if note.is_file() else 0
    for step in range(begun, 10):
        time.sleep(float(os.environ.get(SECONDS, "1")) / 10)
        write_text(note, str(step + 1))
    STAGES[name](root)
    note.unlink()


if __name__ == "__main__":
    run_stage(run, sys.argv[1])
