"""Tier 4: how many steps of fine-tuning bring the target back, once the adapter is part of the weights and no filter is there.

    N prompts, B samples, Z latent channels, h = w latent side

Three runs, alike in all but what is trained and on what (Lynch et al. 2024; arXiv 2410.08074):

    related    the erased U-Net on real images of the target with plain prompts
    unrelated  the erased U-Net on images and prompts of everything else
    anew       the base on the real images, under a word that it does not know: what learning a thing costs at all
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from components.common.seeding import generator, stream_seed
from components.eraser import Erased
from components.evaluate.attacks.encoder import ask, sample_of
from components.evaluate.probes.given import Given
from components.guidance.adapters import use_adapters
from components.purify.purify import encode_image

RATE, BATCH, LOOKS = 5e-5, 8, 16
"""Learning rate of AdamW, samples of a step, images of a look."""
UNKNOWN = "zxq"
"""A word that means nothing."""


class Lesson(NamedTuple):
    """What a U-Net is trained on, and the prompts that show whether it has learned."""

    read: Erased
    """N prompts, as the stock encoder reads them."""
    latents: torch.Tensor
    """(N, Z, h, w)."""
    asked: Erased
    """M prompts that are drawn at every look."""


class Look(NamedTuple):
    """What is drawn after some steps."""

    step: int
    images: np.ndarray
    """(M, H, W, 3) uint8."""


def merged_unet(given: Given) -> torch.nn.Module:
    """A U-Net of its own with every adapter of the eraser merged into its weights; the eraser stays as it was."""
    eraser = given.victim.eraser
    unet: Any = copy.deepcopy(eraser.pipe.unet)
    if eraser.adapters:
        stand_in: Any = type("Pipe", (), {"unet": unet})
        with use_adapters(stand_in, eraser.adapters):
            unet.fuse_lora()
        unet.unload_lora()
    return unet


def base_unet(given: Given) -> torch.nn.Module:
    """A U-Net of its own without any adapter."""
    unet: Any = copy.deepcopy(given.victim.eraser.pipe.unet)
    if given.victim.eraser.adapters:
        unet.unload_lora()
    return unet


def related(given: Given) -> Lesson:
    """Real images of the target under plain prompts."""
    return Lesson(stock(given, given.prompts), given.latents, stock(given, given.prompts[:LOOKS]))


def stock(given: Given, prompts: list[str]) -> Erased:
    """What the base makes of these prompts."""
    return given.victim.eraser.read(prompts, variant="base")


def unrelated(given: Given, prompts: list[str]) -> Lesson:
    """What the base draws of prompts about everything else; asked are plain prompts of the target."""
    eraser = given.victim.eraser
    erased = stock(given, prompts)
    seeds = [stream_seed(given.seed, "unrelated", p) % 2**31 for p in prompts]
    images = np.concatenate([part for _, part in eraser.paint(erased, seeds, batch=given.batch)])
    return Lesson(erased, encode_image(eraser.pipe, images), stock(given, given.prompts[:LOOKS]))


def anew(given: Given) -> Lesson:
    """Real images of the target under a word that the base does not know."""
    named = {p.text: p.text.replace(p.name_used, UNKNOWN, 1) for p in given.victim.target.prompts}
    prompts = [named[p] for p in given.prompts]
    return Lesson(stock(given, prompts), given.latents, stock(given, prompts[:LOOKS]))


def relearn(given: Given, unet: Any, lesson: Lesson, name: str) -> Iterator[Look]:  # noqa: ANN401 - a U-Net, trained in place
    """Looks at step 0 and after every `every` steps of fine-tuning all weights."""
    pipe = copy.copy(given.victim.eraser.pipe)
    pipe.unet = unet  # a shallow copy: the eraser's pipeline has its own
    seeds = [stream_seed(given.seed, "relearn", i) % 2**31 for i in range(len(lesson.asked.prompts))]
    eraser = given.victim.eraser

    def look(step: int) -> Look:
        unet.eval()
        images = sample_of(
            pipe,
            lesson.asked,
            seeds,
            steps=eraser.solver_steps,
            guidance_scale=eraser.guidance_scale,
            batch=given.batch,
        )
        return Look(step, images)

    unet.requires_grad_(True)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=RATE, weight_decay=0.0)
    total = int(pipe.scheduler.config.num_train_timesteps)
    alphas, velocity = pipe.scheduler.alphas_cumprod, pipe.scheduler.config.prediction_type == "v_prediction"
    yield look(0)
    for step in range(given.size.relearning_steps):
        rng = generator(given.seed, "relearn", name, step)
        rows = torch.randint(len(lesson.latents), (BATCH,), generator=rng)
        t = torch.randint(total, (BATCH,), generator=rng)
        clean, noise = (
            lesson.latents[rows],
            torch.randn(BATCH, *lesson.latents.shape[1:], generator=rng).to(lesson.latents.device),
        )
        alpha = alphas[t].to(clean.device)[:, None, None, None]
        wanted = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean if velocity else noise
        with torch.enable_grad():
            noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
            out = ask(unet.train(), noisy, t.to(clean.device), lesson.read.take(rows.tolist()))
            loss = F.mse_loss(out, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if (step + 1) % given.size.every == 0:
            yield look(step + 1)
