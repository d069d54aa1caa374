"""A dvc.lock that a kill cut short costs one stage, not the project."""

from pathlib import Path

import pytest
from dvc.repo import Repo

from components.common.errors import UserError
from components.registry.lock import check_stage, guard_lock

ROOT = Path(__file__).parents[3]
WHOLE = (ROOT / "dvc.lock").read_text()


def stages_that_dvc_reads(root):
    """Names of the stages of a project whose files dvc can read."""
    with Repo(str(root)) as repo:
        return [stage.name for stage in repo.index.stages]


@pytest.fixture
def project(tmp_path):
    Repo.init(str(tmp_path), no_scm=True).close()
    (tmp_path / "dvc.yaml").write_text("stages: {one: {cmd: 'true', deps: [a]}}\n")
    (tmp_path / "dvc.lock").write_text(WHOLE)
    return tmp_path


@pytest.mark.parametrize("cut", [0, 5, 14, 40, 200, len(WHOLE) // 2, len(WHOLE) - 20])
def test_a_lock_cut_anywhere_is_read_by_dvc_again(project, cut):
    """Cut at any place, the last copy comes back unless dvc can read what is left; after that dvc reads the project."""
    assert not guard_lock(project)
    (project / "dvc.lock").write_text(WHOLE[:cut])
    restored = guard_lock(project)

    assert (project / "dvc.lock").read_text() == (WHOLE if restored else WHOLE[:cut])
    assert stages_that_dvc_reads(project) == ["one"]


def test_an_empty_lock_without_a_copy_is_removed(project):
    """What dvc knows then starts from its cache; it reads no empty file."""
    (project / "dvc.lock").write_text("")

    assert guard_lock(project)
    assert not (project / "dvc.lock").exists()
    assert not guard_lock(project)


def test_a_merge_conflict_is_left_alone(project):
    """What a person has to decide is not decided here."""
    guard_lock(project)
    text = WHOLE.replace("stages:", "<<<<<<< HEAD\nstages:\n=======\n>>>>>>> other", 1)
    (project / "dvc.lock").write_text(text)

    assert not guard_lock(project)
    assert (project / "dvc.lock").read_text() == text


def test_an_unknown_stage_is_named_with_those_there_are(project):
    """A stage and a group of stages are known; any other name is refused."""
    (project / "dvc.yaml").write_text("stages:\n  one: {cmd: 'true'}\n  each: {foreach: [a], do: {cmd: 'true'}}\n")
    check_stage(project, "one")
    check_stage(project, "each")
    check_stage(project, "each@a")

    with pytest.raises(UserError, match="stage 'each@b' is unknown; use one of: each@a, one"):
        check_stage(project, "each@b")
