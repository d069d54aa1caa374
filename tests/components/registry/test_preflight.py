"""A retraining that would fail is refused before its first stage, in seconds, with everything that is wrong."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.common.errors import StageError, TransientError, UserError
from components.common.preflight import PreflightError, check_disk, check_git, preflight
from components.registry.preflight import check_judges, check_ready, check_registry
from components.registry.registry import Registry

ROOT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A committed project with base and judges, and no registry."""
    for name in ("params.yaml", "requests.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    (tmp_path / ".dvc").mkdir()
    identity = ("-c", "user.name=t", "-c", "user.email=t@t")
    for command in (["init", "-q"], ["add", "params.yaml"], [*identity, "commit", "-qm", "start"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_a_project_that_is_ready_passes_and_stays_as_it_is(project):
    """Nothing is found wrong with a good project, and no file appears; an empty database, as a full disk leaves it, is none."""
    before = set(project.iterdir())
    check_ready(project)

    assert set(project.iterdir()) == before
    (project / "mlflow.db").touch()
    check_registry(project)
    assert Registry(project).versions() == []
    assert (project / "mlflow.db").stat().st_size == 0


def test_all_problems_are_listed_at_once(project, monkeypatch):
    """Base gone, parameters wrong and no git: one sentence, three problems."""
    (project / "assets").unlink()
    shutil.rmtree(project / ".git")
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    with pytest.raises(PreflightError) as error:
        check_ready(project)

    said = str(error.value)
    assert "the run would fail, 4 problems: " in said
    for part in ("is no diffusers pipeline", "git does not know the commit", "the judge's", "MLFLOW_RUN_ID is 'abc'"):
        assert part in said
    assert error.value.exit_code == 4
    assert said.isprintable()


def test_a_dead_server_costs_seconds(project, monkeypatch):
    """A server that nobody runs is refused at once, and its password is not in the sentence."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:secret@127.0.0.1:{port}")
    start = time.monotonic()
    with pytest.raises(
        StageError, match=rf"registry at http://127.0.0.1:{port} cannot be reached \(.*refused\); start it"
    ):
        check_registry(project)

    assert time.monotonic() - start < 5


def test_a_deleted_experiment_is_refused(project):
    """Registering into a deleted experiment fails after hours; the sentence says how to restore it."""
    client = MlflowClient(tracking_uri=f"sqlite:///{project / 'mlflow.db'}")
    number = client.create_experiment("expunge")
    check_registry(project)
    client.delete_experiment(number)
    with pytest.raises(StageError, match=rf"is deleted; restore it: mlflow experiments restore -x {number}"):
        check_registry(project)


def test_a_file_that_is_no_database_is_refused(project):
    """A registry that cannot be opened is one sentence."""
    (project / "mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StageError, match=r"registry at sqlite:///.* refuses \("):
        check_registry(project)


def test_a_full_disk_and_a_read_only_folder_are_refused(project, monkeypatch):
    """Less free than a run may write, or no right to write."""
    with pytest.raises(StageError, match=r"GiB free; free at least \d+ GiB"):
        check_disk(project, needed=2**60)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StageError, match="cannot be written; give this account the right"):
        check_disk(project)


def test_no_git_is_refused(project, monkeypatch):
    """Without git, or without a commit, a release could not say what it was made of."""
    monkeypatch.setenv("PATH", str(project))
    with pytest.raises(StageError, match="git is not installed; install it"):
        check_git(project)


def test_a_judge_that_is_missing_is_refused(project):
    """Its path is named."""
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("assets/openmoji/judge", "assets/nowhere"))
    with pytest.raises(UserError, match="the judge's assets/nowhere does not exist"):
        check_judges(project)


def test_a_registry_that_is_away_may_be_tried_again_and_nothing_else():
    """Flows try again what is transient; one problem that lasts makes the whole last."""

    def away():
        raise TransientError("the registry cannot be reached", "start it")

    def wrong():
        raise UserError("a key is unknown", "mend it")

    with pytest.raises(TransientError, match="1 problem: the registry cannot be reached"):
        preflight([away])
    with pytest.raises(PreflightError, match="2 problems") as caught:
        preflight([away, wrong])
    assert not isinstance(caught.value, TransientError)


def test_preflight_lets_programming_errors_through():
    """Only refusals are problems; anything else is a fault of ours."""
    with pytest.raises(ZeroDivisionError):
        preflight([lambda: 1 / 0])
