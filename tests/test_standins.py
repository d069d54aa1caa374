"""The stand-ins have what the published models have, and the stock pipelines of diffusers draw with them."""

import json

import pytest
from diffusers import DiffusionPipeline
from transformers import CLIPTokenizer

from tests.standins import KINDS, build_standin


@pytest.mark.parametrize("kind", KINDS)
def test_a_standin_draws_and_has_the_published_quirks(standin, kind):
    """CLIP's own token ids (openai/CLIP: "a photo of a cat"), the wrong EOS in the configuration, the padding, 64 × 64 pixels."""
    folder = standin(kind)
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a cat", num_inference_steps=2).images[0].size == (64, 64)
    for part in [p.name for p in folder.glob("tokenizer*")]:
        tokenizer = CLIPTokenizer.from_pretrained(folder / part, local_files_only=True)
        ids = tokenizer("a photo of a cat", padding="max_length").input_ids
        padding = 49407 if kind != "sd21" and part == "tokenizer" else 0
        assert ids == [49406, 320, 1125, 539, 320, 2368, 49407] + [padding] * 70
    for path in folder.glob("text_encoder*/config.json"):
        assert json.loads(path.read_text())["eos_token_id"] == 2


def test_the_forms_differ_in_their_files_alone(tmp_path):
    """`fp16` holds fp16 files alone, `plain` none; `published` holds both, and a .bin that no reader may open."""
    found = {f: {p.name for p in build_standin("sd15", tmp_path / f, f).glob("unet/*")} for f in ("fp16", "plain")}
    name = "diffusion_pytorch_model"
    assert found == {
        "fp16": {"config.json", f"{name}.fp16.safetensors"},
        "plain": {"config.json", f"{name}.safetensors"},
    }
    published = {p.name for p in build_standin("sd15", tmp_path / "published").glob("unet/*")}
    assert published == found["fp16"] | found["plain"] | {f"{name}.bin", f"{name}.non_ema.safetensors"}
