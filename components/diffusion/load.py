"""Opens a diffusers StableDiffusionPipeline folder, frozen and in fp32."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline

from components.diffusion.folder import check_folder


def accelerator_device() -> torch.device:
    """Where accelerate computes: this process's GPU if it has one, else the CPU; the CPU where ACCELERATE_USE_CPU is true."""
    return Accelerator(mixed_precision="no").device  # `PartialState`, asked first, would not read that variable


def load_pipeline(folder: Path, device: torch.device | None = None) -> StableDiffusionPipeline:
    """The pipeline in fp32, nothing requiring a gradient, without safety checker or progress bar.

    U-Net and VAE are put on `device`, by default the CPU. The text encoder stays on the CPU, where all that reads hidden
    states has its own tensors; what samples takes states and noise from there.
    """
    check_folder(folder)
    pipe = StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, safety_checker=None, requires_safety_checker=False, local_files_only=True
    )
    for part in (pipe.text_encoder, pipe.unet, pipe.vae):
        part.eval().requires_grad_(False)
    for part in (pipe.unet, pipe.vae):
        part.to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe
