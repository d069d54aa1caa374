"""Purifies a real image: deterministic DDIM inversion with the base, then resampling with the erased model.

    B images, Z latent channels, h = w latent side; t the noisier timestep of a step, s the next

All but One (arXiv 2312.12807) names the procedure; this is DDIM (Song et al. 2021, arXiv 2010.02502) at η = 0. With
x_t = √ᾱ_t z₀ + √(1-ᾱ_t) ε, a step is linear in the state and in the model's output,

    x_s = A x_t + B out(x_t, t)

    ε:  A = √(ᾱ_s/ᾱ_t),             B = √(1-ᾱ_s) - √(1-ᾱ_t) A
    v:  A = cos(φ_t - φ_s),         B = -sin(φ_t - φ_s),           cos φ = √ᾱ          (Salimans & Ho 2022)

The form for v has no division, so it is valid at zero terminal SNR (ᾱ_t = 0), where ε says nothing about z₀. Inverting a
step means solving it for x_t: x_t = (x_s - B out(x_t, t)) / A, a fixed point. One iteration from x_s is the usual DDIM
inversion, which takes out(x_s, t) for out(x_t, t); with a few more, resampling with the same model returns to the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from components.common.errors import UserError
from components.common.words import with_article
from components.diffusion.conditioning import Conditioning, denoise, joined
from components.diffusion.sampling import decode_latents
from components.eraser import Erased, Eraser
from components.requests.requests import Request

STEPS = 20
STRENGTH = 0.8
ITERATIONS = 3
"""Iterations of the fixed point: with 3, resampling with the base returns an image at 25 dB or more."""

Model = Callable[[torch.Tensor, int], torch.Tensor]
"""(x_t, t) to the model's own output, both (B, Z, h, w)."""


class DdimStep(NamedTuple):
    """One step from noise towards the image: x_s = A x_t + B out(x_t, t)."""

    timestep: int
    """t, at which the model is asked."""
    state_factor: float
    """A."""
    out_factor: float
    """B."""


class Purified(NamedTuple):
    """One purified image and two references, (H, W, 3) uint8 each."""

    image: np.ndarray
    """Resampled with the adapters."""
    reconstruction: np.ndarray
    """Resampled with the base alone, without a prompt: what inversion and resampling themselves do to the image."""
    autoencoder: np.ndarray
    """Encoded and decoded, no more."""


def purify(
    eraser: Eraser,
    image: np.ndarray,  # (H, W, 3) uint8, of the pipeline's own size
    erased: Erased,  # one prompt that says what the image shows, as `eraser.read` has it
    *,
    steps: int = STEPS,  # DDIM steps from pure noise to the image
    strength: float = STRENGTH,  # part of the steps that is taken; 0 is the autoencoder alone
    iterations: int = ITERATIONS,  # of the fixed point, each step
) -> Purified:
    """Inverts one image with the base and resamples it as `erased` says; no random number is drawn."""
    pipe, uncond = eraser.pipe, erased.uncond
    taken = ddim_steps(pipe.scheduler.config, steps=steps, strength=strength)
    base = guided(pipe, uncond)
    with eraser.unguarded():
        latents = encode_image(pipe, image[None])
        noise = invert(base, latents, taken, iterations=iterations)
        reconstruction = resample(base, noise, taken)
    with eraser.acting(erased):
        out = resample(guided(pipe, uncond, erased.cond, guidance_scale=eraser.guidance_scale), noise, taken)
        return Purified(*decode_latents(pipe, torch.cat([out, reconstruction, latents])))  # which may convert the VAE


def default_prompt(requests: Iterable[Request]) -> str:
    """The targets of these requests in words: 'a cat', 'an image in neon style', 'a cat and a ghost in neon style'."""
    listed = list(requests)
    nouns = [
        with_article(r.target) if r.kind in {"object", "character"} else r.target for r in listed if r.kind != "style"
    ]
    styles = [r.target for r in listed if r.kind == "style"]
    return " and ".join(nouns or ["an image"]) + (f" in {' and '.join(styles)} style" if styles else "")


def coefficients(alpha_t: float, alpha_s: float, prediction: str) -> tuple[float, float]:
    """(A, B) of the step from ᾱ_t to ᾱ_s; `UserError` for another prediction type and for ε where ᾱ_t = 0."""
    if prediction == "v_prediction":
        turn = math.acos(math.sqrt(alpha_t)) - math.acos(math.sqrt(alpha_s))
        return math.cos(turn), -math.sin(turn)
    if prediction != "epsilon":
        raise UserError(f"prediction type {prediction!r} is not supported", "use a model of epsilon or v_prediction")
    if alpha_t <= 0:
        raise UserError("an epsilon model cannot be asked at zero SNR", "use a model of v_prediction, or less strength")
    scale = math.sqrt(alpha_s / alpha_t)
    return scale, math.sqrt(1 - alpha_s) - math.sqrt(1 - alpha_t) * scale


def ddim_steps(config: Any, *, steps: int, strength: float) -> list[DdimStep]:  # noqa: ANN401 - diffusers' FrozenDict
    """The last part, `strength`, of the `steps` from noise to the image of a scheduler's config; at least one if it is > 0.

    `UserError` if `steps` or `strength` is out of range.
    """
    scheduler: Any = DDIMScheduler.from_config(config)
    total = int(scheduler.config.num_train_timesteps)
    if not 1 <= steps <= total:
        raise UserError(f"{steps} steps cannot be taken", f"use 1 to {total}")
    if not 0 <= strength <= 1:
        raise UserError(f"strength {strength:g} is out of range", "use 0 to 1")
    scheduler.set_timesteps(steps)
    times = [int(t) for t in scheduler.timesteps]
    alphas = [float(scheduler.alphas_cumprod[t]) for t in times] + [float(scheduler.final_alpha_cumprod)]
    taken = max(round(strength * steps), 1) if strength else 0
    prediction = str(scheduler.config.prediction_type)
    return [
        DdimStep(times[i], *coefficients(alphas[i], alphas[i + 1], prediction)) for i in range(steps - taken, steps)
    ]


def guided(
    pipe: StableDiffusionPipeline,
    uncond: Conditioning,  # of the empty prompt
    cond: Conditioning | None = None,  # of one prompt; None: the unconditional output alone
    *,
    guidance_scale: float = 1.0,
) -> Model:
    """The pipeline's U-Net as a function of state and timestep, with classifier-free guidance if there is a prompt.

    A state is on the U-Net's device.
    """
    uncond = uncond.to(pipe.unet.device)
    cond = None if cond is None else cond.to(pipe.unet.device)

    @torch.no_grad()
    def model(x: torch.Tensor, timestep: int) -> torch.Tensor:
        if cond is None:
            return denoise(pipe.unet, x, timestep, uncond.expand(len(x)))
        both = joined([uncond.expand(len(x)), cond.expand(len(x))])
        out_uncond, out_cond = denoise(pipe.unet, torch.cat([x, x]), timestep, both).chunk(2)
        return out_uncond + guidance_scale * (out_cond - out_uncond)

    return model


def invert(model: Model, latents: torch.Tensor, steps: Sequence[DdimStep], *, iterations: int) -> torch.Tensor:
    """Latents (B, Z, h, w) back to noise, each step solved by `iterations` of the fixed point."""
    x = latents
    for step in reversed(steps):
        cleaner = x
        for _ in range(iterations):
            x = (cleaner - step.out_factor * model(x, step.timestep)) / step.state_factor
    return x


def resample(model: Model, noise: torch.Tensor, steps: Sequence[DdimStep]) -> torch.Tensor:
    """Noise (B, Z, h, w) to latents: DDIM at η = 0."""
    x = noise
    for step in steps:
        x = step.state_factor * x + step.out_factor * model(x, step.timestep)
    return x


@torch.no_grad()
def encode_image(pipe: StableDiffusionPipeline, images: np.ndarray) -> torch.Tensor:
    """Images (B, H, W, 3) uint8 to the means of their scaled latents, (B, Z, h, w)."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pipe.vae.encode(x.to(pipe.vae.device), return_dict=False)[0].mean * pipe.vae.config.scaling_factor


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures of one shape, decibels; infinite if they are equal."""
    error = float(np.square(image.astype(np.float64) - reference).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf
