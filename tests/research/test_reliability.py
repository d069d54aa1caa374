import os
import random
import time

import pytest
import yaml

from components.common.errors import UserError
from research.reliability import altered, places, run, writers
from research.reliability.mutate import Case
from research.reliability.run import measure_inputs, outcome
from research.reliability.show import largest, share


def test_mutated_inputs_are_refused_or_read_right():
    """Every goal is met on 400 files: nothing wrongly accepted or refused, no traceback, no hang, bytes restored.

    The memory is the process's, which has run other tests before, so that its goal is the command's alone.
    """
    rows = measure_inputs(400, 1, "here")
    found = {row["what"]: row["value"] for row in rows if not row["met"]}
    found.pop("inputs: peak memory of the process, GiB", None)

    assert found == {}
    assert all(row["n"] > 10 for row in rows)


def test_a_reader_that_believes_everything_is_found_out(monkeypatch):
    """With a reader of YAML that guesses, the same files are wrongly accepted, some with a traceback."""
    monkeypatch.setattr(run, "READERS", {"params.yaml": (run.READERS["params.yaml"][0], lambda path: yaml.safe_load(path.open()))})  # fmt: skip
    rows = {row["what"]: row for row in measure_inputs(60, 0, "here")}

    assert rows["inputs: wrongly accepted"]["value"] > 0.2
    assert rows["inputs: tracebacks"]["value"] > 0.01
    assert not rows["inputs: wrongly accepted"]["met"]


def refuse(_path):
    raise UserError("bad", "mend it")


@pytest.mark.parametrize(
    ("read", "found"),
    [
        (lambda path: ["a"], "accepted"),
        (lambda path: ["b"], "misread"),
        (refuse, "refused"),
        (lambda path: refuse(path) if not path else 1 / 0, "traceback"),
        (lambda path: time.sleep(1), "hang"),
        (lambda path: (_ for _ in ()).throw(UserError("two\nlines", "no")), "traceback"),
    ],
)
def test_outcomes_are_told_apart(tmp_path, monkeypatch, read, found):
    """Accepted, read wrongly, refused in one sentence, any other exception, and more than the time allowed."""
    monkeypatch.setattr(run, "SECONDS", 0.2)

    assert outcome(Case("x", "accept", "a.csv", b"", ["a"]), read, tmp_path)[0] == found


def test_files_that_are_none_are_put_and_taken_away(tmp_path):
    """Each kind of thing that is no file stands there for the reader, and is gone afterwards."""
    for kind in ("fifo", "folder", "missing", "device", "loop", "large"):
        case = Case(kind, "refuse", "a.csv", kind)
        assert os.path.lexists(case.put(tmp_path)) == (kind != "missing")
        case.remove(tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_intervals_are_exact():
    """Of 73 without a failure the share is at most 4.93 % (two-sided 95 %, 1 - 0.025^(1/73)); none of none is no evidence."""
    row = share("x", 0, 73, "c")

    assert row["high"] == pytest.approx(1 - 0.025 ** (1 / 73), abs=1e-6)
    assert row["met"]
    assert not share("x", 1, 73, "c")["met"]
    assert not share("x", 0, 0, "c")["met"]
    assert not largest("x", 3, 2, 2, "c")["met"]


@pytest.mark.parametrize(
    ("code", "said", "refuses", "found"),
    [
        (0, "done", False, ""),
        (3, "expunge: x is missing; restore it", True, ""),
        (3, "expunge: x is missing; restore it", False, "did not work"),
        (0, "done", True, "did not refuse in one sentence"),
        (2, "Usage: expunge", True, "did not refuse in one sentence"),
        (5, "expunge: unforeseen KeyError", True, "did not refuse in one sentence"),
        (4, "Traceback (most recent call last)\nexpunge: y", True, "traceback"),
    ],
)
def test_a_command_in_a_place_works_or_refuses_as_it_should(code, said, refuses, found):
    """A refusal where the command must work is as wrong as the reverse; a traceback always is."""
    assert places.Ended(code, said).fault("check", refuses=refuses) == found
    assert places.Ended(1, "").fault("verdict", refuses=False) == ""


def test_half_written_files_are_found(tmp_path):
    """A partial file, YAML that cannot be read, and an image of no bytes."""
    (tmp_path / "requests.yaml").write_text("requests: {}\n")
    (tmp_path / "dvc.lock").write_text("stages: {}\n")
    assert places.broken(tmp_path) == []
    (tmp_path / ".requests.yaml.partial").touch()
    (tmp_path / places.OUT).touch()
    assert places.broken(tmp_path) == [".requests.yaml.partial", places.OUT]
    (tmp_path / "requests.yaml").write_text("requests: {")
    assert len(places.broken(tmp_path)) == 3


def test_a_byte_is_altered_in_what_a_file_says(tmp_path):
    """Exactly one bit differs; in requests.yaml and params.yaml never in a comment or in a section that no stage reads."""
    path, rng = tmp_path / "params.yaml", random.Random(0)
    whole = b"# a long comment that nobody reads\npromote: {size: quick, margin: {}}\nsae: {k: 3}\n"
    for _ in range(50):
        at, content = altered.bit_changed(path, whole, rng)
        assert at >= whole.index(b"sae") - 1 or altered.says(content) == content
        assert (int.from_bytes(whole) ^ int.from_bytes(content)).bit_count() == 1


@pytest.mark.slow
def test_a_writer_that_writes_nothing_is_found_out(tmp_path, monkeypatch):
    """An addition that ends well and leaves nothing is counted as lost, in the file and among those withdrawn later."""
    start = writers._start

    def forgetful(folder, *arguments):
        return start(folder, *(("list",) if arguments[:2] == ("add", "pizza") else arguments))

    monkeypatch.setattr(writers, "_start", forgetful)
    failed, wrong = writers.one_round(tmp_path / "project")

    assert failed == 0
    assert wrong == 2  # after the first ten, and at the end
