"""The base model and the judge that ship."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from components.diffusion.folder import check_folder
from components.diffusion.images import to_model
from components.diffusion.load import load_pipeline
from components.diffusion.sampling import trajectories
from components.diffusion.text import towers_of
from components.worlds.openmoji.judge import Judge
from components.worlds.openmoji.render import render, render_pair
from components.worlds.openmoji.world import WORLD
from training.openmoji.judge import ruin
from training.openmoji.report import TARGETS

ROOT = Path(__file__).parents[3]
BASE = ROOT / "assets" / "openmoji"


def test_base_opens_with_nothing_of_ours():
    """A program that imports diffusers alone, outside of the project, opens the folder with no option and draws an image."""
    program = (
        "import sys; from diffusers import StableDiffusionPipeline as P\n"
        "pipe = P.from_pretrained(sys.argv[1], local_files_only=True)\n"
        "image = pipe('a cat', num_inference_steps=2).images[0]\n"
        "assert 'components' not in sys.modules; print(image.size)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(BASE)], cwd="/", capture_output=True, text=True, check=False
    )

    assert done.stdout.strip() == "(64, 64)", done.stderr


def test_base_is_small_and_its_digests_hold():
    """The pipeline takes at most 40 MiB, and every file is the one that the sidecar names."""
    files = [p for p in BASE.rglob("*") if p.is_file() and p.parent.name != "judge"]

    check_folder(BASE)
    assert sum(p.stat().st_size for p in files) <= 40 * 2**20


def test_base_pads_to_the_full_length_with_eos():
    """As Stable Diffusion does: every prompt has the same length, filled with EOS."""
    pipe = load_pipeline(BASE)
    ids = pipe.tokenizer("a cat", padding="max_length", return_tensors="pt").input_ids[0]

    assert len(ids) == pipe.tokenizer.model_max_length == pipe.text_encoder.config.max_position_embeddings
    assert (ids[3:] == pipe.tokenizer.eos_token_id).all()
    assert pipe.text_encoder.config.num_hidden_layers >= 4
    assert pipe.scheduler.config.prediction_type == "v_prediction"


def test_base_opens_with_its_images_on_another_device():
    """All networks go where they are asked to; a trajectory runs there, from states and noise of the CPU."""
    pipe = load_pipeline(BASE, torch.device("meta"))
    states = towers_of(load_pipeline(BASE)).encode(["", "a cat"])
    *_, last = trajectories(
        pipe, states.rows([1]), states.rows([0]), torch.randn(1, 4, 16, 16), steps=2, guidance_scale=3.0
    )

    assert {part.device.type for part in (pipe.unet, pipe.vae, pipe.text_encoder, last.latents)} == {"meta"}
    assert states.states.device.type == "cpu"


def test_base_card_names_licence_and_source():
    """The model card carries the drawings' licence and attribution."""
    card = (BASE / "README.md").read_text()

    assert "cc-by-sa-4.0" in card
    assert "All emojis designed by OpenMoji" in card


def test_base_report_is_of_these_weights():
    """reports/base has every number with n and interval, and the digests of the weights in the repository."""
    from components.common.files import SIDECAR, digest

    found = json.loads((ROOT / "reports" / "base" / "metrics.json").read_text())

    assert found["base_sha256"] == digest(BASE / SIDECAR)
    assert found["judge_sha256"] == digest(BASE / "judge" / SIDECAR)
    for key in TARGETS:
        assert set(found[key]) == {"value", "n", "low", "high"}
        assert found[key]["low"] <= found[key]["value"] <= found[key]["high"]


@pytest.fixture(scope="module")
def judge():
    return Judge.load(BASE / "judge")


def test_judge_recognises_renders_it_has_not_seen(judge):
    """On a held-out render of every fifth concept in every style it names concept and style, nine times in ten at least."""
    listed = [(c, s) for c in WORLD.concept_names[::5] for s in WORLD.style_names]
    said = judge(np.stack([render(c, s, 3_000_000 + i) for i, (c, s) in enumerate(listed)]))

    assert np.mean([a == c for a, (c, _) in zip(said.top(), listed, strict=True)]) > 0.9
    assert np.mean([a == s for a, (_, s) in zip(said.style(), listed, strict=True)]) > 0.9


def test_judge_finds_both_of_a_pair(judge):
    """In most pairs both concepts are found."""
    pairs = [("cat", "car"), ("robot", "tree"), ("owl", "key"), ("pizza", "ghost"), ("crown", "bee"), ("axe", "fish")]
    said = judge(np.stack([render_pair(a, b, "sticker", 3_000_000 + i) for i, (a, b) in enumerate(pairs)]))

    assert np.mean([{a, b} <= found for (a, b), found in zip(pairs, said.present(), strict=True)]) > 0.5


def test_judge_answers_none_when_there_is_nothing(judge):
    """Noise, blanks, blurs, collages and mixtures of renders are mostly unrecognisable to it."""
    real = to_model(np.stack([render(c, "sticker", 3_000_000) for c in WORLD.concept_names]))
    spoiled = ruin(real, torch.Generator().manual_seed(0))
    images = ((spoiled + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()

    assert np.mean([a == "none" for a in judge(images).top()]) > 0.8
