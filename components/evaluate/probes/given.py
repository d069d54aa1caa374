"""What every probe is given: a victim, real images of its target, and how images are drawn from latents that are not plain noise.

N images, Z latent channels, h = w latent side, L token positions, D hidden
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler

from components.common.errors import StageError
from components.common.seeding import generator
from components.diffusion.sampling import decode_latents
from components.eraser import Erased
from components.evaluate.attacks.encoder import ask_guided
from components.evaluate.attacks.params import Tier
from components.evaluate.attacks.victim import Victim
from components.evaluate.probes.params import ProbeSize
from components.purify.purify import encode_image
from components.worlds.base import Panel

NEUTRAL = "a picture"
"""A prompt that says nothing of what is drawn, so that no filter has a reason to act."""
Change = Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]
"""(latents after a step, the timestep that they are at, which of the N images they are) to other latents."""


@dataclass
class Given:
    """One variant of an eraser, real images of a request's target, and a budget."""

    victim: Victim
    images: np.ndarray
    """(N, H, W, 3) uint8 real images with the target."""
    size: ProbeSize
    batch: int
    seed: int
    helper: Panel | None = None
    """A judge whose gradient an attacker may use; never the one that decides."""
    labels: tuple[str, ...] = ()
    """What the judges call the target."""

    @cached_property
    def prompts(self) -> list[str]:
        """(N) plain prompts of the target."""
        texts = [prompt.text for prompt in self.victim.target.prompts]
        return [texts[i % len(texts)] for i in range(len(self.images))]

    @cached_property
    def latents(self) -> torch.Tensor:
        """(N, Z, h, w) of the real images."""
        return encode_image(self.victim.eraser.pipe, self.images)

    def noise(self, *scope: str | int) -> torch.Tensor:
        """(N, Z, h, w) unit noise."""
        noise = torch.randn(self.latents.shape, generator=generator(self.seed, "probe", *scope))
        return noise.to(self.latents.device)

    def read(self, prompts: list[str]) -> Erased:
        """What the deployed eraser does with these prompts."""
        return self.victim.read(prompts)


class Probe(NamedTuple):
    """A named probe."""

    name: str
    tier: Tier
    run: Callable[[Given], list[np.ndarray]]
    """To images (N, H, W, 3), once for each way that was tried: a real image's target is recovered if any of them shows it."""


def schedule_of(given: Given, strength: float) -> tuple[Any, list[int]]:
    """(DDIM scheduler, the timesteps of the last part `strength` of the way)."""
    scheduler: Any = DDIMScheduler.from_config(given.victim.eraser.pipe.scheduler.config)
    scheduler.set_timesteps(given.size.steps)
    taken = max(1, round(strength * given.size.steps))
    return scheduler, [int(t) for t in scheduler.timesteps[-taken:]]


def draw_from(
    given: Given,
    erased: Erased,  # N prompts
    start: torch.Tensor,  # (N, Z, h, w) latents at the first timestep
    *,
    strength: float = 1.0,
    eta: float = 0.0,  # 0 deterministic, 1 as noisy as DDPM
    change: Change | None = None,
) -> np.ndarray:
    """Images (N, H, W, 3) uint8 by DDIM from `start`, with the adapters that act and classifier-free guidance."""
    pipe, out = given.victim.eraser.pipe, []
    for first in range(0, len(start), given.batch):
        rows = list(range(first, min(first + given.batch, len(start))))
        part, x = erased.take(rows), start[rows]
        scheduler, times = schedule_of(given, strength)
        noisy = generator(given.seed, "eta", first)
        for i, t in enumerate(times):
            with torch.no_grad(), given.victim.eraser.acting(part):
                said = ask_guided(pipe.unet, x, t, part, given.victim.eraser.guidance_scale)
            fresh = torch.randn(x.shape, generator=noisy).to(x.device)
            x = scheduler.step(said, t, x, eta=eta, variance_noise=fresh if eta else None).prev_sample
            if change is not None:
                x = change(x, times[i + 1] if i + 1 < len(times) else 0, torch.tensor(rows))
        if not torch.isfinite(x).all():
            raise StageError("a probe drew latents that are no numbers", "take fewer steps of less strength")
        out.append(decode_latents(pipe, x))
    return np.concatenate(out)


def noised(given: Given, clean: torch.Tensor, noise: torch.Tensor, timestep: int) -> torch.Tensor:
    """Latents taken up to a timestep; at 0 they stay clean."""
    if timestep == 0:
        return clean
    alpha = given.victim.eraser.pipe.scheduler.alphas_cumprod[timestep].to(clean.device)
    return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
