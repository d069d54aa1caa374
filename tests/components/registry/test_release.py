import json
import shutil

import pytest
import yaml

from components.common.errors import ArtifactError, ExpungeError
from components.common.files import canonical, digest
from components.common.sections import read_section
from components.registry.lock import dvc_md5
from components.registry.release import RELEASE, build_release, read_release
from components.sae.params import SaeParams
from tests.toyrelease import artifact, edit, evaluate, git, lock, make, put

REPORT = "reports/evaluate"


def refused(project, match, error=ArtifactError):
    """The release is refused in one sentence, and nothing is left where it would have been."""
    out = project.parent / "out"
    with pytest.raises(error, match=match) as caught:
        build_release(project, out)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in project.parent.iterdir()) == ["project"]


def test_a_release_holds_what_was_evaluated_and_names_every_byte(project, tmp_path):
    """Each part is the working tree's, by bytes; release.json names each file's own SHA-256; another folder gives the same digest."""
    found = build_release(project, tmp_path / "out")

    for here, there in {
        "filter/model.safetensors": "models/filter/model.safetensors",
        "adapters/r-1/pytorch_lora_weights.safetensors": "models/guidance/r-1/pytorch_lora_weights.safetensors",
        "onnx/filter.onnx": "models/onnx/filter.onnx",
        "report/verdict.json": f"{REPORT}/verdict.json",
        "report/grids/00.png": f"{REPORT}/grids/00.png",
    }.items():
        assert (found.folder / here).read_bytes() == (project / there).read_bytes()
        assert found.record["files"][here] == digest(project / there)
    files = {p.relative_to(found.folder).as_posix() for p in found.folder.rglob("*") if p.is_file()}
    assert set(found.record["files"]) == files - {RELEASE}
    assert found.digest == digest(found.folder / RELEASE)
    assert found.passed
    assert found.requests["r-1"].target == "cat"
    assert found.record["source"] == {
        "commit": git(project, "rev-parse", "HEAD").strip(),
        "dirty": False,
        "patch": None,
    }
    other = shutil.copytree(project, tmp_path / "another place")
    assert build_release(other, tmp_path / "again").digest == found.digest


def test_a_release_carries_no_comment_and_no_section_that_no_stage_reads(project, tmp_path):
    """A name in a comment of requests.yaml stays at home, and so does where the ledger is; the digest does not depend on either."""
    before = build_release(project, tmp_path / "before").digest
    requests = project / "requests.yaml"
    requests.write_text("# asked for by Jane Roe\n" + requests.read_text())
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("withdrawal_hours: 24", "withdrawal_hours: 48"))

    found = build_release(project, tmp_path / "out")

    assert found.digest == before
    assert "Jane" not in "".join(p.read_text(errors="replace") for p in found.folder.rglob("*") if p.is_file())
    assert "ledger" not in found.params
    assert found.params["features"] == yaml.safe_load(params.read_text())["features"]


def test_a_dirty_tree_is_flagged_with_what_differs(project, tmp_path):
    """Code that differs from the commit flags the release; the same difference has the same patch digest, another one another."""
    records = []
    for text in ("x = 2\n", "x = 2\n", "x = 3\n"):
        put(project / "code.py", text)
        lock(project)
        records.append(build_release(project, tmp_path / "out").record["source"])

    assert [record["dirty"] for record in records] == [True] * 3
    assert records[0] == records[1]
    assert len({record["patch"] for record in records}) == 2


def test_an_untracked_file_that_a_stage_reads_makes_the_tree_dirty(project, tmp_path):
    """A file that git does not know cannot come from the commit; one that no stage reads does not matter."""
    put(project / "note.txt", "mine")
    assert not build_release(project, tmp_path / "out").record["source"]["dirty"]
    git(project, "rm", "--cached", "--quiet", "code.py")
    git(project, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "without")

    assert build_release(project, tmp_path / "out").record["source"]["dirty"]


def test_without_git_a_release_is_dirty(project, tmp_path):
    """Nobody can check out what was never committed."""
    shutil.rmtree(project / ".git")
    put(project / ".dvc" / "config", "[core]\n    no_scm = True\n")

    assert build_release(project, tmp_path / "out").record["source"] == {"commit": None, "dirty": True, "patch": None}


def test_dvc_md5_is_the_one_in_the_lock(project):
    """Our MD5 of a file and of a folder is what dvc itself wrote."""
    stages = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}

    assert {path: dvc_md5(project / path) for path in outs} == outs
    assert any(md5.endswith(".dir") for md5 in outs.values())


@pytest.mark.parametrize("locked", [False, True], ids=["by hand", "and committed to dvc"])
def test_a_verdict_set_to_pass_by_hand_is_refused(make_project, locked):
    """`passed: true` over a failed gate is found, whether dvc.lock was made to agree with it or not."""
    project = make_project("project", ua=0.5)
    edit(project / REPORT / "verdict.json", passed=True)
    if locked:
        lock(project)
    refused(project, "does not follow from metrics.json and the gates" if locked else "would run again")


def test_gates_set_to_pass_by_hand_are_refused(make_project):
    """A verdict whose gates were changed to agree with `passed` is judged again from the metrics."""
    project = make_project("project", ua=0.5)
    verdict = json.loads((project / REPORT / "verdict.json").read_text())
    gates = [gate | {"passed": True, "value": 1.0, "reason": "1 reaches 0.9"} for gate in verdict["gates"]]
    edit(project / REPORT / "verdict.json", passed=True, gates=gates)
    lock(project)
    refused(project, "does not follow from metrics.json and the gates")


def test_a_failed_verdict_makes_a_release_too(make_project, tmp_path):
    """Refusing a candidate is the promotion's act: what fails its gates can be looked at."""
    assert not build_release(make_project("project", ua=0.5), tmp_path / "out").passed


def test_a_verdict_without_gates_is_refused(project):
    """No gate is no evidence, whatever `passed` says."""
    edit(project / REPORT / "verdict.json", gates=[], passed=True)
    lock(project)
    refused(project, "has no gate")


def test_an_altered_metric_is_refused(make_project):
    """Numbers that were improved after the evaluation do not have the digest that the verdict names."""
    project = make_project("project", ua=0.5)
    metrics = json.loads((project / REPORT / "metrics.json").read_text())
    metrics["requests"]["r-1"]["gated"]["ua"]["value"] = 1.0
    put(project / REPORT / "metrics.json", canonical(metrics))
    lock(project)
    refused(project, "metrics is not what the evaluation judged")


@pytest.mark.parametrize(
    "name", ["models/filter/model.safetensors", "models/guidance/r-1/pytorch_lora_weights.safetensors"]
)
def test_altered_weights_are_refused(project, name):
    """One byte of a weight file, with dvc.lock made to agree, is not what its sidecar says."""
    content = bytearray((project / name).read_bytes())
    content[-1] ^= 1
    (project / name).write_bytes(content)
    lock(project)
    refused(project, "is not what its sidecar says")


def test_a_filter_that_was_not_judged_is_refused(project):
    """A whole other filter, with a sidecar of its own, is not the one that the verdict names."""
    sidecar = json.loads((project / "models/filter/artifact.json").read_text())
    edit(project / "models/filter/artifact.json", facts={"other": True}, params=sidecar["params"])
    lock(project)
    refused(project, "filter is not what the evaluation judged")


def test_no_models_at_all_is_refused(project):
    """An evaluation without the models that it judged is no release."""
    shutil.rmtree(project / "models")
    refused(project, "stage .* would run again")


def test_models_that_vanish_while_a_release_is_built_are_refused(project, monkeypatch):
    """A folder that goes between the check and the copy is one sentence, and no half release is left."""
    import components.registry.release as module

    found = module.current_lock(project)
    monkeypatch.setattr(module, "current_lock", lambda root: found)
    shutil.rmtree(project / "models/filter")
    refused(project, "models/filter is missing")


def test_files_that_change_while_a_release_is_built_are_refused(project, monkeypatch):
    """What was copied is checked, not what lay there before: params, requests, report and weights edited after dvc was asked."""
    import components.registry.release as module

    found = module.current_lock(project)
    monkeypatch.setattr(module, "current_lock", lambda root: found)
    for name, text, match in (
        ("params.yaml", None, "params is not what the evaluation judged"),
        ("requests.yaml", None, "requests is not what the evaluation judged"),
        (f"{REPORT}/report.html", "better", r"report.html is not what its stage wrote \(dvc.lock\)"),
        ("models/onnx/filter.onnx", "other", "filter.onnx is not the graph of its parity.json"),
    ):
        before = (project / name).read_text()
        put(project / name, text or before.replace("seed: 0", "seed: 7").replace("dog", "horse"))
        refused(project, match)
        put(project / name, before)
    assert module.build_release(project, project.parent / "out").passed


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("features", "fpr", 0.002), ("guidance", "steps", 7), ("sae", "steps", 7), ("export", "prompts", 300)],
)
def test_params_edited_while_a_stage_trained_are_refused(project, section, key, value):
    """Dvc notes the parameters after a stage ran: the lock has the edit and `dvc status` is content, but the sidecar has what was read."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    params[section][key] = value
    put(project / "params.yaml", yaml.safe_dump(params, sort_keys=False))
    lock(project)
    refused(
        project,
        "was made with another section export" if section == "export" else f"{section}.{key} was .* when .* was made",
    )


def test_evaluation_params_edited_meanwhile_are_refused(project):
    """Gates that were lowered after the evaluation, with dvc.lock made to agree, are not those that were judged."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["evaluate"]["gates"][0]["threshold"] = 0.1
    put(project / "params.yaml", yaml.safe_dump(params, sort_keys=False))
    lock(project)
    refused(project, "params is not what the evaluation judged")


@pytest.mark.parametrize("locked", [False, True])
def test_requests_edited_after_the_evaluation_are_refused(project, locked):
    """A request that was added between export and registration has no adapter: dvc would run again, or the digest differs."""
    content = yaml.safe_load((project / "requests.yaml").read_text())
    content["requests"]["r-2"] = {"target": "ghost", "kind": "object", "channels": ["filter"]}
    put(project / "requests.yaml", yaml.safe_dump(content, sort_keys=False))
    if locked:
        lock(project)
    refused(project, "requests is not what the evaluation judged" if locked else "stage concepts would run again")


def test_a_graph_of_another_filter_is_refused(project):
    """An ONNX graph that was exported from another filter is not what was judged."""
    edit(project / "models/onnx/parity.json", made_from={"filter": "0" * 64})
    lock(project)
    refused(project, "filter.onnx was not made from the filter that was judged")


def test_code_edited_after_the_evaluation_is_refused(project):
    """The commit and patch of a release are those of the code that ran."""
    put(project / "code.py", "x = 9\n")
    refused(project, "stage corpus would run again")


def test_another_base_is_refused(project):
    """The base in the tree must be the one whose digest the verdict names."""
    put(project / "base/unet/model.safetensors", "other")
    lock(project)
    refused(project, "base is not the base that was judged")


def test_an_autoencoder_of_another_run_is_refused(project):
    """The filter names the autoencoder that it was fitted on."""
    params = read_section("sae", SaeParams, project / "params.yaml")
    artifact(project / "models/sae", "expunge/sae", params, {"corpus": digest(project / "data/corpus")}, seed=7)
    lock(project)
    refused(project, "models/sae is not the autoencoder that the filter was fitted on")


def test_no_project_and_no_evaluation_are_one_sentence(tmp_path, project, monkeypatch):
    """A folder without dvc or git and a project that never ran say what to do."""
    with pytest.raises(ExpungeError, match="is no dvc project; run from the root"):
        build_release(tmp_path / "nowhere", tmp_path / "out")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    shutil.copytree(project / ".dvc", tmp_path / "no-git/.dvc")
    with pytest.raises(ExpungeError, match="no-git is in no git repository; make it one: git init"):
        build_release(tmp_path / "no-git", tmp_path / "out")
    (project / "dvc.lock").unlink()
    with pytest.raises(ArtifactError, match=r"would run again .*; evaluate what is there: dvc repro"):
        build_release(project, tmp_path / "out")


def test_stages_that_dvc_yaml_no_longer_has_are_left_out(project, tmp_path):
    """What is left of a stage of former times in dvc.lock is not part of a release."""
    path = project / "dvc.lock"
    before = build_release(project, tmp_path / "before").digest
    content = yaml.safe_load(path.read_text())
    content["stages"]["former"] = {"cmd": "true", "outs": [{"path": "models/filter", "md5": "0" * 32}]}
    put(path, yaml.safe_dump(content, sort_keys=False))

    assert build_release(project, tmp_path / "out").digest == before


@pytest.mark.parametrize("kind", ["byte", "missing", "extra", "link", "record", "format", "none"])
def test_an_altered_release_is_refused(project, tmp_path, kind):
    """Any byte, any file too many or too few, and any other format is refused in one sentence."""
    folder = build_release(project, tmp_path / "out").folder
    if kind == "byte":
        put(folder / "report/report.html", "<p>Page</p>")
    elif kind == "missing":
        (folder / "dvc.lock").unlink()
    elif kind == "extra":
        put(folder / "filter/extra.bin", "x")
    elif kind == "link":
        (folder / "filter/link").symlink_to("/etc/passwd")
    elif kind == "record":
        edit(folder / RELEASE, files={})
    elif kind == "format":
        edit(folder / RELEASE, version=2)
    else:
        (folder / RELEASE).unlink()

    with pytest.raises(ArtifactError) as caught:
        read_release(folder)
    assert "\n" not in str(caught.value)


def test_a_second_project_has_another_digest(make_project, tmp_path):
    """Other weights are another release."""
    one, other = make_project("one"), make_project("other", seed=1)

    assert build_release(one, tmp_path / "a").digest != build_release(other, tmp_path / "b").digest


def test_an_evaluation_of_another_size_is_refused(project):
    """`size` in metrics.json is what params.yaml asks for."""
    make(project)
    evaluate(project)
    lock(project)
    metrics = json.loads((project / REPORT / "metrics.json").read_text())
    edit(project / REPORT / "metrics.json", size="full")
    verdict = json.loads((project / REPORT / "verdict.json").read_text())
    verdict["judged"]["metrics"] = digest(project / REPORT / "metrics.json")
    edit(project / REPORT / "verdict.json", judged=verdict["judged"])
    assert metrics["size"] == "quick"
    lock(project)
    refused(project, "the evaluation has size full, not quick")
