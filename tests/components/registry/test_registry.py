import json

import pytest
from mlflow import MlflowClient

from components.common.errors import ArtifactError
from components.common.files import digest
from components.registry.registry import MODEL, flatten, register_candidate, tracking_uri


def test_flatten_by_hand():
    """Records become keys, buckets too; a metric without a value is left out, never logged as 0."""
    nested = {
        "r": {"both": {"ua": {"value": 0.5, "n": 2}, "ira": {"value": None, "n": 0}, "drift": {"0-9": {"value": 1}}}}
    }

    assert flatten(nested) == {"r/both/ua": 0.5, "r/both/drift/0-9": 1.0}


def test_register_candidate_whatever_the_verdict(tmp_path, monkeypatch):
    """A failed evaluation is registered too: its verdict and digests are tags, its files the run's artifacts."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    report = tmp_path / "reports" / "evaluate"
    report.mkdir(parents=True)
    (tmp_path / "models" / "filter").mkdir(parents=True)
    sidecar = tmp_path / "models" / "filter" / "artifact.json"
    sidecar.write_text("{}")
    metrics = {"size": "quick", "requests": {"r": {"both": {"ua": {"value": 0.5, "n": 2, "low": 0.1, "high": 0.9}}}}}
    (report / "metrics.json").write_text(json.dumps(metrics))
    (report / "verdict.json").write_text(
        json.dumps({"passed": False, "gates": [], "judged": {"filter": digest(sidecar)}})
    )

    found = register_candidate(tmp_path, params={"sae.k": 16}, tags={})

    client = MlflowClient(tracking_uri(tmp_path))
    version = client.get_model_version_by_alias(MODEL, "candidate")
    assert (found.verdict, int(version.version)) == ("fail", found.version)
    assert version.tags["verdict"] == "fail"
    assert len(version.tags["sha256.filter"]) == 64
    assert client.get_run(found.run_id).data.metrics["r/both/ua"] == 0.5


@pytest.mark.parametrize("change", ["altered", "missing", "more"])
def test_register_refuses_what_was_not_evaluated(tmp_path, change):
    """An altered or missing filter, and an adapter that the verdict does not name, are refused before anything is logged."""
    report, guidance = tmp_path / "reports" / "evaluate", tmp_path / "models" / "guidance" / "r"
    report.mkdir(parents=True)
    (tmp_path / "models" / "filter").mkdir(parents=True)
    sidecar = tmp_path / "models" / "filter" / "artifact.json"
    sidecar.write_text("{}")
    (report / "metrics.json").write_text(json.dumps({"size": "quick", "requests": {}}))
    (report / "verdict.json").write_text(
        json.dumps({"passed": True, "gates": [], "judged": {"filter": digest(sidecar)}})
    )
    if change == "altered":
        sidecar.write_text("{ }")
    elif change == "missing":
        sidecar.unlink()
    else:
        guidance.mkdir(parents=True)
        (guidance / "artifact.json").write_text("{}")
        (guidance / "pytorch_lora_weights.safetensors").write_text("weights")

    with pytest.raises(ArtifactError, match="is not what the evaluation judged; evaluate again"):
        register_candidate(tmp_path, params={}, tags={})
    assert not (tmp_path / "mlflow.db").exists()


def test_register_without_an_evaluation_is_one_sentence(tmp_path):
    """Nothing to register: the message says what to run."""
    with pytest.raises(ArtifactError, match="holds no evaluation; run it: dvc repro evaluate"):
        register_candidate(tmp_path, params={}, tags={})
