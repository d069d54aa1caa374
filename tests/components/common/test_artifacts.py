import json
import os
import resource
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from components.common.artifacts import WEIGHTS, fill_artifact, read_artifact
from components.common.errors import ArtifactError
from components.common.files import (
    SIDECAR,
    canonical,
    digest,
    naming,
    new_folder,
    read_sidecar,
    write_sidecar,
    write_text,
)
from components.evaluate.attacks.campaign import append_log

ROOT = Path(__file__).parents[3]
TENSORS = {"b": torch.arange(4.0), "a": torch.ones(2, 3)}


def write(folder, **changes):
    with new_folder(folder) as partial:
        fill_artifact(partial, **({"kind": "test/thing", "tensors": TENSORS} | changes))


def test_artifact_same_inputs_same_bytes(tmp_path):
    """Writing the same tensors twice, in another order of keys, gives the same digest of the whole folder."""
    write(tmp_path / "one")
    write(tmp_path / "two", tensors=dict(reversed(TENSORS.items())))

    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_artifact_round_trip(tmp_path):
    """What is read is what was written, tensor by tensor."""
    write(tmp_path / "x", params={"k": 3})

    tensors, sidecar = read_artifact(tmp_path / "x", "test/thing")

    assert sidecar["params"] == {"k": 3}
    assert all(torch.equal(tensors[k], v) for k, v in TENSORS.items())


def test_artifact_altered_byte_is_refused(tmp_path):
    """One flipped byte in the weights is refused, naming the file and how to restore it."""
    write(tmp_path / "x")
    path = tmp_path / "x" / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))

    with pytest.raises(ArtifactError, match=r"sha256 .* restore it with dvc checkout"):
        read_artifact(tmp_path / "x", "test/thing")


def test_artifact_truncated_is_refused(tmp_path):
    """Weights cut short are refused before they are parsed."""
    write(tmp_path / "x")
    path = tmp_path / "x" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-8])

    with pytest.raises(ArtifactError, match="altered or cut short"):
        read_artifact(tmp_path / "x", "test/thing")


def test_artifact_unknown_format_is_refused(tmp_path):
    """A reader of one format refuses another."""
    write(tmp_path / "x")

    with pytest.raises(ArtifactError, match="has format 'test/thing' version 1, not 'test/other'"):
        read_artifact(tmp_path / "x", "test/other")


def test_artifact_wrong_shape_is_refused(tmp_path):
    """A sidecar that declares another shape is refused, naming the tensor."""
    write(tmp_path / "x")
    path = tmp_path / "x" / SIDECAR
    sidecar = json.loads(path.read_text())
    sidecar["tensors"]["a"]["shape"] = [3, 2]
    del sidecar["seal"]
    write_sidecar(tmp_path / "x", sidecar)

    with pytest.raises(ArtifactError, match="disagree on a;"):
        read_artifact(tmp_path / "x", "test/thing")


def test_artifact_missing_is_refused(tmp_path):
    """A folder without a sidecar says which stage to run."""
    with pytest.raises(ArtifactError, match=r"holds no artifact.json; run the stage"):
        read_artifact(tmp_path, "test/thing")


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_new_folder_failure_keeps_the_old_one(tmp_path, failure):
    """A full disk or an interrupt half-way leaves the old folder whole and nothing half-written beside it."""
    write(tmp_path / "x")
    before = digest(tmp_path / "x")

    with pytest.raises((ArtifactError, KeyboardInterrupt)), new_folder(tmp_path / "x") as partial:  # noqa: PT012
        (partial / "half").write_text("…")
        raise failure

    assert digest(tmp_path / "x") == before
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@contextmanager
def no_space():
    """Inside, no file may grow beyond 2 KiB: writes fail half-way, as on a full disk.

    No fixture: pytest reports between a test and its fixtures' teardown, and its own output may go to a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_keeps_the_old_artifact(tmp_path):
    """When the disk fills up while tensors are written, the old artifact stays whole, and one sentence says so."""
    write(tmp_path / "x")
    before = digest(tmp_path / "x")
    refusal = r"could not be written \(.*\); free some space; what was there is unchanged"

    with no_space(), pytest.raises(ArtifactError, match=refusal):
        write(tmp_path / "x", tensors={"big": torch.zeros(100_000)})

    assert digest(tmp_path / "x") == before


def test_full_disk_keeps_the_old_text(tmp_path):
    """The same for a single file."""
    write_text(tmp_path / "t", "old")

    with no_space(), pytest.raises(ArtifactError, match="what was there is unchanged"):
        write_text(tmp_path / "t", "x" * 100_000)

    assert (tmp_path / "t").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_a_write_that_names_no_file_is_named(tmp_path):
    """What a full disk says of a file that grows, such as a log of attacks, gets the file's name; a name that is there stays."""
    with no_space(), pytest.raises(OSError, match="too large") as error:
        append_log(tmp_path / "log.jsonl", [{"prompt": "x" * 10_000}])
    assert error.value.filename == str(tmp_path / "log.jsonl")
    with pytest.raises(OSError, match="No such file") as error, naming(tmp_path):
        (tmp_path / "none" / "y").read_bytes()
    assert error.value.filename == str(tmp_path / "none" / "y")


def test_a_folder_that_cannot_be_written_is_no_full_disk(tmp_path):
    """The remedy is that of the error: rights and paths are not mended by space."""
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=r"could not be written \(File exists\); mend the path or its permissions"):
        write_text(tmp_path / "file" / "x", "x")


SHIPPED = [
    ("assets/openmoji", "expunge/base"),
    ("assets/openmoji/judge", "expunge/judge"),
    ("assets/clip", "expunge/clip-heads"),
]


@pytest.mark.parametrize(("folder", "kind"), SHIPPED)
def test_sidecars_that_ship_without_a_seal_are_refused_when_altered(tmp_path, folder, kind):
    """They are older than seals: whichever byte changes, a label of the judge included, they are refused, as is any other without one."""
    path = tmp_path / SIDECAR
    whole = (ROOT / folder / SIDECAR).read_bytes()
    path.write_bytes(whole)
    assert read_sidecar(tmp_path, kind)["format"] == kind
    for at in range(0, len(whole), 11):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ArtifactError):
            read_sidecar(tmp_path, kind)


def test_a_sidecar_without_a_seal_is_refused(tmp_path):
    """Taking the seal away is no way around it."""
    write(tmp_path / "x")
    sidecar = json.loads((tmp_path / "x" / SIDECAR).read_text())
    del sidecar["seal"]
    (tmp_path / "x" / SIDECAR).write_text(canonical(sidecar))

    with pytest.raises(ArtifactError, match="was altered"):
        read_sidecar(tmp_path / "x", "test/thing")


@pytest.mark.parametrize("at", range(0, 700, 7))
def test_a_sidecar_altered_in_one_byte_is_refused(tmp_path, at):
    """Whichever byte of artifact.json changes, the reader refuses it: values, keys, spaces and the seal itself."""
    write(tmp_path / "x", params={"k": 3}, facts={"hookpoint": "text_model.encoder.layers.1"})
    path = tmp_path / "x" / SIDECAR
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(bytes(data))

    with pytest.raises(ArtifactError):
        read_artifact(tmp_path / "x", "test/thing")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_are_readable_as_the_umask_says(tmp_path, umask):
    """Safetensors writes mode 0600; an artifact's files have the mode that any new file has."""
    before = os.umask(umask)
    try:
        write(tmp_path / "x")
    finally:
        os.umask(before)

    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "x").iterdir()} == {0o666 & ~umask}
