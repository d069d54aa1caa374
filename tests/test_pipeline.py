"""The product from end to end, small: every stage through `dvc repro` on the base that ships, then the flow with its own MLflow."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from dvc.repo import Repo
from PIL import Image

from research.house import EDITS

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
REQUESTS = {
    "requests": {
        "r-1": {
            "target": "cat",
            "kind": "object",
            "aliases": ["kitty", "feline"],
            "anchor": "dog",
            "neighbours": ["lion"],
        },
        "r-2": {"target": "ghost", "kind": "character", "aliases": ["phantom", "spook"], "channels": ["filter"]},
    }
}
SMALL = {
    "corpus": {"captions": 500, "english": 300, "benign": {"calibrate": 700, "evaluate": 1200}},
    "concepts": {"per_name": 3, "retain": 60, "mixed": 6},
    "sae": {"d_sae": 512, "k": 16, "steps": 60, "batch": 512},
    "features": {"fpr": 0.01, "fpr_all": 0.02, "min_contrast": 0.05},
    "guidance": {"steps": 3},
    "evaluate": {"sizes": {"quick": {"templates": 2, "seeds": 1, "retain": 4}}, "size": "quick", "batch": 8},
    "attack": {
        "sizes": {
            "quick": {
                "attacks": ["slips", "mma"],
                "attempts": 2,
                "tries": 2,
                "iterations": 2,
                "candidates": 4,
                "clean": 2,
                "known": 12,
            }
        }
    },
}
STAGES = {
    "base",
    "corpus",
    "sae",
    "concepts",
    "features",
    "guidance@r-1",
    "guidance@r-2",
    "evaluate",
    "attack",
    "export",
}


def merged(content, changes):
    """`content` with `changes`, section by section."""
    return {
        k: merged(v, changes[k]) if isinstance(v, dict) and k in changes else changes.get(k, v)
        for k, v in content.items()
    }


def ends(folder, *arguments):
    """How dvc ended in a project."""
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    return subprocess.run(
        [BIN / "dvc", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def dvc(folder, *arguments):
    """What dvc says, which has to succeed."""
    done = ends(folder, *arguments)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def times(folder):
    """When each output was written."""
    roots = ("data", "models", "reports/evaluate", "reports/attacks")
    return {p: p.stat().st_mtime_ns for root in roots for p in (folder / root).rglob("*") if p.is_file()}


def small_project(folder):
    """The product's own files with small parameters and two requests, one of the filter alone, as a project of their own."""
    folder.mkdir(exist_ok=True)
    for name in ("components", "flows", "expunge", "assets"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", folder)
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    params = merged(yaml.safe_load((ROOT / "params.yaml").read_text()), SMALL)
    for gate in params["evaluate"]["gates"]:
        gate["n"] = 2
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (folder / "requests.yaml").write_text(yaml.safe_dump(REQUESTS, sort_keys=False))
    for command in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "start"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The small project."""
    return small_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def filtered(project):
    """The project with everything up to the filter."""
    dvc(project, "repro", "features")
    return project


@pytest.fixture(scope="module")
def trained(filtered):
    """And with the adapters."""
    dvc(filtered, "repro", "guidance@r-1", "guidance@r-2")
    return filtered


@pytest.fixture(scope="module")
def evaluated(trained):
    """And evaluated."""
    dvc(trained, "repro", "evaluate")
    return trained


@pytest.fixture(scope="module")
def attacked(evaluated):
    """And attacked."""
    dvc(evaluated, "repro", "attack")
    return evaluated


@pytest.fixture(scope="module")
def reproduced(attacked):
    """The project with everything reproduced."""
    dvc(attacked, "repro")
    return attacked


def test_text_stages_write_prompts_autoencoder_and_filter(filtered):
    """Records, disjoint prompts, an autoencoder in SAELens' layout and a filter that flags a listed name and not its neighbour."""
    from components.diffusion.text import load_towers
    from components.filter.artifact import open_filters
    from components.filter.encoder import FilteredTextEncoder
    from components.sae.model import read_sae

    record = json.loads((filtered / "data/concepts/r-1/request.json").read_text())
    assert (record["labels"], record["is_style"], record["avoid"]) == (["cat"], False, ["cat", "dog", "lion"])
    assert record["names"]["select"] == ["cat", "kitty"]
    assert record["names"]["evaluate"] == ["cat", "kitty", "feline"]
    table = pd.read_parquet(filtered / "data/concepts/r-1/prompts.parquet")
    corpus = pd.read_parquet(filtered / "data/corpus/prompts.parquet")
    evaluation = set(table.loc[table["split"] == "evaluate", "prompt"])
    assert evaluation
    assert not evaluation & set(table.loc[table["split"] != "evaluate", "prompt"])
    assert not evaluation & set(corpus.loc[corpus["split"] != "evaluate", "prompt"])
    sae, _ = read_sae(filtered / "models/sae")
    assert (sae.d_sae, sae.d_in) == (512, 256)
    assert sae.W_dec.norm(dim=1).sub(1).abs().max() < 1e-4
    base = filtered / "assets/openmoji"
    towers = load_towers(base, ["encoder.layers.0"])
    filters = open_filters(filtered / "models/filter", base, towers.hookpoints).filters
    assert set(filters) == {"r-1", "r-2"}
    _, seen = FilteredTextEncoder(towers, filters).encode(towers.tokenize(["a feline", "a spook"]))
    assert seen.flagged[0].tolist()[0]
    assert seen.flagged[1].tolist()[1]


def test_guidance_stage_writes_an_adapter_that_diffusers_loads(trained):
    """The adapter changes what a stock pipeline draws for the target; a request without the channel has none."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(trained / "assets/openmoji", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)

    def shot():
        rng = torch.Generator().manual_seed(0)
        return pipe("a cat", num_inference_steps=3, output_type="np", generator=rng).images

    before = shot()
    pipe.load_lora_weights(trained / "models/guidance/r-1")

    assert np.abs(shot() - before).max() > 0.01
    assert not list((trained / "models/guidance/r-2").glob("*.safetensors"))


def test_evaluation_writes_metrics_verdict_and_page(evaluated):
    """Every scope and variant has numbers that were measured; the verdict names what was judged; the page shows pictures."""
    report = evaluated / "reports/evaluate"
    metrics, verdict = (json.loads((report / name).read_text()) for name in ("metrics.json", "verdict.json"))
    assert set(metrics["requests"]) == {"r-1", "r-2", "joint"}
    for found in metrics["requests"].values():
        assert set(found) == {"base", "filter", "guidance", "summed", "gated"}
        assert found["gated"]["ua"]["n"] in (2, 4)
        assert found["base"]["ssim_unrelated"]["value"] == 1.0
    assert metrics["requests"]["r-1"]["base"]["ua"]["value"] < 1.0
    assert metrics["requests"]["r-1"]["filter"]["passthrough_max_abs"]["value"] == 0.0
    assert max(b["value"] for b in metrics["requests"]["r-1"]["guidance"]["uncond_drift"].values()) < 0.05
    assert verdict["passed"] == all(gate["passed"] for gate in verdict["gates"])
    assert {gate["request"] for gate in verdict["gates"]} == {"r-1", "r-2", "joint"}
    assert {
        "base",
        "judge",
        "filter",
        "adapter/r-1",
        "request/r-1",
        "request/r-2",
        "metrics",
        "params",
        "requests",
    } <= set(verdict["judged"])
    page = (report / "report.html").read_text()
    assert page.count("<img") >= 6
    assert "cat → dog" in page
    first = Image.open(report / "grids/00.png")
    assert first.size[1] > 2 * 256


def test_attacks_write_results_verdict_and_page(attacked):
    """The stage attacks both requests, states what it attacked by digest, and fails where it has too little evidence."""
    folder = attacked / "reports/attacks"
    results, verdict = (json.loads((folder / name).read_text()) for name in ("results.json", "verdict.json"))

    assert set(results["requests"]) == {"r-1", "r-2"}
    assert set(results["requests"]["r-1"]["attacks"]) == {"slips/gated", "mma/gated"}
    assert verdict["judged"] == results["judged"]
    assert verdict["judged"].keys() >= {"base", "filter", "judge", "adapter/r-1", "request/r-2"}
    assert verdict["passed"] is False
    assert "T2 adaptive" in verdict["not_tried"]
    assert "<h1>Attacks" in (folder / "page.html").read_text()


def test_export_writes_a_graph_that_decides_as_torch(reproduced):
    """The ONNX graph and torch agree on every prompt of the parity report, some of them flagged."""
    report = json.loads((reproduced / "models/onnx/parity.json").read_text())

    assert report["parity"]["decisions_agree"]
    assert 0 < report["parity"]["flagged"] < report["parity"]["prompts"]
    assert report["parity"]["max_abs_hidden"] < 1e-4
    assert report["requests"] == ["r-1", "r-2"]


@pytest.mark.parametrize("what", [what for what in EDITS if "research" not in what])
def test_an_edit_re_runs_what_can_reach_it(reproduced, what):
    """In a project where nothing is to be run, an edit re-runs at most the stages whose code can reach the edited file."""
    edit, allowed = EDITS[what]
    with Repo(str(reproduced)) as repo:
        assert repo.status() == {}
    edit(reproduced)
    try:
        with Repo(str(reproduced)) as repo:
            found = {stage.split(":")[-1].split("@")[0] for stage in repo.status()}
    finally:
        subprocess.run(["git", "checkout", "--quiet", "."], cwd=reproduced, check=True)
        subprocess.run(["git", "clean", "-fdq", "components", "flows"], cwd=reproduced, check=True)

    assert found <= allowed
    assert bool(found) == bool(allowed)


def test_a_new_anchor_trains_that_request_again_and_nothing_else(reproduced):
    """After the concepts stage has seen the new anchor, dvc would run that adapter, the filter and what follows: no SAE, no other adapter."""
    path = reproduced / "requests.yaml"
    before = path.read_text()
    lock, concepts = (reproduced / "dvc.lock").read_text(), reproduced / "data/concepts"
    shutil.copytree(concepts, reproduced / "data/before")
    path.write_text(before.replace("anchor: dog", "anchor: horse"))
    dvc(reproduced, "repro", "--single-item", "concepts")
    found = set(json.loads(dvc(reproduced, "status", "--json")))
    path.write_text(before)
    (reproduced / "dvc.lock").write_text(lock)
    shutil.rmtree(concepts)
    (reproduced / "data/before").rename(concepts)

    assert found == {"features", "guidance@r-1", "evaluate", "attack", "export"}
    assert json.loads(dvc(reproduced, "status", "--json")) == {}


def test_flow_reproduces_what_changed_and_registers_it(reproduced, monkeypatch):
    """The flow runs every stage as a task, reproduces a stage whose parameters changed, and registers a loadable version; run again it reproduces nothing."""
    import mlflow
    from mlflow import MlflowClient
    from prefect.testing.utilities import prefect_test_harness

    from flows.retrain import retrain

    monkeypatch.setenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{reproduced / 'mlflow.db'}")
    params = reproduced / "params.yaml"
    params.write_text(params.read_text().replace("  tolerance: 0.0001", "  tolerance: 0.0002"))
    before = times(reproduced)
    with prefect_test_harness(server_startup_timeout=180):
        said = retrain(str(reproduced))
        after = times(reproduced)
        assert {p.relative_to(reproduced).parts[1] for p in after if after[p] != before.get(p)} == {"onnx"}
        assert retrain(str(reproduced)) == said
    assert times(reproduced) == after

    verdict = json.loads((reproduced / "reports/evaluate/verdict.json").read_text())
    assert said == ("pass" if verdict["passed"] else "fail")
    client = MlflowClient()
    version = client.get_model_version_by_alias("expunge", "candidate")
    assert version.tags["verdict"] == said
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=reproduced, capture_output=True, text=True, check=True
    ).stdout.strip()
    run = mlflow.get_run(version.run_id)
    assert run.data.tags["git.commit"] == head
    assert run.data.params["guidance.steps"] == "3"
    assert (
        run.data.metrics["r-1/gated/ua"]
        == json.loads((reproduced / "reports/evaluate/metrics.json").read_text())["requests"]["r-1"]["gated"]["ua"][
            "value"
        ]
    )
    fetched = Path(mlflow.artifacts.download_artifacts(run_id=version.run_id, artifact_path="release/adapters/r-1"))
    name = "pytorch_lora_weights.safetensors"
    assert (fetched / name).read_bytes() == (reproduced / "models/guidance/r-1" / name).read_bytes()
