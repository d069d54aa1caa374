import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.cli.release import moment
from components.common.errors import ArtifactError, TransientError, UserError
from components.registry.register import register_tree
from components.registry.registry import Registry
from components.registry.tracking import asking
from tests.toyrelease import write_project

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A ledger and a registry with two versions, whose making takes seconds, to copy."""
    folder = tmp_path_factory.mktemp("registered")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_LEDGER_URL", f"sqlite:///{folder / 'ledger.db'}")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        for seed in (0, 1):
            register_tree(write_project(folder / f"p{seed}", seed=seed), "ann")
    params = yaml.safe_load((folder / "p1" / "params.yaml").read_text())
    params["promote"] = {"size": params["evaluate"]["size"], "images": {params["evaluate"]["size"]: 1}, "margin": {}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return folder


@pytest.fixture
def two(registered, tmp_path, monkeypatch):
    """A folder with params that ask for the size that toys have, whose registry and ledger know two versions."""
    for name in ("ledger.db", "mlflow.db", "params.yaml"):
        shutil.copy(registered / name, tmp_path / name)
    monkeypatch.setenv("EXPUNGE_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.db'}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return tmp_path


def test_from_candidate_to_champion_and_back_on_the_command_line(two, expunge, tmp_path):
    """Every command against a real registry: what is shown, what moves, and that a dry run moves nothing."""
    listed = json.loads(expunge("release", "list", "--json", cwd=two).out)
    assert [(r["version"], r["state"], r["aliases"]) for r in listed["releases"]] == [
        (1, "registered", []), (2, "registered", ["candidate"]),
    ]  # fmt: skip
    digests = [r["digest"] for r in listed["releases"]]
    assert expunge("release", "approve", 1, "--as", "bob", "--dry-run").out.startswith("would have approved version 1")
    assert expunge("release", "promote", 1).code == 2
    for version in (1, 2):
        assert expunge("release", "approve", version, "--as", "bob", "--digest", digests[version - 1]).code == 0
        done = json.loads(expunge("release", "promote", version, "--as", "carl", "--json").out)
        assert (done["did"], done["champion"], done["digest"]) == ("promoted", version, digests[version - 1])
    assert Registry(two).aliases() == {"candidate": 2, "champion": 2, "previous": 1}
    assert "would have rolled back to version 1" in expunge("release", "rollback", "--dry-run").out
    shown = json.loads(expunge("release", "show", 2, "--json").out)
    assert (shown["state"], shown["result"], shown["approvers"]) == ("champion", "PASSED", ["bob"])
    assert {f["check"] for f in shown["findings"]} == {"size", "gate", "attack"}
    assert shown["attacks"]["highest_tier"] == "T1"
    assert "T4 fine-tuning: expunge probe" in shown["attacks"]["not_tried"]
    said = expunge("release", "show", 1).out
    assert "The default withstands attackers up to T1. Not tried: T1 hierarchies, " in said
    assert "PASSED. What may be done: " in said
    back = expunge("release", "rollback", "--as", "dora")
    assert back.out == f"rolled back to version 1 ({digests[0][:12]})\nchampion: 1, previous: none\n"
    fetched = Registry(two).fetch("champion", tmp_path / "live")
    assert fetched.digest == digests[0]
    log = json.loads(expunge("release", "log", "--json").out)
    kinds = [event["kind"].partition(".")[2] for event in log["events"]]
    assert kinds == ["registered", "registered", "approved", "promoted", "approved", "promoted", "rolled_back"]
    assert (log["champion"], log["previous"]) == (1, None)
    assert expunge("release", "log").out.endswith("champion: 1, previous: none\n")
    assert expunge("release", "log", "--at", "2020-01-01").out == "champion: none, previous: none\n"
    different = json.loads(expunge("release", "diff", 1, 2, "--json").out)
    assert {name.partition("/")[0] for name in different["digests"]} >= {"filter", "adapters", "onnx"}
    assert different["requests"] == {"added": {}, "removed": {}, "changed": {}}
    assert "digest " in expunge("release", "diff", 1, 2).out
    assert expunge("release", "diff", 1, 1).out == "versions 1 and 1 hold the same bytes\n"
    assert "rejected version 2" in expunge("release", "reject", 2, "--reason", "draws cats").out


def test_list_says_which_alias_is_wrong_and_an_act_mends_it(two, expunge):
    """An alias deleted by hand is named by `list`, which changes nothing, and is back after the next act."""
    with asking(Registry(two).uri) as client:
        client.delete_registered_model_alias("expunge", "candidate")
    said = expunge("release", "list", cwd=two)
    assert "alias candidate names nothing, not 2: the next act mends it" in said.error
    assert Registry(two).aliases() == {}
    assert expunge("release", "approve", 1, "--as", "bob").code == 0
    assert Registry(two).aliases() == {"candidate": 2}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("promote", 9), 2, "version 9 is not registered; use one of: 1, 2"),
        (("show", 9), 2, "version 9 is not registered"),
        (("promote", "models:/other/1"), 2, "models:/other/1 is a version of another model; name one of expunge"),
        (("promote", "latest"), 2, "'latest' is no version; name a number"),
        (("promote", 1, "--digest", "0" * 64), 2, "was registered with digest"),
        (("rollback",), 2, "there is no earlier champion to roll back to"),
        (("override", 1, "--gate", "ua", "--reason", "r", "--until", "2999-01-01", "--as", "b"), 2, "gate 'ua' cannot be overridden"),
        (("override", 1, "--gate", "ira", "--reason", "r", "--until", "soon", "--as", "b"), 2, "'soon' is no date"),
        (("approve", 1), 2, "--as"),
        (("reject", 1, "--reason", " "), 2, "the reason is empty; say why"),
    ],
)  # fmt: skip
def test_what_is_refused(two, expunge, arguments, code, said):
    """Each mistake ends with its exit code and says what to do; no alias moves."""
    before = Registry(two).aliases()
    found = expunge("release", *arguments, cwd=two)

    assert (found.code, said in found.error) == (code, True), found.error
    assert Registry(two).aliases() == before


def test_a_quick_evaluation_ends_with_the_code_of_a_failed_verdict(two, expunge):
    """With the shipped params a quick release is refused with exit code 1 and a sentence that says which size is asked for."""
    params = yaml.safe_load((two / "params.yaml").read_text())
    params["promote"] = {"size": "full", "images": {"quick": 24, "full": 142}, "margin": {}}
    (two / "params.yaml").write_text(yaml.safe_dump(params))
    assert expunge("release", "approve", 1, "--as", "bob", cwd=two).code == 0
    found = expunge("release", "promote", 1)

    assert found.code == 1
    assert "'quick' is not 'full', which promotion asks for (promote.size)" in found.error
    assert "champion" not in Registry(two).aliases()


def test_a_server_that_is_not_there_is_one_sentence_with_its_url(two, expunge, monkeypatch):
    """Nothing moves and nothing is written to the ledger while the registry cannot be reached."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    for command in (("list",), ("approve", 1, "--as", "bob"), ("promote", 1), ("rollback",)):
        found = expunge("release", *command, cwd=two)
        assert (found.code, "http://127.0.0.1:9 cannot be reached" in found.error) == (4, True), found.error
        assert "secret" not in found.error
    assert "approved" not in expunge("release", "log").out


def test_a_lost_ledger_is_told_and_takes_no_champion_away(two, expunge):
    """A champion that the ledger has never heard of is the sign of a lost or a wrong one: nothing is listed or registered, and it stays."""
    for command in (("approve", 1, "--as", "bob"), ("promote", 1)):
        assert expunge("release", *command, cwd=two).code == 0
    (two / "ledger.db").unlink()
    found = expunge("release", "list")
    assert found.code == 3
    assert "the registry's champion is version 1, and the ledger does not know it; name the ledger by" in found.error
    with pytest.raises(ArtifactError, match="the ledger does not know it"):
        register_tree(two, "ann")
    assert Registry(two).aliases() == {"candidate": 2, "champion": 1}
    assert len(Registry(two).versions()) == 2


def test_a_fresh_project_lists_no_release(two, expunge):
    """Without a ledger there is no release: an empty list and exit code 0, and no ledger is made by looking."""
    (two / "ledger.db").unlink()
    listed = expunge("release", "list", "--json", cwd=two)

    assert listed.code == 0
    assert json.loads(listed.out)["releases"] == []
    assert "the ledger holds no release; register one: expunge retrain" in expunge("release", "list").error
    assert expunge("release", "show", 1).code == 2
    assert not (two / "ledger.db").exists()


def test_an_alias_that_the_ledger_gives_to_another_is_not_fetched(two, expunge, monkeypatch, tmp_path, caplog):
    """Somebody moves @champion in MLflow: `pull` and `--release` refuse it; a number is still fetched; without a ledger a line says so."""
    for command in (("approve", 1, "--as", "bob"), ("promote", 1)):
        assert expunge("release", *command, cwd=two).code == 0
    assert expunge("pull", "@champion", tmp_path / "one").code == 0
    with asking(Registry(two).uri) as client:
        client.set_registered_model_alias("expunge", "champion", "2")
    for command in (
        ("pull", "@champion", tmp_path / "two"),
        ("generate", "a cat", "--dry-run", "--release", "@champion"),
    ):
        found = expunge(*command)
        assert (found.code, found.error.count("\n")) == (3, 1)
        assert "@champion is version 2 in the registry and version 1 in the ledger" in found.error
    assert not (tmp_path / "two").exists()
    assert expunge("pull", "1", tmp_path / "three").code == 0
    (two / "ledger.db").unlink()
    assert expunge("pull", "@champion", tmp_path / "four").code == 2
    monkeypatch.delenv("EXPUNGE_LEDGER_URL")
    found = expunge("pull", "@champion", tmp_path / "five")
    assert found.code == 0, found.error
    assert "no ledger is here that could confirm it: @champion is version 2, digest " in caplog.text
    assert not (two / "ledger.db").exists()


AT_ONCE = """
import sys, time
from pathlib import Path
from components.cli import main
from components.registry import promotion
mine, other = map(Path, sys.argv[1:3])
before = promotion.assess
def together(*arguments, **named):
    mine.touch()
    while not other.exists():
        time.sleep(0.01)
    return before(*arguments, **named)
promotion.assess = together
sys.argv = ["expunge", *sys.argv[3:]]
main.main()
"""


@pytest.mark.slow
def test_of_two_processes_that_promote_at_once_one_wins(two, expunge):
    """Both have decided on the same history before either acts: one promotes, the other is told who came first, and the aliases agree."""
    for version in (1, 2):
        assert expunge("release", "approve", version, "--as", "bob", cwd=two).code == 0
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", AT_ONCE, two / str(version), two / str(3 - version), "release", "promote", str(version)],
            cwd=two, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for version in (1, 2)
    ]  # fmt: skip
    ended = [(process.communicate(timeout=300), process.returncode) for process in running]
    (winner,) = (version for version, (_, code) in zip((1, 2), ended, strict=True) if code == 0)
    ((_, error), code) = ended[2 - winner]
    assert (code, f"release.promoted of release/{winner}" in error, error.count("\n")) == (4, True, 1), error
    assert Registry(two).aliases() == {"candidate": 2, "champion": winner}
    assert [e["kind"] for e in json.loads(expunge("release", "log", "--json").out)["events"]].count(
        "release.promoted"
    ) == 1


def test_an_act_whose_aliases_lag_says_so_and_ends_with_4(two, expunge, monkeypatch):
    """The registry goes away between the event and the alias: the act is printed, and one sentence says what is left to do."""

    def away(_self, _wanted):
        raise TransientError("the model registry cannot be reached", "start it")

    assert expunge("release", "approve", 1, "--as", "bob", cwd=two).code == 0
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "set_aliases", away)
        found = expunge("release", "promote", 1)
    assert (found.code, found.out.startswith("promoted version 1")) == (4, True)
    assert (
        "the aliases do not follow yet (the model registry cannot be reached); once the registry answers" in found.error
    )
    assert expunge("release", "reject", 2, "--reason", "no").code == 0
    assert Registry(two).aliases()["champion"] == 1


def test_moment():
    """A day is its end in UTC, a moment is what it says; another text is refused."""
    assert moment("2026-12-31").isoformat() == "2026-12-31T23:59:59.999999+00:00"
    assert moment("2026-12-31T18:00:00+01:00").isoformat() == "2026-12-31T18:00:00+01:00"
    assert moment("2026-12-31T18:00:00").isoformat() == "2026-12-31T18:00:00+00:00"
    with pytest.raises(UserError, match="'tomorrow' is no date; write one like 2026-12-31"):
        moment("tomorrow")
