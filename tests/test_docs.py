"""What the documents show in Python is run as it stands there."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from components.common.files import new_folder
from components.diffusion.folder import TEXT_PARTS, part_digests
from components.diffusion.load import load_pipeline
from components.diffusion.text import towers_of
from components.filter.artifact import write_filters
from components.guidance.adapters import MADE_FOR, attach, write_adapter

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
REQUESTS = "requests:\n  r:\n    target: cat\n    kind: object\n    aliases: [kitty]\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory, spelt_filter):
    """A project with the base that ships, a filter that flags kitty or cat and edits, and an adapter that changes something."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "assets").symlink_to(ROOT / "assets")
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (folder / "requests.yaml").write_text(REQUESTS)
    base = ROOT / "assets/openmoji"
    pipe = load_pipeline(base)
    towers = towers_of(pipe, ["encoder.layers.0"])
    width = towers.stream(towers.tokenize([""])).shape[-1]
    item = spelt_filter(("cat", "kitty"), width)._replace(directions=torch.full((4, width), 0.3))
    with new_folder(folder / "models/filter") as partial:
        inputs = part_digests(base, TEXT_PARTS)
        write_filters(partial, {"r": item}, towers=towers, params={}, inputs=inputs, facts={})
    for parameter in attach(pipe.unet, "r", rank=2, seed=0):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    inputs = part_digests(base, MADE_FOR)
    write_adapter(folder / "models/guidance/r", pipe.unet, "r", params={}, inputs=inputs, facts={})
    return folder


def run(document, monkeypatch, folder):
    """Runs the document's one Python block in `folder`, with few solver steps, and returns what it defined."""
    monkeypatch.chdir(folder)
    (code,) = BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))
    torch.manual_seed(0)
    space: dict[str, Any] = {}
    exec(code.replace("num_inference_steps=25", "num_inference_steps=3"), space)  # noqa: S102 - the document's own code is what is tested
    return space, code


def test_readme_example_draws_and_says_what_was_flagged(project, monkeypatch, capsys):
    """Eight lines or so of the README write the erased image, name the request, and draw with a diffusers call of one's own."""
    space, code = run("README.md", monkeypatch, project)

    assert len([line for line in code.splitlines() if line.strip()]) <= 9
    assert capsys.readouterr().out.strip() == "('r',)"
    drawn = np.asarray(Image.open(project / "kitty.png"))
    base = np.asarray(space["eraser"].draw("a kitty in neon style", seed=3, variant="base").image)
    assert (drawn != base).any()
    assert len(space["images"]) == 2


def test_pipeline_example_is_gated(project, monkeypatch, capsys):
    """docs/pipeline.md's block edits the flagged prompt, and the other's image is that of a stock call with the same noise."""
    space, _ = run("docs/pipeline.md", monkeypatch, project)
    assert capsys.readouterr().out.strip() == "[('r',), ()]"
    torch.manual_seed(0)
    how = {"negative_prompt": ["blurry"] * 2, "num_inference_steps": 3}
    with space["eraser"].unguarded():
        stock = space["eraser"].pipe(["a cat in neon style", "a castle"], **how).images

    assert (np.asarray(stock[0]) != np.asarray(space["images"][0])).any()
    np.testing.assert_array_equal(np.asarray(stock[1]), np.asarray(space["images"][1]))
