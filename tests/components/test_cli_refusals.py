"""What a user can give a command wrongly is refused in one sentence, before anything is loaded."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.cli.params import read_params
from components.common.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project without artifacts in a folder whose name has a space."""
    folder = tmp_path / "a project"
    folder.mkdir()
    for name in ("params.yaml", "requests.yaml"):
        shutil.copy(ROOT / name, folder)
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "one.json").write_text('{"target": "\\ud800x", "kind": "object"}')
    monkeypatch.chdir(folder)
    return folder


HALF = os.fsdecode(b"a \xff cat")
LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", HALF), r"the prompt 'a \udcff cat' holds a NUL or half a character"),
        (("generate", LONG), "the prompt has 100,000 characters; use at most 10,000"),
        (("explain", HALF), "holds a NUL or half a character"),
        (("explain", LONG), "the prompt has 100,000 characters"),
        (("purify", "x.png", "--prompt", HALF), "holds a NUL or half a character"),
        (("generate", "a cat", "--output", "folder.png"), "folder.png cannot be written: it is a folder"),
        (("generate", "a cat", "--output", "pipe.png"), "pipe.png cannot be written: it is no regular file"),
        (("generate", "a cat", "--output", "/proc/x.png"), ""),
        (("generate", "a cat", "--output", "x.jpg"), "its name does not end in .png"),
        (("generate", "a cat", "--output", "none/x.png"), "cannot be written: none is no folder"),
        (("generate", "a cat", "--output", "y" * 300 + ".png"), "cannot be written: File name too long"),
        (("request", "add", HALF), "half a character"),
        (("request", "add", LONG), "is long"),
        (("request", "add", ""), "target"),
        (
            ("request", "add", "ghost", "--kind", "character", "--anchor", "ghost"),
            "expunge: the request: the anchor 'ghost' is the target itself; name something else to draw instead\n",
        ),
        (("request", "show", HALF), "is not in requests.yaml"),
        (("request", "submit", "."), "is no regular file; name a file"),
        (("request", "submit", "pipe.png"), "is no regular file; name a file"),
        (("request", "submit", "one.json"), "one.json holds half a character; write it in UTF-8"),
        (("request", "remove", "../folder.png"), "is not allowed"),
        (("run", "--", "-x; touch hacked"), "dvc.yaml does not exist; run from the root of the project"),
        (("verdict",), "is missing"),
        (("ledger", "show"), "ledger"),
    ],
)
def test_a_bad_value_is_one_sentence(project, expunge, arguments, said):
    """A code from 2 to 4 and one line on stderr; nothing is written."""
    before = sorted(p.name for p in project.iterdir())
    code, _, error = expunge(*arguments)

    assert code in (2, 3, 4), error
    assert len(error.strip().splitlines()) == 1, error
    assert said in error
    assert sorted(p.name for p in project.iterdir() if "lock" not in p.name) == before


def test_text_that_the_terminal_cannot_show_is_escaped(project):
    """With LANG=C a name in another script is printed, escaped where need be, and half a character in a prompt is one sentence."""
    (project / "requests.yaml").write_text("requests:\n  r-1: {target: 猫, kind: object}\n", encoding="utf-8")
    environment = os.environ | {"LANG": "C", "LC_ALL": "C", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    for arguments, code in ((["request", "list"], 0), (["explain", b"a \xff cat"], 2)):
        command = [sys.executable, "-m", "expunge", *arguments]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, timeout=20, check=False)

        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr
        assert code or "猫".encode() in done.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p["promote"]["margin"].update(auc=0.1), "promote.margin='auc' is not among the metrics (ua,"),
        (lambda p: p["promote"]["images"].update(full=0), "promote.images are counts"),
        (
            lambda p: p["promote"]["images"].update(ful=142),
            "promote.images names the size 'ful', which evaluate.sizes and",
        ),
        (lambda p: p["promote"].update(size="whole"), "promote.size='whole' is not among promote.images ("),
        (lambda p: p["evaluate"]["gates"][0].update(metric="uaa"), "metric='uaa' is not among the metrics (ua,"),
    ],
)
@pytest.mark.usefixtures("project")
def test_a_part_that_means_nothing_is_refused(change, said):
    """A margin or a gate on what no evaluation measures, a promotion by no image or of a size that nothing has: one sentence, before anything runs."""
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    change(params)
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    with pytest.raises(UserError) as refused:
        read_params()
    assert said in str(refused.value)
