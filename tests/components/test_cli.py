import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXPUNGE = Path(sys.executable).parent / "expunge"


def expunge(*arguments, cwd=ROOT):
    return subprocess.run([EXPUNGE, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command",
    [
        (), ("request",), ("request", "add"), ("request", "list"), ("request", "show"), ("request", "remove"), ("run",),
        ("retrain",), ("verdict",), ("generate",), ("explain",), ("purify",), ("export", "diffusers"), ("export", "adapter"),
        ("params",), ("base", "report"), ("filter", "report"), ("guidance", "report"),
    ],
)  # fmt: skip
def test_cli_every_command_has_help(command):
    """Each command explains itself."""
    done = expunge(*command, "--help")

    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_cli_lists_the_requests():
    """The two requests that ship."""
    done = expunge("request", "list")

    assert done.returncode == 0
    assert "cat  (object)  -> dog" in done.stdout
    assert "neon  (style)  -> line art" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("request", "add", "unicorn"), 2, "concept 'unicorn' is not in the OpenMoji world; use one of"),
        (("request", "add", "cat"), 2, "'cat' is a name of both r-5c1e09a7 and"),
        (("request", "add", "owl", "--anchor", "owl"), 2, "the anchor 'owl' is the target itself"),
        (("request", "show", "r-0"), 2, "request 'r-0' is not in requests.yaml; use one of: r-5c1e09a7"),
        (("request", "remove", "r-0"), 2, "request 'r-0' is not in requests.yaml"),
        (("generate", "a cat", "--base", "--filter"), 2, "--base and --filter exclude each other; give one of them"),
        (("generate", "a cat", "--output", "nowhere/x.png"), 2, "--output nowhere/x.png cannot be written"),
        (("generate", "a cat", "--variant", "all"), 2, "--variant 'all' is unknown; use one of: base"),
    ],
)
def test_cli_bad_input_is_one_sentence(arguments, code, said):
    """A mistake is one line on stderr and an exit code, never a traceback, and requests.yaml stays as it was."""
    before = (ROOT / "requests.yaml").read_bytes()
    done = expunge(*arguments)

    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert (ROOT / "requests.yaml").read_bytes() == before


def test_cli_outside_of_a_project_says_so(tmp_path):
    """Without params.yaml the message says where to run."""
    done = expunge("params", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stderr.strip() == "expunge: params.yaml does not exist; run from the root of the project"


def test_cli_dry_run_changes_nothing():
    """--dry-run of an addition prints an id and leaves the file alone."""
    before = (ROOT / "requests.yaml").read_bytes()
    done = expunge("request", "add", "ghost", "--kind", "character", "--anchor", "alien", "--dry-run")

    assert done.returncode == 0
    assert done.stdout.startswith("r-")
    assert (ROOT / "requests.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("base", "report"), "would measure assets/openmoji with 5 seeds"),
        (("filter", "report", "--requests", "3"), "would measure 3 requests on 20000 benign prompts"),
        (("guidance", "report", "--together", "6"), "would train 6 adapters"),
    ],
)
def test_cli_a_report_can_be_rehearsed(arguments, said):
    """--dry-run says what a report would measure, and writes none."""
    reports = {path: path.stat().st_mtime_ns for path in (ROOT / "reports").rglob("*")}
    done = expunge(*arguments, "--dry-run")

    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout
    assert {path: path.stat().st_mtime_ns for path in (ROOT / "reports").rglob("*")} == reports


def test_cli_generate_writes_a_png(tmp_path):
    """One image of the base model, 64 by 64; the same seed gives the same bytes."""
    from PIL import Image

    for name in ("one.png", "two.png"):
        done = expunge("generate", "a cat in neon style", "--base", "--seed", "3", "--output", str(tmp_path / name))
        assert done.returncode == 0, done.stderr

    assert Image.open(tmp_path / "one.png").size == (64, 64)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
