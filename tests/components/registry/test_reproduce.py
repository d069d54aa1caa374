import json

import pytest

from components.common.errors import ArtifactError, UserError
from components.registry.release import build_release
from components.registry.reproduce import compare_packages, reproduce
from tests.toyrelease import git, lock, put


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.delenv("NOISE", raising=False)


@pytest.fixture
def release(project, tmp_path):
    """The release of an evaluated project."""
    return build_release(project, tmp_path / "release")


def test_a_release_is_rebuilt_on_a_fresh_clone_with_equal_digests(project, tmp_path, release, expunge):
    """Every stage runs again in a clone of the commit, and all digests are equal: exit 0."""
    said = expunge("reproduce", release.folder, "--into", tmp_path / "clone", cwd=project)

    count = len(release.record["files"]) + 3
    assert said.code == 0, said.error
    assert f"{count} of {count} digests are equal; outputs were computed." in said.out
    assert (tmp_path / "clone/models/filter/model.safetensors").is_file()


@pytest.mark.slow
def test_a_cache_of_this_machine_is_told(project, tmp_path, release, expunge):
    """Where .dvc/config.local names a cache, outputs may come from it: nothing claims that they were computed, unless --from-scratch has them so."""
    put(project / ".dvc/config.local", f"[cache]\n    dir = {tmp_path / 'cache'}\n")
    (project / ".dvc/config.local").chmod(0o600)

    said = expunge("reproduce", release.folder, "--into", tmp_path / "clone", cwd=project)

    assert "digests are equal; outputs were computed, or taken from this machine's DVC cache." in said.out
    assert (tmp_path / "clone/.dvc/config.local").stat().st_mode & 0o777 == 0o600
    said = expunge("reproduce", release.folder, "--into", tmp_path / "again", "--from-scratch", cwd=project)
    assert "digests are equal; outputs were computed." in said.out


def test_a_difference_is_named_and_ends_with_1(project, release, expunge, monkeypatch):
    """A stage that writes another byte: the file, both digests, why that may be, and exit 1, also as JSON."""
    monkeypatch.setenv("NOISE", "x")

    said = expunge("reproduce", release.folder, "--json", cwd=project)

    assert said.code == 1
    found = json.loads(said.out)
    assert {d["name"] for d in found["differences"]} == {"report/report.html", "dvc.lock"}
    assert found["packages"] == {}


@pytest.mark.slow
def test_requests_and_params_that_no_commit_has_are_carried(project, tmp_path):
    """A release whose requests.yaml and params.yaml were never committed is rebuilt all the same, since it has both."""
    requests = project / "requests.yaml"
    put(requests, requests.read_text().replace("dog", "horse"))
    for name in ("requests.yaml", "dvc.lock"):
        git(project, "checkout", "--quiet", name)
    params = project / "params.yaml"
    put(params, params.read_text().replace("withdrawal_hours: 24", "withdrawal_hours: 48"))
    release = build_release(project, tmp_path / "release")
    git(project, "rm", "--quiet", "--cached", "requests.yaml", "dvc.lock")
    git(project, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "without")
    again = build_release(project, tmp_path / "again")
    assert not again.record["source"]["dirty"]
    assert again.record["source"] != release.record["source"]

    found = reproduce(again, project, tmp_path / "clone", lambda line: None)

    assert found.differences == []


def test_a_dirty_release_says_that_its_commit_cannot_rebuild_it(project, tmp_path, expunge):
    """Nothing is cloned for a release with changes that no commit has."""
    put(project / "code.py", "x = 2\n")
    lock(project)
    release = build_release(project, tmp_path / "release")

    said = expunge("reproduce", release.folder, "--into", tmp_path / "clone", cwd=project)

    assert said.code == 3
    assert "with changes that no commit has" in said.error
    assert not (tmp_path / "clone").exists()


@pytest.mark.slow
def test_pulled_outputs_make_it_quick(project, tmp_path, release):
    """With a DVC remote that has everything nothing is computed: stages that would fail do not run."""
    put(project / ".dvc/config.local", f"[core]\n    remote = r\n['remote \"r\"']\n    url = {tmp_path / 'remote'}\n")
    from contextlib import chdir

    from dvc.repo import Repo

    with chdir(project), Repo() as repo:
        repo.push()
    lines: list[str] = []

    found = reproduce(release, project, tmp_path / "clone", lines.append)

    assert (found.pulled, found.differences) == (True, [])
    assert not any("lacks" in line for line in lines)


def test_a_remote_that_lacks_objects_is_one_sentence_and_everything_is_computed(project, tmp_path, release):
    """An empty remote is told, and the stages run."""
    put(project / ".dvc/config.local", f"[core]\n    remote = r\n['remote \"r\"']\n    url = {tmp_path / 'remote'}\n")
    lines: list[str] = []

    found = reproduce(release, project, tmp_path / "clone", lines.append)

    assert lines[0] == "the DVC remote lacks objects or cannot be reached: what is missing is computed"
    assert (found.pulled, found.differences) == (False, [])


def test_what_cannot_be_cloned_is_one_sentence(project, tmp_path, release):
    """A commit that this clone lacks, a folder that is in the way, and a place that is no clone."""
    put(tmp_path / "mine/file", "x")
    with pytest.raises(UserError, match="is not empty; name a new folder"):
        reproduce(release, project, tmp_path / "mine", print)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(UserError, match="is no clone of the project"):
        reproduce(release, other, tmp_path / "clone", print)
    git(other, "init", "--quiet")
    with pytest.raises(UserError, match="this clone lacks commit"):
        reproduce(release, other, tmp_path / "clone", print)
    source = release.record["source"] | {"commit": None}
    with pytest.raises(ArtifactError, match="was built outside of git"):
        reproduce(release._replace(record=release.record | {"source": source}), project, tmp_path / "clone", print)


def test_compare_packages_by_hand():
    """Only versions that differ are named, and a package that one side lacks is `none` there."""
    assert compare_packages({"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2", "d": "1"}) == {
        "b": ("1", "2"),
        "c": ("1", "none"),
        "d": ("none", "1"),
    }
