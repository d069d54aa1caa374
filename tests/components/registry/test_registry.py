import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.common.errors import ArtifactError, StageError, UserError
from components.ledger.events import Entry
from components.ledger.releases import append, read_history
from components.registry.describe import flat_params, flatten
from components.registry.register import open_ledger, register_tree
from components.registry.registry import MODEL, Registry, parse_reference
from components.registry.release import build_release
from components.registry.tracking import asking, shown_uri
from tests.toyrelease import git, lock, make, put

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """An empty MLflow database, whose tables take seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with asking(f"sqlite:///{path}") as client:
        client.search_experiments()
    return path


@pytest.fixture(autouse=True)
def _own(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "EXPUNGE_LEDGER_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tree(project, database):
    """An evaluated project with an empty registry."""
    shutil.copy(database, project / "mlflow.db")
    return project


@pytest.fixture(scope="session")
def registered(evaluated, database, tmp_path_factory):
    """A project whose release is version 1, to read from."""
    tree = Path(shutil.copytree(evaluated, tmp_path_factory.mktemp("registered") / "project", symlinks=True))
    shutil.copy(database, tree / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "EXPUNGE_LEDGER_URL"):
            patch.delenv(name, raising=False)
        register_tree(tree, "ann")
    return tree


def test_nothing_registered_is_no_file_and_no_wait(tmp_path, monkeypatch):
    """Looking into a registry that was never used writes nothing; where it cannot be written, registering is refused at once."""
    registry = Registry(tmp_path)
    assert (registry.versions(), registry.aliases(), list(tmp_path.iterdir())) == ([], {}, [])
    monkeypatch.setattr(os, "access", lambda *_: False)
    start = time.monotonic()
    with pytest.raises(StageError, match=r"registry at sqlite:///.*mlflow.db cannot be written; give this account"):
        registry.set_aliases({"champion": 1})

    assert time.monotonic() - start < 2


def runs(tree):
    client = MlflowClient(f"sqlite:///{tree / 'mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name == MODEL)
    return client, list(client.search_runs([experiment.experiment_id]))


def test_flatten_by_hand():
    """Records become keys, buckets too; a metric without a value is left out, never logged as 0."""
    nested = {
        "r": {"both": {"ua": {"value": 0.5, "n": 2}, "ira": {"value": None, "n": 0}, "drift": {"0-9": {"value": 1}}}}
    }

    assert flatten(nested) == {"r/both/ua": 0.5, "r/both/drift/0-9": 1.0}


def test_flat_params_by_hand():
    """Sections become dotted keys, lists JSON, and nothing is left out."""
    params = {"world": "toy", "a": {"b": {"c": 1}, "gates": [{"n": 2}], "none": None}}

    assert flat_params(params) == {"world": "toy", "a.b.c": "1", "a.gates": '[{"n": 2}]', "a.none": "null"}


def test_who_looks_last_can_still_stop_it(tree):
    """The last look comes when all is logged and before the version: if it raises there is none, no run is left running, and the next registration is version 1."""

    def last_look():
        assert len(runs(tree)[1]) == 2  # the release's run and its adapter's
        raise StageError("cancelled", "no")

    with pytest.raises(StageError, match="cancelled"):
        register_tree(tree, "ann", last_look=last_look)
    client, logged = runs(tree)
    assert {client.get_run(r.info.run_id).info.status for r in logged} == {"FAILED", "FINISHED"}
    assert Registry(tree).versions() == []

    assert register_tree(tree, "ann").version == 1


def test_a_tree_is_registered_with_all_that_mlflow_shows(tree):
    """A run with parameters, metrics, curves by step, inputs and files; a child run for the adapter; a described version; the ledger's event."""
    found = register_tree(tree, "ann")

    client, logged = runs(tree)
    run, child = (
        client.get_run(r.info.run_id) for r in sorted(logged, key=lambda r: "mlflow.parentRunId" in r.data.tags)
    )
    assert (run.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert child.data.tags["mlflow.parentRunId"] == run.info.run_id
    assert run.data.params["guidance.rank"] == "16"
    assert json.loads(run.data.params["evaluate.gates"])[0]["metric"] == "ua"
    assert run.data.metrics["r-1/gated/ua"] == 1.0
    assert [(m.step, m.value) for m in client.get_metric_history(child.info.run_id, "loss")] == [
        (1, 3.0),
        (2, 2.0),
        (3, 1.0),
    ]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "sae/fvu")] == [1, 2]
    inputs = {item.dataset.name: item.dataset.digest for item in run.inputs.dataset_inputs}
    assert inputs.keys() == {"corpus", "concepts"}
    assert re.search(rf"md5: {inputs['corpus']}.dir", (tree / "dvc.lock").read_text())
    version = client.get_model_version(MODEL, str(found.version))
    assert version.run_id == run.info.run_id
    assert version.source == f"runs:/{run.info.run_id}/release"
    assert {"digest": found.digest, "verdict": "pass", "git.dirty": "false"}.items() <= version.tags.items()
    assert {"attacks": "pass", "attacks.highest_tier": "T1", "attacks.size": "quick"}.items() <= version.tags.items()
    assert run.data.metrics["attacks/r-1/T0"] == 0.0
    assert "Attacks: pass.** The default withstands attackers up to T1." in version.description
    assert "Verdict: pass" in version.description
    assert "cat: gone from 200 of 200 images; dog is drawn instead in 200" in version.description
    files = [item.path for item in client.list_artifacts(run.info.run_id, "release/report")]
    assert {"release/report/report.html", "release/report/grids"} <= set(files)
    (event,) = open_ledger(tree).events("release")
    assert (event.kind, event.actor, event.body["digest"]) == ("release.registered", "ann", found.digest)
    assert Registry(tree).aliases() == {"candidate": 1}
    assert Registry(tree).versions()[0].aliases == ("candidate",)


def test_a_failed_verdict_is_registered_as_fail(make_project, database):
    """The tag and the description say which gate failed, and the ledger has the verdict."""
    tree = make_project("tree", ua=0.5)
    shutil.copy(database, tree / "mlflow.db")

    found = register_tree(tree, "ann")

    assert found.verdict == "fail"
    description = MlflowClient(f"sqlite:///{tree / 'mlflow.db'}").get_model_version(MODEL, "1").description
    assert "Verdict: FAIL" in description
    assert "| gated ua | r-1 | 0.5 | 200 | 0.5 misses 0.9 |" in description
    assert read_history(open_ledger(tree)).releases[1].verdict == "fail"


def test_an_unchanged_tree_gets_no_second_version(tree):
    """Registered again, even from a copy in another folder, it is the version that it was, with no second run and no second event."""
    first = register_tree(tree, "ann")

    assert register_tree(tree, "bob").version == first.version
    assert len(Registry(tree).versions()) == 1
    assert len(runs(tree)[1]) == 2
    assert len(open_ledger(tree).events()) == 1


def commit(tree):
    git(tree, "add", "--all")
    git(tree, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--message", "more")


def test_a_commit_of_documents_alone_gets_no_second_version(tree):
    """What ships is the same bytes: the version stays the one that it was, with the commit that it was registered at."""
    first, before = register_tree(tree, "ann"), git(tree, "rev-parse", "HEAD").strip()
    put(tree / "README.md", "words\n")
    commit(tree)

    again = register_tree(tree, "ann")

    assert (again.version, again.digest, again.content) == (first.version, first.digest, first.content)
    assert len(Registry(tree).versions()) == 1
    release = Registry(tree).fetch(1, tree.parent / "fetched")
    assert (release.record["source"]["commit"], release.content) == (before, first.content)
    assert git(tree, "rev-parse", "HEAD").strip() != before


def test_committing_what_was_dirty_gets_a_second_version(tree):
    """A release of changes that no commit has cannot be rebuilt; once they are committed one that can is registered beside it."""
    put(tree / "code.py", "x = 2\n")
    lock(tree)
    dirty = register_tree(tree, "ann")
    assert register_tree(tree, "ann").version == dirty.version
    commit(tree)

    clean = register_tree(tree, "ann")

    assert (dirty.version, clean.version) == (1, 2)
    assert register_tree(tree, "ann").version == 2


def test_a_version_that_the_registry_has_lost_does_not_stop_a_registration(tree):
    """The champion was deleted in MLflow: the next release is registered, and no alias names what is gone."""
    register_tree(tree, "ann")
    ledger, client = open_ledger(tree), MlflowClient(Registry(tree).uri)
    append(
        ledger, read_history(ledger), Entry("release.promoted", "release/1", {"version": 1, "digest": "0" * 64}), "b"
    )
    client.delete_model_version(MODEL, "1")
    make(tree, seed=1)
    lock(tree)

    assert register_tree(tree, "ann").version == 2
    assert Registry(tree).aliases() == {"candidate": 2}


def test_a_changed_tree_gets_the_next_version(tree):
    """Other weights are version 2, which becomes the candidate; version 1 stays what it was."""
    first = register_tree(tree, "ann")
    make(tree, seed=1)
    lock(tree)

    second = register_tree(tree, "ann")

    assert (first.version, second.version) == (1, 2)
    assert second.digest != first.digest
    assert Registry(tree).aliases() == {"candidate": 2}
    assert read_history(open_ledger(tree)).releases.keys() == {1, 2}


def test_what_cannot_be_released_is_not_registered(tree):
    """A refused release leaves no run, no version and no event."""
    put(tree / "models/filter/model.safetensors", "other")

    with pytest.raises(ArtifactError, match="would run again"):
        register_tree(tree, "ann")
    assert Registry(tree).versions() == []
    assert open_ledger(tree).events() == []


KILL = """
import os, signal, sys
from pathlib import Path
from mlflow import MlflowClient
import components.registry.register as register
owner, name, when = sys.argv[2:]
owner = MlflowClient if owner == "client" else register
before = getattr(owner, name)
def die(*arguments, **named):
    if when == "after":
        before(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, die)
register.register_tree(Path(sys.argv[1]), "ann")
"""


@pytest.mark.parametrize(
    ("owner", "name", "when"),
    [
        ("client", "create_model_version", "after"),
        pytest.param("client", "log_artifacts", "after", marks=pytest.mark.slow),
        pytest.param("register", "note_version", "before", marks=pytest.mark.slow),
    ],
)
def test_a_killed_registration_is_completed_by_the_next(tree, owner, name, when):
    """SIGKILL before the version, after it, or before the event: the next run leaves one version, one event and no run RUNNING."""
    done = subprocess.run(
        [sys.executable, "-c", KILL, tree, owner, name, when], cwd=ROOT, check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]

    found = register_tree(tree, "ann")

    assert found.version == 1
    assert len(Registry(tree).versions()) == 1
    assert [event.kind for event in open_ledger(tree).events()] == ["release.registered"]
    client, logged = runs(tree)
    assert {run.info.status for run in logged} <= {"FINISHED", "KILLED"}
    assert client.get_run(found.run_id).info.status == "FINISHED"


def test_an_upload_that_fails_ends_its_run(tree, monkeypatch):
    """A full disk of the server is one sentence; the run is FAILED, there is no version, and the next attempt succeeds."""

    def full(*_arguments, **_named):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifacts", full)
        with pytest.raises(StageError, match="No space left"):
            register_tree(tree, "ann")

    assert {run.info.status for run in runs(tree)[1]} == {"FAILED"}
    assert register_tree(tree, "ann").version == 1


def test_fetch_gives_back_the_bytes(registered, tmp_path):
    """By number, alias and URI; a second fetch into the same folder reads it, and what is in the way is left alone."""
    (found,) = Registry(registered).versions()
    built = build_release(registered, tmp_path / "built")

    for which in (1, "candidate", "@candidate", "models:/expunge/1", "models:/expunge@candidate"):
        out = tmp_path / "fetched"
        assert Registry(registered).fetch(which, out).digest == found.digest == built.digest
    put(tmp_path / "mine" / "file", "x")
    with pytest.raises(UserError, match="is not empty; name a new folder"):
        Registry(registered).fetch(1, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


def test_pull_writes_a_release_and_says_what_it_erases(registered, tmp_path, expunge):
    """The command fetches into a new folder, refuses one that holds something else, and knows no version that is not there."""
    (found,) = Registry(registered).versions()

    said = expunge("pull", "@candidate", tmp_path / "out", cwd=registered)
    assert said.code == 0, said.error
    assert f"release {found.digest[:12]}, verdict pass, erases cat" in said.out
    assert json.loads(expunge("pull", 1, tmp_path / "out", "--json").out)["digest"] == found.digest
    put(tmp_path / "mine/file", "x")
    assert expunge("pull", 1, tmp_path / "mine").code == 2
    said = expunge("pull", 9, tmp_path / "new")
    assert (said.code, (tmp_path / "new").exists()) == (2, False)
    assert "expunge: the model expunge has no version 9; use one of: candidate, 1" in said.error


def test_a_server_that_keeps_artifacts_in_a_folder_of_its_own_is_refused(tree, monkeypatch):
    """Its clients would write to a path of the server's on their own disk: nothing is logged."""
    import components.registry.registry as module

    MlflowClient(Registry(tree).uri).create_experiment(MODEL, artifact_location="/srv/mlruns")
    monkeypatch.setattr(module, "is_server", lambda uri: True)

    with pytest.raises(StageError, match=r"artifacts written to /srv/mlruns.*start it with --artifacts-destination"):
        register_tree(tree, "ann")
    assert runs(tree)[1] == []


def test_fetch_refuses_what_was_altered_in_the_store(tree, tmp_path):
    """One byte of an artifact, or another whole release in its place, is refused, and nothing lies in the folder."""
    register_tree(tree, "ann")
    (stored,) = (tree / "mlruns").rglob("release/release.json")
    content = stored.read_bytes()
    for changed in (content.replace(b'"dirty": false', b'"dirty": true'), content[:-10], None):
        stored.unlink() if changed is None else stored.write_bytes(changed)
        with pytest.raises(ArtifactError) as caught:
            Registry(tree).fetch(1, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("which", "match"),
    [
        (7, "the model expunge has no version 7; use one of: candidate, 1"),
        ("@champion", "the model expunge has no version @champion; use one of"),
        ("models:/other/1", "is a version of another model"),
        ("models:/expunge", "names no version"),
        ("../1", "names no version"),
        ("", "names no version"),
        ("１", "names no version"),
    ],
)
def test_an_unknown_version_is_one_sentence(registered, tmp_path, which, match):
    """Neither a version that is not there nor one of another model is fetched."""
    with pytest.raises(UserError, match=match):
        Registry(registered).fetch(which, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parse_reference_by_hand():
    """Numbers and aliases in all spellings."""
    assert parse_reference(3) == parse_reference("3") == parse_reference("models:/expunge/3") == 3
    assert parse_reference("champion") == parse_reference("@champion") == parse_reference("models:/expunge@champion")


def test_aliases_are_set_moved_and_deleted(tree):
    """What is wanted is what is there afterwards; an alias that is none of the three is not touched."""
    register_tree(tree, "ann")
    registry = Registry(tree)
    MlflowClient(registry.uri).set_registered_model_alias(MODEL, "mine", "1")

    registry.set_aliases({"champion": 1, "candidate": 1})
    assert registry.aliases() == {"candidate": 1, "champion": 1, "mine": 1}
    registry.set_aliases({"candidate": 1})
    assert registry.aliases() == {"candidate": 1, "mine": 1}


def test_another_installations_ledger_is_refused(tree, database, monkeypatch):
    """A ledger that knows version 1 with another digest belongs to another registry."""
    register_tree(tree, "ann")
    shutil.copy(database, tree / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tree / 'other.db'}")
    make(tree, seed=1)
    lock(tree)

    with pytest.raises(ArtifactError, match="they are of two installations"):
        register_tree(tree, "ann")


def test_a_run_id_in_the_environment_is_left_alone(tree, monkeypatch):
    """MLFLOW_RUN_ID names somebody else's run: a registration makes its own."""
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)

    assert register_tree(tree, "ann").run_id != "0" * 32


def test_a_deleted_experiment_is_one_sentence(tree):
    """It says how to restore it, and nothing is registered."""
    register_tree(tree, "ann")
    client, logged = runs(tree)
    client.delete_experiment(logged[0].info.experiment_id)
    make(tree, seed=1)
    lock(tree)

    with pytest.raises(
        StageError, match=r"the experiment expunge at sqlite:.* was deleted; restore it: mlflow experiments"
    ):
        register_tree(tree, "ann")
    assert len(Registry(tree).versions()) == 1


@pytest.fixture
def answering():
    """Starts a server that gives every question the same answer."""
    servers = []

    def start(code):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(code)
                self.end_headers()
                self.wfile.write(b"no")

            do_POST = do_GET  # noqa: N815 - the library's name

            def log_message(self, *_arguments):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1].server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("code", "error", "match"),
    [
        (401, UserError, "asks for credentials; set MLFLOW_TRACKING_USERNAME"),
        (403, UserError, "does not allow this; use an account"),
        (500, StageError, "answers with errors; look at its log"),
        (200, StageError, "refuses"),
        (0, StageError, "does not answer in time"),
        (-1, StageError, "cannot be reached; start it"),
    ],
)
def test_a_server_that_cannot_be_used_is_one_sentence_with_its_url(monkeypatch, tree, answering, code, error, match):
    """No credentials, no permission, errors, nonsense, silence, nobody there: one sentence each, with the URL and without the password."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = answering(code) if code > 0 else silent.getsockname()[1]
        if code == 0:
            silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:secret@127.0.0.1:{port}")
        with pytest.raises(error, match=match) as caught:
            register_tree(tree, "ann")
    said = str(caught.value)
    assert f"http://127.0.0.1:{port}" in said
    assert "secret" not in said
    assert "\n" not in said
    assert open_ledger(tree).events() == []


def test_no_text_shows_a_password():
    """Account and password are left out of a URI and of a library's sentence that quotes one, whatever the password holds."""
    assert shown_uri("http://ann:p@ss:w@host:5000/x") == "http://host:5000/x"
    assert (
        shown_uri("API request to http://ann:secret@host/api failed, see a@b.org")
        == "API request to http://host/api failed, see a@b.org"
    )
    assert shown_uri("sqlite:///mlflow.db") == "sqlite:///mlflow.db"


def test_telemetry_is_off_in_code():
    """Whoever imports the registry has told MLflow not to report, whatever the environment was."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DO_NOT"))}
    code = "import components.registry.tracking; from mlflow.telemetry.utils import is_telemetry_disabled as off; print(off())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "True"
