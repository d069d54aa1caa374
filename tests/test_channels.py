"""Retrainings, small, of projects whose requests use one channel alone: each stage does what it was asked. Without a request nothing is trained."""

import json

import pytest
import yaml

from components.common.files import read_sidecar
from components.registry.release import build_release
from tests.test_pipeline import dvc, ends, small_project, times

CAT = {"target": "cat", "kind": "object", "aliases": ["kitty", "feline"], "anchor": "dog", "neighbours": ["lion"]}
CASES = {
    "filter alone": ({"r-1": CAT | {"channels": ["filter"]}}, {"base", "filter", "summed", "gated"}),
    "guidance alone": ({"r-1": CAT | {"channels": ["guidance"]}}, {"base", "guidance", "summed"}),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return small_project(tmp_path_factory.mktemp("channels") / "project")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_retraining_obeys_channels(project, tmp_path, monkeypatch, case):
    """Every stage runs, only what is asked for is made, gates and attacks judge that alone, and it can be registered."""
    monkeypatch.chdir(project)
    requests, variants = CASES[case]
    (project / "requests.yaml").write_text(yaml.safe_dump({"requests": requests}, sort_keys=False))
    dvc(project, "repro")
    adapted = {i for i, request in requests.items() if "guidance" in request["channels"]}
    filtered = {i for i, request in requests.items() if "filter" in request["channels"]}
    for i in requests:
        kind = "expunge/adapter" if i in adapted else "expunge/no-adapter"
        assert read_sidecar(project / "models/guidance" / i, kind)
    assert set(read_sidecar(project / "models/filter", "expunge/filter")["facts"]["requests"]) == filtered
    assert (project / "models/onnx/filter.onnx").exists() == bool(filtered)
    verdict = json.loads((project / "reports/evaluate/verdict.json").read_text())
    attacks = json.loads((project / "reports/attacks/verdict.json").read_text())
    assert {gate["variant"] for gate in verdict["gates"]} <= variants | {"-"}
    assert {gate["request"] for gate in attacks["gates"]} == set(requests)
    release = build_release(project, tmp_path / "release")
    assert set(release.requests) == set(requests)
    assert {path.name for path in (release.folder / "adapters").glob("*")} == adapted


@pytest.mark.slow
def test_without_a_request_nothing_is_trained_or_overwritten(project, monkeypatch):
    """`dvc repro` ends at the stage that writes prompts, with one sentence, and what the last requests left stays as it was."""
    monkeypatch.chdir(project)
    (project / "requests.yaml").write_text("requests: {}\n")
    before = made(project)
    done = ends(project, "repro")

    assert done.returncode != 0
    assert "expunge: requests.yaml holds no request; add one: expunge request add" in done.stderr
    assert "failed to reproduce 'concepts'" in done.stderr
    assert made(project) == before


def made(project):
    """When each model of a request and each report was written."""
    skipped = (project / "data", project / "models" / "sae")
    return {path: when for path, when in times(project).items() if not any(map(path.is_relative_to, skipped))}
