from pathlib import Path

import pandas as pd
import pytest
import torch

from components.common.files import new_folder
from components.common.paths import CORPUS, SAE
from components.diffusion.folder import TEXT_PARTS, part_digests
from components.diffusion.text import load_towers
from components.features.reading import Reader
from components.filter.artifact import read_filters
from components.sae.model import SparseAutoencoder, write_sae
from research.filter import adding
from research.filter.prompts import project_world

ROOT = Path(__file__).parents[2]
PARAMS = """
world: openmoji
base: {path: assets/openmoji, hookpoint: encoder.layers.0, guidance_scale: 3.0, solver_steps: 2}
concepts: {per_name: 4, retain: 20, mixed: 4, seed: 0}
features: {max_features: 8, context_features: 8, min_contrast: 0.05, fpr: 0.01, fpr_all: 0.02, acting: 2.0, fit: sample, positions: [target]}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of few prompts, whose autoencoder looks towards tokens of prompts that name concepts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "requests.yaml").write_text((ROOT / "requests.yaml").read_text())
    world = project_world()
    rows = [(text, "train", "english") for text in world.benign(300, split="train", seed=0)]
    rows += [(text, "calibrate", "english") for text in world.benign(300, split="calibrate", seed=0)]
    CORPUS.mkdir(parents=True)
    table = pd.DataFrame(rows, columns=["prompt", "split", "source"]).drop_duplicates("prompt")
    table.to_parquet(CORPUS / "prompts.parquet", index=False)
    towers = load_towers(Path("assets/openmoji"), ["encoder.layers.0"])
    names = [*world.concept_names, *world.style_names, "neon sign", "glowing"]
    sae = SparseAutoencoder(towers.stream(towers.tokenize([""])).shape[-1], len(names), k=4).requires_grad_(False)
    hidden = torch.stack([Reader(towers, sae).tokens([n]).hidden[0] for n in names])
    sae.initialise(hidden.mean(0), hidden - hidden.mean(0))
    sae.threshold.copy_(sae.pre_activations(hidden).diag() * 0.7)
    inputs = part_digests(Path("assets/openmoji"), TEXT_PARTS)
    with new_folder(SAE) as partial:
        write_sae(partial, sae, hookpoint="encoder.layers.0", params={"k": 4}, inputs=inputs, facts={})


@pytest.mark.usefixtures("project")
def test_adding_is_timed_on_all_that_it_writes(monkeypatch):
    """One time for each request that is added, each of which writes an artifact of the requests that exist and itself."""
    monkeypatch.setattr(adding, "TIMED", 2)
    written = []
    write = adding.write_all

    def spy(folder, filters, towers):
        write(folder, filters, towers)
        written.append(list(read_filters(folder).filters))

    monkeypatch.setattr(adding, "write_all", spy)
    seconds = [sum(spent) for spent in adding.time_additions(3, "sample")]

    assert len(seconds) == 2
    assert min(seconds) > 0
    assert [len(ids) for ids in written] == [4, 4]
    assert [ids[-1] for ids in written] == ["r-5c1e09a7", "r-d20b6f34"]
