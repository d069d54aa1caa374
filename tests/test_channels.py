"""Retrainings, small, of projects whose requests use one channel alone, or that have none: each stage does what it was asked."""

import json

import pytest
import yaml

from components.common.files import read_sidecar
from components.registry.release import build_release
from tests.test_pipeline import dvc, small_project

CAT = {"target": "cat", "kind": "object", "aliases": ["kitty", "feline"], "anchor": "dog", "neighbours": ["lion"]}
CASES = {
    "filter alone": ({"r-1": CAT | {"channels": ["filter"]}}, {"base", "filter", "summed", "gated"}),
    "guidance alone": ({"r-1": CAT | {"channels": ["guidance"]}}, {"base", "guidance", "summed"}),
    "none": ({}, set()),
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
