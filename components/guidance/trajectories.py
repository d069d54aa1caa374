"""Trajectories of the frozen model, sampled once: the states that an adapter trains on, and the outputs that it aims at.

    N cached states, P prompts, Z latent channels, h = w latent side

The frozen outputs that the loss needs are computed on the way, so that a training step runs the trained model alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from tqdm import tqdm

from components.common.seeding import stream_seed
from components.diffusion.conditioning import Conditioning, denoise
from components.diffusion.sampling import start_noise, trajectories
from components.guidance import recipe
from components.guidance.params import GuidanceParams


class TrajectoryCache(NamedTuple):
    """States of frozen trajectories, and what the frozen model says there."""

    latents: torch.Tensor
    """(N, Z, h, w) x_t."""
    timesteps: torch.Tensor
    """(N,)"""
    prompt: torch.Tensor
    """(N,) row of the prompt pair (target, anchor) or of the retain prompt."""
    uncond: torch.Tensor
    """(N, Z, h, w) out*(x_t, ∅)."""
    cond: torch.Tensor
    """(N, Z, h, w) out*(x_t, anchor) or out*(x_t, retain)."""


def precision_of(params: GuidanceParams, device: torch.device) -> torch.autocast:
    """The precision of frozen and trained passes alike: were they different, an adapter that changes nothing would have a loss."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=params.precision == "bf16")


@contextmanager
def in_training_form(unet: UNet2DConditionModel, params: GuidanceParams) -> Iterator[None]:
    """Within the block the U-Net trades time for memory as `params` says, and on a CPU attends in a form whose gradient is fast."""
    before = dict(unet.attn_processors)
    if unet.device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())
    if params.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()
        unet.set_attn_processor(before)


def cache_trajectories(
    pipe: StableDiffusionPipeline,
    drawn: Conditioning,  # of P prompts: what the trajectories draw
    wanted: Conditioning | None,  # of P: the prompts whose frozen output is the aim; None: the unconditional one
    uncond: Conditioning,  # of one
    params: GuidanceParams,
    *,
    scope: str,  # names the stream of the noise
    solver_steps: int,
    guidance_scale: float,
) -> TrajectoryCache:
    """One frozen trajectory for each row of `drawn`, every solver step of it, in the host's memory.

    The outputs of sampling itself are used, so that only an aim that differs from what is drawn costs another pass.
    """
    parts: list[TrajectoryCache] = []
    count, batch = len(drawn.states), recipe.trajectory_batch(pipe.unet.config.sample_size)
    for start in tqdm(range(0, count, batch), desc=f"trajectories {scope}", unit="batch", mininterval=5):
        rows = torch.arange(start, min(start + batch, count))
        noise = start_noise(pipe, [stream_seed(params.seed, scope, int(r)) for r in rows])
        with torch.no_grad(), in_training_form(pipe.unet, params), precision_of(params, pipe.unet.device):
            states = trajectories(
                pipe, drawn.rows(rows), uncond, noise, steps=solver_steps, guidance_scale=guidance_scale
            )
            for state, after in pairwise(states):
                assert after.said is not None  # on every step
                out_uncond, cond = after.said
                if wanted is None:
                    cond = out_uncond
                elif (elsewhere := (drawn.states[rows] != wanted.states[rows]).flatten(1).any(1)).any():
                    x = state.latents[elsewhere]
                    aim = wanted.rows(rows[elsewhere]).to(x.device)
                    cond = cond.clone()
                    cond[elsewhere] = denoise(pipe.unet, x, state.timestep, aim).to(cond.dtype)
                time = torch.full((len(rows),), state.timestep)
                parts.append(TrajectoryCache(state.latents.cpu(), time, rows, out_uncond.cpu(), cond.cpu()))
    return TrajectoryCache(*(torch.cat(column) for column in zip(*parts, strict=True)))
