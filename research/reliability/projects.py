"""The projects whose retraining is ended: three sleeping stages, and the product's own stages with small parameters."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from components.common.errors import ArtifactError
from components.common.files import canonical, digest
from research.reliability import toy


class Toy:
    """Three sleeping stages."""

    stages = toy.STAGES
    flow = True

    def __init__(self, folder: Path) -> None:
        self.folder = toy.make(folder)

    def fresh(self, stage: str) -> None:
        """Forgets everything that was computed."""
        assert stage in self.stages
        for name in ("out", ".cache", ".dvc/cache"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "dvc.lock").unlink(missing_ok=True)

    def command(self) -> list[str]:
        """The flow with a registration that only counts."""
        return [sys.executable, "-m", "research.reliability.toy_flow"]

    def environment(self) -> dict[str, str]:
        """A stage takes two seconds."""
        return toy.environment(0.1)

    def outputs(self) -> dict[str, bytes]:
        """The text files."""
        return toy.outputs(self.folder)

    def registered(self) -> int:
        """Lines of the file."""
        path = self.folder / toy.REGISTERED
        return len(path.read_text().splitlines()) if path.is_file() else 0

    def unfinished(self) -> int:
        """It has no MLflow."""
        return 0


class Small:
    """The project of tests/test_pipeline.py."""

    stages: Sequence[str] = ("sae", "features", "guidance@r-1", "evaluate", "export")
    flow = True

    def __init__(self, folder: Path) -> None:
        from tests.test_pipeline import small_project  # noqa: PLC0415 - a test's module

        self.folder = folder
        small_project(folder)

    def fresh(self, stage: str) -> None:
        """Forgets what the stage computed, and every registered version."""
        lock = self.folder / "dvc.lock"
        for name in ("mlflow.db", "mlruns", "ledger.db", ".cache", ".dvc/cache/runs"):
            path = self.folder / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if not lock.is_file():
            return
        stage = "export" if stage in ("register", "after") else stage  # registering begins where that ends
        content: dict[str, Any] = yaml.safe_load(lock.read_text())
        for out in content["stages"].pop(stage)["outs"]:
            path = self.folder / out["path"]
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        lock.write_text(yaml.safe_dump(content, sort_keys=False))

    def command(self) -> list[str]:
        """The product's own."""
        return [sys.executable, "-m", "flows.retrain"]

    def environment(self) -> dict[str, str]:
        """MLflow in the project."""
        return toy.environment() | {
            "PYTHONPATH": str(self.folder),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'mlflow.db'}",
        }

    def outputs(self) -> dict[str, bytes]:
        """Digests of every output, and what dvc.lock says."""
        lock = yaml.safe_load((self.folder / "dvc.lock").read_text())
        found = {"dvc.lock": canonical(lock).encode()}
        for out in (o["path"] for entry in lock["stages"].values() for o in entry["outs"]):
            try:
                found[out] = digest(self.folder / out).encode()
            except ArtifactError:  # an empty folder
                found[out] = b""
        return found

    def registered(self) -> int:
        """Model versions."""
        return self._count("model_versions")

    def unfinished(self) -> int:
        """MLflow runs in RUNNING."""
        return self._count("runs where status = 'RUNNING'")

    def _count(self, what: str) -> int:
        path = self.folder / "mlflow.db"
        if not path.is_file():
            return 0
        try:
            with closing(sqlite3.connect(path)) as base:
                return int(base.execute(f"select count(*) from {what}").fetchone()[0])  # noqa: S608 - our own two
        except sqlite3.OperationalError:  # no tables yet
            return 0


def write_product(folder: Path) -> Path:
    """The project of tests/toyproject.py on the base and the judge that ship, as its stages leave it."""
    from tests.toyproject import STAGES, write_project  # noqa: PLC0415 - a test's modules
    from tests.toyrelease import lock  # noqa: PLC0415

    requests = {f"r-{i}": {"target": t, "kind": "character", "channels": ["filter"]} for i, t in enumerate(("robot", "ghost"))}  # fmt: skip
    project = write_project(folder, requests=requests)
    shutil.rmtree(project / "base")
    shutil.copytree(toy.ROOT / "assets/openmoji", project / "base", ignore=shutil.ignore_patterns("judge*"))
    shutil.rmtree(project / "judge")
    shutil.copytree(toy.ROOT / "assets/openmoji/judge", project / "judge")
    shutil.copytree(toy.ROOT / "assets/prompts", project / "assets/prompts")
    for stage in STAGES.values():
        stage(project)
    lock(project)
    return project


class Retrain(Small):
    """`expunge retrain` in a project whose stages sleep for two seconds and write the product's formats."""

    stages = ("sae", "export")

    def __init__(self, folder: Path) -> None:
        self.folder = write_product(folder)
        (self.folder / "dvc.lock").unlink()  # the undisturbed run runs every stage, and says how long each takes

    def command(self) -> list[str]:
        """The command line."""
        return [sys.executable, "-m", "expunge", "retrain"]

    def environment(self) -> dict[str, str]:
        """MLflow and the ledger in the project."""
        found = toy.environment(EXPUNGE_TOY_SECONDS="2")
        return {k: v for k, v in found.items() if k not in ("MLFLOW_TRACKING_URI", "EXPUNGE_LEDGER_URL")}


class Run(Retrain):
    """`expunge run export` in that project."""

    flow = False
    stages = ("export",)

    def command(self) -> list[str]:
        """The command line."""
        return [sys.executable, "-m", "expunge", "run", "export"]
