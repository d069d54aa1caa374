"""What commands read in the working tree is what belongs together there; each test ends with the tree as it was."""

import shutil

import pytest

from components.common.errors import ArtifactError
from components.common.files import SIDECAR, write_sidecar
from components.registry.working import check_base, check_note, check_own_adapters, check_read
from expunge import Eraser
from tests.toyrelease import write_project

TWO = {
    f"r-{i}": {"target": t, "kind": "object", "channels": ["filter", "guidance"]} for i, t in enumerate(("cat", "owl"))
}


@pytest.fixture
def swapped(tmp_path):
    """A project of two requests, each with an adapter of its own."""
    return write_project(tmp_path / "project", requests=TWO)


def test_an_adapter_in_another_requests_folder_is_refused(swapped):
    """The first request's adapter under the second's name, sidecar and all, is not the second's; one that was asked for alone is looked at alone."""
    check_own_adapters(swapped)
    shutil.rmtree(swapped / "models/guidance/r-1")
    shutil.copytree(swapped / "models/guidance/r-0", swapped / "models/guidance/r-1")

    check_own_adapters(swapped, ["r-0"])
    for variant in ("base", "filter"):
        check_own_adapters(swapped, variant=variant)
    for chosen in (None, ["r-1"]):
        with pytest.raises(
            ArtifactError, match="models/guidance/r-1 was trained for another request than data/concepts/r-1"
        ):
            check_own_adapters(swapped, chosen, "gated")
    with pytest.raises(ArtifactError, match="models/guidance/r-1 was trained for another request"):
        Eraser.open(swapped)


def test_altered_weights_of_an_adapter_are_refused_before_they_are_loaded(swapped):
    """One bit of the weights, of which the sidecar has the digest."""
    path = swapped / "models/guidance/r-0/pytorch_lora_weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ArtifactError, match=r"r-0/pytorch_lora_weights.safetensors was altered or cut short; restore it"
    ):
        check_own_adapters(swapped)


def test_a_base_that_changed_since_it_was_read_is_refused(project):
    """A byte of the sidecar that no other check reads; a base without a sidecar is known by its parts alone."""
    note = project / "base" / SIDECAR
    check_base(project)
    write_sidecar(note.parent, {"format": "expunge/base", "version": 1, "files": {}})
    with pytest.raises(ArtifactError, match=r"base is not what stage evaluate read \(dvc.lock\)"):
        check_read(project, "evaluate")
    check_note(note.parent)
    note.write_text("{")
    with pytest.raises(ArtifactError, match=r"artifact\.json is not JSON; restore it"):
        check_note(note.parent)
