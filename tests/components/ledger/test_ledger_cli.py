import json
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from components.ledger.events import Ledger

ROOT = Path(__file__).parents[3]
OWL, FROG = {"target": "owl", "kind": "object"}, {"target": "frog", "kind": "object", "aliases": ["toad"]}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with the parameters and requests that ship, and its ledger beside them."""
    for name in ("params.yaml", "requests.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EXPUNGE_LEDGER_URL", raising=False)
    return tmp_path


def written(folder, content, name="new.json"):
    text = json.dumps(content, indent="\t") if name.endswith("json") else yaml.safe_dump(content)
    (folder / name).write_text(text)
    return folder / name


def test_requests_are_submitted_shown_and_withdrawn(project, expunge):
    """One request from YAML and two from JSON are queued under printed ids; one is withdrawn; the ledger shows it all and is whole."""
    requests = (project / "requests.yaml").read_bytes()
    code, owl, _ = expunge("request", "submit", written(project, OWL, "one.yaml"), "--as", "ann")
    assert code == 0
    _, both, _ = expunge("request", "submit", written(project, [OWL, FROG]), "--as", "bob")
    assert both.split()[0] == owl.strip()
    frog = both.split()[1]
    assert expunge("request", "withdraw", frog, "--dry-run") == (0, f"would withdraw {frog} (frog)\n", "")
    assert expunge("request", "withdraw", frog, "--as", "bob") == (0, f"withdrew {frog} (frog)\n", "")

    shown = json.loads(expunge("ledger", "show", "--json")[1])
    assert [(e["kind"], e["actor"]) for e in shown] == [
        ("request.accepted", "ann"), ("request.accepted", "bob"), ("request.withdrawn", "bob"),
    ]  # fmt: skip
    lines = expunge("ledger", "show", "--subject", frog)[1].splitlines()
    assert [line.split()[3] for line in lines] == ["request.accepted", "request.withdrawn"]
    head = shown[-1]["sha256"]
    assert expunge("ledger", "verify", "--head", head)[1] == f"3 events, the chain is whole and ends in {head}\n"
    assert (project / "requests.yaml").read_bytes() == requests


def test_the_queue_is_listed(project, expunge):
    """Each request with its state and the end of its window, as text and as JSON; before the first one an empty list, and no ledger is made."""
    assert expunge("request", "queue", "--json") == (0, "[]\n", "")
    assert not (project / "ledger.db").exists()
    owl, frog = expunge("request", "submit", written(project, [OWL, FROG]))[1].split()
    expunge("request", "withdraw", frog)
    one, other = json.loads(expunge("request", "queue", "--json").out)

    assert (one["id"], one["state"], one["target"]) == (owl, "accepted", "owl")
    assert datetime.fromisoformat(one["trained_after"]) - datetime.fromisoformat(one["accepted"]) == timedelta(hours=24)
    assert (other["id"], other["state"]) == (frog, "withdrawn")
    first, second = expunge("request", "queue").out.splitlines()
    assert first.startswith(f"{owl}  accepted   owl  until 20")
    assert second == f"{frog}  withdrawn  frog"


def test_a_dry_run_makes_no_ledger(project, expunge):
    """A dry run of the first submission prints an id and writes no file; one that follows changes no event."""
    file = written(project, OWL)
    code, out, _ = expunge("request", "submit", file, "--dry-run")
    assert code == 0
    assert out.startswith("r-")
    assert not (project / "ledger.db").exists()
    expunge("request", "submit", file)
    expunge("request", "submit", written(project, FROG), "--dry-run")

    assert len(Ledger("sqlite:///ledger.db").events()) == 1


def test_the_variable_names_the_ledger(project, expunge, monkeypatch):
    """EXPUNGE_LEDGER_URL goes before params.yaml."""
    monkeypatch.setenv("EXPUNGE_LEDGER_URL", "sqlite:///other.db")
    assert expunge("request", "submit", written(project, OWL))[0] == 0

    assert (project / "other.db").is_file()
    assert not (project / "ledger.db").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "new.json holds no request; write one as in"),
        ("owl", "new.json is no mapping; write one"),
        ([OWL, 3], "new.json, request 2 is no mapping"),
        ([OWL, {"target": "frog"}], "new.json, request 2 lacks the key 'kind'; add it"),
        (OWL | {"who": "Ann"}, "new.json has an unknown key 'who'"),
        ([OWL, {"target": "unicorn", "kind": "object"}], "'unicorn' is not in the world openmoji"),
        (OWL | {"anchor": "cat"}, "the anchor 'cat' of r-"),
        ({"target": "cat", "kind": "object"}, "'cat' is a name of both r-5c1e09a7 and r-"),
    ],
)
def test_bad_requests_are_refused(project, expunge, content, said):
    """A file with a mistake is one sentence, and none of its requests is queued."""
    file = written(project, content)
    code, out, error = expunge("request", "submit", file)

    assert (code, out) == (2, "")
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (project / "ledger.db").exists() or Ledger("sqlite:///ledger.db").events() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("request", "submit", "none.yaml"), "none.yaml does not exist; name a YAML or JSON file"),
        (("request", "submit", "bad.json"), "bad.json is not JSON (Expecting"),
        (("request", "submit", "bad.yaml"), "is not YAML ("),
        (("request", "withdraw", "r-0"), "sqlite:///ledger.db holds no ledger; submit a request first"),
        (("ledger", "verify"), "sqlite:///ledger.db holds no ledger; submit a request first"),
        (("ledger", "show", "--json"), "sqlite:///ledger.db holds no ledger; submit a request first"),
    ],
)
def test_nothing_to_work_on(project, expunge, arguments, said):
    """A missing or broken file, and commands on a ledger that is not there yet, are one sentence and make nothing."""
    for name in ("bad.json", "bad.yaml"):
        (project / name).write_text("{")
    before = sorted(project.iterdir())
    code, _, error = expunge(*arguments)

    assert code == 2
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert sorted(project.iterdir()) == before


def test_what_the_ledger_refuses(project, expunge):
    """An unknown subject and an empty account exit with 2; a bad URL is refused in a dry run too."""
    file = written(project, OWL)
    assert expunge("request", "submit", file, "--as", " ")[::2] == (
        2,
        "expunge: the actor ' ' is no name; name an account\n",
    )
    expunge("request", "submit", file)
    assert "the ledger has no event about 'r-0'; see all" in expunge("ledger", "show", "--subject", "r-0")[2]
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["ledger"]["url"] = "mysql://localhost/x"
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    assert "cannot be kept in mysql" in expunge("request", "submit", file, "--dry-run")[2]


@pytest.mark.usefixtures("project")
def test_withdrawing_too_late(expunge):
    """After the window that params.yaml states, a withdrawal is refused and says what to do instead."""
    old = Ledger("sqlite:///ledger.db", clock=lambda: datetime.now(UTC) - timedelta(hours=25))
    old.append("request.accepted", "r-1", "ann", {"request": OWL})
    code, _, error = expunge("request", "withdraw", "r-1")

    assert code == 2
    assert "request r-1 could be withdrawn until" in error


def test_an_altered_ledger_exits_with_3(project, expunge):
    """`ledger verify` names the first broken event and exits as for any altered artifact."""
    import sqlite3

    expunge("request", "submit", written(project, [OWL, FROG]))
    with sqlite3.connect("ledger.db") as connection:
        connection.execute("DROP TRIGGER events_no_update")
        connection.execute("UPDATE events SET actor = 'eve' WHERE seq = 2")
    code, _, error = expunge("ledger", "verify")

    assert (code, error) == (3, "expunge: event 2 of the ledger was altered (sha256); restore it from a backup\n")


def test_help_loads_no_database():
    """`expunge --help` loads neither SQLAlchemy nor torch, and takes less than 0.7 s: the best of five on a busy machine."""
    program = (
        "import sys; sys.argv = ['expunge', '--help']\n"
        "from components.cli.main import main\n"
        "try:\n    main()\nfinally:\n    print({'sqlalchemy', 'alembic', 'torch', 'mlflow'} & set(sys.modules))"
    )
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
        taken.append(time.perf_counter() - start)

    assert done.stdout.strip().endswith("set()"), done.stdout + done.stderr
    assert min(taken) < 0.7
