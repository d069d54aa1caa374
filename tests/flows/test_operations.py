import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.testing.utilities import prefect_test_harness

from components.common.errors import ArtifactError, StageError, TransientError, UserError
from components.common.lock import writing
from components.ledger import releases
from components.ledger.events import Ledger
from components.ledger.queue import read_queue, submit, withdraw
from components.ledger.releases import read_history
from components.registry.checks import Evidence
from components.registry.promotion import Registrar, read_policy
from components.requests.requests import Request, load_requests
from flows import common, recheck
from flows import drain as drain_module
from flows.promote import promote, rollback
from tests.toyattacks import attack_params, attack_results
from tests.toyregistry import GATES, POLICY, Shown, Store, metrics_of, write_release

ROOT = Path(__file__).parents[2]
HOUR = timedelta(hours=1)
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def prefect():
    """A Prefect server of the module's own."""
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with params, a ledger and a registry, whose retries do not wait."""
    monkeypatch.delenv("EXPUNGE_LEDGER_URL", raising=False)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["evaluate"]["gates"] = [gate.model_dump(mode="json") for gate in GATES]
    params["promote"] = POLICY.promote.model_dump(mode="json")
    params["attack"] = attack_params("full").model_dump(mode="json")
    params["ledger"]["withdrawal_hours"] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "requests.yaml").write_text("requests: {}\n")
    store = Store()
    monkeypatch.setattr(common, "Registry", lambda root: store)
    for flow_task in (drain_module.drain_pending, drain_module.read_waiting):
        monkeypatch.setattr(flow_task, "retry_delay_seconds", [0.0, 0.0, 0.0])
    return Project(tmp_path, store)


class Project:
    def __init__(self, folder, store):
        self.folder, self.store, self.at = folder, store, NOW - 10 * HOUR

    @property
    def ledger(self):
        """Its ledger, opened anew."""
        return Ledger(f"sqlite:///{self.folder}/ledger.db", clock=lambda: self.at)

    def submit(self, *targets):
        """Submits requests and returns their ids."""
        wanted = [Request.model_validate({"target": t, "kind": "object", "channels": ["filter"]}) for t in targets]
        return submit(self.ledger, wanted, load_requests(self.folder / "requests.yaml"), "ann")

    def register(self, *shown):
        """Registers and approves releases; returns all digests."""
        for one in shown:
            number = len(self.store.folders) + 1
            made = write_release(self.folder / f"v{number}", one, note=str(number))
            self.store.folders.append(made.folder)
            history = read_history(self.ledger)
            verdict = "pass" if made.passed else "fail"
            releases.append(self.ledger, history, releases.registration(history, number, made.digest, verdict), "ann")
            Registrar(self.ledger, self.store, read_policy(self.folder), "bob").approve(number)
        return [release.digest for release in read_history(self.ledger).releases.values()]


class Training:
    """Stands in for stages and registration, and dies where it is told to."""

    def __init__(self, monkeypatch, project):
        self.project, self.trained, self.registered, self.dies = project, [], [], ""
        monkeypatch.setattr(drain_module, "stages_to_run", lambda root: ["all"])
        monkeypatch.setattr(drain_module, "reproduce", lambda stage, root: self.step("reproduce", self.trained))
        monkeypatch.setattr(drain_module, "register", lambda root: self.step("register", self.registered) or "pass")
        monkeypatch.setattr(drain_module, "load_world", lambda name: self)
        monkeypatch.setattr(drain_module, "check_ready", lambda *checks, **_: self.step("check", []))
        real = drain_module.mark_drained
        monkeypatch.setattr(drain_module, "mark_drained", lambda *a: self.step("mark", []) or real(*a))

    def check(self, requests):
        """As a world that knows everything."""

    def step(self, name, done):
        """Does a step once for each content of requests.yaml, or dies."""
        if self.dies == name:
            raise KeyboardInterrupt
        content = (self.project.folder / "requests.yaml").read_bytes()
        if content not in done:  # as dvc does nothing twice, and the registry registers no tree twice
            done.append(content)


@pytest.fixture
def training(monkeypatch, project):
    return Training(monkeypatch, project)


def in_process(flow, *arguments, **more):
    """A flow's own function, its tasks as plain calls."""
    return flow.fn(*arguments, **more)


@pytest.fixture
def plain(project, monkeypatch):  # noqa: ARG001 - what it changes is changed after the project
    """The project, and flows that run as plain functions: no server, no run."""
    for module, names in ((drain_module, ("read_waiting", "drain_pending")), (recheck, ("recheck_champion",))):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name).fn)
        monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("flow"))
        monkeypatch.setattr(module, "publish", lambda *a, **k: None)


@pytest.mark.usefixtures("plain")
def test_drain_takes_all_that_is_pending_in_one_run(project, training):
    """Fifty requests, one withdrawn in time and one too young: 49 are trained and registered once, and noted; the next run does nothing."""
    ids = project.submit(*(f"thing {i}" for i in range(50)))
    withdraw(project.ledger, ids[7], "ann", HOUR)
    project.at = datetime.now(UTC)
    (young,) = project.submit("a late thing")
    done = in_process(drain_module.drain, str(project.folder))
    taken = [i for i in ids if i != ids[7]]

    assert done == {"drained": taken, "verdict": "pass", "refused": {}}
    assert list(load_requests(project.folder / "requests.yaml")) == taken
    assert (len(training.trained), len(training.registered)) == (1, 1)
    states = {i: item.state for i, item in read_queue(project.ledger).items()}
    assert states == dict.fromkeys(taken, "drained") | {ids[7]: "withdrawn", young: "accepted"}
    assert in_process(drain_module.drain, str(project.folder))["drained"] == []
    assert (len(training.trained), len(training.registered)) == (1, 1)


@pytest.mark.usefixtures("plain")
def test_nothing_pending_ends_before_any_work(project, training):
    """Without a ledger, and with an empty queue, no lock is taken and nothing runs."""
    with writing(project.folder):
        assert in_process(drain_module.drain, str(project.folder))["drained"] == []
        assert not (project.folder / "ledger.db").exists()
        project.ledger.close()
        assert in_process(drain_module.drain, str(project.folder))["drained"] == []
    assert training.trained == []


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("where", ["check", "write", "reproduce", "register", "mark"])
def test_drain_killed_anywhere_is_taken_up_by_the_next(project, training, monkeypatch, where):
    """Killed while writing, training, registering or noting: the next run ends with one training and each request noted once."""
    ids = project.submit("cat", "lantern", "kettle")
    training.dies = where
    if where == "write":
        from components.ledger import drain as core

        real, calls = core.add_request, []

        def add(*arguments, **more):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(*arguments, **more)

        monkeypatch.setattr(core, "add_request", add)
    with pytest.raises(KeyboardInterrupt):
        in_process(drain_module.drain, str(project.folder))
    training.dies = ""
    done = in_process(drain_module.drain, str(project.folder))

    assert done["drained"] == ids == list(load_requests(project.folder / "requests.yaml"))
    assert (len(training.trained), len(training.registered)) == (1, 1)
    events = [event.subject for event in project.ledger.events("request") if event.kind == "request.drained"]
    assert events == ids


@pytest.mark.usefixtures("plain", "training")
def test_drain_says_which_request_cannot_be_written(project):
    """The rest is drained, and the run fails with the request and the reason: nobody waits for it in silence."""
    clash, fine = project.submit("cat", "lantern")
    path = project.folder / "requests.yaml"
    path.write_text("requests:\n  r-9:\n    target: dog\n    kind: object\n    aliases: [cat]\n")
    with pytest.raises(
        UserError, match=f"1 of the queue's requests cannot be written, {clash} first .*mend requests.yaml"
    ):
        in_process(drain_module.drain, str(project.folder))

    assert list(load_requests(path)) == ["r-9", fine]
    assert [item.state for item in read_queue(project.ledger).values()] == ["accepted", "drained"]


def test_an_artifact_links_to_the_registry_without_its_password(monkeypatch):
    """Whoever may read Prefect's artifacts must not learn how to write to the registry."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:secret@host:5000/")
    said = common.markdown("Title", [["a|b", 1]], header=["what", "n"])

    assert "[Releases in MLflow](https://host:5000/#/models/expunge)" in said
    assert "secret" not in said
    assert "| a\\|b | 1 |" in said


def raised(errors):
    """Raises the first of `errors`, if there is one, and takes it away."""
    if errors:
        raise errors.pop()


@pytest.mark.usefixtures("prefect", "training")
def test_flows_under_prefect(project, monkeypatch, caplog):
    """Drain, promote and rollback run as flows: each leaves an artifact; a busy lock is tried again, a refusal is not."""
    project.submit("cat")
    calls = []
    real = drain_module.write_pending

    def busy(*arguments, **more):
        calls.append(1)
        if len(calls) < 3:
            raise TransientError("the project is being written by process 7", "wait")
        return real(*arguments, **more)

    monkeypatch.setattr(drain_module, "write_pending", busy)
    assert drain_module.drain(str(project.folder))["verdict"] == "pass"
    assert len(calls) == 3

    one, two = project.register(Shown(), Shown())
    assert promote(1, one, "carl", root=str(project.folder))["champion"] == 1
    real_aliases, gone = project.store.set_aliases, [TransientError("the registry cannot be reached", "start it")]
    monkeypatch.setattr(project.store, "set_aliases", lambda wanted: raised(gone) or real_aliases(wanted))
    assert promote(2, two, "carl", root=str(project.folder))["champion"] == 2
    assert (gone, project.store.named["champion"]) == ([], 2)
    assert rollback("dora", root=str(project.folder))["champion"] == 1
    with (
        caplog.at_level(logging.INFO, "expunge.notify"),
        pytest.raises(UserError, match="version 1 is the champion already"),
    ):
        promote(1, one, "carl", root=str(project.folder))
    (failed,) = (record.getMessage() for record in caplog.records if record.getMessage().startswith("flow.failed"))
    assert "already" not in failed  # what a run failed with may hold a target
    assert project.store.named == {"candidate": 2, "champion": 1}
    with get_client(sync_client=True) as client:
        keys = [
            client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
            for key in ("expunge-drain", "expunge-promoted", "expunge-rolled-back")
        ]
    assert [len(found) for found in keys] == [1, 2, 1]
    assert "| champion | 1 |" in keys[2][0].data
    assert "Version 1 rolled back" in keys[2][0].data


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("shown", "said"),
    [(Shown(), "PASSED"), (Shown(ua=150), "FAILED"), (Shown(ira=150), "FAILED"), (Shown(attacks=150), "FAILED")],
)
def test_recheck_judges_the_champion_on_fresh_seeds(project, monkeypatch, caplog, shown, said):
    """The champion's own bytes are evaluated and attacked with another seed and today's gates; what no longer passes raises the alarm."""
    assert in_process(recheck.recheck, str(project.folder))["version"] is None
    digests = project.register(Shown())
    Registrar(project.ledger, project.store, POLICY, "carl").promote(1)
    seen, alarms = [], []

    def evaluate(release, policy, seed, *_):
        seen.append((release.digest, policy.gates, seed))
        attacks = attack_results(attack_params("full"), release.requests, {}, hits=shown.attacks)
        return Evidence("full", metrics_of(shown, release.requests), release.requests, attacks)

    monkeypatch.setattr(recheck, "evaluate_again", evaluate)
    monkeypatch.setattr(recheck, "emit_event", lambda event, **more: alarms.append((event, more)))
    if said == "PASSED":
        assert in_process(recheck.recheck, str(project.folder), seed=7)["result"] == said
    else:
        with (
            caplog.at_level(logging.INFO, "expunge.notify"),
            pytest.raises(StageError, match=r"version 1, fails r-1/.* on seed 7; look"),
        ):
            in_process(recheck.recheck, str(project.folder), seed=7)
        assert caplog.records[-1].getMessage().startswith("release.regressed")
    assert seen == [(digests[0], GATES, 7)]
    assert [event for event, _ in alarms] == ([] if said == "PASSED" else [recheck.REGRESSED])


@pytest.mark.usefixtures("plain")
def test_recheck_without_the_ledger_of_the_champion_fails(project):
    """A worker that was given a wrong ledger must not report week after week that there is no champion to check."""
    project.register(Shown())
    Registrar(project.ledger, project.store, POLICY, "carl").promote(1)
    (project.folder / "ledger.db").unlink()
    with pytest.raises(ArtifactError, match="the ledger does not know it"):
        in_process(recheck.recheck, str(project.folder))
    assert not (project.folder / "ledger.db").exists()


def test_recheck_attacks_in_quick_size_with_its_own_seed(tmp_path):
    """The scratch project has today's attacks, of size quick whatever params.yaml names, and the flow's seed."""
    release = write_release(tmp_path / "release")
    policy = read_policy(ROOT)
    attack = policy.attack.model_copy(update={"size": "full"})
    (tmp_path / "scratch").mkdir()
    recheck.prepare(release, tmp_path / "scratch", policy._replace(attack=attack), 7, tmp_path)
    found = yaml.safe_load((tmp_path / "scratch/params.yaml").read_text())

    assert found["evaluate"]["seed"] == found["attack"]["seed"] == 7
    assert found["attack"]["size"] == "quick"
    assert found["attack"]["sizes"]["quick"]["gates"][0]["tier"] == "T0"


def test_recheck_finds_the_inputs_of_a_project_by_the_paths_of_its_params(tmp_path):
    """Base, judges, prompts and a world of one's own are read where params.yaml says, even below data/ and models/; no output of the project is."""
    release, root, scratch = write_release(tmp_path / "release"), tmp_path / "project", tmp_path / "scratch"
    scratch.mkdir()
    inputs = ("assets/judge/x", "inputs/prompts.csv", "world/world.yaml", "models/base/x", "data/mine.csv")
    outputs = ("data/corpus/x", "data/concepts/x", "models/filter/x", "models/guidance/x", "reports/evaluate/x")
    for name in (*inputs, *outputs, "params.yaml", "requests.yaml", ".dvc/config", ".git/config"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("the project's")
    recheck.prepare(release, scratch, read_policy(ROOT), 7, root)

    assert [(scratch / name).read_text() for name in inputs] == ["the project's"] * len(inputs)
    assert not any((scratch / name).exists() for name in (*outputs, ".dvc", ".git"))
    assert "cat" in (scratch / "requests.yaml").read_text()
    assert (scratch / "models/filter/artifact.json").is_file()
