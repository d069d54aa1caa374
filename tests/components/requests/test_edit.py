import re
import subprocess
import sys
from pathlib import Path

import pytest

from components.common.errors import ArtifactError, UserError
from components.requests.edit import add_request, remove_request
from components.requests.requests import load_requests

ROOT = Path(__file__).parents[3]
CAT = "  r-1:\n    target: cat # whiskers\n    kind: object\n"
DOG = "  # about dogs\n  r-2:\n    kind: 'object'\n    target:   dog\n  # the end\n\n# really\n"
GHOST = {"target": "Naïve  ghost", "kind": "character", "aliases": ["no", "1e3", "x-y z"], "anchor": "alien"}


def written(tmp_path, content):
    path = tmp_path / "requests.yaml"
    path.write_bytes(content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        "requests: {}\n",
        "requests: {}  # none yet\n# the end",
        "{requests: {}}",
        f"requests:\n{CAT}",
        f"requests:\n{CAT}".rstrip("\n"),
        f"# first\n\nrequests:  # all\n\n{CAT}\n{DOG}",
        f"requests:\n{CAT}{DOG}".replace("  ", "    "),
        f"requests:\n{CAT}{DOG}".replace("\n", "\r\n"),
        f"\ufeffrequests:\n{CAT}",
        f"---\nrequests:\n{CAT}...\n",
        "requests: {r-1: {target: cat, kind: object}}\n",
        "requests: {r-1: {target: cat, kind: object}, # x\n  r-2: {kind: object, target: dog}, } # y\n",
        "requests:\n  r-1: {'target': cat, kind: object,\n  aliases: [kitty,\n feline]\n  } # x\n\n",
        "requests:\n  r-1:\n    kind: object\n    target: >-\n      cat\n      dog\n\n  # y\n",
        "requests:\n  r-1:\n    kind: object\n    target: cat\n    aliases:\n    - kitty\n    - feline\n",
    ],
)  # fmt: skip
def test_add_then_remove_restores_the_bytes(tmp_path, content):
    """Whatever the file's style, comments, indentation and line ends, they are back after a withdrawal, and there in between."""
    path = written(tmp_path, content)
    before = load_requests(path)

    added = add_request(GHOST, path)
    between = path.read_bytes().decode()
    assert load_requests(path) == before | {added: load_requests(path)[added]}
    assert load_requests(path)[added].names == ("naïve ghost", "no", "1e3", "x-y z")
    assert set(re.findall(r"# .*|\w+", content)) <= set(re.findall(r"# .*|\w+", between))
    assert ("\r\n" in content) == ("\r\n" in between)
    assert "\n" not in between.replace("\r\n", "") or "\r\n" not in content

    remove_request(added, path)
    assert path.read_bytes().decode() == content


@pytest.mark.parametrize(
    ("content", "after"),
    [
        (f"requests:\n{CAT}", "requests: {}\n"),
        (f"requests:  # all\n{CAT}", "requests: {}  # all\n"),
        (f"requests:\n{CAT}{DOG}", f"requests:\n{DOG}"),
        ("requests: {r-1: {target: cat, kind: object}, r-2: {target: dog, kind: object}}", "requests: {r-2: {target: dog, kind: object}}"),
    ],
)  # fmt: skip
def test_remove_takes_one_entry_out(tmp_path, content, after):
    """The entry goes with the comments inside it, and everything else stays, down to no request at all."""
    path = written(tmp_path, content)

    assert remove_request("r-1", path).target == "cat"
    assert path.read_bytes().decode() == after
    load_requests(path)


@pytest.mark.parametrize("content", ["", "# none yet\n", "# none yet", "{}", "{}  # none yet\n"])
def test_add_to_a_file_without_the_key(tmp_path, content):
    """An empty file gets the key, and keeps its comment."""
    path = written(tmp_path, content)
    added = add_request(GHOST, path)

    assert list(load_requests(path)) == [added]
    assert ("# none yet" in content) == ("# none yet" in path.read_text())
    remove_request(added, path)
    assert load_requests(path) == {}


def test_what_cannot_be_edited_in_place_is_refused(tmp_path):
    """A file in an unusual form is left alone, with one sentence, rather than written wrongly."""
    path = written(tmp_path, content := "requests: {r-1: {target: cat, kind: object},}")

    with pytest.raises(UserError, match="cannot be edited in place; edit it by hand"):
        remove_request("r-1", path)
    assert path.read_text() == content


def test_add_refused_leaves_the_file_alone(tmp_path):
    """A bad request, one that the check refuses, and a dry run change nothing."""
    path = written(tmp_path, f"requests:\n{CAT}")
    before = path.read_bytes()

    def refuse(requests):
        raise UserError(f"{len(requests)} requests", "no")

    for bad in ({"target": "lion", "kind": "object", "aliases": ["CAT"]}, {"target": "a, b", "kind": "object"}, {"target": "\udc80", "kind": "object"}):  # fmt: skip
        with pytest.raises(UserError):
            add_request(bad, path)
    with pytest.raises(UserError, match="2 requests"):
        add_request(GHOST, path, check=refuse)
    add_request(GHOST, path, dry_run=True)
    assert path.read_bytes() == before


def test_remove_unknown_is_one_sentence(tmp_path):
    """An unknown id names those that exist, and an id that is a path is no id."""
    path = written(tmp_path, f"requests:\n{CAT}")

    with pytest.raises(UserError, match=r"request 'r-9' is not in .*; use one of: r-1"):
        remove_request("r-9", path)
    with pytest.raises(UserError, match=r"request id '../x' is not allowed"):
        remove_request("../x", path)


def test_the_command_deletes_nothing_outside_of_the_adapters(tmp_path, expunge):
    """`request remove ../x` is refused, whether the file lists that id or not, and the folder stays."""
    victim = tmp_path / "models" / "x" / "file"
    victim.parent.mkdir(parents=True)
    (tmp_path / "models" / "guidance").mkdir()
    victim.write_text("mine")

    for content in (f"requests:\n{CAT}", f"requests:\n{CAT}".replace("r-1", "../x")):
        written(tmp_path, content)
        said = expunge("request", "remove", "../x", cwd=tmp_path)
        assert said.code == 2
        assert "request id '../x' is not allowed" in said.error
        assert victim.read_text() == "mine"


def test_ten_writers_at_once_lose_nothing(tmp_path):
    """Every one of ten processes that add three requests each finds all of its own afterwards."""
    path = written(tmp_path, f"# mine\nrequests:\n{CAT}")
    program = (
        "import sys; from pathlib import Path; from components.requests.edit import add_request\n"
        "for i in range(3): print(add_request({'target': f'thing {sys.argv[2]} {i}', 'kind': 'object'}, Path(sys.argv[1])))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, path, str(i)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for i in range(10)
    ]
    added = [line for process in running for line in process.communicate()[0].split()]

    assert [process.returncode for process in running] == [0] * 10
    assert len(added) == 30
    assert set(load_requests(path)) == {"r-1", *added}
    for request_id in added:
        remove_request(request_id, path)
    assert path.read_text() == f"# mine\nrequests:\n{CAT}"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".requests.yaml.lock", "requests.yaml"]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    """The lock has nowhere to lie: an error, not a traceback."""
    (tmp_path / "requests.yaml").write_text("requests: {}\n")
    (tmp_path / ".requests.yaml.lock").mkdir()  # refuses root too
    with pytest.raises(ArtifactError, match=r"cannot be opened .*; make the folder writable"):
        add_request(GHOST, tmp_path / "requests.yaml")


def test_nothing_is_left_where_no_project_is(tmp_path):
    """Refusing to edit a file that does not exist makes none, no lock either."""
    path = tmp_path / "requests.yaml"
    with pytest.raises(UserError, match=r"requests\.yaml does not exist"):
        remove_request("r-1", path)
    with pytest.raises(UserError, match=r"requests\.yaml does not exist"):
        add_request({"target": "cat", "kind": "object"}, path)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_the_file_keeps_its_permissions(tmp_path, mode):
    """The mode of requests.yaml is the same after an edit."""
    path = written(tmp_path, f"requests:\n{CAT}")
    path.chmod(mode)
    add_request({"target": "owl", "kind": "object"}, path)

    assert path.stat().st_mode & 0o777 == mode
