"""Tier 3: probes that start from real images, latents or noise, and train nothing.

N images, Z latent channels, h = w latent side
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from components.common.errors import UserError
from components.diffusion.sampling import decode_latents
from components.evaluate.probes.given import NEUTRAL, Given, draw_from, noised, schedule_of
from components.purify.purify import ITERATIONS, ddim_steps, guided, invert

PULL = 3.0
"""Length of a classifier's step, in standard deviations of a latent, spread over all steps."""


def completion(given: Given) -> list[np.ndarray]:
    """A real image taken part of the way up to noise and drawn to the end, by its plain prompt and by a prompt that says nothing."""
    _, times = schedule_of(given, given.size.strength)
    start = noised(given, given.latents, given.noise("completion"), times[0])
    return [
        draw_from(given, given.read(prompts), start, strength=given.size.strength)
        for prompts in (given.prompts, [NEUTRAL] * len(start))
    ]


def inpainting(given: Given) -> list[np.ndarray]:
    """The right 60 % of a real image drawn anew, the rest put back at every step; by both prompts.

    What remains of the real image is covered before the image is judged, so that the judge sees only what was drawn.
    """
    noise, side = given.noise("inpainting"), given.latents.shape[-1]
    hidden = torch.zeros(1, 1, side, side, device=noise.device)
    hidden[..., int(0.4 * side) :] = 1

    def put_back(x: torch.Tensor, timestep: int, rows: torch.Tensor) -> torch.Tensor:
        return hidden * x + (1 - hidden) * noised(given, given.latents[rows], noise[rows], timestep)

    drawn = [draw_from(given, given.read(p), noise, change=put_back) for p in (given.prompts, [NEUTRAL] * len(noise))]
    for images in drawn:
        images[:, :, : int(0.4 * images.shape[2])] = given.images[:, :1, :1]  # the corner: background
    return drawn


def added_noise(given: Given) -> list[np.ndarray]:
    """Plain prompts drawn with fresh noise at every step, half as much as DDPM adds and nearly as much (Lu et al. 2025)."""
    erased = given.read(given.prompts)
    return [draw_from(given, erased, given.noise("added", i), eta=eta) for i, eta in enumerate((0.5, 0.95))]


def start_latent(given: Given) -> list[np.ndarray]:
    """Noise to which the base inverts a real image of the target, as the start of both prompts (IVO, arXiv 2602.00175)."""
    start = inverted(given, 1.0)
    return [draw_from(given, given.read(p), start) for p in (given.prompts, [NEUTRAL] * len(start))]


def purification(given: Given) -> list[np.ndarray]:
    """Real images inverted part of the way by the base and drawn by the erased model, as `expunge purify` does."""
    start = inverted(given, given.size.strength)
    return [draw_from(given, given.read(given.prompts), start, strength=given.size.strength)]


def inverted(given: Given, strength: float) -> torch.Tensor:
    """(N, Z, h, w): the real images' latents taken back to noise by the base without a prompt."""
    pipe = given.victim.eraser.pipe
    steps = ddim_steps(pipe.scheduler.config, steps=given.size.steps, strength=strength)
    model = guided(pipe, given.victim.eraser.read([""], variant="base").uncond)
    parts = given.latents.split(given.batch)
    return torch.cat([invert(model, part, steps, iterations=ITERATIONS) for part in parts])


def classifier_guidance(given: Given) -> list[np.ndarray]:
    """Both prompts, each step moved by the gradient of a judge that the attacker has, which is not the one that decides."""
    helper: Any = given.helper  # a world's own has the names of what its network tells
    net: Any = getattr(helper, "net", None)
    if not isinstance(net, torch.nn.Module):
        raise UserError("no second judge has a gradient", "set probe.second_judge, or leave classifier-guidance out")
    pipe = given.victim.eraser.pipe
    concepts = given.labels[0] in helper.concept_names
    names = helper.concept_names if concepts else helper.style_names
    column = names.index(given.labels[0])

    def pull(x: torch.Tensor, timestep: int, _rows: torch.Tensor) -> torch.Tensor:
        if timestep == 0:
            return x
        with torch.enable_grad():
            moved = x.detach().requires_grad_()
            alpha = pipe.scheduler.alphas_cumprod[timestep]
            seen = pipe.vae.decode(moved * alpha.sqrt() / pipe.vae.config.scaling_factor, return_dict=False)[0]
            logits = net(seen.clamp(-1, 1))[0 if concepts else 1][:, column]
            (slope,) = torch.autograd.grad(logits.sum(), moved)
        length = slope.flatten(1).norm(dim=1).clamp(min=1e-8)[:, None, None, None]
        return x + PULL / given.size.steps * (x[0].numel() ** 0.5) * 0.2 * slope / length

    noise = given.noise("classifier")
    return [draw_from(given, given.read(p), noise, change=pull) for p in (given.prompts, [NEUTRAL] * len(noise))]


def autoencoded(given: Given) -> np.ndarray:
    """The real images through the autoencoder alone: what a judge finds there no probe had to recover."""
    return decode_latents(given.victim.eraser.pipe, given.latents)
