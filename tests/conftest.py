"""Tiny real models, so that tests run the product's own code in seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from components.diffusion.encode import spelling_patterns, word_ends
from components.filter.artifact import RequestFilter
from training.openmoji.unet import build_scheduler

os.environ["ACCELERATE_USE_CPU"] = "true"  # on any machine the same; test_gpu.py lifts it
ROOT = Path(__file__).parents[1]
BASE = ROOT / "assets" / "openmoji"


@pytest.fixture(autouse=True)
def _threads():
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    """The shipped tokenizer."""
    return CLIPTokenizer.from_pretrained(BASE / "tokenizer", local_files_only=True)


@pytest.fixture(scope="session")
def tiny_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A random two-layer CLIP text encoder of width 32 over the shipped vocabulary."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length, hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return CLIPTextModel(config).eval().requires_grad_(False)


def build_tiny_unet() -> UNet2DConditionModel:
    """A random U-Net of two levels, 8×8 latents, cross-attention to width 32."""
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(8, 16), layers_per_block=1,
        cross_attention_dim=32, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_tiny_unet() -> Callable[[], UNet2DConditionModel]:
    """Makes the same random U-Net anew at every call."""
    return build_tiny_unet


@pytest.fixture(scope="session")
def spelt_filter(tokenizer: CLIPTokenizer) -> Callable[[str, int], RequestFilter]:
    """(name, width of the residual stream) to a filter that flags the prompts in which `name` stands, and edits nothing."""

    def make(name: str, width: int) -> RequestFilter:
        return RequestFilter(
            features=torch.tensor([0]), own=torch.ones(1), w_enc=torch.zeros(width, 1), b_enc=torch.zeros(1),
            latent_threshold=torch.ones(1), w_dec=torch.zeros(1, width), b_dec=torch.zeros(width), weights=torch.zeros(1, 1),
            bias=torch.zeros(1), decision_threshold=torch.tensor(1.0), directions=torch.zeros(4, width),
            spellings=spelling_patterns(tokenizer, [name]), word_ends=word_ends(tokenizer),
        )  # fmt: skip

    return make


@pytest.fixture
def tiny_pipe(tiny_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """A random Stable Diffusion pipeline whose images are 16×16; a fresh U-Net for every test."""
    unet = build_tiny_unet().eval().requires_grad_(False)
    torch.manual_seed(2)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=1, sample_size=16,
    ).eval().requires_grad_(False)  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=tiny_encoder, tokenizer=tokenizer, unet=unet, scheduler=build_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe
