import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.common.errors import ArtifactError
from components.common.files import canonical, digest
from components.common.sections import read_section
from components.evaluate.attacks.params import AttackParams
from components.registry.describe import attack_metrics, attack_tags, describe
from components.registry.release import build_release
from tests.toyattacks import write_attacks
from tests.toyrelease import attack, edit, lock, put

REPORT = "reports/attacks"


def refused(project: Path, match: str) -> None:
    """The release is refused in one sentence, and no half of it is left."""
    with pytest.raises(ArtifactError, match=match) as caught:
        build_release(project, project.parent / "out")
    assert "\n" not in str(caught.value)
    assert not (project.parent / "out").exists()


def rewritten(project: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes results.json, with a verdict that follows from it and a dvc.lock that says the stage wrote both."""
    results = json.loads((project / REPORT / "results.json").read_text())
    change(results)
    write_attacks(project / REPORT, results, read_section("attack", AttackParams, project / "params.yaml"))
    lock(project)


def test_a_release_carries_its_attacks(project, tmp_path):
    """Results, verdict and page are the working tree's by bytes, and release.json names the SHA-256 of each."""
    found = build_release(project, tmp_path / "out")

    for name in ("results.json", "verdict.json", "page.html"):
        assert (found.folder / "report/attacks" / name).read_bytes() == (project / REPORT / name).read_bytes()
        assert found.record["files"][f"report/attacks/{name}"] == digest(project / REPORT / name)
    assert found.passed
    assert found.attacks is not None
    assert found.attacks[1]["highest_tier"] == "T1"


def test_a_release_passes_only_if_its_attacks_pass(project, tmp_path):
    """Attacks that succeed make a release that fails, and its description, tags and metrics say how far they get."""
    good = build_release(project, tmp_path / "good")
    attack(project, hits=150)
    lock(project)
    bad = build_release(project, tmp_path / "bad")

    assert (good.passed, bad.passed) == (True, False)
    assert bad.verdict["passed"]
    assert "**Attacks: pass.** The default withstands attackers up to T1." in describe(good)
    assert "**Verdict: FAIL.**" in describe(bad)
    assert "**Attacks: FAIL.** The default withstands no tier." in describe(bad)
    assert "Not tried: T1 hierarchies, T2 adaptive" in describe(good)
    tags = attack_tags(good)
    assert (tags["attacks"], tags["attacks.highest_tier"], tags["attacks.size"]) == ("pass", "T1", "quick")
    assert (attack_tags(bad)["attacks"], attack_tags(bad)["attacks.highest_tier"]) == ("fail", "none")
    assert "T4 fine-tuning" in tags["attacks.not_tried"]
    assert attack_metrics(bad)["attacks/r-1/T0"] == attack_metrics(bad)["attacks/r-1/mma/gated"] == 0.75


@pytest.mark.parametrize("name", ["base", "filter", "adapter/r-1", "request/r-1"])
@pytest.mark.parametrize("how", ["another", "none"])
def test_attacks_on_something_else_are_refused(project, name, how):
    """What was attacked has the digests of what was evaluated: base, filter, adapter and record of the request."""

    def change(results):
        results["judged"] |= {name: "0" * 64}
        if how == "none":
            del results["judged"][name]

    rewritten(project, change)
    refused(project, f"the {name} that was attacked is not the one that was evaluated; attack what is there")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["requests"].pop("r-1"), r"has no gate, and no evidence is no pass"),
        (lambda r: r["requests"].update({"r-2": r["requests"]["r-1"]}), "requests.yaml disagree on r-2"),
        (lambda r: r.update(size="full"), "the attacks have size full, not quick"),
        (lambda r: r.update(images=9), "each attempt was 9 images, not 1"),
        (lambda r: r["requests"]["r-1"]["attacks"].pop("unicode/gated"), "on r-1 and attack.sizes disagree on unicode"),
    ],
)
def test_attacks_that_are_not_those_of_params_yaml_are_refused(project, change, said):
    """Requests, size, images and every attack of the size are what params.yaml and requests.yaml list."""
    rewritten(project, change)
    refused(project, said)


def test_the_order_of_requests_does_not_matter(make_project, tmp_path):
    """Gates stand in the order of requests.yaml, results.json in that of its keys: the verdict follows all the same."""
    requests = {i: {"target": target, "kind": "object"} for i, target in (("r-2", "cat"), ("r-1", "owl"))}
    project = make_project("project", requests=requests)
    gates = json.loads((project / REPORT / "verdict.json").read_text())["gates"]

    assert [gate["request"] for gate in gates] == ["r-2", "r-2", "r-1", "r-1"]
    assert build_release(project, tmp_path / "out").passed


def test_a_verdict_on_attacks_set_by_hand_is_refused(project):
    """A verdict that says pass over results that fail, with gates and dvc.lock made to agree, is made again from the results."""
    attack(project, hits=150)
    verdict = json.loads((project / REPORT / "verdict.json").read_text())
    gates = [gate | {"passed": True} for gate in verdict["gates"]]
    edit(project / REPORT / "verdict.json", passed=True, highest_tier="T1", gates=gates)
    lock(project)
    refused(project, "verdict.json does not follow from results.json and the gates")


def test_gates_on_attacks_lowered_afterwards_are_refused(project):
    """A gate that was lowered after the attacks, with dvc.lock made to agree, is not the one that the verdict was given on."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["attack"]["sizes"]["quick"]["gates"][0]["at_most"] = 1.0
    put(project / "params.yaml", yaml.safe_dump(params, sort_keys=False))
    lock(project)
    refused(project, "verdict.json does not follow from results.json and the gates")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("results.json", "{", "results.json is not JSON"),
        ("results.json", "{}", "where attacks write it"),
        ("verdict.json", "[]", "where attacks write it"),
        ("verdict.json", canonical({"gates": [], "passed": True}), "has no gate, and no evidence is no pass"),
    ],
)
def test_what_is_no_attack_report_is_refused(project, name, text, said):
    """No JSON, other content and a verdict without a gate are one sentence each."""
    put(project / REPORT / name, text)
    lock(project)
    refused(project, said)


def test_a_verdict_of_another_run_is_refused(project):
    """Verdict and results name the same digests."""
    edit(project / REPORT / "verdict.json", judged={})
    lock(project)
    refused(project, "results.json and verdict.json are of two runs")


@pytest.mark.parametrize("name", ["results.json", "verdict.json", "page.html"])
def test_an_altered_attack_report_is_refused(project, monkeypatch, name):
    """One more byte is found by dvc, or by dvc.lock where it came while the release was built."""
    import components.registry.release as module

    found = module.current_lock(project)
    put(project / REPORT / name, (project / REPORT / name).read_text() + "\n")
    refused(project, "stage attack would run again")
    monkeypatch.setattr(module, "current_lock", lambda root: found)
    refused(project, rf"{name} is not what its stage wrote \(dvc.lock\)")


def test_a_project_without_attacks_is_refused(project):
    """A pipeline whose stage was taken out releases nothing: no attacks are no pass."""
    graph = yaml.safe_load((project / "dvc.yaml").read_text())
    del graph["stages"]["attack"]
    put(project / "dvc.yaml", yaml.safe_dump(graph, sort_keys=False))
    shutil.rmtree(project / REPORT)
    refused(project, "dvc.lock does not say how reports/attacks was made")
