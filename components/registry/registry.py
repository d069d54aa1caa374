"""Logs a finished evaluation to MLflow and registers what it evaluated as a candidate, whatever the verdict.

Artifacts are files with digests, never pickles: the model version points at the run's folder of safetensors and ONNX.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from components.common.errors import ArtifactError
from components.common.files import SIDECAR, digest
from components.registry.release import Release

MODEL = "expunge"
CANDIDATE = "candidate"
WEIGHTS = "pytorch_lora_weights.safetensors"
_BYTES = ("models/filter", "models/guidance", "models/onnx")


class Candidate(NamedTuple):
    """A registered model version."""

    version: int
    run_id: str
    verdict: str


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite file in the project's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(root / 'mlflow.db').resolve()}"


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested metric records as `request/variant/metric` keys; records without a value are left out."""
    out: dict[str, float] = {}
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "value" in value:
            if value["value"] is not None:
                out[name] = float(value["value"])
        elif isinstance(value, Mapping):
            out |= flatten(value, f"{name}/")
    return out


def check_judged(root: Path, verdict: Mapping[str, Any]) -> None:
    """`ArtifactError` unless filter and adapters of the working tree are those that the verdict judged, and no others."""
    judged = {
        name: sha for name, sha in verdict.get("judged", {}).items() if name == "filter" or name.startswith("adapter/")
    }
    folders = {"filter": root / "models" / "filter"}
    for folder in sorted((root / "models" / "guidance").glob("*/")):
        if (folder / WEIGHTS).is_file():
            folders[f"adapter/{folder.name}"] = folder
    found = {name: digest(folder / SIDECAR) for name, folder in folders.items() if (folder / SIDECAR).is_file()}
    if other := sorted(name for name in judged.keys() | found.keys() if judged.get(name) != found.get(name)):
        raise ArtifactError(f"{other[0]} is not what the evaluation judged", "evaluate again: dvc repro evaluate")


def register_candidate(root: Path, *, params: Mapping[str, Any], tags: Mapping[str, str]) -> Candidate:
    """Logs `reports/evaluate` and the artifacts of the working tree under `root`, and registers a new version.

    `ArtifactError` if there is no evaluation, or if what lies there is not what was evaluated.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    report = root / "reports" / "evaluate"
    try:
        metrics = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
        verdict = json.loads((report / "verdict.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{report} holds no evaluation", "run it: dvc repro evaluate") from error
    check_judged(root, verdict)
    said = "pass" if verdict["passed"] else "fail"
    mlflow.set_tracking_uri(tracking_uri(root))
    client = MlflowClient()
    if mlflow.get_experiment_by_name(MODEL) is None:
        mlflow.create_experiment(MODEL, artifact_location=(root / "mlruns").resolve().as_uri())
    mlflow.set_experiment(MODEL)
    with mlflow.start_run(tags={**tags, "verdict": said}) as run:
        mlflow.log_params({k: str(v)[:500] for k, v in params.items()})
        mlflow.log_metrics(flatten(metrics["requests"]))
        mlflow.log_artifacts(str(report), "report")
        for folder in _BYTES:
            if (root / folder).is_dir():
                mlflow.log_artifacts(str(root / folder), f"model/{folder.removeprefix('models/')}")
        for name in ("dvc.lock", "requests.yaml", "params.yaml"):
            if (root / name).is_file():
                mlflow.log_artifact(str(root / name), "model")
    try:
        client.create_registered_model(MODEL)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    digests = {f"sha256.{f.removeprefix('models/')}": digest(root / f) for f in _BYTES if (root / f).is_dir()}
    version = client.create_model_version(
        MODEL,
        source=f"{run.info.artifact_uri}/model",
        run_id=run.info.run_id,
        tags={"verdict": said, "size": metrics["size"], **digests},
    )
    client.set_registered_model_alias(MODEL, CANDIDATE, version.version)
    return Candidate(int(version.version), run.info.run_id, said)


class Version(NamedTuple):
    """One registered version, as MLflow has it."""

    version: int
    digest: str
    """Of its release."""
    verdict: str
    """`pass` or `fail`."""
    size: str
    """Size of the evaluation, such as quick or full."""
    run_id: str
    aliases: tuple[str, ...]


class Registry:
    """The registry of one project: MLFLOW_TRACKING_URI, or a SQLite file in the project's root.

    Every method raises `UserError` for what does not exist and `StageError` for a server that cannot be used, with its URL.
    """

    def __init__(self, root: Path = Path()) -> None:
        """Opens the registry; nothing is asked of a server yet."""

    def versions(self) -> list[Version]:
        """All versions, the newest last; none if nothing was ever registered."""
        raise NotImplementedError

    def version(self, which: int | str) -> Version:
        """The version of that number, alias (`champion` or `@champion`) or URI (`models:/expunge@champion`, `models:/expunge/3`)."""
        raise NotImplementedError

    def fetch(self, which: int | str, out: Path) -> Release:
        """Downloads a version's release through the tracking server, checks every byte, and moves it to `out` in one step."""
        raise NotImplementedError

    def aliases(self) -> dict[str, int]:
        """The aliases and the versions that they name."""
        raise NotImplementedError

    def set_aliases(self, wanted: Mapping[str, int]) -> None:
        """Makes `wanted` the aliases candidate, champion and previous; one that `wanted` lacks is deleted."""
        raise NotImplementedError
