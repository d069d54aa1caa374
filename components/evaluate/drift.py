"""How far the adapters move the unconditional output, which All but One asks to hold (invariant 5)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from components.common.seeding import stream_seed
from components.diffusion.conditioning import denoise
from components.diffusion.sampling import start_noise, trajectories
from components.eraser import Eraser
from components.evaluate.metrics import mean_interval
from components.guidance.losses import relative_drift

BUCKETS = 5
"""Buckets of timesteps."""
PROMPTS = 16
"""Prompts whose trajectories are followed."""


def measure_drift(
    eraser: Eraser, prompts: Sequence[str], members: Sequence[Sequence[str]], *, seed: int
) -> list[dict[str, Any]]:
    """|out_θ(x_t, ∅) - out*(x_t, ∅)| / |out*(x_t, ∅)| by bucket of timesteps, for each group of adapters in `members`.

    The states x_t are those of the frozen model's trajectories, which are run once for all groups.
    """
    pipe, prompts = eraser.pipe, list(prompts)[:PROMPTS]
    total = pipe.scheduler.config.num_train_timesteps
    frozen = eraser.read(prompts, variant="base")
    noise = start_noise(pipe, [stream_seed(seed, "drift", i) for i in range(len(prompts))])
    track = trajectories(
        pipe, frozen.cond, frozen.uncond, noise, steps=eraser.solver_steps, guidance_scale=eraser.guidance_scale
    )
    found: list[dict[int, list[float]]] = [{} for _ in members]
    for state, after in pairwise(track):
        assert after.said is not None  # on every step but the first
        empty = frozen.uncond.expand(len(prompts)).to(state.latents.device)
        bucket = min(BUCKETS - 1, state.timestep * BUCKETS // total)
        for group, names in zip(found, members, strict=True):
            with torch.no_grad(), eraser.acting(eraser.read([""], variant="guidance", requests=names)):
                edited = denoise(pipe.unet, state.latents, state.timestep, empty)
            group.setdefault(bucket, []).extend(relative_drift(edited, after.said[0]).tolist())
    width = total // BUCKETS
    return [
        {f"{b * width}-{(b + 1) * width}": mean_interval(group[b]).record() for b in sorted(group)} for group in found
    ]
