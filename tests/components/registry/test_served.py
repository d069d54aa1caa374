import json
import shutil
import sqlite3

import pytest
import torch

from components.common.errors import ArtifactError, UserError
from components.common.files import SIDECAR, digest
from components.common.sections import read_section
from components.diffusion.folder import TEXT_PARTS, part_digests
from components.diffusion.text import towers_of
from components.features.params import FeaturesParams
from components.filter.artifact import write_filters
from components.guidance.adapters import MADE_FOR, attach, write_adapter
from components.guidance.params import GuidanceParams
from components.registry.register import register_tree
from components.registry.release import build_release
from components.registry.served import find_release
from expunge import Eraser
from research.releases import DRAW, elsewhere, mlflow_server
from tests.toyrelease import attack, edit, evaluate, lock, put


@pytest.fixture
def drawing(project, tiny_pipe, spelt_filter):
    """The toy project with a base that draws, a filter that flags `cat`, and an adapter that acts on it."""
    params = project / "params.yaml"
    shutil.rmtree(project / "base")
    tiny_pipe.save_pretrained(project / "base")
    inputs = {"sae": digest(project / "models/sae" / SIDECAR), "concepts": digest(project / "data/concepts")}
    settings = read_section("features", FeaturesParams, params).model_dump()
    for old in (project / "models/filter").iterdir():
        old.unlink()
    item = spelt_filter("cat", 32)._replace(directions=torch.ones(4, 32))
    write_filters(
        project / "models/filter", {"r-1": item}, towers=towers_of(tiny_pipe, ["encoder.layers.0"]), params=settings,
        inputs=inputs | {"corpus": digest(project / "data/corpus")} | part_digests(project / "base", TEXT_PARTS), facts={"detail": {"r-1": {"names": ["cat"]}}},
    )  # fmt: skip
    for parameter in attach(tiny_pipe.unet, "default", rank=2):
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(3))
    write_adapter(
        project / "models/guidance/r-1", tiny_pipe.unet, "default", facts={},
        params=read_section("guidance", GuidanceParams, params).model_dump(),
        inputs=part_digests(project / "base", MADE_FOR) | {"concepts": digest(project / "data/concepts/r-1")},
    )  # fmt: skip
    made_from = {"filter": digest(project / "models/filter" / SIDECAR)}
    report = project / "models/onnx/parity.json"
    edit(report, made_from=json.loads(report.read_text())["made_from"] | made_from)
    evaluate(project)
    attack(project)
    lock(project)
    return project


def test_the_eraser_of_a_release_draws_what_the_projects_draws(drawing, tmp_path, monkeypatch):
    """From a folder, with the base beside it: the same image as from the working tree, and another than the base's."""
    monkeypatch.chdir(tmp_path)
    release = build_release(drawing, tmp_path / "release")

    ours = Eraser.open(drawing)
    theirs = Eraser.from_release(release.folder, base=drawing / "base")

    assert theirs.requests == ("r-1",)
    found = theirs.draw("a cat", seed=3, steps=2)
    assert found.flagged == ("r-1",)
    assert found.image.tobytes() == ours.draw("a cat", seed=3, steps=2).image.tobytes()
    assert found.image.tobytes() != ours.draw("a cat", seed=3, steps=2, variant="base").image.tobytes()


def test_the_eraser_of_a_release_refuses_another_base(drawing, tmp_path):
    """One byte of the base differs from what was evaluated: no eraser."""
    release = build_release(drawing, tmp_path / "release")
    put(drawing / "base/unet/config.json", (drawing / "base/unet/config.json").read_text() + "\n")

    with pytest.raises(ArtifactError, match="is not the base of release"):
        Eraser.from_release(release.folder, base=drawing / "base")


def test_the_eraser_of_a_release_refuses_an_altered_one(drawing, tmp_path):
    """A file that was added to the folder is enough."""
    release = build_release(drawing, tmp_path / "release")
    put(release.folder / "adapters/r-2/x", "x")

    with pytest.raises(ArtifactError, match="is not part of the release"):
        Eraser.from_release(str(release.folder), base=drawing / "base")


@pytest.mark.parametrize("reference", ["models:/other@champion", "no such thing", "models:/expunge"])
def test_a_reference_that_names_nothing_is_one_sentence(tmp_path, reference):
    """Neither a folder nor a version."""
    with pytest.raises(UserError, match=r"names no version|is a version of another model"):
        find_release(reference, tmp_path)


def test_commands_take_a_release(drawing, tmp_path, expunge):
    """`generate --release` draws with its filters, `explain --release` says why, `--dry-run` checks it and draws nothing."""
    release = build_release(drawing, tmp_path / "release")

    said = expunge("generate", "a cat", "--release", release.folder, "--output", tmp_path / "x.png", cwd=drawing)
    assert (said.code, "flagged by cat" in said.out) == (0, True)
    said = expunge("explain", "a cat", "--release", release.folder, cwd=drawing)
    assert "r-1  cat          FLAGGED" in said.out
    put(release.folder / "extra", "x")
    said = expunge("generate", "a cat", "--release", release.folder, "--dry-run", cwd=drawing)
    assert (said.code, "is not part of the release" in said.error) == (3, True)


@pytest.mark.slow
def test_a_release_reaches_another_place_through_the_server(drawing, tmp_path, monkeypatch):
    """Registered from one folder, fetched from another with another home: the same image, and no path of ours in the server's database."""
    server, home, out = tmp_path / "server", tmp_path / "elsewhere", tmp_path / "out"
    for folder in (server, home, out):
        folder.mkdir()
    with mlflow_server(server) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        found = register_tree(drawing, "ann")
        elsewhere(home, uri, "-c", DRAW, "models:/expunge@candidate", drawing / "base", out, "a cat")
        said = elsewhere(home, uri, "-m", "expunge", "pull", "@candidate", home / "pulled")

    assert (out / "0.raw").read_bytes() == Eraser.open(drawing).draw("a cat", seed=0).image.tobytes()
    assert found.digest[:12] in said
    assert digest(home / "pulled/release.json") == found.digest
    with sqlite3.connect(server / "db") as database:
        dump = "\n".join(database.iterdump())
    assert "mlflow-artifacts:/" in dump
    assert "file://" not in dump
    assert str(tmp_path) not in dump
