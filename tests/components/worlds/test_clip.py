import shutil
from pathlib import Path

import numpy as np
import pytest

from components.common.errors import ArtifactError
from components.diffusion.text import load_towers
from components.worlds.openmoji.clip import ClipScore
from components.worlds.openmoji.scenes import HELD_OUT_SEEDS, Scene, draw

ASSETS = Path(__file__).parents[3] / "assets"
NAMES = ("cat", "car", "apple", "castle", "robot", "umbrella")


@pytest.fixture(scope="module")
def text():
    tokenizer, encoder, *_ = load_towers(ASSETS / "openmoji").first
    return encoder, tokenizer


def test_clip_score_knows_which_prompt_an_image_is_of(text):
    """Of six held-out renders each has its highest score with its own caption; the score is a cosine."""
    clip = ClipScore.load(ASSETS / "clip", *text)
    images = np.stack([draw(Scene((name,), "neon", HELD_OUT_SEEDS + i)) for i, name in enumerate(NAMES)])
    scores = np.stack([clip(images, [f"a {name} in neon style"] * len(NAMES)) for name in NAMES], 1)  # (image, prompt)

    assert scores.argmax(1).tolist() == list(range(len(NAMES)))
    assert np.abs(scores).max() <= 1 + 1e-6


def test_clip_score_does_not_depend_on_the_batch(text):
    """Batches of two give what one batch gives."""
    clip = ClipScore.load(ASSETS / "clip", *text)
    images = np.stack([draw(Scene((name,), "sticker", HELD_OUT_SEEDS)) for name in NAMES])
    prompts = [f"a {name}" for name in NAMES]

    np.testing.assert_allclose(clip(images, prompts, batch=2), clip(images, prompts), atol=1e-5)
    assert clip(images[:0], []).shape == (0,)


def test_clip_heads_that_were_altered_are_refused(text, tmp_path):
    """A truncated file is one sentence."""
    folder = Path(shutil.copytree(ASSETS / "clip", tmp_path / "clip"))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(ArtifactError, match="altered or cut short"):
        ClipScore.load(folder, *text)
