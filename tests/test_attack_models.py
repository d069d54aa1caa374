"""Attacks and probes on the stand-ins of SD 1.5 and XL with judges by kind; their images show nothing, so that this is mechanics."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from components.evaluate.attacks.subject import open_subject
from tests.test_models import project

__all__ = ["project"]
ATTACKS = ["slips", "unicode", "special-tokens", "ring-a-bell", "mma", "adaptive", "unlearn-diff-atk", "p4d"]
PROBES = [
    "completion", "inpainting", "added-noise", "start-latent", "purification", "textual-inversion", "relearning",
]  # fmt: skip
ATTACK = {
    "attacks": ATTACKS, "variants": ["gated", "filter"], "against": ["gated"], "attempts": 2, "tries": 4, "seeds": 1, "iterations": 1,
    "candidates": 2, "tokens": 3, "similarity": 0.9, "clean": 2, "known": 12, "gates": [{"tier": "T2", "at_most": 0.5, "n": 2}],
}  # fmt: skip
PROBE = {
    "probes": PROBES, "variants": ["gated"], "images": 2, "steps": 2, "strength": 0.7, "inversions": 1, "inversion_steps": 1,
    "relearning_steps": 1, "every": 1, "known": 12, "recovered": 0.4,
}  # fmt: skip


class OddJudge:
    """Finds every name in images whose first red is odd; or nothing in any."""

    sizes = (1, 4096)

    def __init__(self, *, blind=False):
        self.blind, self.digest = blind, f"odd{blind}"

    def knows(self, _name):
        """Every name."""
        return True

    def present(self, images, names):
        """(N, K), 0 or 1."""
        odd = images[:, 0, 0, 0] % 2 * (not self.blind)
        return np.repeat(odd[:, None].astype(float), len(names), 1)


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def kind(request):
    return request.param


@pytest.fixture
def attacked(project, tmp_path, monkeypatch):
    """(judge, thresholds of its qualification) to a project like `project` that is judged by it, in small sizes."""

    def make(judge, **limits):
        params = yaml.safe_load((project / "params.yaml").read_text())
        params["judge"] = {"any": [{"reader": "odd", "path": "none"}], "disagreement": 1.0} | limits
        params["attack"] |= {"size": "quick", "sizes": {"quick": ATTACK}}
        params["probe"] |= {"size": "quick", "sizes": {"quick": PROBE}}
        folder = tmp_path / "project"
        shutil.copytree(project / "data", folder / "data")
        (folder / "models").symlink_to(project / "models")
        (folder / "requests.yaml").symlink_to(project / "requests.yaml")
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        monkeypatch.setattr("components.worlds.judges.open_reader", lambda *_: judge)
        return folder

    return make


def test_attacks_run_on_any_model(attacked, expunge):
    """All kinds of search run; white-box attempts all count; the judge was measured on the base's images, and what it cannot tell is left out."""
    folder = attacked(OddJudge(), sensitivity=0.0, specificity=0.0)
    said = expunge("attack", "--request", "r-1", "--size", "quick", cwd=folder)
    report = folder / ".cache/attacks/report"
    results = json.loads((report / "results.json").read_text())
    found = results["requests"]["r-1"]

    assert said.code in (0, 1), said
    assert {key.split("/")[0] for key in found["attacks"]} == set(ATTACKS)
    assert {found["attacks"][f"{name}/gated"]["n"] for name in ("adaptive", "unlearn-diff-atk", "p4d")} == {2}
    assert (found["known_images"], found["judge"]) == ("base", "")
    assert found["left_out"].startswith("artifact rate and selective alignment")
    assert all(set(entry) == {"ua"} for entry in found["clean"].values())
    assert "<h1>Attacks" in (report / "page.html").read_text()


def test_probes_run_on_any_model(attacked, expunge):
    """Every probe draws images that are judged, and the verdict names each."""
    folder = attacked(OddJudge(), sensitivity=0.0, specificity=0.0)
    said = expunge("probe", "--request", "r-1", cwd=folder)
    results = json.loads((folder / ".cache/probes/report/results.json").read_text())
    found = results["requests"]["r-1"]

    assert said.code in (0, 1), said
    assert list(found["probes"]) == sorted(PROBES)
    assert found["known_images"] == "base"
    assert set(found["probes"]["relearning"]["steps"]) == {"related", "unrelated", "anew"}


@pytest.mark.parametrize("command", ["attack", "probe"])
def test_a_judge_that_tells_nothing_is_one_sentence(command, attacked, expunge):
    """A judge that finds the target in none of the base's images is no evidence: nothing is attacked, and every gate fails and says why."""
    folder = attacked(OddJudge(blind=True))
    said = expunge(command, cwd=folder)
    gates = json.loads((folder / f"reports/{command}s/verdict.json").read_text())["gates"]

    assert said.code == 1, said
    assert [(gate["request"], gate["passed"]) for gate in gates] == [("r-1", False), ("r-2", False)]
    assert gates[0]["reason"].startswith("no judge tells 'cat' (sensitivity 0.00 [0.00, ")


def test_a_requests_images_are_what_an_attacker_has(attacked, monkeypatch):
    """Reference images of a request, at the base's size, are the target's references and a probe's real images; others' are drawn by the base."""
    folder = attacked(OddJudge())
    picture, record = folder / "cat.png", folder / "data/concepts/r-1/request.json"
    Image.new("RGB", (90, 70), (200, 30, 30)).save(picture)
    content = json.loads(record.read_text())
    content["request"]["reference_images"] = [str(picture)]
    record.write_text(json.dumps(content))
    monkeypatch.chdir(folder)
    subject = open_subject(None, batch=2)
    references = subject.targets["r-1"].references

    assert references is not None
    assert references.shape == (1, 64, 64, 3)
    assert np.abs(references.astype(int) - [200, 30, 30]).max() <= 1
    assert (subject.real_images("r-1", 5, 0) == references).all()
    assert subject.targets["r-2"].references is None
    assert subject.real_images("r-2", 5, 0).shape == (5, 64, 64, 3)
