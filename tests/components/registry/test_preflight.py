"""A retraining that would fail is refused before its first stage, in seconds, with everything that is wrong."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo
from mlflow import MlflowClient

from components.common.errors import ExpungeError, StageError, TransientError, UserError
from components.common.preflight import PreflightError, check_disk, check_git, preflight
from components.registry.inputs import check_inputs
from components.registry.preflight import ask_inputs, check_judges, check_ledger, check_ready, check_registry
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
    """Base gone, judge gone, no git, nothing to erase, a wrong variable: one sentence, five problems."""
    (project / "requests.yaml").write_text("requests: {}\n")
    (project / "assets").unlink()
    shutil.rmtree(project / ".git")
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    with pytest.raises(PreflightError) as error:
        check_ready(project, lambda: ask_inputs(project))

    said = str(error.value)
    assert "the run would fail, 5 problems: " in said
    for part in (
        "is no diffusers pipeline",
        "git does not know the commit",
        "the judge's",
        "MLFLOW_RUN_ID is 'abc'",
        "requests.yaml holds no request; add one",
    ):
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
    """Flows try again what is transient; one problem that lasts makes the whole last. Bad input alone has its own exit code, and is said once."""

    def away():
        raise TransientError("the registry cannot be reached", "start it")

    def wrong():
        raise UserError("a key is unknown", "mend it")

    with pytest.raises(TransientError, match="1 problem: the registry cannot be reached"):
        preflight([away])
    with pytest.raises(PreflightError, match="2 problems") as caught:
        preflight([away, wrong])
    assert not isinstance(caught.value, TransientError)
    assert caught.value.exit_code == 4
    with pytest.raises(PreflightError, match=r"1 problem: a key is unknown; mend it;") as caught:
        preflight([wrong, wrong])
    assert caught.value.exit_code == 2


def test_preflight_lets_programming_errors_through():
    """Only refusals are problems; anything else is a fault of ours."""
    with pytest.raises(ZeroDivisionError):
        preflight([lambda: 1 / 0])


def written(project, **changes):
    """Writes requests.yaml with one request, of own prompts, and changes of section `attack`."""
    (project / "requests.yaml").write_text(yaml.safe_dump({"requests": {"r-1": changes.pop("request", CAT)}}))
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["concepts"] |= {key: changes.pop(key) for key in ("per_name",) if key in changes}
    params["attack"] |= changes
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


CAT = {"target": "cat", "kind": "object", "anchor": "dog"}
PROBES = yaml.safe_load((ROOT / "params.yaml").read_text())["probe"]["sizes"]["quick"]
QUICK = yaml.safe_load((ROOT / "params.yaml").read_text())["attack"]["sizes"]["quick"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"per_name": 1}, "there are 1 prompts for r-1, fewer than 4; give more prompts that name the target"),
        ({"size": "quick", "sizes": {"quick": QUICK | {"attacks": ["slips", "spells"]}}}, "attack 'spells' is unknown; use some of: slips"),
        ({"size": "quick", "sizes": {"quick": QUICK | {"gates": [{"tier": "T0", "attack": "spells", "at_most": 0.1, "n": 2}]}}}, "attack 'spells' is unknown"),
        ({"second_judge": "nowhere"}, "attack.second_judge=nowhere does not exist; mend it in params.yaml"),
        ({"request": CAT | {"target": "zebra"}}, "zebra"),
    ],
)  # fmt: skip
def test_what_the_last_stages_would_refuse_is_refused_before_the_first(project, monkeypatch, changes, said):
    """Too few prompts to attack with, an attack that nobody has written, a judge without a folder, a request outside the world."""
    written(project, **changes)
    monkeypatch.chdir(project)
    with pytest.raises(UserError) as error:
        check_inputs()

    assert said in str(error.value)


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        ("base", {"hookpoint": "encoder.layers.99"}, "hookpoint 'encoder.layers.99' is not a module of CLIPTextModel; use one of: encoder.layers.0"),
        ("base", {"hookpoint": ".."}, "hookpoint '..' is not a module of"),
        ("base", {"hookpoint": ["encoder.layers.0", "encoder.layers.0"]}, "base.hookpoint names 2 module(s), and the model has 1 text encoder(s); name one"),
        ("corpus", {"sources": ["none.csv"]}, "none.csv does not exist"),
        ("judge", {"path": "assets/clip"}, "assets/clip"),
        ("judge", {"path": None}, "no judge of kind object knows 'cat' (none listed); add one to judge.object"),
        ("probe", {"second_judge": "nowhere"}, "probe.second_judge=nowhere does not exist"),
        ("probe", {"size": "quick", "sizes": {"quick": PROBES | {"probes": ["spells"]}}}, "'spells' is unknown"),
        ("corpus", {"sources": ["bad.csv"]}, "bad.csv has no column 'prompt' but 'text'"),
        ("corpus", {"benign": {"calibrate": 9, "evaluate": 9, "real": ["none.jsonl"]}}, "none.jsonl does not exist"),
    ],
)  # fmt: skip
def test_what_the_first_stages_would_refuse_is_refused_too(project, monkeypatch, section, changes, said):
    """A module that the text encoder does not have, a file of prompts that is missing or cannot be read, a judge that is none or knows nothing, a probe that nobody wrote."""
    (project / "bad.csv").write_text("text\na\n")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params[section] |= changes
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    monkeypatch.chdir(project)
    with pytest.raises(ExpungeError) as error:
        check_inputs()

    assert said in str(error.value)


def test_before_the_first_request_is_drained_there_is_none(project):
    """A queue's first request is written after the check: a requests.yaml that holds none yet is no problem then."""
    (project / "requests.yaml").write_text("requests: {}\n")
    check_ready(project, lambda: ask_inputs(project, pending=True))

    with pytest.raises(PreflightError, match=r"requests\.yaml holds no request"):
        check_ready(project, lambda: ask_inputs(project))


def test_run_attack_asks_for_it_in_seconds(project, expunge):
    """`expunge run attack` says it in a sentence before any stage runs, as `expunge check` and `retrain` do (`check_ready`)."""
    (project / "requests.yaml").write_text("requests: {}\n")
    (project / "dvc.yaml").write_text("stages:\n  attack:\n    cmd: touch ran\n    deps: [params.yaml]\n")
    (project / ".dvc").rmdir()
    Repo.init(str(project)).close()
    found = expunge("run", "attack", cwd=project)

    assert (found.code, found.error) == (2, "expunge: requests.yaml holds no request; add one: expunge request add\n")
    assert not (project / "ran").exists()


def test_a_ledger_that_cannot_be_used_is_refused(project, monkeypatch):
    """A URL of no database, a file that is none, one that cannot be written, and a server that nobody runs; none at all is made later."""
    monkeypatch.delenv("EXPUNGE_LEDGER_URL", raising=False)
    check_ledger(project)
    assert not (project / "ledger.db").exists()
    (project / "ledger.db").write_text("no database")
    with pytest.raises(ExpungeError, match="file is not a database"):
        check_ledger(project)
    for url, said in (
        ("mysql://x/y", "mysql"),
        ("sqlite:////nowhere/x.db", "the folder of the ledger /nowhere/x.db does not exist"),
    ):
        monkeypatch.setenv("EXPUNGE_LEDGER_URL", url)
        with pytest.raises(ExpungeError, match=said):
            check_ledger(project)
    monkeypatch.setenv("EXPUNGE_LEDGER_URL", "postgresql://ann@127.0.0.1:1/x")
    with pytest.raises(TransientError):
        check_ledger(project)
