"""Sampling with a seed for each image, so that no image depends on its batch (invariant 8).

    B images, Z latent channels, h = w latent side, L token positions, D hidden

Classifier-free guidance (Ho & Salimans 2022) in the model's own output space, as diffusers applies it:
out = out(∅) + s (out(c) - out(∅)).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from components.common.seeding import generator
from components.diffusion.conditioning import Conditioning, denoise, joined
from components.diffusion.hooks import device_of


class Trajectory(NamedTuple):
    """The state of a batch at one solver step, before the step is taken, and what the model said on the way to it."""

    timestep: int
    latents: torch.Tensor
    """(B, Z, h, w)"""
    said: tuple[torch.Tensor, torch.Tensor] | None = None
    """out(x, ∅) and out(x, prompt), each (B, Z, h, w), at the state before this one; None at the first."""


def start_noise(pipe: StableDiffusionPipeline, seeds: Sequence[int]) -> torch.Tensor:
    """Unit noise (B, Z, h, w), each image's from its own seed."""
    shape = (pipe.unet.config.in_channels, pipe.unet.config.sample_size, pipe.unet.config.sample_size)
    rngs = [generator(seed, "image") for seed in seeds]
    return torch.stack([torch.randn(shape, generator=rng, dtype=torch.float32) for rng in rngs])


def solver(pipe: StableDiffusionPipeline) -> Any:  # noqa: ANN401 - a DPMSolverMultistepScheduler, which diffusers cannot say
    """DPM-Solver++ (Lu et al. 2022) with the pipeline's own betas and prediction type: good images in ten steps."""
    return DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, algorithm_type="dpmsolver++")


@torch.no_grad()
def trajectories(
    pipe: StableDiffusionPipeline,
    cond: Conditioning,  # of B prompts
    uncond: Conditioning,  # of one: the empty or negative prompt
    latents: torch.Tensor,  # (B, Z, h, w) unit noise
    *,
    steps: int,  # solver steps
    guidance_scale: float,
) -> Iterator[Trajectory]:
    """Yields the state before each solver step and, last, the finished latents at timestep 0, where the U-Net computes.

    A U-Net in another float type than float32 is asked in its own; the states stay in float32.
    """
    scheduler = solver(pipe)
    scheduler.set_timesteps(steps)
    x = latents.to(device_of(pipe.unet)) * scheduler.init_noise_sigma
    both = joined([uncond.expand(len(x)), cond]).map(lambda part: part.to(x.device, pipe.unet.dtype))
    said = None
    for timestep in scheduler.timesteps:
        yield Trajectory(int(timestep), x, said)
        doubled = scheduler.scale_model_input(torch.cat([x, x]), timestep)
        out_uncond, out_cond = denoise(pipe.unet, doubled.to(pipe.unet.dtype), timestep, both).to(x.dtype).chunk(2)
        said = out_uncond, out_cond
        x = scheduler.step(out_uncond + guidance_scale * (out_cond - out_uncond), timestep, x).prev_sample
    yield Trajectory(0, x, said)


@torch.no_grad()
def decode_latents(pipe: StableDiffusionPipeline, latents: torch.Tensor) -> np.ndarray:
    """Scaled latents (B, Z, h, w) to images (B, H, W, 3) uint8."""
    vae = pipe.vae
    upcast = vae.dtype == torch.float16 and vae.config.get("force_upcast")  # SDXL's overflows, as diffusers knows
    if upcast:
        vae.to(torch.float32)
    decoded = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0].float()
    if upcast:
        vae.to(torch.float16)
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def sample(
    pipe: StableDiffusionPipeline,
    cond: Conditioning,  # of B prompts
    uncond: Conditioning,  # of one
    seeds: Sequence[int],
    *,
    steps: int,
    guidance_scale: float,
    batch: int = 32,
) -> np.ndarray:
    """Images (B, H, W, 3) uint8 for prompts already encoded."""
    images = []
    for start in range(0, len(seeds), batch):
        part = slice(start, start + batch)
        noise = start_noise(pipe, seeds[part])
        *_, last = trajectories(pipe, cond.rows(part), uncond, noise, steps=steps, guidance_scale=guidance_scale)
        images.append(decode_latents(pipe, last.latents))
    return np.concatenate(images) if images else np.zeros((0, 64, 64, 3), np.uint8)
