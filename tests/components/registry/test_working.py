"""What commands read in the working tree is what belongs together there; each test ends with the tree as it was."""

import json
import shutil

import pytest
import yaml

from components.common.errors import ArtifactError
from components.common.files import SIDECAR, write_sidecar
from components.registry.lock import dvc_md5
from components.registry.working import check_base, check_evidence, check_note, check_read, check_trained
from expunge import Eraser
from tests.toyrelease import write_project

TWO = {
    f"r-{i}": {"target": t, "kind": "object", "channels": ["filter", "guidance"]} for i, t in enumerate(("cat", "owl"))
}


@pytest.fixture
def swapped(tmp_path):
    """A project of two requests, each with an adapter of its own."""
    return write_project(tmp_path / "project", requests=TWO)


def test_an_adapter_in_another_requests_folder_is_refused(swapped):
    """The first request's adapter under the second's name, sidecar and all, is not the second's; one that was asked for alone is looked at alone."""
    check_trained(swapped)
    shutil.rmtree(swapped / "models/guidance/r-1")
    shutil.copytree(swapped / "models/guidance/r-0", swapped / "models/guidance/r-1")

    check_trained(swapped, ["r-0"])
    for variant in ("base", "filter"):
        check_trained(swapped, variant=variant)
    for chosen in (None, ["r-1"]):
        with pytest.raises(
            ArtifactError, match="models/guidance/r-1 was trained for another request than data/concepts/r-1"
        ):
            check_trained(swapped, chosen, "gated")
    with pytest.raises(ArtifactError, match="models/guidance/r-1 was trained for another request"):
        Eraser.open(swapped)


def test_altered_weights_of_an_adapter_are_refused_before_they_are_loaded(swapped):
    """One bit of the weights, of which the sidecar has the digest."""
    path = swapped / "models/guidance/r-0/pytorch_lora_weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ArtifactError, match=r"r-0/pytorch_lora_weights.safetensors was altered or cut short; restore it"
    ):
        check_trained(swapped)


def test_a_base_that_changed_since_it_was_read_is_refused(project):
    """A byte of the sidecar that no other check reads; a base without a sidecar is known by its parts alone."""
    note = project / "base" / SIDECAR
    check_base(project)
    write_sidecar(note.parent, {"format": "expunge/base", "version": 1, "files": {}})
    with pytest.raises(ArtifactError, match=r"base is not what stage evaluate read \(dvc.lock\)"):
        check_read(project, "evaluate")
    check_note(note.parent)
    note.write_text("{")
    with pytest.raises(ArtifactError, match=r"artifact\.json is not JSON; restore it"):
        check_note(note.parent)


def test_a_request_that_was_edited_after_training_is_refused(swapped):
    """Another target under the same id, a request that nothing was made for, and a filter of other requests; a folder without records says nothing."""
    path = swapped / "requests.yaml"
    before = path.read_text()
    path.write_text(before.replace("target: cat", "target: lion"))
    for variant in (None, "filter", "guidance", "gated"):
        with pytest.raises(
            ArtifactError, match=r"says something else of request r-0 \('lion'\) than .* \('cat'\); undo"
        ):
            check_trained(swapped, variant=variant)
    with pytest.raises(ArtifactError, match="says something else of request r-0"):
        Eraser.open(swapped)
    check_trained(swapped, variant="base")
    check_trained(swapped, ["r-1"])
    path.write_text(before + "  r-2: {target: ghost, kind: character, channels: [filter]}\n")
    with pytest.raises(ArtifactError, match=r"nothing was made for request r-2 \('ghost'\); train it"):
        check_trained(swapped, variant="filter")
    path.write_text(before)
    (swapped / "data/concepts/requests.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"models/filter was fitted to other requests than data/concepts describes"):
        check_trained(swapped)
    check_trained(swapped, variant="guidance")
    (swapped / "data/concepts/r-0/request.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"r-0/request.json is no record of a request; write it again"):
        check_trained(swapped)
    shutil.rmtree(swapped / "data/concepts")
    check_trained(swapped)


def test_attacks_that_are_gone_or_had_other_parameters_are_no_evidence(swapped):
    """Once the stage has run, a missing verdict and a gate that was relaxed or tightened afterwards are refused."""
    judged = json.loads((swapped / "reports/evaluate/verdict.json").read_text())["judged"]
    check_evidence(swapped, judged)
    params, verdict = swapped / "params.yaml", swapped / "reports/attacks/verdict.json"
    before = params.read_text()
    content = yaml.safe_load(before)
    content["attack"]["sizes"]["full"]["gates"][0]["at_most"] = 1.0
    params.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(
        ArtifactError, match=r"the last attacks had other parameters \(attack\) than params.yaml has; run"
    ):
        check_evidence(swapped, judged)
    params.write_text(before)
    verdict.unlink()
    with pytest.raises(ArtifactError, match=r"reports/attacks/verdict.json is not what its stage wrote"):
        check_evidence(swapped, judged)


def fewer(verdict):
    return {"gates": verdict["gates"][:1]}


@pytest.mark.parametrize(
    ("name", "alter", "said"),
    [
        ("evaluate", fewer, r"evaluate/verdict\.json does not follow from metrics\.json and the gates; it was altered"),
        ("attacks", fewer, r"attacks/verdict\.json does not follow from results\.json and the gates; it was altered"),
        ("attacks", lambda _: {"highest_tier": "T4"}, r"attacks/verdict\.json does not follow from results\.json"),
        ("attacks", lambda _: {"judged": {}}, r"attacks/verdict\.json does not follow from results\.json"),
        ("attacks", lambda _: {"gates": None}, r"attacks/results\.json has no .* where attacks write it; attack again"),
    ],
)
def test_a_verdict_is_judged_again(swapped, name, alter, said):
    """A gate that was taken out of a verdict, or a tier that nothing reached, with dvc.lock's digest altered to fit, is found by its metrics."""
    path, lock = swapped / "reports" / name / "verdict.json", swapped / "dvc.lock"
    judged = json.loads((swapped / "reports/evaluate/verdict.json").read_text())["judged"]
    before, content = dvc_md5(path), json.loads(path.read_text())
    content |= alter(content)
    path.write_text(json.dumps(content))
    assert before in lock.read_text()
    lock.write_text(lock.read_text().replace(before, dvc_md5(path)))

    with pytest.raises(ArtifactError, match=said):
        check_evidence(swapped, judged)


def test_the_order_of_requests_says_nothing(swapped):
    """Entries of requests.yaml in another order are the same requests: the evidence stands."""
    path = swapped / "requests.yaml"
    judged = json.loads((swapped / "reports/evaluate/verdict.json").read_text())["judged"]
    content = yaml.safe_load(path.read_text())["requests"]
    path.write_text(yaml.safe_dump({"requests": dict(reversed(content.items()))}, sort_keys=False))

    check_evidence(swapped, judged)


def test_only_the_named_requests_are_looked_at_however_they_are_listed(swapped):
    """A generator of ids is as good as a list: the second's altered weights are found."""
    path = swapped / "models/guidance/r-1/pytorch_lora_weights.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ArtifactError, match=r"r-1/pytorch_lora_weights\.safetensors was altered"):
        check_trained(swapped, (name for name in ("r-0", "r-1")))
