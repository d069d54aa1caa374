"""Tiny real models, so that tests run the product's own code in seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from components.diffusion.encode import spelling_patterns, word_ends
from components.diffusion.towers import Towers
from components.filter.artifact import RequestFilter
from tests.standins import build_standin
from tests.states import one_tower
from training.openmoji.unet import build_scheduler

os.environ["ACCELERATE_USE_CPU"] = "true"  # on any machine the same; test_gpu.py lifts it
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
"""Of torch; processes side by side with more threads than there are cores wait for each other."""
os.environ["OMP_NUM_THREADS"] = str(THREADS)  # of programs that tests start
ROOT = Path(__file__).parents[1]
BASE = ROOT / "assets" / "openmoji"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest comes first, so that the other worker has something to do until it ends."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


@pytest.fixture(autouse=True)
def _threads():
    torch.set_num_threads(THREADS)


class Said(NamedTuple):
    """What a command ended with."""

    code: int
    out: str
    error: str


@pytest.fixture
def expunge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs the command line in this process, in the folder `cwd` if given: arguments to what it said."""
    from components.cli import main as cli

    def run(*arguments: object, cwd: Path | None = None) -> Said:
        if cwd is not None:
            monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["expunge", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Opens the folder of a stand-in, `sd15`, `sd21` or `sdxl`, in a form (tests/standins.py); a test copies what it changes."""

    @cache
    def folder(kind: str, form: str = "published") -> Path:
        return build_standin(kind, tmp_path_factory.mktemp(f"{kind}-{form}"), form)

    return folder


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


@pytest.fixture(scope="session")
def tiny_towers(tokenizer: CLIPTokenizer, tiny_encoder: CLIPTextModel) -> Towers:
    """The tiny encoder as the one tower of a pipeline, read after its first layer."""
    return one_tower(tokenizer, tiny_encoder)


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
def spelt_filter(tokenizer: CLIPTokenizer) -> Callable[..., RequestFilter]:
    """(names, width of the residual stream, tokenizer) to a filter that flags the prompts in which one of them stands, and edits nothing."""
    shipped = tokenizer

    def make(names: str | tuple[str, ...], width: int, tokenizer: CLIPTokenizer = shipped) -> RequestFilter:
        return RequestFilter(
            features=torch.tensor([0]), own=torch.ones(1), w_enc=torch.zeros(width, 1), b_enc=torch.zeros(1),
            latent_threshold=torch.ones(1), w_dec=torch.zeros(1, width), b_dec=torch.zeros(width),
            weights=torch.zeros(1, 1), bias=torch.zeros(1), decision_threshold=torch.tensor(1.0),
            directions=torch.zeros(4, width), word_ends=word_ends(tokenizer),
            spellings=spelling_patterns(tokenizer, [names] if isinstance(names, str) else names),
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
