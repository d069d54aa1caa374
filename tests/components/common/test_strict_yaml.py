import os
from pathlib import Path

import pytest
import yaml
from ruamel.yaml import YAML

from components.common.errors import UserError
from components.common.inputs import MIB, read_bytes
from components.common.strict_yaml import DEPTH, VALUES, read_yaml


def written(tmp_path, content):
    path = tmp_path / "some.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3, has the key 'a' twice; keep one of them"),
        ("a: {b: 1, b: 2}", "has the key 'b' twice"),
        ("a: &x 1\nb: *x", "line 1, has an anchor or alias 'x'; write the value out"),
        ("b: *x", "has an anchor or alias 'x'"),
        ("a: {<<: {b: 1}}", "has a merge key <<"),
        ("a: !!str 1", "has a tag 'tag:yaml.org,2002:str'; remove it"),
        ("a: !python/object:os.system x", "has a tag"),
        ("%YAML 1.1\n---\na: 1", "has a directive; remove the line"),
        ("a: 1\n---\nb: 1", "line 2, begins a second document; keep one"),
        ("[" * (DEPTH + 1), f"nested more than {DEPTH} levels deep"),
        ("a: [" + "1," * VALUES + "]", f"has more than {VALUES} values"),
        ("a: .nan", "a is nan; use a finite number, or put a word in quotes"),
        ("a: [1, -.inf]", "a.1 is -inf"),
        ("a: 1e999", "a is inf"),
        ("a: " + "9" * 20, "a number of more than 64 bits"),
        ("a: " + "9" * 5000, "cannot be read"),
        ("a: 2024-01-31", "a is a date; put it in quotes"),
        ("a: 2024-13-45", "put it in quotes"),
        ("1: a", "has the key 1, which is no text; put it in quotes"),
        ("? [a]\n: b", "which is no text"),
        ('a: "\\0"', "line 1, holds a control character"),
        ("a: b\0", "line 1, holds a NUL"),
        ("a: b\x07", "is not YAML"),
        ("a: b\u2028c: d", "line 1, holds the character U+2028; take it out"),
        ('a: "\\ud800"', "is not YAML"),
        ("a: [1", "is not YAML"),
        ("a: käse".encode("latin-1"), "line 1, is not UTF-8; save the file as UTF-8"),
        ("a: b".encode("utf-16"), "is not UTF-8"),
        ("a: b".encode("utf-16-le"), "holds a NUL; save it as UTF-8"),
        (b"#" * (MIB + 1), "is larger than 1 MiB; split it"),
    ],
)
def test_what_two_readers_could_understand_differently_is_refused(tmp_path, content, said):
    """Each is one sentence of one line that names the file and what to do."""
    with pytest.raises(UserError) as caught:
        read_yaml(written(tmp_path, content))

    assert said in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("", None),
        ("# nothing yet\n", None),
        ("{}", {}),
        ("\ufeffa: 1\r\nb: [x y, ü]\r\n", {"a": 1, "b": ["x y", "ü"]}),
        ("a: yes\nb: 010\nc: 1e-3\nd: '<<'", {"a": "yes", "b": 10, "c": 0.001, "d": "<<"}),
        ("a: |\n  one\n  two\n", {"a": "one\ntwo\n"}),
    ],
)
def test_the_rest_is_read_as_dvc_reads_it(tmp_path, content, value):
    """Empty files, a byte order mark, Windows' line ends and YAML 1.2 words give what dvc's reader gives."""
    path = written(tmp_path, content)

    assert read_yaml(path) == value
    assert YAML(typ="safe").load(path.read_text(encoding="utf-8-sig")) == value


def test_the_files_that_ship_are_the_same_to_both_versions_of_yaml():
    """YAML 1.1 and 1.2 read the project's own files alike, so no value hangs on the reader."""
    root = Path(__file__).parents[3]
    files = [root / "params.yaml", root / "requests.yaml", root / "dvc.yaml", *root.glob("components/worlds/*/*.yaml")]

    assert len(files) >= 6
    assert [path.name for path in files if repr(read_yaml(path)) != repr(yaml.safe_load(path.read_text()))] == []


@pytest.mark.timeout(5)
@pytest.mark.parametrize("make", ["mkfifo", "mkdir"])
def test_only_regular_files_are_read(tmp_path, make):
    """A FIFO that nobody writes to and a folder are refused at once instead of waited for."""
    path = tmp_path / "some.yaml"
    getattr(os, make)(path)

    with pytest.raises(UserError, match="is no regular file; name a file"):
        read_yaml(path)


def test_devices_are_refused():
    """An endless device is no file."""
    with pytest.raises(UserError, match="/dev/zero is no regular file; name a file"):
        read_bytes(Path("/dev/zero"), 10)


def test_a_path_that_cannot_be_opened_is_one_sentence(tmp_path):
    """A missing file, a path through a file and a NUL in a path."""
    (tmp_path / "file").write_text("")
    for path, said in (
        (tmp_path / "no", "does not exist; run from the root"),
        (tmp_path / "file" / "x", "cannot be read"),
        (tmp_path / "a\0b", "cannot be read"),
    ):
        with pytest.raises(UserError, match=said):
            read_yaml(path)
