import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from components.common.files import digest
from components.diffusion.folder import part_digests
from components.diffusion.load import load_pipeline
from components.guidance.adapters import MADE_FOR, attach, write_adapter
from components.requests.requests import load_requests
from components.worlds.openmoji.render import render
from components.worlds.openmoji.scenes import HELD_OUT_SEEDS

ROOT = Path(__file__).parents[3]
BASE = ROOT / "assets" / "openmoji"


def fabricate(pipe, project):
    """An adapter with small random weights for r-1, written as one trained on the base that ships for the record that lies there."""
    record = project / "data" / "concepts" / "r-1"
    record.mkdir(parents=True)
    request = load_requests(project / "requests.yaml")["r-1"].model_dump(mode="json")
    (record / "request.json").write_text(json.dumps({"request": request}))
    rng = torch.Generator().manual_seed(0)
    for parameter in attach(pipe.unet, "made", rank=4):
        parameter.data = 0.01 * torch.randn(parameter.shape, generator=rng)
    inputs = part_digests(BASE, MADE_FOR) | {"concepts": digest(record)}
    write_adapter(project / "models" / "guidance" / "r-1", pipe.unet, "made", params={}, inputs=inputs, facts={})


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one request and an image, without adapters."""
    params = (ROOT / "params.yaml").read_text().replace("path: assets/openmoji", f"path: {BASE}")
    (tmp_path / "params.yaml").write_text(params)
    (tmp_path / "requests.yaml").write_text(
        "requests:\n  r-1: {target: cat, kind: object, anchor: dog}\n  r-2: {target: owl, kind: object, channels: [filter]}\n"
    )
    Image.fromarray(render("cat", "sticker", HELD_OUT_SEEDS, size=80)).save(tmp_path / "cat.png")
    (tmp_path / "taken-before-after.png").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_cli_purify_writes_the_image_and_the_before_after(project, expunge):
    """A dry run writes nothing; then the image, and three side by side, with a notice of the resizing."""
    pipe = load_pipeline(BASE)
    fabricate(pipe, project)
    options = ("purify", "cat.png", "--steps", "4", "--output", "out.png")
    code, out, error = expunge(*options, "--dry-run")
    assert code == 0, error
    assert "would purify cat.png of r-1 as 'a cat' into out.png and out-before-after.png" in out
    assert not list(project.glob("out*"))
    code, out, error = expunge(*options)

    assert code == 0, error
    assert "cat.png is 80×80; it is resized to 64×64" in out
    assert Image.open(project / "out.png").size == (64, 64)
    assert Image.open(project / "out-before-after.png").size == (192, 64)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("cat.png",), 3, "models/guidance/r-1 holds no artifact.json; run the stage that writes it: dvc repro"),
        (("params.yaml",), 2, "params.yaml is no image that can be read; name a PNG, JPEG, WebP or BMP"),
        (("cat.png", "--request", "r-0"), 2, "request 'r-0' is not in requests.yaml; use one of: r-1, r-2"),
        (("cat.png", "--request", "r-2"), 2, "request r-2 has no guidance channel; use one of: r-1"),
        (("cat.png", "--output", "cat.png"), 2, "--output cat.png would overwrite cat.png; name another file"),
        (("cat.png", "--output", "."), 2, "--output . cannot be written: its name does not end in .png"),
        (("cat.png", "--output", ""), 2, "cannot be written"),
        (
            ("cat.png", "--output", "taken.png"),
            2,
            "--output taken-before-after.png cannot be written: it is a folder",
        ),
        (("cat.png", "--output", "x.jpg"), 2, "--output x.jpg cannot be written"),
    ],
)
def test_cli_purify_bad_input_is_one_sentence(project, expunge, arguments, code, said):
    """A mistake is one line and an exit code, and nothing is written."""
    before = set(project.iterdir())
    found, _, error = expunge("purify", *arguments)

    assert found == code
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert set(project.iterdir()) == before
