"""JSON of a user's: what two readers could understand differently is refused in one sentence."""

import os

import pytest

from components.common.errors import UserError
from components.common.strict_json import read_json


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1, "a": 2}', "is not JSON (the key 'a' stands in it twice); mend the file"),
        (b'{"a": NaN}', "is not JSON (NaN is no number)"),
        (b"[" * 100_000, "is not JSON (it is nested too deep)"),
        (b"[" * 40 + b"]" * 40, "is not JSON (it is nested more than 32 levels deep)"),
        (b"\xff\xfe[\x00]\x00", "line 1, is not UTF-8; save the file as UTF-8"),
        (b'{"a": 1} {}', "is not JSON (Extra data"),
        (b"", "is not JSON (Expecting value"),
        (b" " * (2**20 + 1), "is larger than 1 MiB"),
    ],
)
def test_it_is_refused(tmp_path, content, said):
    """Duplicate keys, NaN, depth, encoding, a second value, size."""
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_json(path)

    assert said in str(error.value)


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    """A FIFO has no end, a folder no content."""
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("pipe.json", "."):
        with pytest.raises(UserError, match="is no regular file; name a file"):
            read_json(tmp_path / name)


def test_plain_json_is_read(tmp_path):
    """Text outside of the basic plane by escapes, a byte order mark, and 32 levels."""
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00", "b": [1.5, null, true]}')
    assert read_json(path) == {"a": "😀", "b": [1.5, None, True]}
    path.write_bytes(b"[" * 32 + b"]" * 32)
    assert read_json(path)
